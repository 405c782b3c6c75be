"""Layers against direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdiff.models.layers import Conv1D, Dense, noise_features, upsampled


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_layer_is_flax_s_own_by_products_of_matrices(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3)).astype(dtype)
    ours, theirs = Dense(4, dtype=jnp.dtype(dtype)), nn.Dense(4, dtype=jnp.dtype(dtype))
    params = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), x))

    def loss(params, x, layer):
        return jnp.sin(layer.apply(params, x).astype(jnp.float32)).sum()

    gradient = jax.grad(loss, (0, 1))
    accuracy = dict(rtol=1e-5, atol=1e-6) if dtype == "float32" else dict(rtol=2e-2, atol=2e-2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **accuracy),
        gradient(params, x, ours), gradient(params, x, theirs),
    )  # fmt: skip
    traced = jax.make_jaxpr(lambda p, x: gradient(p, x, ours))(params, x)
    products = [e for e in traced.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3 and all(v.aval.ndim == 2 for e in products for v in e.invars)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (7, 4), (4, 2)])
def test_a_convolution_is_the_sum_over_its_window(kernel, stride):
    x = np.random.default_rng(0).standard_normal((2, 16, 3)).astype(np.float32)
    layer = Conv1D(5, kernel, stride)
    params = layer.init(jax.random.key(0), jnp.asarray(x))["params"]
    out = np.asarray(layer.apply({"params": params}, jnp.asarray(x)))
    weights = np.asarray(params["Dense_0"]["kernel"]).reshape(kernel, 3, 5)
    before = (kernel - stride) // 2  # as much on both sides, or one less in front
    assert out.shape == (2, 16 // stride, 5)
    for i in range(16 // stride):
        inside = [(j, i * stride + j - before) for j in range(kernel) if 0 <= i * stride + j - before < 16]
        expected = sum(x[:, place] @ weights[j] for j, place in inside)
        np.testing.assert_allclose(out[:, i], expected, atol=1e-5)


def test_upsampling_keeps_neighbours_together():
    h = jnp.arange(12.0).reshape(1, 2, 6)
    np.testing.assert_array_equal(upsampled(h, 3)[0], [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]])


def test_noise_features_tell_neighbouring_levels_apart_smoothly():
    features = np.asarray(noise_features(jnp.log(jnp.geomspace(0.02, 80, 200)) / 4))
    steps = np.linalg.norm(np.diff(features, axis=0), axis=1)
    assert steps.min() > 0.01 and steps.max() < 2
