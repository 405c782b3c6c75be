"""EDM preconditioning (Karras et al. 2022, Table 1) with sigma_data = 1."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Denoiser = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]


def precondition(network: Denoiser) -> Denoiser:
    """Wraps F(x, c_noise) as D(z, sigma) = c_skip z + c_out F(c_in z, c_noise).

    Input and training target of F then have unit variance at every sigma. At large sigma c_skip
    vanishes and D is F itself; at small sigma D is z with a small correction.
    """

    def denoise(z: Float[Array, "batch ..."], sigma: Float[Array, " batch"]) -> Float[Array, "batch ..."]:
        c_in = 1 / jnp.sqrt(sigma**2 + 1)
        f = network(_like(c_in, z) * z, jnp.log(sigma) / 4)
        return _like(c_in**2, z) * z + _like(sigma * c_in, z) * f

    return denoise


def loss_weight(sigma: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """(sigma^2 + 1) / sigma^2, which makes the loss on F itself unweighted."""
    return 1 + 1 / sigma**2


def score(
    z: Float[Array, "batch ..."], sigma: Float[Array, " batch"], denoised: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """Gradient of the log-density of z = x0 + sigma eps (Tweedie's formula)."""
    return (denoised - z) / _like(sigma**2, z)


def _like(factor: Float[Array, " batch"], z: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    return factor.reshape(-1, *([1] * (z.ndim - 1)))
