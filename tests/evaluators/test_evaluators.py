"""Accuracy and novelty against direct computation."""

import jax
import numpy as np
import pytest

from pdiff.evaluators import novelty
from pdiff.evaluators.accuracy import Scorer, repeat


@pytest.mark.parametrize("devices", [1, 4])
def test_scorer_equals_a_loop(tiny, tiny_zoo, devices, mesh, mesh4):
    networks = tiny_zoo["seen"][:11]  # not a multiple of the chunk, nor of the devices
    tasks = networks.task[::-1]
    right = Scorer(tiny, "test", mesh if devices == 1 else mesh4).right(networks.params, tasks)
    data, family = tiny.family.data["test"], tiny.family
    for i in range(11):
        network = jax.tree.map(lambda a, i=i: a[i], networks.params)
        x = np.asarray(family.render(family.variables[tasks[i]], data.x))
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


def test_a_zoo_network_overlaps_fully_with_itself_but_is_not_compared_to_itself(tiny, tiny_zoo, mesh):
    seen, score = tiny_zoo["seen"], Scorer(tiny, "test", mesh)
    task = tiny.family.split("seen")[0]
    errors = novelty.ZooErrors(score, seen.params, len(seen), [task])
    rows = np.flatnonzero(seen.task == task.id)
    own = score.right(seen[rows].params, seen.task[rows])
    assert errors.overlap(task.id, own)[np.arange(len(rows)), rows].min() == 1
    among = errors.among(task.id, rows)
    assert np.isnan(among[np.arange(len(rows)), rows]).all() and np.nanmax(among) <= 1
