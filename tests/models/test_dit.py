"""The prior's transformer: zero at initialization, and told of a set of networks that has no order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.generator.generator import MEMBERS
from tests.noise import noised


@pytest.fixture(scope="module")
def inputs(tiny):
    x, members = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((4, *tiny.shape), (4, MEMBERS, 16))))
    return x, jnp.linspace(-1, 1, 4), members


@pytest.fixture(scope="module")
def fresh(tiny):
    return jax.jit(tiny.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def params(fresh):
    """None is zero."""
    return noised(fresh, 0.1)


@pytest.fixture(scope="module")
def apply(tiny, params):
    return jax.jit(lambda *inputs: tiny.dit.apply({"params": params}, *inputs))


def test_output_is_zero_at_initialization(tiny, fresh, inputs):
    assert tiny.shape == (2, 8)
    assert not jax.jit(tiny.dit.apply)({"params": fresh}, *inputs).any()


def test_examples_do_not_mix(apply, inputs):
    alone = apply(*jax.tree.map(lambda a: a[2:3], inputs))
    np.testing.assert_allclose(apply(*inputs)[2:3], alone, atol=1e-5)


def test_members_have_no_order_and_no_number(apply, inputs):
    x, c_noise, members = inputs
    out = apply(x, c_noise, members)
    np.testing.assert_allclose(apply(x, c_noise, members[:, ::-1]), out, atol=1e-5)
    np.testing.assert_allclose(apply(x, c_noise, jnp.concatenate([members] * 2, 1)), out, atol=1e-5)


def test_what_members_differ_in_matters(apply, inputs):
    """Their mean, their spread, and with the same of both how they are distributed."""
    x, c_noise, members = inputs
    skewed = members**2
    alike = (skewed - skewed.mean(1, keepdims=True)) / skewed.std(1, keepdims=True)
    same = alike * members.std(1, keepdims=True) + members.mean(1, keepdims=True)
    np.testing.assert_allclose(same.std(1), members.std(1), rtol=1e-4)
    out = apply(x, c_noise, members)
    for other in (members + 1, members.mean(1, keepdims=True) + 2 * (members - members.mean(1, keepdims=True)), same):
        assert jnp.abs(apply(x, c_noise, other) - out).max() > 1e-3


def test_the_noise_level_and_every_coefficient_matter(apply, inputs):
    x, c_noise, members = inputs
    out = apply(x, c_noise, members)
    assert jnp.abs(apply(x, c_noise + 0.5, members) - out).max() > 1e-3
    moved = x[None] + jnp.eye(x[0].size).reshape(-1, 1, *x.shape[1:])
    assert (jnp.abs(jax.vmap(lambda x: apply(x, c_noise, members))(moved) - out).max((1, 2, 3)) > 1e-3).all()


def test_a_single_member_has_finite_gradients(tiny, params, inputs):
    """All members are the same then: the deviation is a root of zero."""
    x, c_noise, members = inputs
    same = jnp.broadcast_to(members[:, :1], members.shape)
    loss = lambda p, m: jnp.square(tiny.dit.apply({"params": p}, x, c_noise, m)).sum()  # noqa: E731
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(params, same)))


def test_remat_changes_memory_not_numbers(tiny, params, apply, inputs):
    again = jax.jit(tiny.dit.clone(remat=True).apply)({"params": params}, *inputs)
    np.testing.assert_allclose(apply(*inputs), again, rtol=1e-5, atol=1e-5)


def test_bfloat16_activations_stay_close(tiny, params, apply, inputs):
    exact = apply(*inputs)
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm promotes
        rough = jax.jit(tiny.dit.clone(dtype=jnp.bfloat16).apply)({"params": params}, *inputs)
    assert rough.dtype == jnp.float32
    assert float(jnp.abs(exact - rough).max()) < 0.1 * float(jnp.abs(exact).max())
