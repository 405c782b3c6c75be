"""Networks from a trained generator."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdiff import dist, rng
from pdiff.diffusion import samplers
from pdiff.diffusion.guidance import guided
from pdiff.generator import Generator, null_condition


def make_sampler(generator: Generator, name: str, mesh: Mesh) -> Callable[..., Float[Array, "batch tokens dim"]]:
    """(params, arrays, condition, key, index) -> normalised tokens, jitted and sharded over the batch.

    `arrays` are `generator.arrays()`, or only their `stats`. `index` numbers the samples: sample i is the same whatever
    batch or device it is drawn in.
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
        return sampler(denoise, generator.path, noise, levels, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys))

    in_specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED, dist.REPLICATED, dist.SHARDED)
    return dist.data_parallel(draw, mesh, in_specs, dist.SHARDED)


class Samplers:
    """The samplers of a generator, each compiled once for one batch size. Trained parameters come with each call."""

    def __init__(self, generator: Generator, mesh: Mesh):
        self._generator, self._mesh = generator, mesh
        self._make = functools.cache(lambda name: make_sampler(generator, name, mesh))
        self._arrays = dist.replicate({"stats": generator.stats}, mesh)
        self._decode = jax.jit(lambda arrays, tokens: generator.bind(arrays).decode(tokens))
        config = generator.config.sample
        levels = samplers.noise_levels(generator.path, 2 * config.num_steps, config.rho)

        def invert(params, arrays, condition, x0):
            denoise = generator.bind(arrays).denoiser(params, generator.context(params, condition))
            return samplers.ddim_inversion(denoise, x0, levels)

        def redraw(params, arrays, condition, noise):
            denoise = generator.bind(arrays).denoiser(params, generator.context(params, condition))
            return samplers.ddim(denoise, generator.path, noise, levels, None)

        specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED, dist.SHARDED)
        self._invert = dist.data_parallel(invert, mesh, specs, dist.SHARDED)
        self._redraw = dist.data_parallel(redraw, mesh, specs, dist.SHARDED)
        self._batch = dist.round_up(config.batch_size, mesh)

    def tokens(
        self, params: PyTree, name: str, condition: Any, key: PRNGKeyArray
    ) -> Float[np.ndarray, "samples tokens dim"]:
        """One sample of normalised tokens for each row of `condition`, by the sampler `name`."""
        draw = self._make(name)
        index = np.arange(len(jax.tree.leaves(condition)[0]), dtype=np.int32)
        key = dist.replicate(key, self._mesh)
        return self._in_chunks(lambda p, a, c, i: draw(p, a, c, key, i), params, condition, index)

    def inverted(self, params: PyTree, condition: Any, x0: Float[np.ndarray, "samples tokens dim"]):
        """The noise from which DDIM under `condition` would come back to the normalised tokens `x0`."""
        return self._in_chunks(self._invert, params, condition, np.asarray(x0))

    def from_noise(self, params: PyTree, condition: Any, noise: Float[np.ndarray, "samples tokens dim"]):
        """DDIM under `condition` from the given noise."""
        return self._in_chunks(self._redraw, params, condition, np.asarray(noise))

    def _in_chunks(self, step: Callable, params: PyTree, condition: Any, rows: Any):
        """step(params, arrays, condition, rows) over all rows, a batch at a time."""
        params = dist.replicate(params, self._mesh)

        def on_chunk(args):
            return step(params, self._arrays, *dist.shard(args, self._mesh))

        return dist.map_chunks(on_chunk, (condition, rows), len(rows), self._batch)

    def decode(self, tokens: Float[np.ndarray, "samples tokens dim"]) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """Normalised tokens as parameter trees of the target."""
        return jax.tree.map(np.asarray, self._decode({"stats": self._generator.stats}, jnp.asarray(tokens)))

    def networks(
        self, params: PyTree, name: str, condition: Any, key: PRNGKeyArray
    ) -> PyTree[Float[np.ndarray, "samples ..."]]:
        """`tokens`, decoded to parameter trees of the target."""
        return self.decode(self.tokens(params, name, condition, key))
