"""Layers against direct computation."""

import jax
import numpy as np
import pytest

from pdiff.models.layers import Conv1D, noise_features, upsampled


@pytest.mark.parametrize("kernel, stride", [(3, 1), (7, 4), (4, 2)])
def test_a_convolution_is_the_sum_over_its_window(kernel, stride):
    x = np.random.default_rng(0).standard_normal((2, 16, 3)).astype(np.float32)
    layer = Conv1D(5, kernel, stride)
    params = layer.init(jax.random.key(0), x)["params"]
    out = np.asarray(layer.apply({"params": params}, x))
    weights = np.asarray(params["Dense_0"]["kernel"]).reshape(kernel, 3, 5)
    before = (kernel - stride) // 2  # as much on both sides, or one less in front
    assert out.shape == (2, 16 // stride, 5)
    for i in range(16 // stride):
        inside = [(j, i * stride + j - before) for j in range(kernel) if 0 <= i * stride + j - before < 16]
        expected = sum(x[:, place] @ weights[j] for j, place in inside)
        np.testing.assert_allclose(out[:, i], expected, atol=1e-5)


def test_upsampling_keeps_neighbours_together():
    h = np.arange(12).reshape(1, 2, 6)
    np.testing.assert_array_equal(upsampled(h, 3)[0], [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]])


def test_noise_features_tell_neighbouring_levels_apart_smoothly():
    features = np.asarray(noise_features(np.log(np.geomspace(0.02, 80, 200)) / 4))
    steps = np.linalg.norm(np.diff(features, axis=0), axis=1)
    assert steps.min() > 0.01 and steps.max() < 2
