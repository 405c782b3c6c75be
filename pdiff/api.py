"""The same from Python: `pdiff.load(workdir)`, then `sample`, `apply` and `accuracy`."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from pdiff import dist, files, generator, rng
from pdiff.checkpoint import Checkpoints
from pdiff.config import DESCRIBING
from pdiff.errors import PdiffError
from pdiff.evaluators.accuracy import Scorer, repeat
from pdiff.generator import Generator
from pdiff.models.conditions import Mixture
from pdiff.report import results as results_lib
from pdiff.sample import Samplers
from pdiff.tasks import support as support_lib
from pdiff.tasks.base import Task
from pdiff.weights import codec
from pdiff.weights import spec as spec_lib


class LoadedGenerator:
    """A trained generator. `family` lists its tasks, `target` is the network that it generates."""

    def __init__(self, static: Generator, params: PyTree, default_sampler: str):
        self.family, self.target, self.config = static.family, static.target, static.config
        self.default_sampler = default_sampler
        self._static, self._params, self._mesh = static, params, dist.make_mesh()
        self._samplers = Samplers(static, self._mesh)

    def sample(
        self,
        *,
        prompt: str | None = None,
        task_id: int | str | None = None,
        between: tuple[int | str, int | str, float] | None = None,
        support: Float[np.ndarray, "images features"] | None = None,
        labels: Int[np.ndarray, " images"] | None = None,
        num_samples: int = 1,
        sampler: str | None = None,
        seed: int = 0,
    ) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Networks for a description, a task of the family, a place between two of its tasks, or a few images.

        Args:
          prompt: a description, in the words of the training ones. It is read as text or by the sentence encoder, as
            the run samples, or else as it was trained.
          task_id: id or name. The task is asked for by all conditions that the run samples with, and by its id if it
            is a seen one.
          between: (a, b, w): the encoded conditions of two tasks, mixed w in [0, 1] of the way from a to b.
          support: images of the task, flattened as the family's are, with `labels` or without.

        Raises:
          PdiffError: not exactly one of the four was given, it cannot be read, or the generator was not trained on it.
        """
        given = [n for n, v in (("prompt", prompt), ("task_id", task_id), ("between", between), ("support", support))
                 if v is not None]  # fmt: skip
        if len(given) != 1:
            raise PdiffError(
                f"sample: got {', '.join(given) or 'nothing'}; give one of prompt, task_id, between, support"
            )
        if prompt is not None:
            condition = self._described(prompt)
        elif support is not None:
            self._needs(("support",), "support")
            sets = support_lib.of_images(support, labels, self.family.num_classes)
            features = self.family.features
            if sets.x.shape[-1] != features:
                raise PdiffError(f"support: got images of {sets.x.shape[-1]} numbers; allowed: {features}")
            condition = self._static.condition([self.family.tasks[0]], None, ("support",), sets)
        elif between is not None:
            a, b, weight = between
            if not 0 <= weight <= 1:
                raise PdiffError(f"between: got the weight {weight!r}; allowed: a number from 0 to 1")
            condition = Mixture(self._condition(a), self._condition(b), np.array([weight], np.float32))
        else:
            condition = self._condition(task_id)
        condition = jax.tree.map(lambda x: np.repeat(np.asarray(x), num_samples, 0), condition)
        name = sampler or self.default_sampler
        return self._whole(self._samplers.networks(self._params, name, condition, rng.stream(seed, "sample")))

    def _whole(self, parts: PyTree[Float[np.ndarray, "samples ..."]]) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Whole trees of generated parts; the base's leaves are repeated without using memory."""
        static, count = self._static, len(jax.tree.leaves(parts)[0])
        flat = dict(spec_lib.flatten(repeat(static.base, count))) | dict(spec_lib.flatten(parts))
        return jax.tree.unflatten(static.spec.treedef, [flat[leaf.path] for leaf in static.spec.all_leaves])

    def _needs(self, conditions: Sequence[str], argument: str) -> tuple[str, ...]:
        """Those of `conditions` that the generator was trained on; raises PdiffError if there is none."""
        use = self.config.condition.use
        read = tuple(n for n in conditions if n in use)
        if not read:
            raise PdiffError(
                f"{argument}: this generator was trained on {', '.join(use)} and reads no {' or '.join(conditions)}; "
                "give a task"
            )
        return read

    def _described(self, prompt: str) -> dict:
        read = self._needs(DESCRIBING, "prompt")
        given = tuple(n for n in read if n in self.config.sample.condition) or read
        return self._static.condition([self.family.tasks[0]], [prompt], given)

    def _condition(self, name: int | str) -> dict:
        task, given = self.task(name), self.config.sample.condition
        if "id" in self.config.condition.use and task.split == "seen":
            given = tuple({*given, "id"})
        return self._static.condition([task], None, given)

    def task(self, name: int | str) -> Task:
        """A task by id or name.

        Raises:
          PdiffError: there is no such task.
        """
        for task in self.family.tasks:
            if str(name) in (task.name, str(task.id)):
                return task
        raise PdiffError(
            f"task: got {name!r}; allowed: an id from 0 to {len(self.family.tasks) - 1}, "
            f"or a name such as {self.family.tasks[0].name}"
        )

    def apply(self, params: PyTree[Float[Array, "..."]], x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        """Logits of one network; `vmap` it over stacked ones."""
        return self.target.apply(params, x)

    def accuracy(
        self, params: PyTree[Float[np.ndarray, "samples ..."]], task: int | str
    ) -> Float[np.ndarray, " samples"]:
        """Test accuracy of stacked networks on a task's images."""
        count = len(jax.tree.leaves(params)[0])
        parts = jax.vmap(lambda p: codec.take(self._static.spec, p))(params)
        return Scorer(self._static, "test", self._mesh)(parts, np.full(count, self.task(task).id))


def load(workdir: str | Path) -> LoadedGenerator:
    """The generator of a run's newest checkpoint.

    Raises:
      PdiffError: there is none, or it is damaged.
    """
    static = generator.load(Path(workdir))
    params = restore_params(static, Path(workdir))
    path = Path(workdir) / "results.json"
    chosen = static.config.sample.samplers[0]
    if path.exists():
        chosen = results_lib.read(path)["selection"]["sampler"]
    return LoadedGenerator(static, params, chosen)


def restore_params(static: Generator, workdir: Path) -> PyTree:
    """The averaged parameters of the newest checkpoint of a run."""
    like = jax.eval_shape(static.init, jax.random.key(0))
    mesh = dist.make_mesh()
    sharding = jax.sharding.NamedSharding(mesh, dist.REPLICATED)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like)
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", static.config.train.keep_checkpoints)
    try:
        return checkpoints.restore_ema(like)[1]
    finally:
        checkpoints.close()



def model_digest(workdir: Path) -> str:
    """sha256 of the manifest of the newest checkpoint, which has the sha256 of each of its files."""
    found = (p for p in (Path(workdir) / "checkpoints").glob(f"[0-9]*/{files.MANIFEST}"))
    return files.sha256(max(found, key=lambda p: int(p.parent.name)))
