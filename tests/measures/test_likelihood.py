"""What an ensemble says, of networks whose answers are known: one weight for each class, y = the larger."""

import numpy as np
import pytest

from pdiff.measures import likelihood

X = np.ones((1, 4, 1), np.float32)  # one task, four images, all the same
Y = np.array([0, 0, 0, 1])
NETWORKS = {"w": np.array([[[3.0, 0.0], [0.0, 0.5], [0.0, 0.7]]], np.float32)}  # three samples of one task


def apply(network, x):
    return x * network["w"]


def test_function_mean_adds_probabilities_not_votes():
    # Two of three samples answer 1, but the first is far surer of 0.
    accuracy, likely = likelihood.ensemble(apply, NETWORKS, X, Y[None])
    p = np.mean([np.exp(w) / np.exp(w).sum() for w in NETWORKS["w"][0]], 0)
    assert p.argmax() == 0
    assert accuracy == pytest.approx([0.75])
    assert likely == pytest.approx([0.75 * np.log(p[0]) + 0.25 * np.log(p[1])])
