"""Support sets: balanced, of the task itself, from training images only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.tasks import support


def test_a_set_has_as_many_images_of_each_class_rendered_as_the_task_renders_them(tiny):
    family, task = tiny.family, tiny.family.split("unseen")[0]
    drawn = support.draw(family, [task, task], 3, True, jax.random.key(0))
    assert drawn.x.shape == (2, 3 * family.num_classes, 64) and drawn.real.all()
    np.testing.assert_array_equal(np.bincount(drawn.y[0], minlength=10), np.full(10, 3))
    everything = np.asarray(family.render(family.variables[task.id], family.data["train"].x))
    for x, y in zip(drawn.x[0], drawn.y[0], strict=True):
        rows = np.flatnonzero(np.abs(everything - x).max(1) < 1e-5)
        assert y in family.data["train"].y[rows]
    assert len(np.unique(drawn.x[0].round(5), axis=0)) > 25  # without replacement, so hardly any twice
    assert np.abs(drawn.x[0] - drawn.x[1]).max() > 0.1  # two sets of one task are two draws


def test_labels_that_are_not_given_are_unknown(tiny):
    drawn = support.draw(tiny.family, tiny.family.tasks[:1], 1, False, jax.random.key(0))
    assert (drawn.y == support.UNKNOWN).all()


def test_a_small_class_is_drawn_with_replacement():
    table, counts = support.class_rows(np.array([0, 0, 0, 1]), 2)
    rows = np.asarray(support.draw_rows(jax.random.key(0), jnp.asarray(table), jnp.asarray(counts), 3))
    assert sorted(rows[0::2]) == [0, 1, 2] and list(rows[1::2]) == [3, 3, 3]


def test_a_class_without_images_is_refused():
    with pytest.raises(PdiffError, match="class 1 has no"):
        support.class_rows(np.array([0, 2]), 3)


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros(4), None, "shape"),
        (np.zeros((0, 4)), None, "shape"),
        (np.full((2, 4), np.nan), None, "finite"),
        (np.zeros((2, 4)), np.array([0]), "labels"),
        (np.zeros((2, 4)), np.array([0, 3]), "from 0 to 2"),
        (np.zeros((2, 4)), np.array([0.0, 1.0]), "labels of shape .2,., float64 from 0.0 to 1.0, for 2 images"),
        (np.zeros((2, 4)), np.array(["a", "b"]), "labels of shape"),
        (np.zeros((2, 4)), np.array([], int), "labels of shape .0,., int64, for 2 images"),
        (np.zeros((99, 4)), np.arange(-2, 97), "labels of shape .99,., int64 from -2 to 96, for 99 images"),
        (np.zeros((2, 5)), None, "images of 5 numbers; allowed: 4"),
    ],
)
def test_bad_images_and_labels_are_refused(images, labels, message):
    with pytest.raises(PdiffError, match=message) as error:
        support.of_images(images, labels, 3, 4)
    assert "\n" not in str(error.value)


def test_padding_has_room_or_is_refused():
    one = support.of_images(np.ones((2, 4)), np.array([1, -1]), 3, 4).padded(5)
    assert one.x.shape == (1, 5, 4) and one.real.tolist() == [[True, True, False, False, False]]
    assert one.y.tolist() == [[1, -1, -1, -1, -1]]
    with pytest.raises(PdiffError, match="at most 1"):
        one.padded(1)
