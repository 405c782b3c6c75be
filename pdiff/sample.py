"""Networks from a trained generator.

They are drawn `sample.batch_size` at a time. `Samplers.networks` keeps them all, `batches` hands them over one batch
after the other, and `scores` keeps their accuracies alone: there memory does not grow with samples times parameters.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from pdiff import dist, rng
from pdiff.diffusion import samplers
from pdiff.diffusion.guidance import guided
from pdiff.generator import Generator, null_condition


def make_sampler(
    generator: Generator, name: str, mesh: Mesh, *, decoded: bool = True
) -> Callable[..., PyTree[Float[Array, "batch ..."]]]:
    """(params, arrays, condition, key, index) -> networks, jitted and sharded over the batch.

    `arrays` are `generator.arrays()`, or only their `stats`. `index` numbers the samples: sample i is the same whatever
    batch or device it is drawn in. Not `decoded`, they are normalised tokens, (batch, tokens, dim).
    """
    config = generator.config.sample
    sampler = samplers.get_sampler(name)
    levels = samplers.noise_levels(generator.path, config.num_steps, config.rho, config.sigma_end)
    shape = (generator.spec.num_tokens, generator.spec.token_dim)

    def draw(params, arrays, condition, key, index):
        bound = generator.bind(arrays)
        keys = rng.per_example(key, index)
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), shape))(keys)
        denoise = guided(
            lambda z, s, c: bound.denoiser(params, c)(z, s),
            generator.context(params, condition),
            generator.context(params, null_condition(condition)),
            config.guidance,
        )
        x0 = sampler(denoise, generator.path, noise, levels, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys))
        return bound.decode(x0) if decoded else x0

    in_specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED, dist.REPLICATED, dist.SHARDED)
    return dist.data_parallel(draw, mesh, in_specs, dist.SHARDED)


class Samplers:
    """The samplers of a generator, each compiled once for one batch size. Trained parameters come with each call."""

    def __init__(self, generator: Generator, mesh: Mesh):
        self._mesh = mesh
        self._make = functools.cache(lambda name, decoded: make_sampler(generator, name, mesh, decoded=decoded))
        self._arrays = dist.replicate({"stats": generator.stats}, mesh)
        config = generator.config.sample
        levels = samplers.noise_levels(generator.path, 2 * config.num_steps, config.rho)

        def decode(params, arrays, condition, x0):
            return generator.bind(arrays).decode(x0)

        def invert(params, arrays, condition, x0):
            denoise = generator.bind(arrays).denoiser(params, generator.context(params, condition))
            return samplers.ddim_inversion(denoise, x0, levels)

        def redraw(params, arrays, condition, noise):
            denoise = generator.bind(arrays).denoiser(params, generator.context(params, condition))
            return samplers.ddim(denoise, generator.path, noise, levels, None)

        specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED, dist.SHARDED)
        self._decode, self._invert, self._redraw = (
            dist.data_parallel(step, mesh, specs, dist.SHARDED) for step in (decode, invert, redraw)
        )
        self._batch = dist.round_up(config.batch_size, mesh)

    def batches(
        self,
        params: PyTree,
        name: str,
        condition: Any,
        key: PRNGKeyArray,
        *,
        rows: PyTree[np.ndarray] = (),
        make: Callable[[PyTree[Float[Array, "batch ..."]], Any], PyTree[Array]] = lambda networks, rows: networks,
    ) -> Iterator[PyTree[np.ndarray]]:
        """One network for each row of `condition` by the sampler `name`, `sample.batch_size` of them at a time.

        Args:
          rows: what else there is of each sample.
          make: what to make of a batch, while it is on the devices, and of its `rows`; the last batch is padded. Only
            what this returns, arrays with an axis over the batch, is fetched and, without the padding, yielded.
        """
        draw, key = self._make(name, True), dist.replicate(key, self._mesh)

        def step(params, arrays, condition, numbered):
            index, rows = numbered
            return make(draw(params, arrays, condition, key, index), rows)

        return self._in_batches(step, params, condition, (_index(condition), rows))

    def networks(
        self, params: PyTree, name: str, condition: Any, key: PRNGKeyArray
    ) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """`batches` of networks, all as one: parameter trees of the target."""
        return dist.join(self.batches(params, name, condition, key), _count(condition))

    def scores(
        self,
        params: PyTree,
        name: str,
        condition: Any,
        key: PRNGKeyArray,
        score: Callable[[PyTree[Float[Array, "batch ..."]], Int[Array, " batch"]], Float[Array, " batch"]],
        task: Int[np.ndarray, " samples"],
    ) -> Float[np.ndarray, " samples"]:
        """`score` (as `Scorer.batch`) of what `networks` would return, each on its task; no network is kept."""
        rows = np.asarray(task, np.int32)
        return dist.join(self.batches(params, name, condition, key, rows=rows, make=score), len(rows))

    def tokens(
        self, params: PyTree, name: str, condition: Any, key: PRNGKeyArray
    ) -> Float[np.ndarray, "samples tokens dim"]:
        """What `networks` decodes: normalised tokens."""
        draw, key = self._make(name, False), dist.replicate(key, self._mesh)
        batches = self._in_batches(lambda p, a, c, i: draw(p, a, c, key, i), params, condition, _index(condition))
        return dist.join(batches, _count(condition))

    def decode(self, tokens: Float[np.ndarray, "samples tokens dim"]) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Normalised tokens as parameter trees of the target."""
        return dist.join(self._in_batches(self._decode, {}, {}, np.asarray(tokens)), len(tokens))

    def inverted(self, params: PyTree, condition: Any, x0: Float[np.ndarray, "samples tokens dim"]):
        """The noise from which DDIM under `condition` would come back to the normalised tokens `x0`."""
        return dist.join(self._in_batches(self._invert, params, condition, np.asarray(x0)), len(x0))

    def from_noise(self, params: PyTree, condition: Any, noise: Float[np.ndarray, "samples tokens dim"]):
        """DDIM under `condition` from the given noise."""
        return dist.join(self._in_batches(self._redraw, params, condition, np.asarray(noise)), len(noise))

    def _in_batches(self, step: Callable, params: PyTree, condition: Any, rows: PyTree) -> Iterator[PyTree[np.ndarray]]:
        """step(params, arrays, condition, rows) over all rows, a batch at a time."""
        params = dist.replicate(params, self._mesh)

        def on_batch(args):
            return step(params, self._arrays, *dist.shard(args, self._mesh))

        return dist.chunks(on_batch, (condition, rows), _count(rows), self._batch)


def _index(condition: PyTree) -> Int[np.ndarray, " samples"]:
    return np.arange(_count(condition), dtype=np.int32)


def _count(rows: PyTree) -> int:
    return len(jax.tree.leaves(rows)[0])
