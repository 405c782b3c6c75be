"""Losses against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pdiff.diffusion import losses
from pdiff.diffusion.denoiser import precondition
from pdiff.diffusion.sde import VE


def test_denoising_loss_is_the_weighted_mean_square():
    denoised, x0 = jnp.zeros((2, 3, 4)), jnp.full((2, 3, 4), 2.0).at[:, 0].set(0.0)
    sigma = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(losses.denoising_loss(denoised, x0, sigma), [2 / 3 * 4 * 2, 2 / 3 * 4 * 5], rtol=1e-6)


def test_a_share_of_training_noise_is_at_the_top():
    keys = jax.random.split(jax.random.key(0), 5000)
    path = VE(0.02, 80.0, p_mean=0.0, p_std=1.0)
    s = losses.training_noise_ratios(path, keys, 80.0, 0.25)
    assert float((s == 80).mean()) == pytest.approx(0.25, abs=0.02)
    assert (losses.training_noise_ratios(path, keys, 80.0, 0.0) < 80).all()


def test_functional_loss_is_the_networks_cross_entropy():
    networks = {"w": jnp.stack([jnp.zeros((2, 3)), jnp.array([[9.0, 0, 0], [0, 9, 0]])])}
    x = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    y = jnp.array([[0, 1], [0, 1]])
    loss = losses.functional_loss(networks, lambda p, x: x @ p["w"], x, y)
    np.testing.assert_allclose(loss, [np.log(3), np.log(1 + 2 * np.exp(-9.0))], rtol=2e-3)


def test_the_denoising_loss_of_an_untrained_network_is_one_at_every_sigma():
    """On data of unit variance, where an output of zero errs by c_out^2."""
    (x0, noise), sigma = jax.random.normal(jax.random.key(0), (2, 4, 100, 300)), jnp.array([0.03, 0.5, 2.0, 40.0])
    denoised = precondition(lambda x, c: jnp.zeros_like(x))(x0 + sigma[:, None, None] * noise, sigma)
    np.testing.assert_allclose(losses.denoising_loss(denoised, x0, sigma), 1, atol=0.03)


def test_training_noise_below_the_top_is_the_paths_own():
    keys = jax.random.split(jax.random.key(0), 5000)
    path = VE(1e-4, 1e4, p_mean=0.4, p_std=0.9)
    s = np.asarray(losses.training_noise_ratios(path, keys, 80.0, 0.5))
    below = s[s != np.float32(80)]
    assert stats.kstest(np.log(below), "norm", (0.4, 0.9)).pvalue > 0.01
    np.testing.assert_array_equal(losses.training_noise_ratios(path, keys[7:9], 80.0, 0.5), s[7:9])


def test_squared_distance_is_the_sum_over_all_leaves_of_each_network():
    base = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": {"c": jnp.array([5.0])}}
    moved = {"a": base["a"] + jnp.array([[0.0, 1.0], [2.0, 0.0]]), "b": {"c": jnp.array([8.0])}}
    networks = jax.tree.map(lambda *leaves: jnp.stack(leaves), base, moved)
    np.testing.assert_allclose(losses.squared_distance(networks, base), [0, 1 + 4 + 9])
