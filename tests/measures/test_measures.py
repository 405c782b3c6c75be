"""Accuracy and novelty against direct computation."""

import jax
import numpy as np
import pytest

from pdiff.measures import novelty
from pdiff.measures.accuracy import Scorer, repeat
from pdiff.tasks import base as tasks_base


@pytest.mark.parametrize(("devices", "room"), [(1, tasks_base.RENDER_BYTES), (4, tasks_base.RENDER_BYTES), (4, 0)])
def test_scorer_equals_a_loop(tiny, tiny_zoo, devices, room, mesh, mesh4, monkeypatch):
    """With room for the images of all tasks, and without: then they are rendered for each network."""
    monkeypatch.setattr(tasks_base, "RENDER_BYTES", room)
    networks = tiny_zoo["seen"][:11]  # not a multiple of the chunk, nor of the devices
    tasks = networks.task[::-1]
    right = Scorer(tiny, "test", mesh if devices == 1 else mesh4).right(networks.params, tasks)
    data, family = tiny.family.data["test"], tiny.family
    for i in range(11):
        network = jax.tree.map(lambda a, i=i: a[i], networks.params)
        x = family.render(family.variables[tasks[i]], data.x)
        expected = np.asarray(tiny.target.apply(network, x)).argmax(-1) == data.y
        assert (right[i] == expected).mean() > 0.995  # ties may fall either way


def test_accuracy_agrees_with_the_zoos_own_record(tiny, tiny_zoo, mesh):
    seen = tiny_zoo["seen"]
    scores = Scorer(tiny, "test", mesh)(seen.params, seen.task)
    np.testing.assert_allclose(scores, seen.test_accuracy, atol=0.006)


def test_repeat_gives_every_task_the_same_network(tiny):
    many = repeat(tiny.base, 5)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == (5, *b.shape) and (a == b).all(), many, tiny.base))


def test_iou_by_hand():
    a = np.array([[1, 0, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
    b = np.array([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
    np.testing.assert_allclose(novelty.iou_of_wrong(a, b), [[1 / 3, 0], [0, 1]])


def test_l2_of_a_copy_is_zero():
    x = np.random.default_rng(0).standard_normal((4, 2000)).astype(np.float32)
    distance = novelty.l2_distances(x, x)
    assert np.diag(distance).max() < 1e-5
    assert distance[0, 1] == pytest.approx(np.linalg.norm(x[0].astype(float) - x[1]), rel=1e-9)


def test_spread_of_a_collapsed_generator_is_zero():
    assert not novelty.spread(np.ones((3, 4, 7))).any()
    np.testing.assert_allclose(novelty.spread(np.array([[[0.0, 0], [3, 4], [0, 0]]])), [5, 0, 5])


def test_answers_are_the_scorers_own(tiny, tiny_zoo, mesh):
    seen, score = tiny_zoo["seen"][:5], Scorer(tiny, "test", mesh)
    said, data = score.answers(seen.params, seen.task), tiny.family.data["test"]
    np.testing.assert_array_equal(said.right, score.right(seen.params, seen.task))
    some = np.linspace(0, len(data.y) - 1, 256).round().astype(int)
    for i in range(5):
        network = jax.tree.map(lambda a, i=i: a[i], seen.params)
        logits = tiny.target.apply(network, tiny.family.render(tiny.family.variables[seen.task[i]], data.x[some]))
        np.testing.assert_allclose(said.probabilities[i], jax.nn.softmax(logits), atol=1e-4)
        assert (said.predicted[i][some] == logits.argmax(-1)).mean() > 0.99


def test_own_networks_are_compared_first_then_the_nearest_tasks():
    task, run = np.repeat([5, 2, 9], 4), np.tile([0, 0, 1, 1], 3)  # two seeds, two networks kept of each
    found = novelty.compared(task, run, np.array([2, 9, 5]), 6)
    assert found.rows.tolist() == [4, 5, 6, 7, 8, 9] and found.own == 4
    assert novelty.compared(task, run, np.array([2, 9, 5]), 100).rows.tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3]
    assert novelty.compared(task, run, np.array([2, 9, 5]), 3).rows.tolist() == [4, 5, 6, 7]  # its own are all there
    assert found.references(9).tolist() == [1, 3]  # the last of each run
    # The reference of a zoo network is no network of its seed, of whatever task.
    assert found.others(np.array([1])).tolist() == [[False, False, True, True, False, False]]


def test_in_a_zoo_of_one_run_the_reference_is_every_other_network():
    found = novelty.compared(np.zeros(3, int), np.zeros(3, int), np.array([0]), 9)
    assert found.references(9).tolist() == [0, 1, 2]
    assert found.others(np.arange(3)).tolist() == (~np.eye(3, dtype=bool)).tolist()


def test_cosine_distances_in_closed_form():
    a, b = np.array([[1.0, 0], [2, 2]]), np.array([[3.0, 0], [0, 5], [-1, 0]])
    expected = [[0, 1, 2], [1 - 0.5**0.5, 1 - 0.5**0.5, 1 + 0.5**0.5]]
    np.testing.assert_allclose(novelty.cosine_distances(a, b), expected, atol=1e-12)


def test_distance_to_averages_in_closed_form():
    """A triangle: a corner, a point inside, one beyond an edge, one beyond a corner, and one above it."""
    corners = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0]])
    x = np.array([[0.0, 0, 0], [0.5, 0.5, 0], [1, -3, 0], [5, 0, 0], [0.5, 0.5, 7]])
    everyone = np.ones((5, 3), bool)
    np.testing.assert_allclose(novelty.average_distances(x, corners, everyone), [0, 0, 3, 3, 7], atol=1e-4)
    # A corner against the two others: the height of the triangle.
    found = novelty.average_distances(corners, corners, ~np.eye(3, dtype=bool))
    np.testing.assert_allclose(found, [2**0.5, 2, 2], rtol=1e-4)


def test_what_is_inherited_of_the_nearest():
    """Of a copy, a copy with noise off the zoo's directions, the mean of four of eight, and a ninth independent one."""
    zoo = np.eye(10)[:8]
    x = np.stack([zoo[0], zoo[0] + 3 * np.eye(10)[9], zoo[:4].mean(0), np.eye(10)[8]])
    found = novelty.inherited(x, zoo, np.zeros(4, int), np.tile(np.arange(8) > 0, (4, 1)))
    # With m = the mean of the other seven, |z - m|^2 = 8/7, and <x - m, z - m> for the last two is by hand:
    mean = zoo[1:].mean(0)
    by_hand = [((v - mean) * (zoo[0] - mean)).sum() / (8 / 7) for v in x[2:]]
    np.testing.assert_allclose(found, [1, 1, *by_hand], rtol=1e-9)
    assert found[2] == pytest.approx(1 / 4) and found[3] == pytest.approx(1 / 8)


def test_disagreement_by_hand():
    predicted = np.array([[0, 1, 2, 3], [0, 1, 2, 0], [1, 1, 0, 0]])
    np.testing.assert_allclose(novelty.disagreement(predicted), [0.25, 0.75, 0.5])
