"""Classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pdiff.diffusion.denoiser import Denoiser


def guided(
    denoise: Callable[[Float[Array, "batch ..."], Float[Array, " batch"], PyTree], Float[Array, "batch ..."]],
    condition: PyTree,
    null_condition: PyTree,
    scale: float,
) -> Denoiser:
    """D_null + scale (D_condition - D_null), both from one call with a doubled batch.

    A scale of 1 is plain conditional sampling and costs one plain call; 0 ignores the condition.
    """
    if scale == 1.0:
        return lambda z, sigma: denoise(z, sigma, condition)
    both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null_condition)

    def mixed(z: Float[Array, "batch ..."], sigma: Float[Array, " batch"]) -> Float[Array, "batch ..."]:
        doubled = denoise(jnp.concatenate([z, z]), jnp.concatenate([sigma, sigma]), both)
        with_condition, without = jnp.split(doubled, 2)
        return without + scale * (with_condition - without)

    return mixed
