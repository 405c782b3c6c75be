"""Likelihoods of a Gaussian, whose best denoiser is linear and whose densities are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pdiff.diffusion import likelihood
from pdiff.diffusion.samplers import noise_levels
from pdiff.diffusion.sde import VE, VP, RectifiedFlow

LIMITS = {"sigma_min": 0.1, "sigma_max": 40.0}
VARYING = np.array([[True, True, True], [True, False, True]])  # one element of padding
COUNT = int(VARYING.sum())
KEYS = jax.random.split(jax.random.key(5), 4)


@pytest.fixture(scope="module")
def gaussian():
    """(mean, covariance) over what varies; the eigenvalues differ and the axes are not the coordinates."""
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.standard_normal((COUNT, COUNT)))[0]
    return random.standard_normal(COUNT), axes @ np.diag([0.2, 0.5, 1.0, 1.5, 2.0]) @ axes.T


@pytest.fixture(scope="module")
def z():
    return jax.random.normal(jax.random.key(1), (4, *VARYING.shape))


def denoiser_of(gaussian):
    """E[x0 | z] of N(mean, S): mean + S (S + sigma^2)^-1 (z - mean). What is padding it leaves alone."""
    mean, covariance = (jnp.asarray(a, jnp.float32) for a in gaussian)

    def denoise(z, sigma):
        def one(z, s):
            flat = z[VARYING] - mean
            kept = covariance @ jnp.linalg.solve(covariance + s**2 * jnp.eye(COUNT), flat)
            return z.at[VARYING].set(mean + kept)

        return jax.vmap(one)(z, sigma)

    return denoise


def up(path, steps):
    return noise_levels(path, steps + 1, 7.0)[:-1][::-1]


def estimate(path, gaussian, z, steps, probes=None):
    probes = likelihood.every_direction(len(z), VARYING) if probes is None else probes
    found = jax.jit(lambda z, p: likelihood.log_likelihood(denoiser_of(gaussian), path, z, up(path, steps), p, VARYING))
    return np.asarray(found(z, probes), np.float64)


def exact_by_the_ode(gaussian, z, low, high):
    """The integral in closed form: along each axis z - mean grows as the root of (s + sigma^2)."""
    mean, covariance = gaussian
    s, axes = np.linalg.eigh(covariance)
    growth = np.sqrt((s + high**2) / (s + low**2))
    flat = np.asarray(z, np.float64)[:, VARYING]
    z_max = mean + (((flat - mean) @ axes) * growth) @ axes.T
    return multivariate_normal.logpdf(z_max, np.zeros(COUNT), high**2 * np.eye(COUNT)) + np.log(growth).sum()


def test_the_density_of_a_gaussian(gaussian, z):
    path = VE(sigma_min=0.1, sigma_max=2000.0)  # so high that the prior is the distribution there
    mean, covariance = gaussian
    flat = np.asarray(z, np.float64)[:, VARYING]
    expected = multivariate_normal.logpdf(flat, mean, covariance + 0.1**2 * np.eye(COUNT))
    np.testing.assert_allclose(estimate(path, gaussian, z, 400), expected, atol=0.01)


def test_the_error_falls_with_the_square_of_the_number_of_steps(gaussian, z):
    path = VE(**LIMITS)
    exact = exact_by_the_ode(gaussian, z, 0.1, 40.0)
    errors = [np.abs(estimate(path, gaussian, z, n) - exact).max() for n in (16, 32, 64)]
    orders = -np.diff(np.log2(errors))
    assert (orders > 1.7).all() and (orders < 2.5).all(), errors


@pytest.mark.parametrize("path", [VP(**LIMITS), RectifiedFlow(**LIMITS)])
def test_all_paths_are_one(path, gaussian, z):
    np.testing.assert_allclose(estimate(path, gaussian, z, 32), estimate(VE(**LIMITS), gaussian, z, 32), atol=0.01)


def test_padding_counts_for_nothing(gaussian, z):
    moved = z + 7.0 * ~VARYING
    np.testing.assert_array_equal(
        estimate(VE(**LIMITS), gaussian, moved, 8), estimate(VE(**LIMITS), gaussian, z, 8)
    )


def test_probes_estimate_the_trace_without_bias_and_more_of_them_with_less_variance(gaussian, z):
    denoise, sigma = denoiser_of(gaussian), jnp.float32(1.0)
    covariance = gaussian[1]
    kept = covariance @ np.linalg.inv(covariance + np.eye(COUNT))

    def traces(count, seed):
        keys = jax.random.split(jax.random.key(seed), 4000)
        drawn = likelihood.rademacher(keys, count, VARYING)
        many = jnp.broadcast_to(z[:1], (4000, *z.shape[1:]))
        return np.asarray(likelihood.denoise_and_trace(denoise, many, sigma, drawn)[1], np.float64)

    one, four = traces(1, 2), traces(4, 3)
    variance = 2 * (np.square(kept).sum() - np.square(np.diag(kept)).sum())  # of a symmetric matrix, Hutchinson 1990
    for found, expected in ((one, variance), (four, variance / 4)):
        assert abs(found.mean() - np.trace(kept)) < 4 * np.sqrt(expected / 4000)
        assert found.var() == pytest.approx(expected, rel=0.15)


def test_every_direction_gives_the_trace_itself(gaussian, z):
    kept = gaussian[1] @ np.linalg.inv(gaussian[1] + 4 * np.eye(COUNT))
    probes = likelihood.every_direction(len(z), VARYING)
    _, trace = likelihood.denoise_and_trace(denoiser_of(gaussian), z, jnp.float32(2.0), probes)
    np.testing.assert_allclose(trace, np.trace(kept), rtol=1e-5)


def test_the_density_by_probes_has_the_exact_one_as_its_mean(gaussian, z):
    """The probes enter linearly in the integral of a linear denoiser, whose Jacobian knows no z."""
    path, many = VE(**LIMITS), jnp.broadcast_to(z[:1], (2000, *z.shape[1:]))
    drawn = likelihood.rademacher(jax.random.split(jax.random.key(9), 2000), 2, VARYING)
    found, exact = estimate(path, gaussian, many, 16, drawn), estimate(path, gaussian, z[:1], 16)
    assert found.std() > 0.1
    assert abs(found.mean() - exact[0]) < 4 * found.std() / np.sqrt(2000)


def test_the_diffusion_loss_tells_two_means_by_as_much_as_their_densities(gaussian):
    """Averaged over many x0, both differences are the divergence of one Gaussian from the other."""
    mean, covariance = gaussian
    other = mean + 0.5
    random = np.random.default_rng(3)
    flat = random.multivariate_normal(mean, covariance, 4000).astype(np.float32)
    x0 = jnp.zeros((4000, *VARYING.shape)).at[:, VARYING].set(flat)
    levels, keys = jnp.geomspace(0.02, 80.0, 60), jax.random.split(jax.random.key(0), 4000)

    def loss(g):
        denoise = denoiser_of(g)
        errors = likelihood.squared_errors(lambda z, s: jnp.where(VARYING, denoise(z, s), 0), x0, levels, keys, 1)
        return np.asarray(likelihood.diffusion_loss(errors, levels), np.float64)

    found = (loss((other, covariance)) - loss((mean, covariance))).mean()
    divergence = 0.5 * (other - mean) @ np.linalg.solve(covariance, other - mean)
    assert found == pytest.approx(divergence, rel=0.05)


def test_the_diffusion_loss_of_a_known_error():
    """An error of sigma^4 / (1 + sigma^2)^2, a standard normal's that shrinks x0 = 0, integrates to a logarithm."""
    levels = jnp.geomspace(0.01, 100.0, 2001)
    errors = (levels**4 / (1 + levels**2) ** 2)[:, None]

    def integral(s):  # of sigma / (1 + sigma^2)^2
        return -0.5 / (1 + s**2)

    np.testing.assert_allclose(likelihood.diffusion_loss(errors, levels), integral(100.0) - integral(0.01), rtol=1e-3)


def test_squared_errors_are_means_over_noises_that_only_the_key_decides():
    x0 = jnp.zeros((4, *VARYING.shape))
    levels = jnp.array([0.5, 3.0])
    errors = likelihood.squared_errors(lambda z, sigma: z, x0, levels, KEYS, 300)  # sigma^2 ||eps||^2
    np.testing.assert_allclose(errors / (levels[:, None] ** 2 * VARYING.size), 1, atol=0.12)
    alone = likelihood.squared_errors(lambda z, sigma: z, x0[:1], levels, KEYS[2:3], 300)
    np.testing.assert_allclose(alone[:, 0], errors[:, 2], rtol=1e-6)
