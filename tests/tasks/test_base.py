"""The checks that every family passes through."""

import dataclasses

import pytest

from configs import common
from pdiff.errors import PdiffError
from pdiff.tasks import get_family


@pytest.fixture(scope="module")
def family():
    return get_family(common.get_config().tasks)


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
