"""The rotation family: its geometry, its splits, and what it refuses."""

import numpy as np
import pytest
from scipy import ndimage

from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.tasks import get_family
from pdiff.tasks.families.rotation import ANGLES, render, rotation_matrix


def family_of(**overrides):
    config = defaults().tasks
    config.update(overrides)
    return get_family(config)


def inside(angle, arc):
    return 0 < (angle - arc[0]) % 360 < arc[1] - arc[0]


@pytest.mark.parametrize("degrees", [0.0, 33.3, 90.0, 201.25, 359.0])
def test_matrix_is_scipys_rotation(degrees):
    images = np.random.default_rng(0).random((5, 8, 8))
    expected = np.stack([ndimage.rotate(i, degrees, reshape=False, order=1) for i in images])
    turned = render(rotation_matrix(degrees), images.reshape(5, 64))
    np.testing.assert_allclose(turned.reshape(5, 8, 8), expected, atol=1e-6)


def test_rotation_is_counter_clockwise_as_displayed():
    image = np.zeros((8, 8), np.float32)
    image[0, 7] = 1  # top right corner
    turned = render(rotation_matrix(90.0), image.reshape(1, 64)).reshape(8, 8)
    assert turned[0, 0] == pytest.approx(1, abs=1e-6)  # goes to the top left


def test_images_are_split_as_documented():
    data = family_of().data
    order = np.random.RandomState(0).permutation(1797)
    assert [len(data[p].y) for p in ("train", "validation", "test")] == [1200, 200, 397]
    np.testing.assert_array_equal(np.concatenate([data[p].index for p in ("train", "validation", "test")]), order)
    assert data["test"].x.min() == 0 and data["test"].x.max() == 1


@pytest.mark.parametrize("unseen", ["60:90,216:234", "350:10", "0:40", "", "0:300,310:320", "90:60"])
def test_splits_keep_to_their_regions(unseen):
    family = family_of(unseen=unseen)
    arcs = family.arcs
    for split in ("unseen", "interp", "validation"):
        for task in family.split(split):
            assert sum(inside(task.factors[0], a) for a in arcs[split]) == 1
    held_out = [a for split in arcs.values() for a in split]
    for task in family.split("seen"):
        assert not any(inside(task.factors[0], a) for a in held_out)
    total = sum(b - a for a, b in held_out)
    marks = np.arange(0, 360, 0.05)
    covered = np.mean([any(inside(m, a) for a in held_out) for m in marks]) * 360
    assert covered == pytest.approx(total, abs=1)  # no two arcs overlap
    assert len(family.split("seen")) == 256


def test_interp_tasks_lie_between_widely_spaced_seen_ones():
    family = family_of()
    seen = family.factors(family.split("seen"))
    interp = family.factors(family.split("interp"))
    gaps = family.arcs["interp"]
    assert all(b - a == pytest.approx(10) for a, b in gaps)
    # The nearest seen task is outside the gap, so the middle of a gap is 5 degrees from it.
    nearest = family.distance(interp, seen).min(1)
    edge = np.array([min(min((x[0] - a) % 360, (b - x[0]) % 360) for a, b in gaps) for x in interp])
    assert (nearest >= edge).all() and nearest.max() > 4


def test_distance_goes_the_short_way_round():
    family = family_of()
    d = family.distance(np.array([[350.0], [10.0]]), np.array([[10.0], [190.0]]))
    np.testing.assert_allclose(d, [[20, 160], [0, 180]])


def test_descriptions_say_the_angle_and_hold_some_wordings_out():
    family = family_of()
    for task in family.tasks[::37]:
        number = f"{task.factors[0]:g}"
        assert len(task.descriptions) >= 3 and len(task.held_out_descriptions) >= 2
        assert all(number in d for d in task.descriptions + task.held_out_descriptions)
        assert not set(task.descriptions) & set(task.held_out_descriptions)


@pytest.mark.parametrize(
    "text, arcs",
    [
        ("60:90,216:234", ((60, 90), (216, 234))),
        ("350:10", ((350, 370),)),
        (" 0:40 , 100:120", ((0, 40), (100, 120))),
        ("", ()),
        ("300:360", ((300, 360),)),
        ("360:20", ((0, 20),)),
    ],
)
def test_arcs_are_parsed(text, arcs):
    assert ANGLES.parse(text) == arcs


@pytest.mark.parametrize(
    "text", ["60", "60:90:120", "a:b", "-10:20", "60:400", "60:60", "360:0", "60:90,80:100", "350:10,0:5", "nan:3"]
)
def test_bad_arcs_are_refused_with_their_text(text):
    with pytest.raises(PdiffError, match="tasks.unseen") as error:
        ANGLES.parse(text)
    assert text.split(",")[0] in str(error.value)


@pytest.mark.parametrize("unseen", ["0:360", "180:179", "0:180,180:355"])
def test_arcs_that_leave_no_seen_task_are_refused(unseen):
    with pytest.raises(PdiffError, match="tasks.unseen"):
        family_of(unseen=unseen)


def test_unknown_family_lists_the_known_ones():
    with pytest.raises(PdiffError, match="rotation"):
        family_of(family="rotatoin")
