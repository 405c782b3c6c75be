"""Preconditioning of the denoiser, for data whose spread is mostly decided by the condition.

EDM (Karras et al. 2022, Table 1) knows one number of the data, sigma_data. A zoo has two: all weights
have variance 1, but networks of *one* task vary only by `spread` around their mean, because the seed
moves weights far less than the task does. So we take the data as N(mean(condition), spread^2), with
means of variance 1 - spread^2, and derive c_skip, c_out and the loss weight as EDM does:

  c_skip  the share of z that the posterior mean keeps, spread^2 / (spread^2 + sigma^2)
  c_out   makes the target of F have unit variance:
          Var[x0 - c_skip z] = spread^2 sigma^2 / (spread^2 + sigma^2) + (1 - c_skip)^2 (1 - spread^2)

At every sigma F is then asked mostly for the mean that the condition implies, which it knows from
sigma_max, and with EDM's own constants (spread = 1, which gives Table 1 exactly) at middling
sigma mostly for the noise in z, which takes all of its width to carry through.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Denoiser = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]


def precondition(network: Denoiser, spread: float = 1.0) -> Denoiser:
    """Wraps F(x, c_noise) as D(z, sigma) = c_skip z + c_out F(c_in z, c_noise).

    Args:
      network: its input has unit variance at every sigma, and c_noise is log(sigma)/4.
      spread: standard deviation of the data given its condition, in (0, 1]; 1 is EDM.
    """

    def denoise(z: Float[Array, "batch ..."], sigma: Float[Array, " batch"]) -> Float[Array, "batch ..."]:
        f = network(like(1 / jnp.sqrt(sigma**2 + 1), z) * z, jnp.log(sigma) / 4)
        return like(_c_skip(sigma, spread), z) * z + like(jnp.sqrt(_c_out_squared(sigma, spread)), z) * f

    return denoise


def loss_weight(sigma: Float[Array, " batch"], spread: float = 1.0) -> Float[Array, " batch"]:
    """1 / c_out^2, which makes the loss on F itself unweighted; (sigma^2 + 1) / sigma^2 for EDM."""
    return 1 / _c_out_squared(sigma, spread)


def score(
    z: Float[Array, "batch ..."], sigma: Float[Array, " batch"], denoised: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """Gradient of the log-density of z = x0 + sigma eps (Tweedie's formula)."""
    return (denoised - z) / like(sigma**2, z)


def _c_skip(sigma: Float[Array, " batch"], spread: float) -> Float[Array, " batch"]:
    return 1 / (1 + (sigma / spread) ** 2)


def _c_out_squared(sigma: Float[Array, " batch"], spread: float) -> Float[Array, " batch"]:
    kept = _c_skip(sigma, spread)
    return kept * sigma**2 + (1 - kept) ** 2 * (1 - spread**2)


def like(factor: Float[Array, " batch"], z: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """A factor for each example, with axes of size 1 so that it multiplies z."""
    return factor.reshape(-1, *([1] * (z.ndim - 1)))
