"""Averages and choices on networks whose answers are known: one weight for each class, y = the larger."""

import numpy as np
import pytest

from pdiff.evaluators import test_time as module

X = np.ones((1, 4, 1), np.float32)  # one task, four images, all the same
Y = np.array([0, 0, 0, 1])
NETWORKS = {"w": np.array([[[3.0, 0.0], [0.0, 0.5], [0.0, 0.7]]], np.float32)}  # three samples of one task


def apply(network, x):
    return x * network["w"]


def test_weight_mean():
    np.testing.assert_allclose(module.weight_mean(NETWORKS)["w"], [[1.0, 0.4]], rtol=1e-6)


def test_function_mean_adds_probabilities_not_votes():
    # Two of three samples answer 1, but the first is far surer of 0.
    accuracy = module.function_mean_accuracy(apply, NETWORKS, X, Y[None])
    p = [np.exp(w) / np.exp(w).sum() for w in NETWORKS["w"][0]]
    assert np.mean(p, 0).argmax() == 0
    assert accuracy == pytest.approx([0.75])


def test_the_best_by_labels_and_by_entropy():
    assert module.best(apply, NETWORKS, X, Y[None])["w"].tolist() != module.best(apply, NETWORKS, X, 1 - Y[None])
    ones = np.ones((1, 4), int)
    np.testing.assert_allclose(module.best(apply, NETWORKS, X, ones)["w"], [[0.0, 0.7]])  # likeliest for all ones
    np.testing.assert_allclose(module.best(apply, NETWORKS, X, None)["w"], [[3.0, 0.0]])  # surest of its answers
