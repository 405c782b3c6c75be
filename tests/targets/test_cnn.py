"""The CNN against SciPy, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from pdiff.errors import PdiffError
from tests.targets.make import make_target


def test_it_is_convolution_group_norm_relu_and_mean():
    target = make_target("cnn", widths=(8,))
    tree = target.init(jax.random.key(0))
    random = np.random.default_rng(0)
    tree = jax.tree.map(lambda a: a + 0.1 * random.standard_normal(a.shape, np.float32), tree)
    x = random.standard_normal((2, 64)).astype(np.float32)
    p = tree["params"]
    kernel = np.asarray(p["Conv_0"]["kernel"])[:, :, 0]
    h = np.stack([[correlate2d(i.reshape(8, 8), kernel[..., c], "same") for c in range(8)] for i in x])
    h = h + np.asarray(p["Conv_0"]["bias"])[None, :, None, None]
    groups = h.reshape(2, 4, -1)
    groups = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-6)
    h = groups.reshape(h.shape) * np.asarray(p["GroupNorm_0"]["scale"])[None, :, None, None]
    h = np.maximum(h + np.asarray(p["GroupNorm_0"]["bias"])[None, :, None, None], 0).mean((2, 3))
    expected = h @ np.asarray(p["Dense_0"]["kernel"]) + np.asarray(p["Dense_0"]["bias"])
    np.testing.assert_allclose(target.apply(tree, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_stages_halve_and_colours_are_channels():
    target = make_target("cnn", (8, 8, 3), widths=(4, 8, 16))
    shapes = jax.tree.map(lambda a: a.shape, target.abstract())["params"]
    assert shapes["Conv_0"]["kernel"] == (3, 3, 3, 4)
    assert shapes["Dense_0"]["kernel"] == (16, 10)
    assert target.apply(target.init(jax.random.key(0)), jnp.zeros((5, 192))).shape == (5, 10)


@pytest.mark.parametrize("widths", [(), (6,), (4,) * 5])
def test_sizes_that_do_not_fit_are_refused(widths):
    with pytest.raises(PdiffError, match="target.widths"):
        make_target("cnn", widths=widths)
