"""The same from Python: `pdiff.load(workdir)`, then `sample`, `adapt`, `expect`, `apply` and `accuracy`."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
from tqdm import tqdm

from pdiff import results as results_lib
from pdiff import rng
from pdiff.ask import prompts
from pdiff.ask.asked import Between, Request
from pdiff.ask.expect import Expectation, Expectations
from pdiff.ask.prompts import Descriptions, shortened
from pdiff.config.fields import DESCRIBING, SAMPLERS
from pdiff.errors import PdiffError
from pdiff.evaluation.vague import Grid, Suited
from pdiff.generator import conditioning, generator, published
from pdiff.generator.adapt import Adapter, check_examples, recipe_for
from pdiff.generator.generator import Generator
from pdiff.generator.sample import Samplers
from pdiff.measures.accuracy import Scorer, repeat
from pdiff.models.conditions import Mixture
from pdiff.system import dist
from pdiff.system.logs import log
from pdiff.tasks import support as support_lib
from pdiff.tasks.base import Task
from pdiff.tasks.language import Reading
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
        self.default_sampler: str = results.get("selection", {}).get("sampler", static.config.sample.samplers[0])
        self.tokenizer, self.model = static.tokenizer, model
        self._descriptions = Descriptions(static.family) if static.family.grammar is None else None
        self.reads_prompts = not set(DESCRIBING).isdisjoint(static.config.condition.use)
        self._expectations = Expectations(results, static.family)
        self._static, self._params, self._mesh = static, params, dist.make_mesh()
        self._samplers = Samplers(static, self._mesh)

    def sample(
        self,
        *,
        prompt: str | None = None,
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
          prompt: a description, in the words of the training ones: of one task, or of a set of them, from which each
            network is drawn; `understood` says which. One task is read as text or by the sentence encoder, as the run
            samples, or else as it was trained.
          task_id: id or name. The task is asked for by the conditions that the run samples with.
          between: (a, b, w): the encoded conditions of two tasks, mixed w in [0, 1] of the way from a to b.
          num_samples: how many networks.
          sampler: one of `pdiff.config.fields.SAMPLERS`; `sampler_for(prompt)` if None.
          seed: another one gives other networks; the same gives the same.
          force: take a prompt that is like none of the descriptions that the generator knows, with a warning.
          progress: show a bar, if stderr is a terminal.

        Returns:
          A parameter tree of `target`, every leaf with a leading axis over the samples.

        Raises:
          PdiffError: not exactly one of the three was given, it cannot be read, or the generator was not trained on it.
        """
        return self.draw(Request(prompt, task_id, between, num_samples, sampler, seed, force), progress)

    def draw(self, request: Request, progress: bool = False) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """`sample` of a request."""
        return self._whole(self._drawn(request, "sample", progress))

    def adapt(
        self,
        images: ArrayLike,
        labels: ArrayLike | None = None,
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
          images: (images, …) of the task, with pixels in [0, 1], flat or not.
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
        if not self.family.data:
            raise PdiffError("support: networks that were imported without images cannot be asked about any")
        sets = support_lib.of_images(images, labels, self.family.num_classes, self.family.features)
        recipe = recipe_for(sets, self.results, self.config.adapt, self.family.num_classes, prompt is not None)
        if steps is not None:
            if steps < 0:
                raise PdiffError(f"steps: got {steps}; allowed: at least 0")
            recipe = dataclasses.replace(recipe, steps=steps)
        labelled = check_examples(sets, self.family.classes, recipe)
        if labelled and recipe.guided and prompt is None:
            chosen = self._adapter.draw_guided(self._params, sets, recipe.guided, rng.stream(seed, "adapt"))
        else:
            anything = prompt is None
            pool = Request(prompt, None, None, num_samples, self.differing_sampler, seed, force, anything=anything)
            chosen = self._adapter.choose(self._drawn(pool, "adapt", progress), sets)
        return self._whole(self._adapter.finetune(chosen, sets, recipe) if labelled else chosen)

    def understood(self, prompt: str | None, force: bool = False) -> Reading | None:
        """What a prompt is read as: one task, a set of tasks, or a text that the model reads; None for none.

        Args:
          force: take a prompt that cannot be read as it is.

        Raises:
          PdiffError: it cannot be read, names an empty set, or is too long.
        """
        if prompt is None:
            return None
        reading = prompts.read(self.family, self._descriptions, prompt, force)
        if reading.tasks is not None and not len(self._static.refined.rows_of(reading.tasks)):
            raise PdiffError(f"prompt: {shortened(prompt)} names {reading.said}, where there is no task")
        return reading

    def suited(self, params: PyTree[Float[np.ndarray, "samples ..."]], prompt: str) -> list[Suited]:
        """What each of some networks that were drawn for a vague prompt is good for, and how good.

        The task is the one of the set on whose training images the network is most often right; the accuracy is that
        on test images.

        Raises:
          PdiffError: the prompt is not vague.
        """
        reading = self.understood(prompt)
        if reading is None or reading.tasks is None:
            raise PdiffError(f"prompt: got {shortened(prompt)}; allowed: a vague one, which names a set of tasks")
        return self._grid.suited_of(self._parts(params), reading.tasks)

    def expect(
        self,
        *,
        prompt: str | None = None,
        task_id: int | str | None = None,
        between: Between | None = None,
        sampler: str | None = None,
    ) -> Expectation | None:
        """The test accuracy to expect of what `sample` returns for the same arguments; None if nothing is known.

        It is read off the run's results; see `pdiff.ask.expect`.

        Raises:
          PdiffError: not exactly one of the first three was given, or as `sample` for tasks and weights.
        """
        return self.expected(Request(prompt, task_id, between, sampler=sampler))

    def expected(self, request: Request) -> Expectation | None:
        """`expect` of a request."""
        name, given = self.sampler_for(request.prompt, request.sampler), self.config.sample.condition
        if not self.results:
            return None
        if (reading := self.understood(request.prompt, request.force)) is not None:
            if reading.tasks is not None:
                return self._expectations.for_set(reading.tasks, name, given)
            if reading.factors is not None:
                return self._expectations.for_factors(reading.factors, name, self._described())
            task = self._descriptions and self._descriptions.task(request.prompt)
            return task and self._expectations.for_task(task, name, self._described())
        if request.between is not None:
            return self._expectations.between(*self._ends(request.between), request.between[2], name, given)
        return self._expectations.for_task(self.task(request.task), name, given)

    def expect_adapted(self, labels: Int[np.ndarray, " images"] | None, described: bool) -> Expectation | None:
        """The test accuracy to expect of what `adapt` returns for so many labelled images; None if nothing is known."""
        classes = self.family.num_classes
        known = np.asarray([] if labels is None else labels, int)
        return self._expectations.adapted(int(np.bincount(known[known >= 0], minlength=classes).min()), described)

    def _drawn(self, request: Request, purpose: str, progress: bool) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Generated parts of the networks of a request; draws for another purpose are others."""
        name, count = self.sampler_for(request.prompt, request.sampler), request.num_samples
        condition = jax.tree.map(lambda x: np.repeat(np.asarray(x), count, 0), self._condition(request))
        batches = self._samplers.batches(self._params, name, condition, rng.stream(request.seed, purpose))
        return dist.join(_shown(batches, count, progress), count)

    @functools.cached_property
    def _adapter(self) -> Adapter:
        return Adapter(self._static, self._mesh)

    @functools.cached_property
    def _grid(self) -> Grid:
        return Grid(self._static, self._mesh)

    def _condition(self, request: Request) -> dict | Mixture:
        """The condition of one of a request's networks."""
        if request.prompt is not None:
            return self._prompted(request.prompt, request.force, request.seed)
        if request.anything:
            return self._static.condition([self.family.tasks[0]], given=())
        tasks = [self.task(request.task)] if request.between is None else self._ends(request.between)
        first, *second = (self._static.condition([task], None, self.config.sample.condition) for task in tasks)
        return Mixture(first, *second, np.array([request.between[2]], np.float32)) if second else first

    def _prompted(self, prompt: str, force: bool, seed: int) -> dict:
        """The condition of a prompt: of networks for the set that it names, or of its description."""
        reading = self.understood(prompt, force)
        if reading.tasks is not None:
            return conditioning.set_condition(self._static, reading.tasks, 1, rng.on_host(seed, "sample/set"))
        if reading.doubt:
            log.warning("warning: prompt %s: %s", shortened(prompt), reading.doubt)
        return self._static.condition([self.family.tasks[0]], [reading.text], self._described())

    def _parts(self, params: PyTree[Float[np.ndarray, "samples ..."]]) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """What of whole trees is generated."""
        return jax.vmap(lambda p: codec.take(self._static.spec, p))(params)

    def _whole(self, parts: PyTree[Float[np.ndarray, "samples ..."]]) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Whole trees of generated parts; the base's leaves are repeated without using memory."""
        static, count = self._static, len(jax.tree.leaves(parts)[0])
        flat = dict(spec_lib.flatten(repeat(static.base, count))) | dict(spec_lib.flatten(parts))
        return jax.tree.unflatten(static.spec.treedef, [flat[leaf.path] for leaf in static.spec.all_leaves])

    def _described(self) -> tuple[str, ...]:
        """The conditions that a prompt is read by."""
        if not self.reads_prompts:
            use, wanted = ", ".join(self.config.condition.use), " or ".join(DESCRIBING)
            raise PdiffError(f"prompt: this generator was trained on {use} and reads no {wanted}; give a task")
        read = tuple(n for n in DESCRIBING if n in self.config.condition.use)
        return tuple(n for n in read if n in self.config.sample.condition) or read

    def _ends(self, between: Between) -> tuple[Task, Task]:
        return self.task(between[0], "between"), self.task(between[1], "between")

    @property
    def differing_sampler(self) -> str:
        """The default for networks that are to differ: one call (`posterior_mean`) draws the mean of all there are."""
        if self.default_sampler != "posterior_mean":
            return self.default_sampler
        return self.results.get("selection", {}).get("many_steps", "heun")

    def sampler_for(self, prompt: str | None, sampler: str | None = None) -> str:
        """The sampler that `sample` uses for a prompt, or for a request without one: the one that is asked for, if any.

        Raises:
          PdiffError: there is no such sampler, or as `understood`.
        """
        if sampler is not None and sampler not in SAMPLERS:
            raise PdiffError(f"sampler: got {sampler!r}; allowed: {', '.join(SAMPLERS)}")
        if sampler is not None:
            return sampler
        reading = self.understood(prompt, force=True)
        vague = reading is not None and reading.tasks is not None
        return self.differing_sampler if vague else self.default_sampler

    def task(self, name: int | str, argument: str = "task") -> Task:
        """A task by id or name; `argument` is for the message.

        Raises:
          PdiffError: there is no such task.
        """
        for task in self.family.tasks:
            if str(name) in (task.name, str(task.id)):
                return task
        raise PdiffError(
            f"{argument}: got {name!r}; allowed: an id from 0 to {len(self.family.tasks) - 1}, "
            f"or a name such as {self.family.tasks[0].name}"
        )

    def apply(
        self, params: PyTree[Float[ArrayLike, "..."]], x: Float[ArrayLike, "n features"]
    ) -> Float[Array, "n classes"]:
        """Logits of one network; `vmap` it over stacked ones."""
        return self.target.apply(params, jnp.asarray(x))

    @functools.cached_property
    def _score(self) -> Scorer:
        """Made once: it renders and compiles."""
        return Scorer(self._static, "test", self._mesh)

    def accuracy(
        self, params: PyTree[Float[np.ndarray, "samples ..."]], task: int | str
    ) -> Float[np.ndarray, " samples"]:
        """Test accuracy of stacked networks on a task's images."""
        parts = self._parts(params)
        return self._score(parts, np.full(len(jax.tree.leaves(parts)[0]), self.task(task).id))


def _shown(batches: Iterable[PyTree], count: int, progress: bool) -> Iterable[PyTree]:
    """The batches, with a bar of the networks among them."""
    with tqdm(total=count, desc="sample", unit="network", disable=None if progress else True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(jax.tree.leaves(batch)[0]))


def place(workdir: str | Path | None) -> Path:
    """Where a generator lies: the workdir, or, without one, what comes with the package."""
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
