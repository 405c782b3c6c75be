"""The corruptions family: what each kind does to an image, its noise, its splits, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import corruptions
from pdiff.config.fields import CORRUPTIONS, defaults
from pdiff.errors import PdiffError
from pdiff.tasks import get_family
from pdiff.tasks.base import Images
from pdiff.tasks.data import images
from pdiff.tasks.families.corruptions import (
    KINDS,
    LARGEST_BLOCK,
    LEAST_CONTRAST,
    SMALLEST_SCALE,
    STEEPEST_SHEAR,
    STRONGEST_NOISE,
    WIDEST_BLUR,
    hash_images,
    render,
)

RENDER = jax.jit(render)
SHAPE = (8, 6)  # not square, so that no axis can stand for the other


def family_of(**overrides):
    config = corruptions.get_config().tasks.copy_and_resolve_references()
    with config.unlocked():
        config.update(overrides)
    return get_family(config)


@pytest.fixture(scope="module")
def family():
    return family_of()


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((40, *SHAPE)).astype(np.float32)


def corrupted(kind, severity, pictures, seed=1, **place):
    own = {**KINDS[kind](severity, pictures.shape[1:], **place), "seed": np.uint32(seed)}
    own = jax.tree.map(lambda a: jnp.asarray(a, jnp.uint32 if a.dtype == np.uint32 else jnp.float32), own)
    return np.asarray(RENDER(own, pictures.reshape(len(pictures), -1))).reshape(pictures.shape)


def affine(image, matrix):
    matrix, centre = np.asarray(matrix), (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1, mode="grid-constant")


EXPECTED = {
    "contrast": lambda x, s: 0.5 + (1 - s * (1 - LEAST_CONTRAST)) * (x - 0.5),
    "blur": lambda x, s: ndimage.gaussian_filter(x, np.sqrt(s) * WIDEST_BLUR * np.array(x.shape)),
    "inversion": lambda x, s: (1 - s) * x + s * (1 - x),
    "shear": lambda x, s: affine(x, [[1, 0], [s * STEEPEST_SHEAR, 1]]),
    "scale": lambda x, s: affine(x, np.eye(2) / (1 - s * (1 - SMALLEST_SCALE))),
}


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("severity", [0.07, 0.5, 1.0])
def test_kinds_are_what_they_say(kind, severity, pictures):
    expected = np.stack([EXPECTED[kind](x.astype(np.float64), severity) for x in pictures])
    np.testing.assert_allclose(corrupted(kind, severity, pictures), expected, atol=1e-5)


def test_an_occluding_block_is_grey_where_and_as_large_as_told():
    white = np.ones((1, 20, 20), np.float32)
    covered = 2 * (1 - corrupted("occlusion", 0.5, white, across=0.3, down=0.625)[0])
    assert covered.sum() == pytest.approx((0.5 * LARGEST_BLOCK * 20) ** 2, rel=1e-5)
    down, across = ((covered.sum(axis) * (np.arange(20) + 0.5)).sum() / covered.sum() / 20 for axis in (1, 0))
    assert (across, down) == (pytest.approx(0.3), pytest.approx(0.625))
    assert covered.min() == 0 and covered.max() == 1


def test_noise_has_its_standard_deviation_and_is_clipped():
    grey = 0.5 + np.random.default_rng(0).random((500, *SHAPE)).astype(np.float32) / 1e3
    change = corrupted("noise", 0.2, grey) - grey
    assert change.std() == pytest.approx(0.2 * STRONGEST_NOISE, rel=0.02) and abs(change.mean()) < 2e-3
    assert abs(np.corrcoef(change[:, 0, 0], change[:, 0, 1])[0, 1]) < 0.15
    loud = corrupted("noise", 1.0, grey)
    assert loud.min() == 0 and loud.max() == 1


def test_an_image_has_the_same_noise_in_every_batch_and_another_for_another_seed(family):
    x, task = family.data["train"].x[:64], next(t for t in family.tasks if t.name.startswith("noise"))
    own = jax.tree.map(lambda v: v[task.id], family.variables)
    together = np.asarray(RENDER(own, x))
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_allclose(RENDER(own, x[order]), together[order], atol=1e-6)
    alone = jax.jit(jax.vmap(lambda i: render(own, i[None])[0]))(x)
    np.testing.assert_allclose(alone, together, atol=1e-6)
    np.testing.assert_allclose(render(own, x[:1]), together[:1], atol=1e-6)
    other = np.asarray(RENDER({**own, "seed": own["seed"] + 1}, x))
    assert np.abs(other - together).max(1).min() > 1e-3


def test_hashes_tell_images_apart(family):
    x = np.concatenate([i.x for i in family.data.values()])
    assert len(np.unique(hash_images(x))) == len(np.unique(x, axis=0))
    swapped = x[:, np.r_[0, 1, 3, 2, 4 : x.shape[1]]]
    same = (swapped == x).all(1)
    assert ((np.asarray(hash_images(swapped)) == np.asarray(hash_images(x))) == same).all()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severity_0_is_the_identity_and_strength_grows(kind, family, pictures):
    np.testing.assert_array_equal(corrupted(kind, 0.0, pictures), pictures)
    digits = family.data["train"].x[:200].reshape(-1, 8, 8)
    distance = [np.abs(corrupted(kind, s, digits) - digits).mean() for s in np.linspace(0, 1, 21)]
    assert (np.diff(distance) > 0).all()


@pytest.mark.parametrize("unseen", ["30:45,85:100", "0:20", "50:60", ""])
def test_every_kind_has_the_same_regions_and_splits_keep_to_them(unseen):
    family = family_of(unseen=unseen)
    kinds = np.array(family.factor_names)[1:8]
    held_out = [a for bands in family.arcs.values() for a in bands]
    for split in ("seen", "validation", "interp", "unseen"):
        factors = family.factors(family.split(split)).reshape(-1, 10)
        counts = factors[:, 1:8].sum(0)
        assert (factors[:, 1:8].sum(1) == 1).all() and (split == "unseen" or (counts >= 4).all())
        for severity in factors[:, 0]:
            inside = sum(a < severity < b for a, b in family.arcs.get(split, held_out))
            assert inside == (0 if split == "seen" else 1)
    assert tuple(kinds) == CORRUPTIONS and len(family.split("seen")) == 252
    ordered = sorted(held_out)
    assert all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:], strict=False)) and ordered[0][0] >= 0
    assert ordered[-1][1] <= 1


def test_factors_and_descriptions_say_everything_that_a_task_depends_on(family):
    for task in family.tasks[::5]:
        severity, *indicators, across, down = task.factors
        kind = CORRUPTIONS[int(np.argmax(indicators))]
        place = {"across": across, "down": down} if kind == "occlusion" else {}
        assert (across, down) == (0, 0) or kind == "occlusion"
        own = jax.tree.map(lambda v, i=task.id: v[i], family.variables)
        for name, made in KINDS[kind](severity, (8, 8), **place).items():
            np.testing.assert_allclose(own[name], made, atol=1e-6)
        assert (task.descriptions, task.held_out_descriptions) == family.describe(task.factors)
        told = [kind, f"{100 * severity:.6g}", *(f"{100 * p:.0f}" for p in place.values())]
        for text in task.descriptions + task.held_out_descriptions:
            assert all(word in text for word in told)


def test_units_turn_percent_into_factors(family):
    units = dict(zip(family.factor_names, family.units, strict=True))
    assert units == {"severity": 0.01, **dict.fromkeys(CORRUPTIONS, 0.0), "across": 0.01, "down": 0.01}


def test_kinds_can_be_chosen():
    family = family_of(corruptions=("blur", "noise"), num_seen=20)
    assert family.factor_names == ("severity", "blur", "noise")
    assert {t.name.split("_")[0] for t in family.tasks} == {"blur", "noise"}
    assert set(KINDS) == set(CORRUPTIONS)


def test_other_images_of_other_sizes_serve(monkeypatch):
    rows = np.random.default_rng(0).random((30, 5 * 7)).astype(np.float32)
    parts = {p: Images(rows[i::3], np.arange(10) % 3, np.arange(i, 30, 3)) for i, p in enumerate(("train", "test"))}
    parts["validation"] = Images(rows[2::3], np.arange(10) % 3, np.arange(2, 30, 3))
    made = images.DataSet(parts, (5, 7), ("a", "b", "c"))
    monkeypatch.setitem(images.LOADERS, "digits", lambda config: made)
    family = family_of(num_seen=20)
    own = jax.tree.map(lambda v: v[3], family.variables)
    assert family.num_classes == 3 and RENDER(own, rows).shape == (30, 35)
    coloured = dataclasses.replace(made, image_shape=(5, 7, 1))
    monkeypatch.setitem(images.LOADERS, "digits", lambda config: coloured)
    with pytest.raises(PdiffError, match="tasks.data: got 'digits'.*grey"):
        family_of()


@pytest.mark.parametrize("text", ["45", "60:45", "50:50", "-1:5", "90:101", "a:b", "10:30,20:40", "95:5"])
def test_bad_bands_are_refused_with_their_text(text):
    with pytest.raises(PdiffError, match="tasks.unseen") as error:
        family_of(unseen=text)
    assert text.split(",")[0] in str(error.value)


def test_bands_that_leave_no_seen_task_are_refused():
    with pytest.raises(PdiffError, match="leaves 1 of 100 percent"):
        family_of(unseen="0:99")


def test_the_default_config_lists_all_kinds():
    assert defaults().tasks.corruptions == CORRUPTIONS
