"""Merges by numbers: worked out by hand, and beside what PEFT 0.21 and mergekit give for the same input."""

import numpy as np
import pytest

from pdiff.merging import methods

# Three updates of one module, and PEFT's `merge_utils.ties` of them with weights of 1, by density.
UPDATES = np.array([
    [[1.79, 0.44, 0.1, -1.86], [-0.28, -0.35, -0.08, -0.63], [-0.04, -0.48, -1.31, 0.88]],
    [[0.88, 1.71, 0.05, -0.4], [-0.55, -1.55, 0.98, -1.1], [-1.19, -0.21, 1.49, 0.24]],
    [[-1.02, -0.71, 0.63, -0.16], [-0.77, -0.23, 0.75, 1.98], [-1.24, -0.64, -0.8, -2.42]],
])  # fmt: skip
TIES = {
    0.25: [[1.79, 1.71, 0.0, -1.86], [0.0, -1.55, 0.0, 1.98], [-1.24, 0.0, 1.49, -2.42]],
    0.5: [[1.79, 1.71, 0.0, -1.86], [-0.77, -1.55, 0.98, 1.98], [-1.215, -0.48, -1.055, -2.42]],
    0.75: [[1.335, 1.075, 0.0, -1.13], [-0.533333, -0.95, 0.865, 1.98], [-1.215, -0.56, -1.055, -2.42]],
}


def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize("density", TIES)
def test_ties_is_peft_s(density):
    np.testing.assert_allclose(methods.elementwise("ties", UPDATES, density, random()), TIES[density], atol=1e-6)


def test_ties_by_hand():
    """Of each the larger half; at the first place plus has 3 and minus 5, at the last nothing is left."""
    a, b, c = np.array([3.0, 1.0, 2.0, 0.5]), np.array([-4.0, 6.0, 1.0, 0.5]), np.array([-1.0, 2.0, 0.1, -0.5])
    np.testing.assert_array_equal(methods.trimmed(a, 0.5), [3, 0, 2, 0])
    np.testing.assert_array_equal(methods.elementwise("ties", [a, b, c], 0.5, random()), [-2.5, 4, 2, 0])


def test_ties_that_keeps_all_and_agrees_is_the_mean_and_even_votes_are_plus():
    same = np.abs(UPDATES)
    np.testing.assert_allclose(methods.elementwise("ties", same, 1.0, random()), same.mean(0))
    np.testing.assert_array_equal(methods.disjoint_mean([np.array([2.0, 0.0]), np.array([-2.0, 0.0])]), [2, 0])


def test_trimming_keeps_at_least_one_and_equals_together():
    np.testing.assert_array_equal(methods.trimmed(np.array([1.0, -5.0, 2.0]), 0.01), [0, -5, 0])
    np.testing.assert_array_equal(methods.trimmed(np.array([1.0, -5.0, 5.0]), 0.34), [0, -5, 5])


def test_dare_keeps_the_share_and_the_expectation():
    """With updates of ones every number is 0 or 1 / density, and of 200 of them the mean is 1 by 4 standard errors."""
    one = np.ones((50, 40), np.float32)
    kept = methods.kept_at_random(one, 0.25, random())
    np.testing.assert_array_equal(np.unique(kept), [0, 4])
    assert (kept > 0).mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / one.size))
    merged = methods.elementwise("dare", [one] * 200, 0.25, random())
    assert merged.mean() == pytest.approx(1, abs=4 * np.sqrt(3 / one.size / 200))
    assert np.var(merged) == pytest.approx(3 / 200, rel=0.2) and merged.dtype == np.float32


def test_dare_that_keeps_all_is_the_mean_and_a_seed_repeats():
    np.testing.assert_allclose(methods.elementwise("dare", UPDATES, 1.0, random()), UPDATES.mean(0))
    first, again = (methods.elementwise("dare", UPDATES, 0.5, np.random.default_rng(s)) for s in (1, 1))
    other = methods.elementwise("dare", UPDATES, 0.5, np.random.default_rng(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_dare_ties_elects_signs_of_what_dare_has_left():
    kept = [methods.kept_at_random(u, 0.5, r) for r in [random()] for u in UPDATES]
    found = methods.elementwise("dare_ties", UPDATES, 0.5, random())
    for place in np.ndindex(found.shape):
        values = np.array([k[place] for k in kept])
        same = values[values > 0] if values.sum() >= 0 else values[values < 0]
        assert found[place] == pytest.approx(same.mean() if len(same) else 0)


def test_updates_are_read_one_at_a_time():
    """A generator is enough, and what it has given is not kept."""
    alive = []

    def one_by_one():
        for u in UPDATES:
            alive.append(1)
            yield u

    for name in methods.ELEMENTWISE:
        assert methods.elementwise(name, one_by_one(), 0.5, random()).shape == (3, 4)
    assert len(alive) == 9


def arc(a, b, t):
    x, y = methods.slerp_weights(float(np.vdot(a, a)), float(np.vdot(a, b)), float(np.vdot(b, b)), t)
    return x * a + y * b


def test_an_arc_between_right_angles_and_its_middle():
    """Of lengths 1 and 1 every point has length 1, and a third of the way is 30 degrees; of 3 and 4 the middle is
    (3, 4) / sqrt 2."""
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    np.testing.assert_allclose(arc(a, b, 1 / 3), [np.cos(np.pi / 6), np.sin(np.pi / 6)])
    np.testing.assert_allclose(arc(3 * a, 4 * b, 0.5), [3 / np.sqrt(2), 4 / np.sqrt(2)])
    np.testing.assert_allclose(arc(a, b, 0), a, atol=1e-12)
    np.testing.assert_allclose(arc(a, b, 1), b, atol=1e-12)


def test_an_arc_is_mergekit_s():
    """Its `slerp(0.3, v0, v1)` of these two vectors."""
    found = arc(np.array([1.0, 2.0, -1.0]), np.array([0.5, -1.0, 3.0]), 0.3)
    np.testing.assert_allclose(found, [1.59157713, 1.69635275, 1.01032551], atol=1e-6)


@pytest.mark.parametrize("b", [[2.0, 0.02], [-1.0, 0.0], [0.0, 0.0]])
def test_an_arc_between_nearly_parallel_ones_or_from_nothing_is_the_line(b):
    a, b = np.array([1.0, 0.0]), np.array(b)
    np.testing.assert_allclose(arc(a, b, 0.25), 0.75 * a + 0.25 * b)


@pytest.mark.parametrize(("method", "expected"), [("mean", (0.25,) * 4), ("svd", (0.25,) * 4), ("lerp", (0.7, 0.3))])
def test_weights_of_sums(method, expected):
    def inner(i, j):
        raise AssertionError("only slerp needs inner products")

    assert methods.weights(method, 0.3, len(expected), inner) == pytest.approx(expected)
