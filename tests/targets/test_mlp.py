"""The MLP against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.targets import get_target
from tests.targets.make import make_target


def test_it_is_a_relu_network_of_the_given_widths():
    target = make_target("mlp", (3, 2), 4, widths=(7, 5))
    params = target.init(jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((11, 6)).astype(np.float32)
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    h = x
    for i, layer in enumerate(layers):
        h = h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        h = np.maximum(h, 0) if i < 2 else h
    np.testing.assert_allclose(target.apply(params, jnp.asarray(x)), h, rtol=1e-5, atol=1e-6)
    assert jax.tree.map(lambda a: a.shape, target.abstract()) == jax.tree.map(lambda a: a.shape, params)


def test_the_default_has_2410_parameters():
    target = make_target()
    assert sum(np.prod(a.shape, dtype=int) for a in jax.tree.leaves(target.abstract())) == 2410


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(PdiffError, match="mlp"):
        get_target(ConfigDict({"name": "mpl"}), (8, 8), 10)
