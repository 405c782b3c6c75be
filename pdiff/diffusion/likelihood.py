"""How likely a denoiser finds given weights: exactly, by the probability-flow ODE, or by a bound, from its errors.

Both are in the coordinates z = x0 + sigma eps, in which all paths are one: the ODE is dz/dsigma = (z - D)/sigma, and
the signal-to-noise ratio is 1/sigma^2. Densities are of the elements that vary over the zoo: what is padding or
constant has none.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pdiff.diffusion.denoiser import Denoiser
from pdiff.diffusion.sde import Path

Tokens = Float[Array, "batch tokens dim"]
Probes = Float[Array, "probes batch tokens dim"]


def rademacher(keys: PRNGKeyArray, count: int, varying: Bool[np.ndarray, "tokens dim"]) -> Probes:
    """`count` probes of +1 and -1 for each example's key, 0 where nothing varies."""
    draw = jax.vmap(lambda key: jax.random.rademacher(key, (count, *varying.shape), jnp.float32), out_axes=1)
    return jnp.where(varying, draw(keys), 0)


def every_direction(batch: int, varying: Bool[np.ndarray, "tokens dim"]) -> Probes:
    """Probes with which the estimate of a trace is the trace: each direction, times the root of their number."""
    flat = np.flatnonzero(varying)
    basis = np.zeros((len(flat), 1, varying.size), np.float32)
    basis[np.arange(len(flat)), 0, flat] = np.sqrt(len(flat))
    return jnp.broadcast_to(basis.reshape(-1, 1, *varying.shape), (len(flat), batch, *varying.shape))


def denoise_and_trace(
    denoise: Denoiser, z: Tokens, sigma: Float[Array, ""], probes: Probes
) -> tuple[Tokens, Float[Array, " batch"]]:
    """D(z, sigma) and the trace of its Jacobian in z, estimated as the mean of v.Jv over the probes.

    Unbiased for probes with E[v v^T] = I (Hutchinson 1990; Skilling 1989). The error of Rademacher probes comes from
    what is off the diagonal, which the skip connection of a preconditioned denoiser is not.
    """
    denoised, vjp = jax.vjp(lambda z: denoise(z, jnp.broadcast_to(sigma, (len(z),))), z)
    return denoised, jax.vmap(lambda v: (v * vjp(v)[0]).sum((1, 2)))(probes).mean(0)  # v.J^T v is v.Jv


def log_likelihood(
    denoise: Denoiser,
    path: Path,
    z: Tokens,
    levels: Float[Array, " levels"],
    probes: Probes,
    varying: Bool[np.ndarray, "tokens dim"],
) -> Float[Array, " batch"]:
    """Log-density in nats of z at noise `levels[0]`, which is that of x0 + levels[0] eps under the denoiser's model.

    The change of variables along the probability-flow ODE (Song et al. 2021, equation 39; Chen et al. 2018), from z up
    to sigma_max, where the path's prior takes over:

      log p(z) = log p_max(z_max) + integral of (d - trace of dD/dz)/sigma over sigma

    by Heun's method, whose error falls with the square of the number of steps.

    Args:
      levels: noise-to-signal ratios, rising from where z stands to `path.sigma_max`.
      probes: of the trace, the same at all levels. Two conditions are compared with the same z and probes: most of
        the error is then theirs in common.
      varying: what is integrated over; z outside it is ignored.
    """
    count = int(np.sum(varying))

    def dynamics(z, sigma):
        denoised, trace = denoise_and_trace(denoise, z, sigma, probes)
        return jnp.where(varying, z - denoised, 0) / sigma, (count - trace) / sigma

    def step(carry, level):
        (z, gained), (s, s_next) = carry, level
        h = s_next - s
        velocity, divergence = dynamics(z, s)
        velocity_next, divergence_next = dynamics(z + h * velocity, s_next)
        return (z + h * (velocity + velocity_next) / 2, gained + h * (divergence + divergence_next) / 2), None

    start = jnp.where(varying, z, 0), jnp.zeros(len(z))
    (z, gained), _ = jax.lax.scan(step, start, (levels[:-1], levels[1:]))
    alpha = path.alpha(path.time_of(jnp.float32(path.sigma_max)))
    prior = path.prior_log_density(alpha * z[:, varying]) + count * jnp.log(alpha)  # of z, the path's x being alpha z
    return prior + gained


def squared_errors(
    denoise: Denoiser, x0: Tokens, levels: Float[Array, " levels"], keys: PRNGKeyArray, draws: int
) -> Float[Array, "levels batch"]:
    """||D(x0 + sigma eps, sigma) - x0||^2 at each level, the mean of `draws` noises that come from an example's key."""

    def at(level):
        i, sigma = level

        def once(j):
            noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i * draws + j), x0.shape[1:]))(keys)
            return ((denoise(x0 + sigma * noise, jnp.broadcast_to(sigma, (len(x0),))) - x0) ** 2).sum((1, 2))

        return jax.lax.map(once, jnp.arange(draws)).mean(0)

    return jax.lax.map(at, (jnp.arange(len(levels)), levels))


def diffusion_loss(
    errors: Float[Array, "levels batch"], levels: Float[Array, " levels"]
) -> Float[Array, " batch"]:
    """Minus the evidence bound on log p(x0) in nats, up to what no condition changes.

    The integral of E||D - x0||^2 / sigma^3 over sigma (Kingma et al. 2021, section 5, with a signal-to-noise ratio
    of 1/sigma^2), by the trapezium rule in log sigma. The difference between two conditions estimates the difference of
    their log-likelihoods (Li et al. 2023).
    """
    return jnp.trapezoid(errors / levels[:, None] ** 2, jnp.log(levels), axis=0)
