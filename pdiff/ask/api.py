"""The same from Python: `pdiff.load(workdir)`, then `describe`, `sample`, `adapt`, `expect`, `apply` and `accuracy`."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
from tqdm import tqdm

from pdiff import results as results_lib
from pdiff import rng
from pdiff.ask import inputs
from pdiff.ask.expect import Expectation
from pdiff.ask.overview import Overview, overview
from pdiff.ask.plan import Plan, Planner
from pdiff.ask.request import Between, Request, whole
from pdiff.errors import PdiffError, shortened
from pdiff.evaluation.vague import Grid, Suited
from pdiff.generator import generator, published
from pdiff.generator.adapt import Adapter, check_examples, recipe_for
from pdiff.generator.generator import Generator
from pdiff.generator.sample import Samplers
from pdiff.measures.accuracy import Scorer, repeat
from pdiff.system import dist
from pdiff.tasks import support as support_lib
from pdiff.tasks.base import Task
from pdiff.tasks.language import Reading, TaskSet
from pdiff.weights import codec
from pdiff.weights import spec as spec_lib


class LoadedGenerator:
    """A trained generator. `family` lists its tasks, `target` is the network that it generates.

    Attributes:
      family: a `pdiff.tasks.base.Family`; `family.tasks` are what `task_id` and `between` may name.
      target: a `pdiff.targets.base.Target`.
      config: of the run.
      results: the run's results.json; empty if it has none.
      default_sampler: the one that validation chose.
      reads_prompts: whether it was trained on any condition that a prompt is read by.
      tokenizer: a `pdiff.models.text.Tokenizer`, which reads prompts.
      model: the sha256 that says which checkpoint or published folder it was loaded from, as `published.restore`'s.
    """

    def __init__(self, static: Generator, params: PyTree, results: dict, model: str = ""):
        self.family, self.target, self.config, self.results = static.family, static.target, static.config, results
        self._planner = Planner(static, results)
        self.default_sampler, self.reads_prompts = self._planner.default_sampler, self._planner.reads_prompts
        self.tokenizer, self.model = static.tokenizer, model
        self._static, self._params, self._mesh = static, params, dist.make_mesh()
        self._samplers = Samplers(static, self._mesh)

    def describe(self) -> Overview:
        """What can be asked for and how images have to look: tasks, prompts, ranges, samplers. `print` it."""
        return overview(self._static, self.examples(), self.default_sampler)

    def sample(
        self,
        prompt: str | None = None,
        *,
        task_id: int | str | None = None,
        between: Between | None = None,
        num_samples: int = 1,
        sampler: str | None = None,
        seed: int = 0,
        force: bool = False,
        progress: bool = False,
    ) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Networks for a description, a task of the family, or a place between two of its tasks.

        Args:
          prompt: a description of one task, or of a set of them, from which each network is drawn; `understood` says
            which, and `examples` has some. Networks for one task differ little.
          task_id: a task's name, or its id, which counts the family's tasks and is no angle or other factor. The task
            is asked for by the conditions that the run samples with.
          between: (a, b, w): the encoded conditions of two tasks, mixed w in [0, 1] of the way from a to b.
          num_samples: how many networks.
          sampler: one of `pdiff.config.fields.SAMPLERS`; by default the one that validation chose, and of a set of
            tasks one whose networks differ.
          seed: from 0 to 2^32 - 1. Another one gives other networks; the same gives the same.
          force: take a prompt that cannot be read, or is like no description that the generator knows, with a warning.
          progress: show a bar, if stderr is a terminal.

        Returns:
          A parameter tree of `target`, every leaf with a leading axis over the samples.

        Raises:
          PdiffError: not exactly one of the three was given, an argument is of another type or out of range, it cannot
            be read, or the generator was not trained on it.
        """
        return self.draw(self.plan(Request(prompt, task_id, between, num_samples, sampler, seed, force)), progress)

    def plan(self, request: Request) -> Plan:
        """What is done for a request. `sample` and `expect` are `draw` and `expected` of it.

        Raises:
          PdiffError: as `sample`.
        """
        return self._planner.plan(request)

    def draw(self, plan: Plan, progress: bool = False) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """`sample` of a request for which there is a plan."""
        return self._whole(self._drawn(plan, "sample", progress))

    def adapt(
        self,
        images: ArrayLike | Sequence[Any],
        labels: ArrayLike | Sequence[int] | None = None,
        *,
        prompt: str | None = None,
        num_samples: int = 512,
        steps: int | None = None,
        seed: int = 0,
        force: bool = False,
        progress: bool = False,
    ) -> PyTree[Float[np.ndarray, "1 ..."]]:
        """A network for a task of which there are a few images: the likeliest of many, fine-tuned on them.

        Args:
          images: (images, features) or (images, *image_shape) of the task, with pixels in [0, 1]; or a list of texts.
          labels: of the images, UNKNOWN (-1) where one has none. Without any, the network that is surest of its answers
            is taken as it is, with a warning: on a task unlike the seen ones a network may be sure and wrong. There is
            another if a class has none, and for so many steps on so few images that these are learned by heart.
          prompt: a description to draw from, precise or vague; without one, networks of all kinds of tasks are drawn.
          num_samples: how many are drawn.
          steps: of fine-tuning; as the run's config says by default. What else there is to choose, its validation tasks
            chose.

        Returns:
          A parameter tree of `target` with one network.

        Raises:
          PdiffError: the images or labels do not fit, a single image has one, or as `sample` of a prompt.
        """
        given = {"prompt": prompt, "num_samples": num_samples, "steps": steps, "seed": seed, "force": force}
        return self.adapted(images, labels, **given, progress=progress)[0]

    def adapted(
        self,
        images: ArrayLike | Sequence[Any],
        labels: ArrayLike | Sequence[int] | None,
        *,
        prompt: str | None,
        num_samples: int,
        seed: int,
        steps: int | None = None,
        force: bool = False,
        progress: bool = False,
    ) -> tuple[PyTree[Float[np.ndarray, "1 ..."]], Plan]:
        """`adapt`, and what was done for its prompt."""
        anything = prompt is None
        request = Request(
            prompt, None, None, num_samples, self._planner.differing_sampler, seed, force, anything=anything
        )
        if not self.family.data:
            raise PdiffError("support: networks that were imported without images cannot be asked about any")
        x = inputs.images(images, self.family)
        pixels = self.family.reads is None
        sets = support_lib.of_images(
            x, inputs.labels(labels), self.family.num_classes, self.family.features, pixels=pixels
        )
        recipe = recipe_for(sets, self.results, self.config.adapt, self.family.num_classes, prompt is not None)
        if steps is not None:
            whole("steps", steps, 0)
            recipe = dataclasses.replace(recipe, steps=steps)
        plan = self.plan(request)
        if pixels:
            inputs.warn_of_dark(x)
        labelled = check_examples(sets, self.family.classes, recipe)
        if labelled and recipe.guided and prompt is None:
            chosen = self._adapter.draw_guided(self._params, sets, recipe.guided, rng.stream(seed, "adapt"))
            request = dataclasses.replace(request, num_samples=recipe.guided, sampler="ddim")
            plan = dataclasses.replace(plan, request=request, sampler="ddim")
        else:
            chosen = self._adapter.choose(self._drawn(plan, "adapt", progress), sets)
        return self._whole(self._adapter.finetune(chosen, sets, recipe) if labelled else chosen), plan

    def understood(self, prompt: str | None, force: bool = False) -> Reading | None:
        """What a prompt is read as: one task, a set of tasks, or a text that the model reads; None for none.

        Args:
          force: take a prompt that cannot be read as it is.

        Raises:
          PdiffError: it cannot be read, names an empty set, or is too long.
        """
        return self._planner.understood(prompt, force)

    def examples(self, count: int = 6) -> list[str]:
        """At most `count` prompts that work, precise and vague; none where no prompt is read."""
        return self._planner.examples(count)

    def suited(self, params: PyTree[Float[np.ndarray, "samples ..."]], prompt: str) -> list[Suited]:
        """What each of some networks that were drawn for a vague prompt is good for, and how good.

        The task is the one of the set on whose training images the network is most often right; the accuracy is that
        on test images.

        Raises:
          PdiffError: the prompt is not vague, or the networks are not stacked ones of this generator.
        """
        plan = self.plan(Request(prompt))
        if not plan.vague:
            raise PdiffError(f"prompt: got {shortened(prompt)}; allowed: a vague one, which names a set of tasks")
        return self.suited_in(params, plan.reading.tasks)

    def suited_in(self, params: PyTree[Float[np.ndarray, "samples ..."]], tasks: TaskSet) -> list[Suited]:
        """`suited` of networks that were drawn for a set of tasks."""
        inputs.stacked(params, self._static.spec.all_leaves)
        return self._grid.suited_of(self._parts(params), tasks)

    def expect(
        self,
        prompt: str | None = None,
        *,
        task_id: int | str | None = None,
        between: Between | None = None,
        sampler: str | None = None,
        force: bool = False,
    ) -> Expectation | None:
        """The test accuracy to expect of what `sample` returns for the same arguments; None if nothing is known.

        It is read off the run's results; see `pdiff.ask.expect`. Of a prompt that is only taken by force nothing is.

        Raises:
          PdiffError: as `sample`.
        """
        return self.expected(self.plan(Request(prompt, task_id, between, sampler=sampler, force=force)))

    def facts(self, expected: Expectation | None, suited: Sequence[Suited] = ()) -> dict[str, str]:
        """What a file of its networks says of this generator, of what it expects, and of what each is good for."""
        accuracy = "" if expected is None else json.dumps(dataclasses.asdict(expected))
        best = [{"for": one.description, "accuracy": round(one.accuracy, 4)} for one in suited]
        facts = {"model": self.model, "expected_accuracy": accuracy}
        return facts | ({"best": json.dumps(best)} if best else {})

    def expected(self, plan: Plan) -> Expectation | None:
        """`expect` of a request for which there is a plan."""
        return self._planner.expected(plan)

    def expect_adapted(self, labels: Int[np.ndarray, " images"] | None, described: bool) -> Expectation | None:
        """The test accuracy to expect of what `adapt` returns for so many labelled images; None if nothing is known."""
        classes = self.family.num_classes
        known = np.asarray([] if labels is None else labels, int)
        per_class = int(np.bincount(known[known >= 0], minlength=classes).min())
        return self._planner.expectations.adapted(per_class, described)

    def _drawn(self, plan: Plan, purpose: str, progress: bool) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Generated parts of the networks that are planned; draws for another purpose are others."""
        count = plan.request.num_samples
        condition = jax.tree.map(lambda x: np.repeat(np.asarray(x), count, 0), plan.condition)
        batches = self._samplers.batches(self._params, plan.sampler, condition, rng.stream(plan.request.seed, purpose))
        return dist.join(_shown(batches, count, progress), count)

    @functools.cached_property
    def _adapter(self) -> Adapter:
        return Adapter(self._static, self._mesh)

    @functools.cached_property
    def _grid(self) -> Grid:
        return Grid(self._static, self._mesh)

    def _parts(self, params: PyTree[Float[np.ndarray, "samples ..."]]) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """What of whole trees is generated."""
        return jax.vmap(lambda p: codec.take(self._static.spec, p))(params)

    def _whole(self, parts: PyTree[Float[np.ndarray, "samples ..."]]) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Whole trees of generated parts; the base's leaves are repeated without using memory."""
        static, count = self._static, len(jax.tree.leaves(parts)[0])
        flat = dict(spec_lib.flatten(repeat(static.base, count))) | dict(spec_lib.flatten(parts))
        return jax.tree.unflatten(static.spec.treedef, [flat[leaf.path] for leaf in static.spec.all_leaves])

    def task(self, name: int | str, argument: str = "task") -> Task:
        """A task by its name or its id; the first id warns that it is one. `argument` is for messages.

        Raises:
          PdiffError: there is no such task.
        """
        return self._planner.task(name, argument)

    def images(
        self, task: int | str, part: str = "test"
    ) -> tuple[Float[np.ndarray, "images features"], Int[np.ndarray, " images"]]:
        """Images of a task as networks see them, of the part `train`, `validation` or `test`, and their labels.

        Raises:
          PdiffError: there is no such task or part, or networks were imported without images.
        """
        family = self.family
        if part not in family.data:
            raise PdiffError(f"part: got {part!r}; allowed: {', '.join(family.data) or 'none, as there are no images'}")
        data, variables = family.data[part], jax.tree.map(lambda v: v[self.task(task).id], family.variables)
        return jax.tree.map(np.asarray, family.all_of_task(variables, data.x, data.y))

    def apply(
        self, params: PyTree[Float[ArrayLike, "..."]], x: ArrayLike | Sequence[Any]
    ) -> Float[Array, "n classes"] | Float[Array, "samples n classes"]:
        """Logits of one network, or of each of stacked ones.

        Args:
          params: a tree of `target`; of stacked networks axis 0 of every leaf counts them.
          x: images with pixels in [0, 1], (images, features) or (images, *image_shape); or a list of texts.

        Returns:
          (images, classes); of stacked networks (samples, images, classes).

        Raises:
          PdiffError: the networks or the images have other shapes, or pixels are out of range.
        """
        count = inputs.stacked(params, self._static.spec.all_leaves, also_one=True)
        x = jnp.asarray(inputs.images(x, self.family, "x") if self.family.data else x)
        return self.target.apply(params, x) if count is None else jax.vmap(self.target.apply, (0, None))(params, x)

    @functools.cached_property
    def _score(self) -> Scorer:
        """Made once: it renders and compiles."""
        return Scorer(self._static, "test", self._mesh)

    def accuracy(
        self, params: PyTree[Float[np.ndarray, "samples ..."]], task: int | str
    ) -> Float[np.ndarray, " samples"]:
        """Test accuracy of each of some stacked networks on a task's images.

        Args:
          task: its name, or its id, which is no angle or other factor.

        Raises:
          PdiffError: there is no such task, or the networks are not stacked ones of this generator.
        """
        count = inputs.stacked(params, self._static.spec.all_leaves)
        return self._score(self._parts(params), np.full(count, self.task(task).id))


def _shown(batches: Iterable[PyTree], count: int, progress: bool) -> Iterable[PyTree]:
    """The batches, with a bar of the networks among them."""
    with tqdm(total=count, desc="sample", unit="network", disable=None if progress else True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(jax.tree.leaves(batch)[0]))


def place(workdir: str | Path | None) -> Path:
    """Where a generator lies: the workdir, or, without one, what comes with the package."""
    if not isinstance(workdir, (str, os.PathLike, type(None))):
        raise PdiffError(f"workdir: got {workdir!r}; allowed: the path of a run's workdir or of a published folder")
    return Path(workdir) if workdir is not None else published.EMBEDDED


def load(workdir: str | Path | None = None) -> LoadedGenerator:
    """The generator of a run's newest checkpoint, of a published folder, or, without a workdir, of the package.

    Raises:
      PdiffError: there is none, or it is damaged.
    """
    where = place(workdir)
    if not where.is_dir():
        said = "missing, and this pdiff comes without a generator" if workdir is None else f"{where}: no such folder"
        raise PdiffError(f"--workdir: {said}; allowed: the workdir of a run, or a folder that --mode=publish wrote")
    static = generator.load(where)
    params, model = published.restore(static, where)
    path = where / "results.json"
    return LoadedGenerator(static, params, results_lib.read(path) if path.exists() else {}, model)
