"""The family of class subsets: labels, distances between splits, descriptions, and what it refuses."""

import itertools
import re

import numpy as np
import pytest

from configs import class_subsets as scenario
from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.measures.accuracy import majority
from pdiff.tasks import get_family
from pdiff.tasks.data import images
from pdiff.tasks.families import class_subsets as lib


def family_of(**overrides):
    config = scenario.get_config().tasks.unlock()
    config.update(overrides)
    return get_family(config)


@pytest.fixture(scope="module")
def family():
    return family_of()


def subsets(family, split):
    return [frozenset(np.flatnonzero(t.factors).tolist()) for t in family.split(split)]


def apart(a, b, num_classes=10):
    """Classes by which two partitions into a subset and the rest differ, whichever side is called the subset."""
    return min(len(a ^ b), num_classes - len(a ^ b))


@pytest.mark.parametrize("task_id", [0, 100, -1])
def test_labels_say_whether_the_class_is_in_the_subset(family, task_id):
    task, data = family.tasks[task_id], family.data["test"]
    own = {"member": family.variables["member"][task_id]}
    x, y = family.labelled(own, data.x, data.y)
    np.testing.assert_array_equal(x, data.x)
    chosen = {c for c, factor in enumerate(task.factors) if factor == 1}
    np.testing.assert_array_equal(y, [int(label in chosen) for label in data.y])
    assert task.name == "_".join(["subset", *map(str, sorted(chosen))])


def test_squared_distance_is_the_number_of_classes_that_differ(family):
    seen, unseen = subsets(family, "seen"), subsets(family, "unseen")
    distance = family.distance(family.factors(family.split("unseen")), family.factors(family.split("seen")))
    expected = [[len(a ^ b) for b in seen] for a in unseen]
    np.testing.assert_allclose(distance**2, expected, rtol=1e-6)


SETTINGS = [
    {},
    dict(num_seen=8, num_interp=3, num_unseen=4, num_validation=4),
    dict(num_seen=1, num_interp=0, num_unseen=0, num_validation=0),
    dict(num_seen=500, num_interp=16, num_unseen=2, num_validation=2),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_splits_keep_their_distances(setting):
    family = family_of(**setting)
    split = {name: subsets(family, name) for name in ("seen", "validation", "interp", "unseen")}
    everything = [s for members in split.values() for s in members]
    assert len(set(everything)) == len(everything)
    assert {len(s) for s in everything} <= set(lib.SIZES)
    for name in ("unseen", "validation"):
        assert all(apart(a, b) >= 2 for a, b in itertools.product(split[name], split["seen"]))
    for a in split["interp"]:
        assert min(len(a ^ b) for b in split["seen"]) == 1
        assert min(apart(a, b) for b in split["seen"]) == 1
        assert all(apart(a, b) >= 2 for b in split["unseen"] + split["validation"])
    for name, number in setting.items():
        assert len(split[name.removeprefix("num_")]) == number


def test_splits_are_the_same_every_time_and_unseen_ones_depend_on_their_own_number_alone():
    numbers = {"num_seen": 64, "num_interp": 4, "num_unseen": 8, "num_validation": 8}
    fewer = {"num_seen": 32, "num_interp": 2, "num_validation": 4}
    one, other = family_of(**numbers), family_of(**numbers | fewer)
    assert set(subsets(one, "unseen")) == set(subsets(other, "unseen"))
    assert set(subsets(other, "validation")) < set(subsets(one, "validation"))
    assert [t.name for t in family_of(**numbers).tasks] == [t.name for t in one.tasks]


def test_the_base_is_pretrained_on_no_task_and_no_complement_of_one(family):
    pretraining = [frozenset(np.flatnonzero(m).tolist()) for m in family.pretraining["member"]]
    assert all(apart(p, frozenset(np.flatnonzero(t.factors))) > 0 for p in pretraining for t in family.tasks)
    x, y = family.pretraining_images("train")
    data = family.data["train"]
    np.testing.assert_array_equal(x, data.x)
    took = [[int(label in member) for member in pretraining] for label in data.y]  # each image is one class's turn
    assert all(answer in possible for answer, possible in zip(y.tolist(), took, strict=True))
    assert y.sum() == pytest.approx(len(data.y) / len(pretraining), rel=0.2)


def test_descriptions_name_exactly_the_classes_of_the_subset(family):
    names = images.load(defaults().tasks).class_names
    for task in family.tasks[::7]:
        chosen = {n for n, factor in zip(names, task.factors, strict=True) if factor}
        for text in task.descriptions + task.held_out_descriptions:
            words = re.findall(r"\w+", text)
            assert sorted(w for w in words if w in names) == sorted(chosen)
            assert not re.search(r"\d", text)  # a digit's value would be a number to the text path
        assert len({*task.descriptions, *task.held_out_descriptions}) >= 20


def test_descriptions_by_hand():
    factors = (0, 0, 1, 0, 0, 1, 0, 1, 0, 0)
    trained, held_out = family_of().describe(factors)
    assert trained[:3] == (
        "recognise just two, five and seven",
        "tell images of seven, five and two from all others",
        "does an image show five, seven or two",
    )
    assert held_out[2] == "images of seven, five and two, and no others"


@pytest.mark.parametrize("factors, said", [((0.0,) * 10, "nothing"), ((0.2,) * 9 + (0.7,), "nine")])
def test_any_factors_can_be_described(family, factors, said):
    trained, held_out = family.describe(factors)
    assert trained[0] == f"recognise just {said}" and len(trained) == 32 and len(held_out) == 3


def test_majority_is_the_larger_share_of_a_subset_or_its_rest(family):
    tasks, labels = family.split("unseen"), family.data["test"].y
    share = np.array([np.isin(labels, np.flatnonzero(t.factors)).mean() for t in tasks])
    np.testing.assert_allclose(majority(family, tasks), np.maximum(share, 1 - share))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(unseen="60:90"), "tasks.unseen: got '60:90'"),
        (dict(num_seen=600), r"tasks.num_seen: got 600 .* at most \d+"),
        (dict(num_unseen=600), "tasks.num_seen"),
        (dict(num_seen=1, num_interp=40), r"tasks.num_interp: got 40 .* at most \d+"),
    ],
)
def test_what_leaves_no_room_is_refused(overrides, message):
    with pytest.raises(PdiffError, match=message):
        family_of(**overrides)


@pytest.mark.parametrize("number", [5, 30])
def test_too_few_or_too_many_classes_are_refused(monkeypatch, number):
    def other(config):
        made = images.digits(config)
        return images.DataSet(made.parts, made.image_shape, tuple(f"class{i}" for i in range(number)))

    monkeypatch.setitem(images.LOADERS, "digits", other)
    with pytest.raises(PdiffError, match=f"tasks.data: got 'digits', images of {number} classes"):
        family_of()
