"""The layers against Flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pdiff.targets.layers import Conv, Dense


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 5, 3)])
def test_it_is_flaxs_convolution(side, stride, shape):
    ours, theirs = Conv(4, side, stride), nn.Conv(4, (side, side), (stride, stride))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape), np.float32))
    params = ours.init(jax.random.key(0), x)
    flax = theirs.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, flax)
    params = jax.tree.map(lambda a: a + 0.1, params)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-4, atol=1e-4)

    def loss(module):
        return jax.grad(lambda p: (module.apply(p, x) ** 2).sum())(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), loss(ours), loss(theirs))


def test_it_is_flaxs_dense_layer_of_columns():
    ours, theirs = Dense(4), nn.Dense(4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3), np.float32))
    params, flax = ours.init(jax.random.key(0), x.T), theirs.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, flax)
    params = jax.tree.map(lambda a: a + 0.1, params)
    np.testing.assert_allclose(ours.apply(params, x.T).T, theirs.apply(params, x), rtol=1e-5, atol=1e-5)

    def gradients(apply):
        return jax.grad(lambda p, x: (apply(p, x) ** 2).sum(), (0, 1))(params, x)

    columns = gradients(lambda p, x: ours.apply(p, x.T))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), columns, gradients(theirs.apply))
