"""The checks that every family passes through."""

import dataclasses

import numpy as np
import pytest

from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.tasks import get_family


@pytest.fixture(scope="module")
def family():
    return get_family(defaults().tasks)


def with_tasks(family, change):
    return dataclasses.replace(family, tasks=tuple(change(t) for t in family.tasks))


def test_overlapping_images_are_refused(family):
    data = dict(family.data)
    data["test"] = data["train"]
    with pytest.raises(PdiffError, match="also in another part"):
        dataclasses.replace(family, data=data).check()


def test_overlapping_tasks_are_refused(family):
    factors = family.split("seen")[0].factors
    broken = with_tasks(family, lambda t: dataclasses.replace(t, factors=factors) if t.split == "unseen" else t)
    with pytest.raises(PdiffError, match="split unseen has the factors of a seen one"):
        broken.check()


def test_images_that_are_not_finite_are_refused(family):
    images = family.data["test"]
    x = images.x.copy()
    x[3, 5] = float("nan")
    broken = dataclasses.replace(family, data={**family.data, "test": dataclasses.replace(images, x=x)})
    with pytest.raises(PdiffError, match="test images hold values that are not finite"):
        broken.check()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: dataclasses.replace(t, id=t.id + 1), "ids"),
        (lambda t: dataclasses.replace(t, name="same"), "unique"),
        (lambda t: dataclasses.replace(t, split="train"), "split 'train'"),
        (lambda t: dataclasses.replace(t, held_out_descriptions=t.descriptions), "disjoint"),
    ],
)
def test_unsound_tasks_are_refused(family, change, message):
    with pytest.raises(PdiffError, match=message):
        with_tasks(family, change).check()


def test_distances_go_the_short_way_round_and_round_again(family):
    a, b = np.array([[0.0], [-90.0], [350.0]]), np.array([[270.0], [10.0], [730.0]])
    np.testing.assert_allclose(family.distance(a, b), [[90, 10, 10], [0, 100, 100], [80, 20, 20]], atol=1e-9)
    plain = dataclasses.replace(family, factor_names=("x", "y"), factor_periods=(0.0, 4.0))
    np.testing.assert_allclose(plain.distance(np.array([[0.0, 0.0]]), np.array([[300.0, 4.0], [3.0, 2.0]])),
                               [[300, 13**0.5]])  # fmt: skip


def test_a_family_at_other_factors_has_a_task_for_each_of_them(family):
    there = family.at(np.array([[90.0], [12.34]]))
    assert [t.factors for t in there.tasks] == [(90.0,), (12.34,)] and [t.id for t in there.tasks] == [0, 1]
    assert there.tasks[1].descriptions[0] == "digits rotated by 12.34 degrees"
    assert np.array_equal(there.variables[1], family.vary((12.34,)))
    assert there.data is family.data


def test_singular_places_are_exact_and_go_round(family):
    assert [family.is_singular((a,)) for a in (0.0, 360.0, -90.0, 450.0)] == [True] * 4
    assert not any(family.is_singular((a,)) for a in (0.01, 89.99, 45.0))


def test_images_jump_at_singular_places(family):
    """Just beside a right angle half of an image's border falls outside; from there on, a little changes little."""
    image = np.ones(64, np.float32)
    for angle in family.singular:
        here, beside, next_to_it = (image @ family.vary((angle + by,)) for by in (0, 0.01, 0.02))
        assert np.abs(here - beside).max() > 0.99 and np.abs(beside - next_to_it).max() < 0.01
