"""Networks from a trained generator.

They are drawn `sample.batch_size` at a time. `Samplers.networks` returns them all, `batches` yields batch after batch,
and `scores` returns their accuracies alone: there memory does not grow with samples times parameters.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from pdiff import rng
from pdiff.diffusion import samplers
from pdiff.diffusion.guidance import guided
from pdiff.generator.generator import Generator, null_condition
from pdiff.system import dist

DECODED = 1 << 26  # weights of large networks that are decoded at a time

Batch = PyTree[Float[Array, "batch ..."]]  # networks on the devices
Networks = PyTree[Float[np.ndarray, "samples ..."]]


def make_sampler(generator: Generator, name: str, mesh: Mesh) -> Callable[..., Batch]:
    """(params, arrays, condition, key, index) -> networks, jitted and sharded over the batch.

    Where the generator `streams`, these are tokens of coefficients, still to be decoded.

    `arrays` are `generator.arrays()`, without the base if need be. `index` numbers the samples: sample i is the same
    whatever batch or device it is drawn in.
    """
    config, shape = generator.config.sample, generator.shape
    sampler = samplers.get_sampler(name)
    levels = samplers.noise_levels(generator.path, config.num_steps, config.rho)

    def draw(params, arrays, condition, key, index):
        bound = generator.bind(arrays)
        keys = rng.per_example(key, index)
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), shape))(keys)
        members, null = bound.members(condition), bound.members(null_condition(condition))
        denoise = guided(lambda z, s, m: bound.denoiser(params, m)(z, s), members, null, config.guidance)
        x0 = sampler(denoise, generator.path, noise, levels, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys))
        return x0 if bound.streams else bound.decode(x0)

    in_specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED, dist.REPLICATED, dist.SHARDED)
    return dist.data_parallel(draw, mesh, in_specs, dist.SHARDED)


def _as_they_are(networks: Batch, rows: Any) -> Batch:
    return networks


class Samplers:
    """The samplers of a generator, each compiled once for one batch size. Trained parameters come with each call."""

    def __init__(self, generator: Generator, mesh: Mesh):
        self._generator, self._mesh = generator, mesh
        self._make = functools.cache(lambda name: make_sampler(generator, name, mesh))
        self._arrays = dist.replicate(generator.arrays() | {"base": None}, mesh)
        self._batch = dist.round_up(generator.config.sample.batch_size, mesh)

    def batches(
        self,
        params: PyTree,
        name: str,
        condition: Any,
        key: PRNGKeyArray,
        *,
        rows: PyTree[np.ndarray] = (),
        make: Callable[[Batch, Any], PyTree[Array]] = _as_they_are,
    ) -> Iterator[PyTree[np.ndarray]]:
        """One network for each row of `condition` by the sampler `name`, `sample.batch_size` of them at a time.

        Args:
          rows: what else there is of each sample.
          make: what to make of a batch, while it is on the devices, and of its `rows`; the last batch is padded. Only
            what this returns, arrays with an axis over the batch, is fetched and, without the padding, yielded.
        """
        draw, (params, key) = self._make(name), dist.replicate((params, key), self._mesh)
        count = _count(condition)

        def step(args):
            condition, index, *rows = dist.shard(args, self._mesh)
            drawn = draw(params, self._arrays, condition, key, index)
            return make(drawn, *rows) if rows else drawn

        args = (condition, np.arange(count, dtype=np.int32))
        if not self._generator.streams:
            return dist.chunks(step, (*args, rows), count, self._batch)
        return self._decoded(dist.chunks(step, args, count, self._batch), rows, make)

    def _decoded(self, coefficients: Iterator[np.ndarray], rows: PyTree, make: Callable) -> Iterator[PyTree]:
        """What `make` makes of networks that are decoded a few at a time."""
        together = dist.round_up(max(1, DECODED // self._generator.spec.num_params), self._mesh)
        start = 0
        for batch in coefficients:
            for first in range(0, len(batch), together):
                some = batch[first : first + together]
                networks, stop = self._generator.decode(some), start + len(some)
                if make is _as_they_are:
                    yield networks
                else:
                    here = jax.tree.map(lambda r, at=slice(start, stop): r[at], rows)
                    yield dist.map_chunks(self._made(make), (networks, here), len(some), together)
                start = stop

    def _made(self, make: Callable) -> Callable:
        return lambda args: make(*dist.shard(args, self._mesh))

    def networks(self, params: PyTree, name: str, condition: Any, key: PRNGKeyArray) -> Networks:
        """`batches` of networks, all as one: parameter trees of the target."""
        return dist.join(self.batches(params, name, condition, key), _count(condition))

    def scores(
        self,
        params: PyTree,
        name: str,
        condition: Any,
        key: PRNGKeyArray,
        score: Callable[[Batch, Int[Array, " batch"]], Float[Array, " batch"]],
        task: Int[np.ndarray, " samples"],
    ) -> Float[np.ndarray, " samples"]:
        """`score` (as `Scorer.batch`) of what `networks` would return, each on its task; no network is kept."""
        rows = np.asarray(task, np.int32)
        return dist.join(self.batches(params, name, condition, key, rows=rows, make=score), len(rows))


def _count(rows: PyTree) -> int:
    return len(jax.tree.leaves(rows)[0])
