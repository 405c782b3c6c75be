"""The camera-trap family: its geometry, its light, its animals and class mixes, and its splits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import camera_trap as scenario
from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.generator import generator
from pdiff.generator.conditioning import _drawn_shot
from pdiff.tasks import get_family
from pdiff.tasks.base import Images
from pdiff.tasks.data import images
from pdiff.tasks.families import camera_trap as ct
from tests.annotations import unchecked

MIDDLE = ct.Location(0.0, 100.0, 100.0, 0, (200.0, 150.0))


def family_of(**overrides):
    config = defaults().tasks
    config.update(dict(family="camera_trap", num_seen=96, num_interp=12, num_unseen=12, num_validation=12) | overrides)
    return get_family(config)


@pytest.fixture(scope="module")
def family():
    return family_of()


@pytest.fixture(scope="module")
def photos():
    return ct.photographs()


def own(family, task):
    return jax.tree.map(lambda v: v[task.id], family.variables)


@pytest.mark.parametrize("roll, distance", [(0.0, 100.0), (33.3, 100.0), (-20.0, 80.0), (90.0, 125.0)])
def test_matrix_is_scipys_affine_transform(roll, distance):
    location = dataclasses.replace(MIDDLE, roll=roll, distance=distance)
    animal = np.random.default_rng(0).random((8, 8))
    angle = np.deg2rad(roll)
    linear = distance / 100 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offset = 3.5 - linear @ np.full(2, (ct.SIDE - 1) / 2)
    shape = (ct.SIDE, ct.SIDE)
    expected = ndimage.affine_transform(animal, linear, offset, shape, order=1, mode="grid-constant")
    np.testing.assert_allclose((animal.ravel() @ ct.warp_matrix(location)).reshape(shape), expected, atol=1e-6)


def test_an_animal_turns_as_scipy_rotates_and_shrinks_with_the_distance():
    animal = np.zeros((8, 8))
    animal[1:7, 1:7] = np.random.default_rng(0).random((6, 6))
    canvas = np.pad(animal, 2)
    turned = animal.ravel() @ ct.warp_matrix(dataclasses.replace(MIDDLE, roll=90.0))
    np.testing.assert_allclose(turned.reshape(12, 12), np.rot90(canvas), atol=1e-6)  # counter-clockwise as displayed
    block = np.ones((8, 8)).ravel()
    near, far = ((block @ ct.warp_matrix(dataclasses.replace(MIDDLE, distance=d))).sum() for d in (80.0, 125.0))
    assert near / far == pytest.approx((125 / 80) ** 2, rel=0.05)


def test_the_horizon_is_tilted_by_the_roll_and_raised_by_coming_nearer():
    def sky(**settings):
        image = ct.empty_image(dataclasses.replace(MIDDLE, **settings), np.zeros((400, 400)))
        return image.reshape(ct.SIDE, ct.SIDE) / ct.SKY

    level = sky()
    np.testing.assert_allclose(level, np.repeat(level[:, :1], ct.SIDE, 1))
    assert level[0, 0] == 1 and level[-1, 0] == 0
    left, right = sky(roll=20.0)[:, 0].sum(), sky(roll=20.0)[:, -1].sum()
    across = (ct.SIDE - 1) * np.tan(np.deg2rad(20))
    assert left - right == pytest.approx(across, abs=1)  # counter-clockwise: the ground rises on the right
    assert sky(distance=80.0).sum() < level.sum() < sky(distance=120.0).sum()


def test_light_is_an_affine_map_of_the_whole_scene(photos):
    full, dim = (ct.empty_image(dataclasses.replace(MIDDLE, light=x), photos[0]) for x in (100.0, 60.0))
    np.testing.assert_allclose(dim, 0.6 * full + 0.4 * ct.VEIL, atol=1e-6)


def test_no_shot_of_a_location_leaves_its_strip_of_the_photograph(photos):
    """What a shot reads of the photograph: along both axes less than the distance to the strip's edges."""
    found = ct.locations(dict.fromkeys(("seen", "validation", "interp", "unseen"), 40), [p.shape for p in photos])
    for split, places in found.items():
        for place in places:
            _, strip = ct.region(place.roll, place.light)
            reach = ct.PITCH * (np.abs(ct.scene_coordinates(place)).max((1, 2)) + ct.SHAKE)
            height, width = photos[place.habitat].shape
            start, end = (share * width for share in ct.STRIPS[strip])
            assert place.crop[0] - reach[0] >= 0 and place.crop[0] + reach[0] <= height
            assert place.crop[1] - reach[1] >= start and place.crop[1] + reach[1] <= end
            assert strip == (split if split == "unseen" else strip) and (strip == "seen" or split == strip)


def test_class_mixes_are_distributions_of_the_habitats_own():
    mixes = np.stack([ct.class_mix(h, 10) for h in range(len(ct.HABITATS))])
    np.testing.assert_allclose(mixes.sum(1), 1)
    assert len({tuple(m) for m in mixes}) == len(mixes)
    assert mixes.max() / mixes.min() == pytest.approx(10)


def test_rows_show_classes_in_the_shares_of_the_mix(family):
    task = family.split("seen")[0]
    mix = ct.class_mix(round(task.factors[3] / ct.HABITAT_STEP), 10)
    x, y = family.data["train"].x, family.data["train"].y
    _, labels = family.labelled(own(family, task), x, y)
    np.testing.assert_allclose(np.bincount(labels, minlength=10) / len(y), mix, atol=0.04)
    x = np.repeat(x[:1], 1000, 0)
    x[:, 0] = np.linspace(0, 1, 1000, endpoint=False)
    labels = np.asarray(family.relabel(own(family, task), x, np.zeros(1000, np.int32)))
    assert (np.diff(labels) >= 0).all()
    np.testing.assert_allclose(np.bincount(labels, minlength=10) / 1000, mix, atol=2e-3)


def test_a_row_shows_the_candidate_of_its_class_in_front_of_one_of_the_shots(family):
    task = family.split("seen")[1]
    variables, row = own(family, task), family.data["train"].x[7].copy()
    for shot in range(ct.SHOTS):
        row[1], row[2] = (shot + 0.5) / ct.SHOTS, 0.5
        image, label = (np.asarray(a[0]) for a in family.labelled(variables, row[None], np.zeros(1, np.int32)))
        candidate = row[ct.NUMBERS :].reshape(10, 64)[label]
        alpha = np.minimum(ct.OPACITY * candidate @ variables["warp"], 1)
        expected = variables["shots"][shot] * (1 - alpha) + variables["brightness"] * alpha
        np.testing.assert_allclose(image, expected, atol=1e-6)
    row[2] = 0.0
    dimmed = np.asarray(family.render(variables, row[None])[0])
    np.testing.assert_allclose(dimmed, expected * (1 - ct.FLICKER / 2), atol=1e-6)


def test_a_row_looks_the_same_in_every_batch(family):
    variables, x = own(family, family.split("unseen")[0]), family.data["test"].x
    whole = np.asarray(family.render(variables, x))
    np.testing.assert_array_equal(whole[::-1][:50], np.asarray(family.render(variables, x[::-1]))[:50])
    np.testing.assert_allclose(whole[5:6], np.asarray(family.render(variables, x[5:6])), atol=1e-6)


def test_rows_hold_images_of_their_own_part_only(family):
    source = images.load(defaults().tasks)
    for name, part in source.parts.items():
        rows = family.data[name]
        np.testing.assert_array_equal(rows.index, part.index)
        np.testing.assert_array_equal(rows.y, part.y)
        candidates = rows.x[:, ct.NUMBERS :].reshape(len(rows.y), 10, 64)
        known = {image.tobytes(): label for image, label in zip(part.x, part.y, strict=True)}
        assert all(known[c.tobytes()] == label for row in candidates for label, c in enumerate(row))
        np.testing.assert_array_equal(candidates[np.arange(len(part.y)), part.y], part.x)
        assert rows.x[:, : ct.NUMBERS].min() >= 0 and rows.x[:, : ct.NUMBERS].max() < 1


def test_numbers_of_a_row_are_below_one_in_single_precision():
    part = Images(np.zeros((40, 64), np.float32), np.arange(40, dtype=np.int32) % 10, np.arange(40))
    rows = ct.shared_rows(part, 10, 0)
    assert rows.x.dtype == np.float32 and (rows.x[:, 1] * ct.SHOTS).astype(int).max() < ct.SHOTS


def test_splits_keep_to_their_regions(family):
    rolls = {s: family.factors(family.split(s))[:, 0] for s in ("seen", "interp", "unseen", "validation")}
    lights = {s: family.factors(family.split(s))[:, 1] for s in rolls}
    assert [len(rolls[s]) for s in rolls] == [96, 12, 12, 12]
    low, high = ct.INTERP_ROLLS
    assert ((rolls["interp"] > low) & (rolls["interp"] < high)).all()
    assert (rolls["unseen"] > 22).all() and (lights["unseen"] < 70).all()
    assert not ((rolls["seen"] > low) & (rolls["seen"] < high)).any()
    assert not ((rolls["seen"] > 22) & (lights["seen"] < 70)).any()
    corner = (rolls["validation"] < -22) & (lights["validation"] > 90)
    low, high = ct.VALIDATION_ROLLS
    band = (rolls["validation"] > low) & (rolls["validation"] < high)
    assert corner.sum() == band.sum() == 6
    assert not ((rolls["seen"] < -22) & (lights["seen"] > 90)).any()
    assert not ((rolls["seen"] > low) & (rolls["seen"] < high)).any()
    assert (rolls["seen"] < -20).any() and (rolls["seen"] > 22).any() and (lights["seen"] < 70).any()


def test_more_locations_keep_the_first(family):
    fewer = family_of(num_seen=8, num_unseen=3, num_interp=0, num_validation=2)
    for split, count in (("seen", 8), ("unseen", 3)):
        for a, b in zip(fewer.split(split), family.split(split)[:count], strict=True):
            assert a.factors == b.factors
            np.testing.assert_array_equal(fewer.backgrounds[a.id], family.backgrounds[b.id])


def test_six_locations_of_a_split_have_all_habitats(family):
    for split in ("seen", "interp", "unseen"):
        habitats = family.factors(family.split(split)[:6])[:, 3] / ct.HABITAT_STEP
        assert sorted(habitats) == list(range(6))


def test_the_nearest_location_is_in_the_same_habitat(family):
    unseen, seen = family.factors(family.split("unseen")), family.factors(family.split("seen"))
    nearest = seen[family.distance(unseen, seen).argmin(1)]
    np.testing.assert_array_equal(nearest[:, 3], unseen[:, 3])


def test_descriptions_say_all_factors_and_hold_some_wordings_out(family):
    for task in family.tasks[::7]:
        roll, light, distance, habitat = (round(f, 1) for f in task.factors)
        wanted = (f"{abs(roll):g}", f"{light:g} percent", f"{distance:g} percent", "left" if roll >= 0 else "right")
        for text in task.descriptions + task.held_out_descriptions:
            assert all(w in text for w in (*wanted, list(ct.HABITATS)[round(habitat / ct.HABITAT_STEP)]))
        assert not set(task.descriptions) & set(task.held_out_descriptions)


def test_asking_shows_the_first_shot_and_training_draws_any(family):
    seen = family.split("seen")
    assert family.backgrounds.shape == (len(family.tasks), ct.SHOTS, ct.SIDE**2)
    task = jnp.full(256, seen[3].id)
    keys = jax.random.split(jax.random.key(0), 256)
    drawn = np.asarray(_drawn_shot(jnp.asarray(family.backgrounds), task, 0.0, keys))
    counts = [(drawn == shot).all(1).sum() for shot in family.backgrounds[seen[3].id]]
    assert sum(counts) == 256 and min(counts) > 10
    noisy = np.asarray(_drawn_shot(jnp.asarray(family.backgrounds), task, 0.05, keys))
    assert (noisy - drawn).std() == pytest.approx(0.05, rel=0.02)
    config = scenario.get_config()
    with unchecked():  # a generator of nothing else
        made = generator.Generator(config, family, *[None] * 4, generator.make_tokenizer(config, family), *[None] * 3)
    condition = made.condition(seen[:2], given=("background",))
    np.testing.assert_array_equal(condition["background"]["inputs"], family.backgrounds[[seen[0].id, seen[1].id], 0])
    assert condition["background"]["keep"].all() and not condition["text"]["keep"].any()


def test_the_base_is_pretrained_on_locations_that_are_no_task(family):
    x, y = family.pretraining_images("train")
    assert x.shape == (1200, ct.SIDE**2) and np.isfinite(x).all() and x.min() >= 0 and x.max() < 1.2
    assert np.bincount(y, minlength=10).min() > 80  # an even mix
    warps = {w.tobytes() for w in family.variables["warp"]}
    assert not any(w.tobytes() in warps for w in family.pretraining["warp"])


def test_other_images_are_refused(monkeypatch):
    data = images.load(defaults().tasks)
    monkeypatch.setitem(images.LOADERS, "digits", lambda config: dataclasses.replace(data, image_shape=(28, 28)))
    with pytest.raises(PdiffError, match=r"tasks.data: got 'digits', images of \(28, 28\)"):
        family_of()
