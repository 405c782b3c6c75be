"""Two-sample measures against closed forms, simulation, and sets whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from pdiff.measures import two_sample
from pdiff.measures.novelty import l2_distances
from pdiff.measures.verdict import KINDS, kinds, verdict


def joint(a, b):
    both = np.concatenate([a, b])
    return l2_distances(both, both)


def draws(seed, count=40, shift=0.0, dim=5):
    return np.random.default_rng(seed).standard_normal((count, dim)) + shift


def test_equal_distributions_are_not_told_apart_and_shifted_ones_are():
    equal = two_sample.nearest_neighbour_test([joint(draws(0), draws(1))], np.random.default_rng(0))
    apart = two_sample.nearest_neighbour_test([joint(draws(0), draws(1, shift=9))], np.random.default_rng(0))
    assert equal["p_value"] > 0.1 and equal["expected"] == pytest.approx(39 / 79)
    assert apart["accuracy"] == 1 and apart["p_value"] == 1 / 1000 and apart["n"] == 80


def test_copies_are_below_what_is_expected():
    a = draws(0)
    found = two_sample.nearest_neighbour_test([joint(a, a)], np.random.default_rng(0))
    assert found["accuracy"] == 0 and found["p_value"] == 1 / 1000


def test_the_p_value_is_uniform_under_the_null():
    p = [
        two_sample.nearest_neighbour_test([joint(draws(2 * i, 8), draws(2 * i + 1, 8))], np.random.default_rng(i))
        for i in range(100)
    ]
    rejected = np.mean([x["p_value"] <= 0.1 for x in p])
    assert rejected < 0.2  # 0.1 and a bit, or less where few values are possible
    # Its expectation is exact, whatever the distribution: three standard errors of 100 tests.
    accuracy = np.array([x["accuracy"] for x in p])
    assert abs(accuracy.mean() - 7 / 15) < 3 * accuracy.std() / 10


def test_equally_near_neighbours_count_in_equal_shares():
    """All at one place: each network's neighbours are the 2m - 1 others, m - 1 of them its own."""
    found = two_sample.nearest_neighbour_test([np.zeros((8, 8))], np.random.default_rng(0))
    assert found["accuracy"] == pytest.approx(3 / 7) == found["expected"] and found["p_value"] == 1


def test_tasks_are_pooled_and_those_of_one_network_left_out():
    tasks = [joint(draws(0, 3), draws(1, 3, 9)), joint(draws(2, 1), draws(3, 1)), joint(draws(4, 5), draws(5, 5, 9))]
    found = two_sample.nearest_neighbour_test(tasks, np.random.default_rng(0))
    assert found["n"] == 16 and found["accuracy"] == 1
    assert found["expected"] == pytest.approx((6 * 2 / 5 + 10 * 4 / 9) / 16)
    assert two_sample.nearest_neighbour_test(tasks[1:2], np.random.default_rng(0)) is None
    assert two_sample.precision_recall(tasks[1:2]) is None


def test_precision_and_recall_of_known_sets():
    """On a line, k = 3: the ball about each of 0 … 9 reaches its third neighbour."""
    real = np.arange(10.0)[:, None]
    same = two_sample.precision_recall([joint(real, real)])
    assert same == {"precision": 1, "recall": 1}
    collapsed = np.full((10, 1), 4.1) + 1e-3 * real  # within the manifold, but covers next to nothing of it
    assert two_sample.precision_recall([joint(collapsed, real)]) == {"precision": 1, "recall": 0}
    wide = 20 * real  # 0 and 20, … : only 0 is within 3 of the last real point; every real point is within a wide ball
    assert two_sample.precision_recall([joint(wide, real)]) == {"precision": 0.1, "recall": 1}


def test_leaf_distances_in_closed_form():
    b = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    found = two_sample.leaf_distances(b + 1, b)
    assert found["wasserstein"] == pytest.approx(1, abs=0.01)  # a shift by one standard deviation
    assert found["ks"] == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.002)
    assert two_sample.leaf_distances(b, b) == {"ks": 0, "wasserstein": 0}


def measures(weights, function, inherited, average):
    names = ("weights", "function", "average", "inherited")
    return dict(zip(names, map(np.array, (weights, function, average, inherited)), strict=True))


def test_each_rule_by_a_case_on_both_sides_of_its_threshold():
    found = kinds(
        measures(
            weights=[0.01, 0.9, 0.03, 0.9, 0.9, 0.9],
            function=[1.0, 0.01, 0.03, 1.0, 1.0, 1.0],
            inherited=[1.0, 0.1, 0.8, 0.74, 0.1, 0.1],
            average=[0.0, 0.9, 0.0, 0.4, 0.49, 0.51],
        )
    )
    assert found.tolist() == ["copies", "copies", "noised copies", "averages", "averages", "new"]
    permuted = measures([0.9], [0.9], [0.1], [0.9]) | {"matched": np.array([0.001])}
    assert kinds(permuted).tolist() == ["copies"]


@pytest.mark.parametrize("copied, kind", [(1, "new"), (2, "copies"), (8, "copies")])
def test_a_quarter_more_than_in_the_zoo_decides(copied, kind):
    def some(copies):
        weights = np.where(np.arange(8) < copies, 0.0, 1.0)
        return measures(weights, np.ones(8), np.zeros(8), np.ones(8))

    accuracy = {"generated": 0.5, "zoo": 0.9}
    found = verdict(some(copied), some(0), accuracy, None, None)
    assert found["kind"] == kind and found["shares"]["generated"]["copies"] == copied / 8
    assert "0.500 (zoo 0.900)" in found["sentence"]
    # A zoo whose own networks are each other's copies says nothing against a generator that is like it.
    assert verdict(some(copied), some(copied), accuracy, 1.0, None)["kind"] == "new"
    assert set(found["shares"]["zoo"]) == set(KINDS)
