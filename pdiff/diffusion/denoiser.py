"""Preconditioning of the denoiser, for data of unit variance (Karras et al. 2022, table 1, with sigma_data = 1).

D(z, sigma) = c_skip z + c_out F(c_in z, c_noise): the network F has inputs and targets of unit variance at every sigma.
The data are coefficients of networks, scaled to that variance (`weights.subspace`).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Values = Float[Array, "batch ..."]
Tokens = Float[Array, "batch tokens dim"]
Sigmas = Float[Array, " batch"]  # one for each example
Denoiser = Callable[[Values, Sigmas], Values]


def precondition(network: Denoiser) -> Denoiser:
    """Wraps F(x, c_noise), with x of unit variance at every sigma and c_noise = log(sigma)/4, as D(z, sigma)."""

    def denoise(z: Values, sigma: Sigmas) -> Values:
        f = network(like(1 / jnp.sqrt(sigma**2 + 1), z) * z, jnp.log(sigma) / 4)
        return like(1 / (1 + sigma**2), z) * z + like(1 / jnp.sqrt(loss_weight(sigma)), z) * f

    return denoise


def loss_weight(sigma: Sigmas) -> Sigmas:
    """1 / c_out^2 = (sigma^2 + 1) / sigma^2, which makes the loss on F itself unweighted."""
    return (sigma**2 + 1) / sigma**2


def score(z: Values, sigma: Sigmas, denoised: Values) -> Values:
    """Gradient of the log-density of z = x0 + sigma eps (Tweedie's formula)."""
    return (denoised - z) / like(sigma**2, z)


def like(factor: Sigmas, z: Values) -> Values:
    """A factor for each example, with axes of size 1 so that it multiplies z."""
    return factor.reshape(-1, *([1] * (z.ndim - 1)))
