"""Forward processes: the closed-form marginals are those of the SDE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from pdiff.diffusion.sde import HIGHEST, VE, VP, RectifiedFlow, make_path, reverse_drift
from pdiff.errors import PdiffError

PATHS = [VE(0.02, 20.0), VP(0.02, 20.0), RectifiedFlow(0.02, 20.0)]
by_name = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


@by_name
def test_marginals_match_a_simulation_of_the_sde(path):
    """Euler-Maruyama from a point: mean and standard deviation at three later times."""
    x0, count, steps = 1.7, 20_000, 600
    for ratio in (0.3, 1.0, 4.0):
        times = path.time_of(jnp.linspace(0.0, 1.0, steps + 1) * ratio)

        def step(x, i, times=times):
            t, dt = times[i], times[i + 1] - times[i]
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), x.shape)
            middle = t + dt / 2  # the schedule's steep start is not what is tested
            return x + path.drift(middle) * x * dt + path.diffusion(middle) * jnp.sqrt(dt) * noise, None

        x, _ = jax.lax.scan(step, jnp.full(count, x0), jnp.arange(steps))
        end = times[-1]
        assert x.mean() == pytest.approx(
            float(path.alpha(end) * x0), abs=4 * float(path.sigma(end)) / count**0.5 + 0.01
        )
        assert x.std() == pytest.approx(float(path.sigma(end)), rel=0.03)


@by_name
def test_drift_and_diffusion_follow_from_alpha_and_sigma(path):
    t = path.time_of(jnp.array([0.05, 0.5, 2.0, 10.0]))
    f = jax.vmap(jax.grad(lambda t: jnp.log(path.alpha(t))))(t)
    g2 = jax.vmap(jax.grad(lambda t: path.sigma(t) ** 2))(t) - 2 * f * path.sigma(t) ** 2
    np.testing.assert_allclose(path.drift(t), f, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(path.diffusion(t) ** 2, g2, rtol=1e-3)


@by_name
def test_reverse_drift_of_the_ode_follows_the_gaussian_closed_form(path):
    """x_t of N(mu, c^2) data moves at a fixed quantile, so its velocity is the derivative of that quantile."""
    mu, c, quantile = 0.8, 0.5, 1.3

    def moments(t):
        return path.alpha(t) * mu, jnp.sqrt((path.alpha(t) * c) ** 2 + path.sigma(t) ** 2)

    for ratio in (0.1, 1.0, 10.0):
        t = path.time_of(jnp.float32(ratio))
        mean, std = moments(t)
        x, score = mean + quantile * std, -quantile / std
        velocity = jax.grad(lambda t: moments(t)[0] + quantile * moments(t)[1])(t)
        ode, sde = (reverse_drift(path, x, t, score, ode=o) for o in (True, False))
        np.testing.assert_allclose(ode, velocity, rtol=1e-3)
        np.testing.assert_allclose(ode - sde, path.diffusion(t) ** 2 * score / 2, rtol=1e-3)


@pytest.mark.parametrize("name, highest", list(HIGHEST.items()))
def test_float32_resolves_the_highest_noise_ratio_allowed(name, highest):
    path = make_path(config(path=name, sigma_max=highest))
    assert float(path.noise_ratio(path.time_of(jnp.float32(highest)))) == pytest.approx(highest, rel=1e-3)


@by_name
def test_time_of_inverts_the_noise_ratio(path):
    ratio = jnp.array([0.02, 0.1, 1.0, 5.0, 20.0])
    np.testing.assert_allclose(path.noise_ratio(path.time_of(ratio)), ratio, rtol=2e-3)


@by_name
def test_training_noise_is_inside_the_limits_and_spread_over_them(path):
    s = np.asarray(path.sample_noise_ratio(jax.random.key(0), (20_000,)))
    assert s.min() >= 0.02 * 0.99 and s.max() <= 20.0 * 1.01
    assert np.quantile(s, 0.9) / np.quantile(s, 0.1) > 5


def test_ve_training_noise_is_log_normal():
    s = np.asarray(VE(1e-4, 1e4, p_mean=0.4, p_std=0.9).sample_noise_ratio(jax.random.key(1), (20_000,)))
    assert stats.kstest(np.log(s), "norm", (0.4, 0.9)).pvalue > 0.01


def config(**fields):
    return ConfigDict(dict(path="ve", sigma_min=0.02, sigma_max=80.0, p_mean=0.0, p_std=1.0) | fields)


@pytest.mark.parametrize("name, kind", [("ve", VE), ("vp", VP), ("rectified_flow", RectifiedFlow)])
def test_make_path(name, kind):
    assert type(make_path(config(path=name))) is kind


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"path": "edm"}, "ve, vp, rectified_flow"),
        ({"sigma_min": 90.0}, "sigma_min"),
        ({"path": "vp", "sigma_max": 1e38}, "vp"),
        ({"path": "rectified_flow", "sigma_max": 1e8}, "rectified_flow"),
    ],
)
def test_impossible_paths_are_refused(fields, message):
    with pytest.raises(PdiffError, match=message):
        make_path(config(**fields))
