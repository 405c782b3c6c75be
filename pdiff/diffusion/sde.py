"""Forward processes (paths): variance exploding, variance preserving, rectified flow.

Each is the SDE dx = f(t) x dt + g(t) dW with marginals x_t ~ N(alpha(t) x0, sigma(t)^2), which ties the four functions
together (Karras et al. 2022, Appendix B):

  f = d log alpha / dt        g^2 = d sigma^2 / dt - 2 f sigma^2
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pdiff.errors import PdiffError


@dataclasses.dataclass(frozen=True)
class Path(abc.ABC):
    """A forward process between two noise-to-signal ratios, 0 < sigma_min < sigma_max.

    Times are the path's own; `noise_ratio` and `time_of` translate.
    """

    sigma_min: float
    sigma_max: float

    @abc.abstractmethod
    def alpha(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Scale of the data at time t."""

    @abc.abstractmethod
    def sigma(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Standard deviation of the noise at time t."""

    @abc.abstractmethod
    def drift(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """f(t), the factor of x in the SDE's drift."""

    @abc.abstractmethod
    def diffusion(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """g(t)."""

    @abc.abstractmethod
    def time_of(self, ratio: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The time at which the noise-to-signal ratio is `ratio`."""

    @abc.abstractmethod
    def sample_noise_ratio(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Noise-to-signal ratios to train at, in [sigma_min, sigma_max]."""

    def noise_ratio(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """s = sigma / alpha at time t."""
        return self.sigma(t) / self.alpha(t)


@dataclasses.dataclass(frozen=True)
class VE(Path):
    """Variance exploding with t = sigma (Karras et al. 2022); trained at log-normal noise."""

    p_mean: float = -1.2
    p_std: float = 1.2

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return t

    def drift(self, t):
        return jnp.zeros_like(t)

    def diffusion(self, t):
        return jnp.sqrt(2 * t)

    def time_of(self, ratio):
        return ratio

    def sample_noise_ratio(self, key, shape):
        sigma = jnp.exp(self.p_mean + self.p_std * jax.random.normal(key, shape))
        return jnp.clip(sigma, self.sigma_min, self.sigma_max)


@dataclasses.dataclass(frozen=True)
class VP(Path):
    """Variance preserving with a linear schedule beta(t) (Song et al. 2021, Appendix C); trained at uniform times."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _integral(self, t):
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t):
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def drift(self, t):
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def diffusion(self, t):
        return jnp.sqrt(-2 * self.drift(t))

    def time_of(self, ratio):
        # ratio^2 = exp(integral) - 1, and the integral is a quadratic in t; this form of its root does not cancel.
        integral = jnp.log1p(ratio**2)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def sample_noise_ratio(self, key, shape):
        low, high = (self.time_of(jnp.float32(s)) for s in (self.sigma_min, self.sigma_max))
        return self.noise_ratio(jax.random.uniform(key, shape, minval=low, maxval=high))


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Path):
    """Straight lines x_t = (1 - t) x0 + t eps (Liu et al. 2023); trained at logit-normal times (Esser et al. 2024)."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def drift(self, t):
        return -1 / (1 - t)

    def diffusion(self, t):
        return jnp.sqrt(2 * t / (1 - t))

    def time_of(self, ratio):
        return ratio / (1 + ratio)

    def sample_noise_ratio(self, key, shape):
        # t = sigmoid(u), so the ratio t / (1 - t) is exp(u).
        return jnp.clip(jnp.exp(jax.random.normal(key, shape)), self.sigma_min, self.sigma_max)


def reverse_drift(
    path: Path, x: Float[Array, "*b"], t: Float[Array, ""], score: Float[Array, "*b"], ode: bool
) -> Float[Array, "*b"]:
    """Drift of the process run backwards in time, with `score` that of x_t, not of z.

    f x - g^2 score for the SDE (Anderson 1982), half the score's part for the probability-flow ODE with the same
    marginals (Song et al. 2021, equations 6 and 13).
    """
    return path.drift(t) * x - path.diffusion(t) ** 2 * score * (0.5 if ode else 1.0)


PATHS = ("ve", "vp", "rectified_flow")
# Beyond these float32 no longer resolves alpha at the last time: vp's exponent is large, and rectified flow's 1 - t
# cancels (3e-4 off at 1e4, and 0 at 1e8).
HIGHEST = {"vp": 1e6, "rectified_flow": 1e4}


def make_path(config: ConfigDict) -> Path:
    """The path of the `diffusion` part of a run's config.

    Raises:
      PdiffError: no such path, or limits that it cannot have.
    """
    path, low, high = config.path, config.sigma_min, config.sigma_max
    if not 0 < low < high:
        raise PdiffError(f"diffusion.sigma_min, sigma_max: got {low}, {high}; allowed: 0 < min < max")
    highest = HIGHEST.get(path, float("inf"))
    if high > highest:
        raise PdiffError(f"diffusion.sigma_max: got {high}; allowed on the {path} path: at most {highest:g}")
    if path == "ve":
        return VE(low, high, config.p_mean, config.p_std)
    if path == "vp":
        return VP(low, high)
    if path == "rectified_flow":
        return RectifiedFlow(low, high)
    raise PdiffError(f"diffusion.path: got {path!r}; allowed: {', '.join(PATHS)}")
