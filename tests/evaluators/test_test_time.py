"""Ensembles and likelihoods of networks whose answers are known: one weight for each class, y = the larger."""

import numpy as np
import pytest

from pdiff.evaluators import test_time as module

X = np.ones((1, 4, 1), np.float32)  # one task, four images, all the same
Y = np.array([0, 0, 0, 1])
NETWORKS = {"w": np.array([[[3.0, 0.0], [0.0, 0.5], [0.0, 0.7]]], np.float32)}  # three samples of one task


def apply(network, x):
    return x * network["w"]


def test_function_mean_adds_probabilities_not_votes():
    # Two of three samples answer 1, but the first is far surer of 0.
    accuracy, likely = module.ensemble(apply, NETWORKS, X, Y[None])
    p = np.mean([np.exp(w) / np.exp(w).sum() for w in NETWORKS["w"][0]], 0)
    assert p.argmax() == 0
    assert accuracy == pytest.approx([0.75])
    assert likely == pytest.approx([0.75 * np.log(p[0]) + 0.25 * np.log(p[1])])


def test_images_that_are_not_real_are_left_out_of_a_likelihood_and_an_entropy():
    w, real = {"w": np.array([0.0, 0.5], np.float32)}, np.array([True, False, False, True])
    logp = np.log(np.exp(w["w"]) / np.exp(w["w"]).sum())
    assert module.log_likelihood(apply, w, X[0], Y, real) == pytest.approx(logp.mean())  # a 0 and a 1 of the four
    assert module.log_likelihood(apply, w, X[0], Y) == pytest.approx((3 * logp[0] + logp[1]) / 4)
    other = X[0] * np.array([[1.0], [9.0], [9.0], [1.0]], np.float32)
    sure = module.negative_entropy(apply, w, other, real)
    assert sure == pytest.approx((np.exp(logp) * logp).sum()) == module.negative_entropy(apply, w, X[0])
    assert module.log_likelihood(apply, w, X[0], Y, np.zeros(4, bool)) == 0
