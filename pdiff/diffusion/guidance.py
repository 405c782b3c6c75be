"""Guidance: by a condition (classifier-free, Ho & Salimans 2022), and by the likelihood of observations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pdiff.diffusion.denoiser import Denoiser, Sigmas, Tokens, Values


def guided(
    denoise: Callable[[Values, Sigmas, PyTree], Values], condition: PyTree, null_condition: PyTree, scale: float
) -> Denoiser:
    """D_null + scale (D_condition - D_null), both from one call with a doubled batch.

    A scale of 1 is plain conditional sampling and costs one plain call; 0 ignores the condition.
    """
    if scale == 1.0:
        return lambda z, sigma: denoise(z, sigma, condition)
    both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null_condition)

    def mixed(z: Values, sigma: Sigmas) -> Values:
        doubled = denoise(jnp.concatenate([z, z]), jnp.concatenate([sigma, sigma]), both)
        with_condition, without = jnp.split(doubled, 2)
        return without + scale * (with_condition - without)

    return mixed


def by_likelihood(
    denoise: Denoiser, log_likelihood: Callable[[Tokens], Float[Array, " batch"]], most: float = 0.5
) -> Denoiser:
    """D moved towards what makes observations likely, so that samples follow the posterior given these.

    The denoiser of the posterior is D + sigma^2 grad_z log p(y | z), and p(y | z) is approximated by p(y | D(z, sigma))
    (diffusion posterior sampling, Chung et al. 2023, equations 7 and 11, without a free step size). That is too sure at
    high noise, so D is moved by at most `most` of its own norm. `log_likelihood` is that of all observations together,
    in nats, for each estimate of the clean values.
    """

    def moved(z: Tokens, sigma: Sigmas) -> Tokens:
        def total(z):
            x0 = denoise(z, sigma)
            return log_likelihood(x0).sum(), x0

        gradient, x0 = jax.grad(total, has_aux=True)(z)
        step = jnp.square(sigma)[:, None, None] * gradient
        length, norm = (jnp.sqrt(jnp.square(a).sum((1, 2), keepdims=True)) for a in (step, x0))
        return x0 + step * jnp.minimum(1, most * norm / jnp.maximum(length, 1e-9))

    return moved
