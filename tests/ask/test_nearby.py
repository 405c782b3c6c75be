"""Predictions from measured values: they go through these, and their intervals hold what they say."""

import numpy as np
import pytest
from scipy import stats

from pdiff.ask.nearby import HELD, NETWORKS, Nearby, flips, student


def apart(a, b):
    return np.abs(a[:, None] - b[None])


def walk(random, places):
    """A random walk over the places, which steps as often up as down."""
    order = np.argsort(places)
    steps = random.normal(size=len(places)) * np.sqrt(np.diff(places[order], prepend=0))
    values = np.empty(len(places))
    values[order] = 0.9 + 0.01 * np.cumsum(steps)
    return values


def test_it_goes_through_what_was_measured():
    random = np.random.default_rng(0)
    places = np.sort(random.uniform(0, 10, 20))
    values = walk(random, places)
    near = Nearby(apart(places, places), values)
    found = [near.at(d) for d in apart(places, places)]
    assert [f.mean for f in found] == pytest.approx(values, abs=0.3 * NETWORKS**0.5 * values.std() + 1e-4)
    assert all(f.weights.sum() == pytest.approx(1) for f in found)
    between = near.at(np.abs(places - (places[9] + places[10]) / 2))
    assert between.margin > max(found[9].margin, found[10].margin)
    assert near.at(np.abs(places - 100)).margin > between.margin


def test_the_residuals_are_those_of_leaving_out():
    random = np.random.default_rng(1)
    places = np.sort(random.uniform(0, 10, 12))
    values = walk(random, places)
    near = Nearby(apart(places, places), values)
    fit = near._fit
    for i in (0, 5, 11):
        others = np.arange(12) != i
        covariance = np.exp(-apart(places[others], places[others]) / fit.length) + NETWORKS * np.eye(11)
        like = np.exp(-np.abs(places[others] - places[i]) / fit.length)
        inverse = np.linalg.inv(covariance)
        mean = inverse.sum(0) @ values[others] / inverse.sum()
        error = values[i] - mean - like @ inverse @ (values[others] - mean)
        variance = 1 + NETWORKS - like @ inverse @ like + (1 - inverse.sum(0) @ like) ** 2 / inverse.sum()
        assert fit.scores[i] == pytest.approx(error / np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("measured", [6, 16, 64])
def test_intervals_hold_what_they_say(measured):
    held = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        places = random.uniform(0, 10, measured + 20)
        values = walk(random, places)
        near = Nearby(apart(places[:measured], places[:measured]), values[:measured])
        found = [near.at(d) for d in apart(places[measured:], places[:measured])]
        held += [abs(v - f.mean) <= f.margin for v, f in zip(values[measured:], found, strict=True)]
    assert abs(np.mean(held) - HELD) < 0.05


def test_equal_values_and_equal_places_are_no_trouble():
    places = np.array([0.0, 0.0, 1.0, 2.0])
    found = Nearby(apart(places, places), np.ones(4)).at(np.array([0.5, 0.5, 0.5, 1.5]))
    assert found.mean == pytest.approx(1) and found.margin == pytest.approx(0, abs=1e-9)
    assert Nearby(np.zeros((3, 3)), np.array([0.5, 0.6, 0.7])).at(np.zeros(3)).mean == pytest.approx(0.6)


def test_quantiles_are_those_of_their_distributions():
    assert student(5) == pytest.approx(stats.t(4).ppf(0.95))
    assert flips(397) == pytest.approx(stats.beta(0.5, 397.5).ppf(HELD))
