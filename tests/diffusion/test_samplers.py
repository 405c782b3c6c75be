"""Samplers on a Gaussian, where the denoiser, the ODE's solution and the distribution are known exactly.

For data N(mu, c^2) the posterior mean is D(z, s) = (c^2 z + s^2 mu) / (c^2 + s^2), and the
probability-flow ODE carries z at level s to mu + (z - mu) sqrt((c^2 + r^2) / (c^2 + s^2)) at level r.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import dist, rng
from pdiff.diffusion import samplers
from pdiff.diffusion.sde import VE, VP, RectifiedFlow
from pdiff.errors import PdiffError

MU, C = 0.8, 0.5
HIGH, LOW = 10.0, 1e-3
PATHS = [VE(LOW, HIGH), VP(LOW, HIGH), RectifiedFlow(LOW, HIGH)]
SHAPE = (64, 3, 4)


@pytest.fixture(autouse=True)
def double_precision():
    """Errors of high order vanish below float32's rounding."""
    with jax.enable_x64(True):
        yield


def denoise(z, sigma):
    s2 = (sigma**2)[:, None, None]
    return (C**2 * z + s2 * MU) / (C**2 + s2)


def keys(count):
    return rng.per_example(jax.random.key(0), jnp.arange(count))


def run(name, path, steps, count=SHAPE[0], rho=7.0):
    noise = jax.random.normal(jax.random.key(1), (count, *SHAPE[1:]))
    levels = samplers.noise_levels(path, steps, rho)
    out = jax.jit(lambda n: samplers.get_sampler(name)(denoise, path, n, levels, keys(count)))(noise)
    return noise, levels, out


def exact(noise):
    """Where the ODE ends at level LOW; the last step, to 0, is D itself for every sampler."""
    z = MU + (HIGH * noise - MU) * jnp.sqrt((C**2 + LOW**2) / (C**2 + HIGH**2))
    return denoise(z, jnp.full(len(noise), LOW))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name, order", [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order, path):
    steps = np.array([40, 80, 160])
    errors = []
    for n in steps:
        noise, _, out = run(name, path, int(n))
        errors.append(float(jnp.abs(out - exact(noise)).max()))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.25), errors
    assert errors[-1] < {1: 0.1, 2: 5e-3}[order]


@pytest.mark.parametrize("name, path", [*(("euler_maruyama", p) for p in PATHS), ("ancestral", PATHS[0])])
def test_stochastic_samplers_have_the_right_distribution(name, path):
    _, _, out = run(name, path, 300, count=4000)
    assert out.mean() == pytest.approx(MU, abs=0.02)
    assert out.std() == pytest.approx(C, rel=0.04)
    noise = jax.random.normal(jax.random.key(1), (4000, *SHAPE[1:]))
    # Noise that is added on the way makes the end nearly independent of the start, unlike the ODE's.
    assert abs(np.corrcoef(np.ravel(out), np.ravel(noise))[0, 1]) < 0.9


def test_euler_maruyama_converges_weakly():
    # The start is N(0, HIGH^2), not N(MU, C^2 + HIGH^2), so the errors are measured against a fine grid.
    def moments(steps):
        out = run("euler_maruyama", PATHS[0], steps, count=4000)[2]
        return float(out.std())

    coarse, middle, fine = (abs(moments(n) - C) for n in (8, 32, 256))
    assert fine < middle < coarse


def test_posterior_mean_is_one_call_at_the_top():
    noise, levels, out = run("posterior_mean", PATHS[0], 18)
    np.testing.assert_allclose(out, denoise(HIGH * noise, jnp.full(len(noise), HIGH)), rtol=1e-12)


@pytest.mark.parametrize("name", list(samplers.SAMPLERS))
def test_samples_do_not_depend_on_the_batch_they_are_drawn_in(name):
    path, levels = PATHS[1], samplers.noise_levels(PATHS[1], 6, 7.0)
    noise = jax.random.normal(jax.random.key(1), SHAPE)
    draw = samplers.get_sampler(name)
    whole = draw(denoise, path, noise, levels, keys(SHAPE[0]))
    part = draw(denoise, path, noise[5:9], levels, keys(SHAPE[0])[5:9])
    np.testing.assert_allclose(whole[5:9], part, rtol=1e-12)


@pytest.mark.parametrize("name", list(samplers.SAMPLERS))
def test_samples_do_not_depend_on_the_devices_and_compile_once(name, mesh4):
    path, traces = PATHS[2], []
    levels = samplers.noise_levels(path, 6, 7.0)

    def draw(noise, keys):
        traces.append(name)
        return samplers.get_sampler(name)(denoise, path, noise, levels, keys)

    sharded = dist.data_parallel(draw, mesh4, (dist.SHARDED, dist.SHARDED), dist.SHARDED)
    noise = jax.random.normal(jax.random.key(1), SHAPE)
    made = sharded(noise, keys(SHAPE[0]))
    count = len(traces)
    sharded(noise + 1, keys(SHAPE[0]))
    assert len(traces) == count
    np.testing.assert_allclose(made, draw(noise, keys(SHAPE[0])), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "ddim"])
def test_float32_is_enough_for_a_wide_range_of_noise(name):
    path, noise = VE(1e-3, 1e3), np.random.default_rng(0).normal(size=SHAPE)

    def draw():
        levels = samplers.noise_levels(path, 40, 7.0)
        return np.asarray(samplers.get_sampler(name)(denoise, path, jnp.asarray(noise), levels, keys(SHAPE[0])))

    double = draw()
    with jax.enable_x64(False):
        single = draw()
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, atol=1e-3)


@pytest.mark.parametrize("path", [VE, VP, RectifiedFlow], ids=lambda p: p.__name__)
def test_euler_maruyama_in_float32_over_a_wide_range_of_noise(path):
    with jax.enable_x64(False):
        out = run("euler_maruyama", path(1e-3, 1e3), 100, count=1000)[2]
    assert out.dtype == np.float32
    assert out.mean() == pytest.approx(MU, abs=0.03)
    assert out.std() == pytest.approx(C, rel=0.06)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_noise_levels(rho):
    levels = np.asarray(samplers.noise_levels(PATHS[0], 9, rho))
    assert len(levels) == 10 and levels[-1] == 0
    assert levels[0] == pytest.approx(HIGH) and levels[-2] == pytest.approx(LOW)
    assert (np.diff(levels) < 0).all()
    steps = np.diff(levels[:-1] ** (1 / rho))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_a_higher_last_level_draws_a_narrower_distribution():
    path, widths = PATHS[0], []
    for end in (LOW, C, 4 * C):
        levels = samplers.noise_levels(path, 40, 7.0, end)
        assert levels[-2] == pytest.approx(end) and levels[0] == pytest.approx(HIGH)
        noise = jax.random.normal(jax.random.key(1), (4096, 1, 1))
        widths.append(float(samplers.heun(denoise, path, noise, levels, keys(4096)).std()))
    # At level r the marginal has variance c^2 + r^2, and D shrinks it by c^2 / (c^2 + r^2).
    expected = [C**2 / np.sqrt(C**2 + r**2) for r in (LOW, C, 4 * C)]
    np.testing.assert_allclose(widths, expected, rtol=0.03)


def test_inversion_finds_the_noise():
    levels = samplers.noise_levels(PATHS[0], 2000, 7.0)
    noise = jax.random.normal(jax.random.key(1), SHAPE)
    x0 = samplers.ddim(denoise, PATHS[0], noise, levels, keys(SHAPE[0]))
    np.testing.assert_allclose(samplers.ddim_inversion(denoise, x0, levels), noise, atol=0.02)


def test_unknown_sampler_lists_the_known_ones():
    with pytest.raises(PdiffError, match="heun, posterior_mean"):
        samplers.get_sampler("huen")
