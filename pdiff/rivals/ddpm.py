"""Denoising diffusion probabilistic models (Ho et al. 2020) for rivals: the schedule and the two predictions.

In the coordinates of `diffusion.samplers`, z = x_t / alpha_t = x0 + s eps with s the noise-to-signal ratio; a network
sees x_t = z / sqrt(1 + s^2), whose variance is that of the data at all times.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from pdiff.diffusion.denoiser import Denoiser, like

STEPS = 1000
_ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, STEPS))  # alpha-bar of the linear schedule
RATIOS = np.sqrt((1 - _ALPHA_BAR) / _ALPHA_BAR).astype(np.float32)  # NumPy: importing this must not start JAX's devices

Network = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]


def levels(count: int = STEPS) -> Float[Array, " levels"]:
    """`count` noise-to-signal ratios of the schedule, evenly spaced in its steps, descending, then 0."""
    return jnp.append(RATIOS[np.linspace(STEPS - 1, 0, count).round().astype(int)], 0.0)


def training_ratios(keys: Key[Array, " batch"]) -> Float[Array, " batch"]:
    """The ratio at a step drawn uniformly for each key."""
    return jnp.asarray(RATIOS)[jax.vmap(lambda k: jax.random.randint(k, (), 0, STEPS))(keys)]


def predicts_data(network: Network) -> Denoiser:
    """D(z, s) of a network that answers with x0."""
    return lambda z, s: network(like(1 / jnp.sqrt(1 + s**2), z) * z, jnp.log(s) / 4)


def predicts_noise(network: Network) -> Denoiser:
    """D(z, s) of a network that answers with eps."""
    return lambda z, s: z - like(s, z) * predicts_data(network)(z, s)


def squared_error(
    denoised: Float[Array, "batch ..."], x0: Float[Array, "batch ..."], s: Float[Array, " batch"] | None = None
) -> Float[Array, ""]:
    """Mean squared error of x0, or, with s, of the noise that was added: DDPM's simple loss (equation 14)."""
    error = denoised - x0 if s is None else (denoised - x0) / like(s, x0)
    return (error**2).mean()
