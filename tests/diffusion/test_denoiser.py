"""Preconditioning and guidance against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.diffusion.denoiser import loss_weight, precondition, score
from pdiff.diffusion.guidance import guided

SIGMAS = jnp.array([1e-3, 0.1, 1.0, 10.0, 80.0])


def test_the_network_sees_and_is_asked_for_unit_variance():
    """Karras et al. 2022, equations 115 and 127, by sampling."""
    count = 50_000
    x0, noise = jax.random.normal(jax.random.key(0), (2, count, 1))
    for sigma in SIGMAS[1:]:
        z, s, seen = x0 + sigma * noise, jnp.full(count, sigma), []
        zero = precondition(lambda x, c, seen=seen: (seen.append((x, c)), jnp.zeros_like(x))[1])(z, s)
        one = precondition(lambda x, c: jnp.ones_like(x))(z, s)
        target = (x0 - zero) / (one - zero)  # the F that would give x0
        ((x, c_noise),) = seen
        assert float(x.std()) == pytest.approx(1, abs=0.02)
        assert float(target.std()) == pytest.approx(1, abs=0.03)
        np.testing.assert_allclose(c_noise, jnp.log(sigma) / 4, rtol=1e-6)
        # The weight makes the loss on D the plain loss on F.
        c_out = float((one - zero)[0, 0])
        assert float(loss_weight(s)[0]) * c_out**2 == pytest.approx(1, rel=1e-3)


def test_the_coefficients_are_edms():
    z = jnp.linspace(-3, 3, len(SIGMAS))[:, None]
    made = precondition(lambda x, c: jnp.sin(x) + c[:, None])(z, SIGMAS)
    s = SIGMAS[:, None]
    f = jnp.sin(z / jnp.sqrt(s**2 + 1)) + jnp.log(s) / 4
    np.testing.assert_allclose(made, z / (s**2 + 1) + s / jnp.sqrt(s**2 + 1) * f, rtol=1e-5)


def test_zero_output_is_exact_for_a_standard_normal():
    """The default D is already its posterior mean."""
    z = jnp.linspace(-3, 3, len(SIGMAS))[:, None]
    made = precondition(lambda x, c: jnp.zeros_like(x))(z, SIGMAS)
    np.testing.assert_allclose(made, z / (1 + SIGMAS[:, None] ** 2), rtol=1e-5)


def test_denoiser_is_the_identity_without_noise():
    z = jnp.array([[2.0], [-3.0]])
    np.testing.assert_allclose(precondition(lambda x, c: jnp.ones_like(x))(z, jnp.full(2, 1e-6)), z, atol=1e-5)


def test_score_is_the_gradient_of_the_log_density():
    mu, c = 0.3, 0.7

    def log_density(z, s):
        return -0.5 * (z - mu) ** 2 / (c**2 + s**2)

    z, s = jnp.array([[1.3], [-0.4]]), jnp.array([0.5, 2.0])
    denoised = (c**2 * z + (s**2)[:, None] * mu) / (c**2 + s**2)[:, None]
    expected = jax.vmap(jax.grad(log_density))(z[:, 0], s)[:, None]
    np.testing.assert_allclose(score(z, s, denoised), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_extrapolates_from_null_to_condition(scale):
    calls = []

    def denoise(z, sigma, condition):
        calls.append(len(z))
        return condition[:, None] * jnp.ones_like(z)

    made = guided(denoise, jnp.array([2.0, 3.0]), jnp.array([1.0, 1.0]), scale)(jnp.zeros((2, 4)), jnp.ones(2))
    np.testing.assert_allclose(made[:, 0], [1 + scale * 1, 1 + scale * 2])
    assert calls == ([2] if scale == 1 else [4])  # one call either way
