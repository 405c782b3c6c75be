"""Samplers: from noise to weights along decreasing noise levels.

All share one signature, `sampler(denoise, path, noise, levels, keys) -> x0`:

  denoise  D(z, sigma), in the coordinates z = x_t / alpha = x0 + sigma eps
  noise    standard normal, (batch, tokens, dim); sampling starts from z = levels[0] noise
  levels   noise-to-signal ratios from sigma_max down to sigma_min, then 0
  keys     one for each example; only the stochastic samplers use them

In z the probability-flow ODE of every path is dz/dsigma = (z - D)/sigma (Karras et al. 2022, equation 4 with s = 1),
so the deterministic samplers need nothing else of the path.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdiff.diffusion.denoiser import Denoiser, score
from pdiff.diffusion.sde import Path, reverse_drift
from pdiff.errors import PdiffError
from pdiff.rng import Keys

Tokens = Float[Array, "batch *shape"]
Levels = Float[Array, " levels"]
Sampler = Callable[[Denoiser, Path | None, Tokens, Levels, Keys], Tokens]


def noise_levels(path: Path, num_steps: int, rho: float) -> Levels:
    """`num_steps` ratios from sigma_max to sigma_min, evenly spaced in sigma^(1/rho), then 0 (EDM equation 5)."""
    ramp = np.linspace(0, 1, num_steps)
    high, low = path.sigma_max ** (1 / rho), path.sigma_min ** (1 / rho)
    # By NumPy: a handful of numbers, for which JAX would compile as many programs.
    return jnp.asarray(np.append((high + ramp * (low - high)) ** rho, 0.0))


def posterior_mean(denoise: Denoiser, path: Path | None, noise: Tokens, levels: Levels, keys: Keys) -> Tokens:
    """One call at sigma_max: nearly the mean of the weights under the condition, and nearly the same for any noise."""
    return denoise(levels[0] * noise, _batch(levels[0], noise))


def ddim(denoise: Denoiser, path: Path | None, noise: Tokens, levels: Levels, keys: Keys) -> Tokens:
    """Euler steps in z (Song et al. 2021, DDIM with eta = 0). First order."""

    def step(z, level):
        s, s_next = level
        d = (z - denoise(z, _batch(s, z))) / s
        return z + (s_next - s) * d, None

    return jax.lax.scan(step, levels[0] * noise, (levels[:-1], levels[1:]))[0]


def heun(denoise: Denoiser, path: Path | None, noise: Tokens, levels: Levels, keys: Keys) -> Tokens:
    """Heun's method (Karras et al. 2022, Algorithm 1). Second order; two calls a step, one for the last."""

    def step(z, level):
        s, s_next = level
        d = (z - denoise(z, _batch(s, z))) / s
        z_next = z + (s_next - s) * d
        d_next = (z_next - denoise(z_next, _batch(s_next, z))) / s_next
        return z + (s_next - s) * (d + d_next) / 2, None

    z, _ = jax.lax.scan(step, levels[0] * noise, (levels[:-2], levels[1:-1]))
    return denoise(z, _batch(levels[-2], z))  # the Euler step to zero is D itself


def dpmpp_2m(denoise: Denoiser, path: Path | None, noise: Tokens, levels: Levels, keys: Keys) -> Tokens:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), data prediction. Second order with one call a step."""
    lam = -jnp.log(levels[:-1])  # log signal-to-noise

    def step(carry, i):
        z, previous = carry
        s, s_next = levels[i], levels[i + 1]
        denoised = denoise(z, _batch(s, z))
        h = lam[i + 1] - lam[i]
        # The first step is of first order: it has no previous D, and lam[-1] only keeps the quotient finite.
        ratio = jnp.where(i > 0, h / (2 * (lam[i] - lam[i - 1])), 0.0)
        d = (1 + ratio) * denoised - ratio * previous
        return ((s_next / s) * z - jnp.expm1(-h) * d, denoised), None

    z = levels[0] * noise
    (z, _), _ = jax.lax.scan(step, (z, jnp.zeros_like(z)), jnp.arange(len(levels) - 2))
    return denoise(z, _batch(levels[-2], z))


def euler_maruyama(denoise: Denoiser, path: Path, noise: Tokens, levels: Levels, keys: Keys) -> Tokens:
    """The reverse-time SDE dx = [f x - g^2 score] dt + g dW (Anderson 1982; Song et al. 2021), in the path's x, t."""
    times = path.time_of(levels[:-1])
    x = path.alpha(times[0]) * levels[0] * noise

    def step(x, i):
        t, dt = times[i], times[i + 1] - times[i]
        z, s = x / path.alpha(t), _batch(path.noise_ratio(t), x)
        score_of_x = score(z, s, denoise(z, s)) / path.alpha(t)  # the chain rule, x being alpha z
        fresh = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), x.shape[1:]))(keys)
        drift = reverse_drift(path, x, t, score_of_x, ode=False)
        return x + drift * dt + path.diffusion(t) * jnp.sqrt(-dt) * fresh, None

    x, _ = jax.lax.scan(step, x, jnp.arange(len(times) - 1))
    return denoise(x / path.alpha(times[-1]), _batch(levels[-2], x))


def ancestral(denoise: Denoiser, path: Path | None, noise: Tokens, levels: Levels, keys: Keys) -> Tokens:
    """Draws from q(z_next | z, x0 = D) (Ho et al. 2020, equation 7, in z): needs many steps, as DDPM's thousand.

    With r = (s_next / s)^2 the mean is r z + (1 - r) D and the variance s_next^2 (1 - r).
    """

    def step(z, i):
        s, s_next = levels[i], levels[i + 1]
        ratio = (s_next / s) ** 2
        fresh = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), z.shape[1:]))(keys)
        mean = ratio * z + (1 - ratio) * denoise(z, _batch(s, z))
        return mean + s_next * jnp.sqrt(1 - ratio) * fresh, None

    return jax.lax.scan(step, levels[0] * noise, jnp.arange(len(levels) - 1))[0]


_ALL = (heun, posterior_mean, dpmpp_2m, ddim, euler_maruyama, ancestral)
SAMPLERS: dict[str, Sampler] = {sampler.__name__: sampler for sampler in _ALL}


def get_sampler(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
      PdiffError: there is none.
    """
    if name not in SAMPLERS:
        raise PdiffError(f"sampler: got {name!r}; allowed: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def _batch(sigma: Float[Array, ""], z: Tokens) -> Float[Array, " batch"]:
    return jnp.broadcast_to(sigma, (len(z),))
