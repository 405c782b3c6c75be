"""Losses by example: of the prior by denoising score matching, of the mean by what its networks do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from pdiff.diffusion.denoiser import Sigmas, Tokens, loss_weight
from pdiff.diffusion.sde import Path

Networks = PyTree[Float[Array, "batch ..."]]


def training_noise_ratios(path: Path, keys: Key[Array, " batch"], sigma_max: float, at_sigma_max: float) -> Sigmas:
    """Noise-to-signal ratios from the path's own distribution, a share `at_sigma_max` of them at the top.

    `posterior_mean` and the first step of every sampler are at sigma_max, where log-normal noise hardly ever trains.
    """

    def draw(key):
        top = jax.random.bernoulli(jax.random.fold_in(key, 1), at_sigma_max)
        return jnp.where(top, sigma_max, path.sample_noise_ratio(jax.random.fold_in(key, 2), ()))

    return jax.vmap(draw)(keys)


def denoising_loss(denoised: Tokens, x0: Tokens, sigma: Sigmas) -> Float[Array, " batch"]:
    """Weighted denoising score matching (Vincent 2011; weighted as in Karras et al. 2022).

    The mean squared error times 1 / c_out^2 of the preconditioning: about 1 at every sigma for an untrained network.
    """
    return loss_weight(sigma) * jnp.square(denoised - x0).mean((1, 2))


def functional_loss(
    networks: Networks, apply: Callable, x: Float[Array, "batch images features"], y: Int[Array, "batch images"]
) -> Float[Array, " batch"]:
    """Cross-entropy in nats of each network on images of its own task."""
    logits = jax.vmap(apply)(networks, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(-1)


def squared_distance(networks: Networks, base: PyTree) -> Float[Array, " batch"]:
    """||W - base||^2 of each network, in the weights' own units."""
    squares = jax.tree.map(lambda w, b: jnp.square(w - b).reshape(len(w), -1).sum(-1), networks, base)
    return sum(jax.tree.leaves(squares))
