"""Samplers on a Gaussian, where the denoiser, the ODE's solution and the distribution are known exactly.

For data N(mu, c^2) the posterior mean is D(z, s) = (c^2 z + s^2 mu) / (c^2 + s^2), and the
probability-flow ODE carries z at level s to mu + (z - mu) sqrt((c^2 + r^2) / (c^2 + s^2)) at level r.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import rng
from pdiff.diffusion import samplers
from pdiff.diffusion.sde import VE, VP, RectifiedFlow
from pdiff.errors import PdiffError
from pdiff.system import dist

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
    noise, _, out = run(name, path, 300, count=1000)
    assert out.mean() == pytest.approx(MU, abs=0.02)
    assert out.std() == pytest.approx(C, rel=0.04)
    # Noise that is added on the way makes the end nearly independent of the start, unlike the ODE's.
    assert abs(np.corrcoef(np.ravel(out), np.ravel(noise))[0, 1]) < 0.9


def test_euler_maruyama_converges_weakly():
    # The start is N(0, HIGH^2), not N(MU, C^2 + HIGH^2), so the errors are measured against a fine grid.
    def moments(steps):
        out = run("euler_maruyama", PATHS[0], steps, count=1000)[2]
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


def test_few_noise_levels():
    np.testing.assert_allclose(samplers.noise_levels(PATHS[0], 1, 7.0), [HIGH, 0])
    np.testing.assert_allclose(samplers.noise_levels(PATHS[0], 2, 7.0), [HIGH, LOW, 0])


def record(draw, *args):
    """(result of draw(denoise, *args), levels of the calls, their z) for data that are all MU, where D is MU."""
    calls = []

    def always_mu(z, sigma):
        jax.debug.callback(lambda z, sigma: calls.append((z, sigma)), z, sigma, ordered=True)
        return jnp.full_like(z, MU)

    out = jax.jit(lambda *args: draw(always_mu, *args))(*args)
    jax.effects_barrier()
    z, sigma = map(np.stack, zip(*calls, strict=True))
    assert (sigma == sigma[:, :1]).all()
    return out, sigma[:, 0], z


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_the_way_to_a_single_point_is_a_straight_line(name):
    """The ODE's solution MU + (z(s_max) - MU) s / s_max is met exactly, at the levels asked for and no others."""
    levels, noise = np.array([10.0, 4.0, 1.0, 0.1, 0.0]), jax.random.normal(jax.random.key(1), (5, 1, 2))
    draw = samplers.get_sampler(name)
    out, called, z = record(lambda denoise, n: draw(denoise, PATHS[0], n, jnp.asarray(levels), keys(5)), noise)
    expected = [10, 4, 4, 1, 1, 0.1, 0.1] if name == "heun" else levels[:-1]  # Heun's: two calls a step but the last
    np.testing.assert_allclose(called, expected)
    np.testing.assert_allclose(z, MU + (10 * noise - MU) * called[:, None, None, None] / 10, rtol=1e-9)
    np.testing.assert_allclose(out, MU)


@pytest.mark.parametrize("name, path", [*(("euler_maruyama", p) for p in PATHS), ("ancestral", PATHS[0])])
def test_the_noise_on_the_way_to_a_single_point_is_the_levels_own(name, path):
    """Ancestral steps draw from the very conditional distribution, for any levels; Euler's need close ones."""
    levels = jnp.append(jnp.geomspace(10.0, 0.1, 5 if name == "ancestral" else 100), 0.0)
    noise, draw = jax.random.normal(jax.random.key(1), (3000, 1, 1)), samplers.get_sampler(name)
    out, called, z = record(lambda denoise, n, k: draw(denoise, path, n, levels, k), noise, keys(3000))
    np.testing.assert_allclose(called, levels[:-1], rtol=1e-6)
    np.testing.assert_allclose(z[0], 10 * noise)
    error = (z - MU)[..., 0, 0] / np.asarray(levels)[:-1, None]
    np.testing.assert_allclose(error.std(1), 1, atol=0.1)
    np.testing.assert_allclose(error.mean(1)[-1], 0, atol=0.1)
    np.testing.assert_allclose(out, MU)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_a_step_of_euler_maruyama_is_that_of_the_reverse_sde(path):
    """dx = [f x - g^2 score] dt + g dW from one level to the next, written out with f = d log(alpha) / dt."""
    levels, noise = jnp.array([2.0, 1.0, 0.0]), jax.random.normal(jax.random.key(1), (4, 1, 1))
    out, called, z = record(lambda denoise, n, k: samplers.euler_maruyama(denoise, path, n, levels, k), noise, keys(4))
    t, t_next = path.time_of(levels[:2])
    x, drift = path.alpha(t) * 2 * noise, jax.grad(lambda t: jnp.log(path.alpha(t)))(t)
    score = (MU - 2 * noise) / 2**2 / path.alpha(t)
    fresh = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (1, 1)))(keys(4))
    g, dt = path.diffusion(t), t_next - t
    x += (drift * x - g**2 * score) * dt + g * jnp.sqrt(-dt) * fresh
    np.testing.assert_allclose(called, levels[:2], rtol=1e-9)
    np.testing.assert_allclose(z[1], x / path.alpha(t_next), rtol=1e-9)
    np.testing.assert_allclose(out, MU)


def test_dpmpp_2m_is_algorithm_2():
    """Lu et al. 2022, Algorithm 2, written out with alpha = 1; the first step is of first order."""
    sigma, z = np.array([10.0, 6.0, 2.0, 0.5, 0.1]), np.full((1, 1, 1), 7.0)
    lam, found = -np.log(sigma), [None] * 4
    for i in range(4):
        found[i] = np.asarray(denoise(z, sigma[i : i + 1]))
        h, d = lam[i + 1] - lam[i], found[i]
        if i > 0:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * found[i] - 1 / (2 * r) * found[i - 1]
        z = sigma[i + 1] / sigma[i] * z - (np.exp(-h) - 1) * d
    expected = denoise(z, sigma[-1:])
    out = samplers.dpmpp_2m(denoise, PATHS[0], jnp.full((1, 1, 1), 0.7), jnp.append(sigma, 0.0), keys(1))
    np.testing.assert_allclose(out, expected, rtol=1e-9)


def test_unknown_sampler_lists_the_known_ones():
    known = ", ".join(samplers.SAMPLERS)
    with pytest.raises(PdiffError, match=f"^sampler: got 'huen'; allowed: {known}$"):
        samplers.get_sampler("huen")
