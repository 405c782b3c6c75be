"""Controls from words, for tasks without factors."""

import dataclasses

import numpy as np
import pytest

from pdiff.config.fields import defaults
from pdiff.controls import SeenZoo
from pdiff.controls.described import NearestDescribed, RidgeDescribed
from pdiff.tasks import get_family
from pdiff.tasks.base import Task

STRENGTHS = np.linspace(0, 1, 9)
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def zoo():
    """Weights that are a line and a square of the number in the description."""
    tasks = [
        Task(f"s{i}", i, "seen" if i != 4 else "unseen", (), (f"strength {s:.3f}",), ())
        for i, s in enumerate(STRENGTHS)
    ]
    family = dataclasses.replace(get_family(defaults().tasks), tasks=tuple(tasks), factor_names=(), factor_periods=())
    seen = np.array([t.id for t in family.split("seen")])
    return SeenZoo(family, weights(STRENGTHS[seen]), np.zeros((2, 2), np.float32), seen, np.zeros(len(seen), int))


def weights(s):
    return np.stack([s, 1 + s**2, 1 - s, 0 * s + 3], -1).reshape(-1, 2, 2).astype(np.float32)


def test_the_nearest_description_is_another_task_s(zoo):
    made = NearestDescribed.fit(zoo).sample(zoo.family.tasks[:1], 2, RANDOM)
    np.testing.assert_array_equal(made, np.repeat(weights(STRENGTHS[1:2])[:, None], 2, 1))


def test_the_ridge_fills_in_a_number(zoo):
    held_out = zoo.family.split("unseen")
    expected = weights(STRENGTHS[4:5])[0]

    def score(baseline):
        return -np.abs(baseline.sample(held_out, 1, RANDOM)[0, 0] - expected).max()

    chosen = RidgeDescribed.select(zoo, score)
    nearest = np.abs(NearestDescribed.fit(zoo).sample(held_out, 1, RANDOM)[0, 0] - expected).max()
    assert -score(chosen) < 0.5 * nearest
    known = zoo.family.split("seen")
    np.testing.assert_allclose(RidgeDescribed.fit(zoo, 1e-8).sample(known, 1, RANDOM)[:, 0], zoo.tokens, atol=1e-3)
