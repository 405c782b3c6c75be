"""Guidance by a likelihood: of a Gaussian prior and Gaussian observations the posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import interp
from pdiff.diffusion import guidance, samplers, sde


@pytest.mark.parametrize("observed, noise", [(1.2, 2.0), (-3.0, 3.0)])
def test_samples_follow_the_posterior_where_it_is_a_gaussian(observed, noise):
    """Prior N(0, 1), an observation y of noise s: the posterior is N(y / (1 + s^2), s^2 / (1 + s^2)).

    The likelihood of an estimate stands for that of what it estimates, which is exact where an observation says little.
    """
    path = sde.make_path(interp.get_config().diffusion)
    levels = samplers.noise_levels(path, 60, 7.0)
    start, keys = jax.random.normal(jax.random.key(0), (4096, 1, 1)), jax.random.split(jax.random.key(1), 4096)

    def denoise(z, sigma):
        return z / (1 + sigma**2)[:, None, None]

    guided = guidance.by_likelihood(denoise, lambda x0: -0.5 * jnp.square((observed - x0) / noise).sum((1, 2)), 1e9)
    plain, drawn = (np.asarray(samplers.ddim(d, path, start, levels, keys)) for d in (denoise, guided))
    assert abs(plain.mean()) < 0.05 and abs(plain.std() - 1) < 0.05
    assert drawn.mean() == pytest.approx(observed / (1 + noise**2), rel=0.15)
    assert drawn.std() == pytest.approx(np.sqrt(noise**2 / (1 + noise**2)), rel=0.05)


def test_without_a_gradient_and_without_noise_nothing_is_moved():
    z = jax.random.normal(jax.random.key(0), (3, 2, 4))
    denoise = lambda z, sigma: 0.5 * z  # noqa: E731
    flat = guidance.by_likelihood(denoise, lambda x0: jnp.zeros(len(x0)))
    np.testing.assert_array_equal(flat(z, jnp.ones(3)), 0.5 * z)
    steep = guidance.by_likelihood(denoise, lambda x0: 1e9 * x0.sum((1, 2)))
    np.testing.assert_allclose(steep(z, jnp.full(3, 1e-9)), 0.5 * z, rtol=1e-5)
    moved = np.asarray(steep(z, jnp.ones(3)) - 0.5 * z)
    own = np.sqrt(np.square(0.5 * z).sum((1, 2)))
    np.testing.assert_allclose(np.sqrt(np.square(moved).sum((1, 2))), 0.5 * own, rtol=1e-5)
