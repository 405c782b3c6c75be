"""Scores of finite sets and of Gaussians, against closed forms."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pdiff.evaluators import score_likeness as likeness

LEVELS = (0.05, 0.5, 2.0, 40.0)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def numerical_gradient(log_density, z, h=1e-5):
    steps = h * np.eye(len(z))
    return np.array([(log_density(z + e) - log_density(z - e)) / (2 * h) for e in steps])


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_score_of_one_network_points_straight_to_it(random, sigma):
    z, x1 = random.standard_normal((5, 7)), random.standard_normal((1, 7))
    found = likeness.score(likeness.empirical_denoiser(z, sigma, x1), z, sigma)
    np.testing.assert_array_equal(found, (x1 - z) / sigma**2)


def test_two_networks_by_hand():
    """x = -1 and 1: the posterior mean is tanh(z / sigma^2)."""
    z = np.array([[0.3], [-0.9], [5.0]])
    found = likeness.empirical_denoiser(z, 0.7, np.array([[-1.0], [1.0]]))
    np.testing.assert_allclose(found, np.tanh(z / 0.49), rtol=1e-10)


@pytest.mark.parametrize("sigma", (0.3, 2.0))
def test_scores_are_the_gradients_of_the_densities(random, sigma):
    networks, z = random.standard_normal((4, 3)), random.standard_normal((1, 3))
    mean, spread = random.standard_normal(3), 0.8

    def mixture(z):
        return np.log(np.mean([multivariate_normal.pdf(z, x, sigma**2 * np.eye(3)) for x in networks]))

    def gaussian(z):
        return multivariate_normal.logpdf(z, mean, (spread**2 + sigma**2) * np.eye(3))

    for denoised, density in (
        (likeness.empirical_denoiser(z, sigma, networks), mixture),
        (likeness.gaussian_denoiser(z, sigma, mean, spread), gaussian),
    ):
        np.testing.assert_allclose(likeness.score(denoised, z, sigma)[0], numerical_gradient(density, z[0]), rtol=1e-5)


def test_low_noise_and_many_dimensions_stay_finite_and_choose_the_nearest(random):
    networks = random.standard_normal((50, 2410)).astype(np.float32)
    z = networks[:8] + np.float32(0.01) * random.standard_normal((8, 2410)).astype(np.float32)
    np.testing.assert_array_equal(likeness.posterior_weights(z, 0.01, networks), np.eye(50)[:8])
    np.testing.assert_array_equal(likeness.empirical_denoiser(z, 0.01, networks), networks[:8])


def test_high_noise_gives_the_mean_of_all(random):
    networks = random.standard_normal((6, 5))
    found = likeness.empirical_denoiser(networks, 1e4, networks)
    np.testing.assert_allclose(found, np.tile(networks.mean(0), (6, 1)), atol=1e-5)


def measured(denoised, networks, z, sigma):
    """(relative error, cosine) of a denoiser's score to the empirical one."""
    scores = (likeness.score(d, z, sigma) for d in (denoised, likeness.empirical_denoiser(z, sigma, networks)))
    found, reference = scores
    return likeness.relative_error(found, reference), likeness.cosine(found, reference)


@pytest.mark.parametrize("sigma", LEVELS)
def test_the_empirical_denoiser_is_wholly_like_itself(random, sigma):
    networks = random.standard_normal((9, 30))
    z = networks[:3] + sigma * random.standard_normal((3, 30))
    error, cosine = measured(likeness.empirical_denoiser(z, sigma, networks), networks, z, sigma)
    np.testing.assert_array_equal(error, 0)
    np.testing.assert_allclose(cosine, 1)


def test_a_gaussian_is_like_the_networks_at_high_noise_alone(random):
    networks = random.standard_normal((9, 300))
    mean, spread = networks.mean(0), networks.std()
    noise = random.standard_normal((3, 300))

    def error(sigma):
        z = networks[:3] + sigma * noise
        return measured(likeness.gaussian_denoiser(z, sigma, mean, spread), networks, z, sigma)[0].max()

    assert error(40.0) < 0.02
    # At low noise its score is of order 1, and that of the one network left is noise / sigma.
    np.testing.assert_allclose(error(0.05), 1, atol=0.1)


def test_relative_error_and_cosine_by_hand():
    found, reference = np.array([[2.0, 0], [0, 1], [0, 0]]), np.array([[1.0, 0], [1, 0], [3, 4]])
    np.testing.assert_allclose(likeness.relative_error(found, reference), [1, np.sqrt(2), 1])
    np.testing.assert_allclose(likeness.cosine(found, reference), [1, 0, 0])
