"""What every measurement of a trained generator shares: drawing networks for tasks, and scoring them."""

import copy
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from pdiff import rng
from pdiff.generator import conditioning
from pdiff.generator.generator import Generator
from pdiff.generator.sample import Samplers
from pdiff.measures.accuracy import Scorer
from pdiff.results import summary
from pdiff.system import dist
from pdiff.system.evenly import evenly
from pdiff.tasks.base import Task
from pdiff.weights import codec


@dataclasses.dataclass(frozen=True)
class Scores:
    """Accuracies of several networks for each of several tasks."""

    values: Float[np.ndarray, "tasks count"]

    def summary(self) -> dict:
        groups = np.repeat(np.arange(len(self.values)), self.values.shape[1])
        return summary(self.values.reshape(-1), groups)

    @property
    def choice(self) -> float:
        """What is chosen by."""
        return float(self.values.mean())

    def of_choice(self) -> dict:
        return self.summary()

    def per_task(self, i: int) -> float:
        return float(self.values[i].mean())


class Bench:
    """A generator with trained parameters, and scorers on validation and test images."""

    def __init__(self, generator: Generator, params: PyTree, mesh: Mesh):
        self.generator, self.params, self.mesh = generator, params, mesh
        self.config = generator.config
        self.samplers = Samplers(generator, mesh)
        parts = ("validation", "test") if generator.family.data else ()
        self.score = {part: Scorer(generator, part, mesh) for part in parts}

        def denoise(params, arrays, condition, rows):
            bound = generator.bind(arrays)
            return bound.denoiser(params, bound.members(condition))(*rows)

        specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED, dist.SHARDED)
        self._denoise = dist.data_parallel(denoise, mesh, specs, dist.SHARDED)

    def with_params(self, params: PyTree) -> "Bench":
        """The same with other parameters; what is compiled is shared."""
        other = copy.copy(self)
        other.params = params
        return other

    def tasks(self, split: str, most: int | None = None) -> tuple[Task, ...]:
        """At most `most` (by default `eval.max_tasks`) tasks of a split, evenly chosen."""
        tasks = self.generator.family.split(split)
        return tuple(tasks[i] for i in evenly(len(tasks), most or self.config.eval.max_tasks))

    def choosing_tasks(self, most: int | None = None) -> tuple[Task, ...]:
        """As `tasks`, of the split whose validation images choose among options."""
        return self.tasks(self.generator.family.choosing_split, most)

    def condition(self, tasks: Sequence[Task], count: int, **how) -> dict:
        """The condition of `count` samples for each task; see `conditioning.sample_condition`."""
        return conditioning.sample_condition(self.generator, tasks, count, **how)

    def generate(
        self, sampler: str, tasks: Sequence[Task], stream: str, count: int | None = None, **condition
    ) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """`count` (by default `eval.samples_per_task`) networks for each task; see `condition` for the rest."""
        return self.samplers.networks(*self._asked(sampler, tasks, stream, count, condition))

    def scores(
        self,
        sampler: str,
        tasks: Sequence[Task],
        stream: str,
        count: int | None = None,
        part: str = "test",
        **condition,
    ) -> Scores:
        """`accuracy` of what `generate` would return, without keeping it: memory is that of a batch."""
        request = self._asked(sampler, tasks, stream, count, condition)
        ids = np.repeat([t.id for t in tasks], self._count(count))
        return Scores(self.samplers.scores(*request, self.score[part].batch, ids).reshape(len(tasks), -1))

    def accuracy(self, networks: PyTree, tasks: Sequence[Task], part: str = "test") -> Scores:
        """Scores networks that come in task order, the same number for each."""
        count = len(jax.tree.leaves(networks)[0]) // len(tasks)
        ids = np.repeat([t.id for t in tasks], count)
        return Scores(self.score[part](networks, ids).reshape(len(tasks), count))

    def encode(self, networks: PyTree[Float[np.ndarray, "nets ..."]]) -> Float[np.ndarray, "nets tokens dim"]:
        """Networks to raw (not normalised) tokens."""
        return codec.encode_stacked(self.generator.spec, networks)

    def decode_tokens(self, tokens: Float[np.ndarray, "*batch tokens dim"]) -> PyTree[Float[np.ndarray, "nets ..."]]:
        """Raw tokens to networks with one leading axis, which are views of them where they can be."""
        return codec.decode_stacked(self.generator.spec, tokens.reshape(-1, *tokens.shape[-2:]))

    def denoise(
        self, condition: dict, z: Float[np.ndarray, "n tokens dim"], sigma: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n tokens dim"]:
        """D(z, sigma) under the condition, in tokens of coefficients and without guidance."""
        needed = self.generator.arrays() | {"base": None}
        params, arrays = (dist.replicate(x, self.mesh) for x in (self.params, needed))

        def one(args):
            return self._denoise(params, arrays, *dist.shard(args, self.mesh))

        batch = dist.round_up(self.config.sample.batch_size, self.mesh)
        return dist.map_chunks(one, (condition, (z, sigma)), len(z), batch)

    def _count(self, count: int | None) -> int:
        return count or self.config.eval.samples_per_task

    def _asked(self, sampler: str, tasks: Sequence[Task], stream: str, count: int | None, condition: dict) -> tuple:
        """What the methods of `samplers` take first."""
        condition = self.condition(tasks, self._count(count), **condition)
        return self.params, sampler, condition, rng.stream(self.config.seed, stream)
