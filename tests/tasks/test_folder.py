"""The folder family: files become tables without loss, splits are fixed and disjoint, mistakes are named."""

import os

import jax
import numpy as np
import pytest
from PIL import Image

from configs import smoke
from pdiff import run
from pdiff import workdir as workdir_lib
from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.generator import generator
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.tasks.families import folder
from tests import complete

CLASSES = ("apples", "pears", "plums")
COUNTS = {"apples": 12, "pears": 9, "plums": 5}  # of which a fifth, at least one, is for testing


def picture(number, channels=()):
    """4x3 pixels that say which picture it is, and all values from 0 to 255 in some picture."""
    random = np.random.default_rng(number)
    image = random.integers(0, 256, (4, 3, *channels), np.uint8)
    image[0, 0] = number % 256
    return image


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def make_task(root, name, counts=COUNTS, start=0, channels=()):
    numbers = iter(range(start, 10**6))
    for c, count in counts.items():
        for i in range(count):
            save(root / name / c / f"{i:02d}.png", picture(next(numbers), channels))


def make_folder(root, tasks=6, channels=()):
    for t in range(tasks):
        counts = COUNTS if t else {"apples": 4, "plums": 3}  # one small task that lacks a class
        make_task(root, f"orchard_{'abcdefghijkl'[t]}", counts, 100 * t, channels)
    return root


def config_of(root, **overrides):
    config = defaults().tasks
    config.update(dict(family="folder", data_dir=str(root), num_seen=10, num_validation=1, num_unseen=2))
    config.update(overrides)
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def family(root):
    return get_family(config_of(root))


def table(family, task, part):
    """A task's images and labels of a part, by the family's interface."""
    own = jax.tree.map(lambda v: v[task.id], family.variables)
    images = family.data[part]
    x, y = jax.jit(family.labelled)(own, images.x, images.y)
    return np.asarray(x), np.asarray(y)


def files_of(root, task, family, part):
    """{class label: pixels of its files in a part}, read anew."""
    found = {}
    for c, name in enumerate(CLASSES):
        paths = list((root / task.name / name).glob("*.png"))
        if paths:
            found[c] = np.stack([np.asarray(Image.open(p)).reshape(-1) for p in folder.split_files(paths)[part]])
    return found


def test_every_pixel_comes_back_under_its_label(family, root):
    assert family.image_shape == (4, 3) and family.num_classes == 3
    for task in family.tasks:
        for part in folder.PARTS:
            x, y = table(family, task, part)
            assert x.dtype == np.float32 and y.dtype == np.int32 and x.min() >= 0 and x.max() <= 1
            found = np.rint(x * 255).astype(np.uint8)
            np.testing.assert_allclose(x, found / np.float32(255), rtol=1e-7)
            files = files_of(root, task, family, part)
            assert set(y) == set(files)
            for c, pixels in files.items():
                np.testing.assert_array_equal(np.unique(found[y == c], axis=0), np.unique(pixels, axis=0))


def test_classes_and_the_images_of_a_class_are_balanced(family):
    for task in family.tasks:
        for part in folder.PARTS:
            x, y = table(family, task, part)
            per_class = np.bincount(y)[np.unique(y)]
            assert np.ptp(per_class) <= 1
            for c in np.unique(y):
                _, repeats = np.unique(x[y == c], axis=0, return_counts=True)
                assert np.ptp(repeats) <= 1


def test_tables_have_room_for_every_image_and_no_more(family):
    # 12 apples: 2 for testing, 2 for validation, 8 for training, while 3 classes take turns.
    assert {p: len(i.y) for p, i in family.data.items()} == {"train": 24, "validation": 6, "test": 6}
    assert family.variables["x"].shape == (6, 36, 12) and family.variables["x"].dtype == np.uint8


@pytest.mark.parametrize("count", range(3, 40))
def test_files_are_split_by_fifths_and_none_is_in_two_parts(count, tmp_path):
    paths = [tmp_path / f"{i:03d}.png" for i in range(count)]
    parts = folder.split_files(paths[::-1])
    assert sorted(p for part in parts.values() for p in part) == paths
    assert all(len(parts[p]) == max(1, round(count / 5)) for p in ("validation", "test")) and parts["train"]
    assert parts == folder.split_files(paths)  # the order in which a disk lists them is nothing


def test_tasks_are_split_by_a_fixed_permutation(family, root):
    again = get_family(config_of(root))
    assert [(t.name, t.split) for t in again.tasks] == [(t.name, t.split) for t in family.tasks]
    jax.tree.map(np.testing.assert_array_equal, again.variables, family.variables)
    assert {s: len(family.split(s)) for s in ("seen", "validation", "unseen", "interp")} == {
        "seen": 3, "validation": 1, "unseen": 2, "interp": 0,
    }  # fmt: skip
    fewer = get_family(config_of(root, num_seen=2))
    assert {t.name for t in fewer.split("seen")} < {t.name for t in family.split("seen")}
    assert [t.name for t in fewer.split("unseen")] == [t.name for t in family.split("unseen")]


def test_eval_images_are_the_first_rows_of_the_same_tables(family, root):
    few = get_family(config_of(root, eval_images=2))
    assert {p: len(i.y) for p, i in few.data.items()} == {"train": 24, "validation": 3, "test": 3}
    few.check()
    for part in folder.PARTS:
        for a, b in zip(table(few, few.tasks[1], part), table(family, family.tasks[1], part), strict=True):
            np.testing.assert_array_equal(a, b[: len(a)])


def test_colour_and_jpeg_are_read(tmp_path):
    make_folder(tmp_path, 4, (3,))
    first = next((tmp_path / "orchard_b" / "pears").glob("*.png"))
    Image.open(first).save(first.with_suffix(".JPG"), "jpeg")
    first.unlink()
    family = get_family(config_of(tmp_path))
    assert family.image_shape == (4, 3, 3) and family.variables["x"].shape[-1] == 36


def test_palettes_and_single_bits_become_grey_or_rgb(tmp_path):
    grey = picture(3)
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(folder.read_image(tmp_path / "bits.png"), np.where(grey > 127, 255, 0))
    colour = picture(3, (3,))
    image = Image.fromarray(colour).quantize(256)
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(folder.read_image(tmp_path / "palette.png"), np.asarray(image.convert("RGB")))


def test_the_base_is_pretrained_on_every_training_image_of_the_seen_tasks(family):
    x, y = map(np.asarray, family.pretraining_images("train"))
    seen = [table(family, t, "train") for t in family.split("seen")]
    np.testing.assert_allclose(x, np.concatenate([s[0] for s in seen]), rtol=1e-6)
    np.testing.assert_array_equal(y, np.concatenate([s[1] for s in seen]))
    x, y = map(np.asarray, family.pretraining_images("test"))
    tables = [np.concatenate([a, b[:, None]], 1) for a, b in (table(family, t, "test") for t in family.split("seen"))]
    for i, row in enumerate(np.concatenate([x, y[:, None]], 1)):
        assert any(np.allclose(row, t[i], rtol=1e-6) for t in tables)


def test_mixed_is_each_row_as_its_task_has_it(family):
    rows, task = np.array([3, 0, 23, 5, 5]), np.array([1, 0, 5, 2, 3])
    x, y = map(np.asarray, family.mixed(family.variables, "train", rows, task))
    for i in range(len(rows)):
        images, labels = table(family, family.tasks[task[i]], "train")
        np.testing.assert_allclose(x[i], images[rows[i]], rtol=1e-6)
        assert y[i] == labels[rows[i]]


def test_names_are_the_descriptions_unless_a_file_has_others(tmp_path):
    make_folder(tmp_path, 4)
    (tmp_path / "orchard_b" / "description.txt").write_text("One wording\n\n two \nthe last\n")
    (tmp_path / "orchard_c" / "description.txt").write_text("only this\n")
    family = get_family(config_of(tmp_path))
    a, b, c = (next(t for t in family.tasks if t.name == f"orchard_{n}") for n in "abc")
    assert all("orchard a" in d for d in a.descriptions + a.held_out_descriptions) and len(a.held_out_descriptions) == 2
    assert b.descriptions == ("One wording", "two") * 2 and b.held_out_descriptions == ("the last",)
    assert c.descriptions == ("only this",) * 4 and c.held_out_descriptions == ()
    letters = set("".join(folder.WORDINGS))
    assert all(set(w) <= letters for w in folder.HELD_OUT_WORDINGS)  # else no tokenizer could read them


def first_plum(write):
    """A mistake: the first plum of one task, written anew by `write(path)`."""
    return lambda root: write(root / "orchard_b" / "plums" / "00.png")


def description(content):
    """A mistake: these bytes for one task's description."""
    return lambda root: (root / "orchard_b" / "description.txt").write_bytes(content)


def leave(c, count):
    """A mistake: only `count` images of class `c` in one task."""
    return lambda root: [p.unlink() for p in sorted((root / "orchard_b" / c).iterdir())[count:]]


MISTAKES = {
    "one class": (lambda root: make_task(root, "orchard_z", {"apples": 5}), "orchard_z: 1 classes; allowed: at least"),
    "no class": (lambda root: (root / "orchard_z").mkdir(), "orchard_z: 0 classes"),
    "empty class": (leave("pears", 0), "pears: 0 images; allowed: at least 3"),
    "few images": (leave("plums", 2), "plums: 2 images; allowed: at least 3"),
    "mixed sizes": (first_plum(lambda p: save(p, np.zeros((5, 3), np.uint8))), r"00.png: an image of \(5, 3\)"),
    "mixed colours": (first_plum(lambda p: save(p, picture(0, (3,)))), r"00.png: an image of \(4, 3, 3\)"),
    "truncated": (first_plum(lambda p: p.write_bytes(p.read_bytes()[:-30])), "00.png: unreadable or damaged"),
    "no image": (first_plum(lambda p: p.write_bytes(b"plum")), "00.png: unreadable or damaged"),
    "16 bits": (first_plum(lambda p: save(p, np.zeros((4, 3), np.uint16))), "mode I;16; allowed: grey or RGB"),
    "transparent": (first_plum(lambda p: save(p, picture(0, (4,)))), "mode RGBA; allowed: grey or RGB"),
    "other file": (first_plum(lambda p: p.with_name("x.gif").write_bytes(b"")), "x.gif: no image; allowed: .*png"),
    "empty text": (description(b" \n"), "description.txt: empty"),
    "no text": (description(b"\xff\xfe\xff"), "description.txt: unreadable"),
    "held out twice": (description(b"a\na"), "orchard_b: .*disjoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_folder_is_named_in_one_line(name, tmp_path):
    make_folder(tmp_path, 4)
    mistake, message = MISTAKES[name]
    mistake(tmp_path)
    with pytest.raises(PdiffError, match=message) as error:
        get_family(config_of(tmp_path, num_validation=1, num_unseen=1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(data_dir=""), "tasks.data_dir: got '', no such folder"),
        (dict(data_dir="/nowhere/at/all"), "tasks.data_dir: got '/nowhere/at/all', no such folder"),
        (dict(num_unseen=5), "has 6 tasks; allowed: more than tasks.num_unseen .* = 5 \\+ 1"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message, root):
    with pytest.raises(PdiffError, match=message):
        get_family(config_of(root, **change))


def smoke_config(root):
    config = smoke.get_config()
    with config.unlocked():
        config.tasks = config_of(root, num_unseen=1)
        config.target.widths = (8,)
        config.zoo.update(dict(pretrain_steps=20, steps=10, batch_size=8))
        config.weights.token_dim = 32
        config.mean.update(dict(width=16, steps=4, batch_size=8, functional_images=8))
        config.refined.networks = 32
        config.model.update(dict(width=32, depth=1))
        config.condition.update(dict(use=("text",), text_vocab_size=290, text_width=16))
        config.train.update(dict(steps=4, batch_size=8, warmup_steps=1, validate_every=4, checkpoint_every=4))
        config.sample.samplers = ("posterior_mean",)
        config.eval.update(dict(rivals="", calibration_samples=0, adapt_tasks=0))
    return config.lock()


def test_factors_and_unreadable_names_are_refused_before_any_work(root, tmp_path):
    config = smoke_config(root).copy_and_resolve_references()
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    with config.unlocked():
        config.condition.use = ("text", "factors")
    with pytest.raises(PdiffError, match="the family folder has no factors"):
        generator.check(config, family, target)
    strange = make_folder(tmp_path, 4)
    (strange / "orchard_a").rename(strange / "果园")
    with pytest.raises(PdiffError, match="'果园' has no character that a training description has"):
        generator.check(smoke_config(strange), get_family(config_of(strange, num_unseen=3, num_validation=0)), target)


@pytest.mark.slow
def test_a_folder_runs_from_end_to_end(root, tmp_path):
    """Takes a minute of processor time, most of it compilation."""
    results = run.run(smoke_config(root), tmp_path / "run")
    assert complete.check(results) == []
    without_factors = {"hypernetwork", "soup", "gaussian", "task_blind", "majority", "shuffled_text"}
    assert set(results["splits"]["seen"]["controls"]) == without_factors | {"noise", "wrong_task"}
    assert set(results["splits"]["unseen"]["controls"]) == without_factors
    assert results["mixing"] == [] and "interp" not in results["splits"]
    list(workdir_lib.check(tmp_path / "run"))


@pytest.fixture(scope="module")
def digits_family():
    return get_family(smoke.get_config().tasks)


def test_a_user_s_images_are_read_with_the_classes_that_folders_name(digits_family, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8)
    places = ("three/a.png", "three/b.PNG", "7/c.png", "0/d.png")  # by name or number
    for place, image in zip(places, pictures, strict=True):
        save(tmp_path / place, image)
    x, y = folder.read_support(tmp_path, digits_family)
    assert y.tolist() == [0, 7, 3, 3]  # folders in order of their names
    np.testing.assert_allclose(x, pictures[[3, 2, 0, 1]].reshape(4, -1) / np.float32(255), rtol=1e-6)
    x, y = folder.read_support(tmp_path / "three", digits_family)
    assert y is None and x.shape == (2, 64)


@pytest.mark.parametrize(
    "places, side, message",
    [
        ((), 8, "no image in it"),
        (("a.png", "three/b.png"), 8, "images in the classes' folders alone"),
        (("eleven/a.png",), 8, "no class of this generator; allowed: zero, one"),
        (("a.png",), 9, r"an image of \(9, 9\); allowed: \(8, 8\)"),
        (("a.png", "b.bmp"), 8, "b.bmp.*allowed: files that end in .png"),
    ],
)
def test_a_user_s_images_that_do_not_fit_are_named(digits_family, tmp_path, places, side, message):
    for place in places:
        save(tmp_path / place, np.zeros((side, side), np.uint8))
    with pytest.raises(PdiffError, match=message):
        folder.read_support(tmp_path, digits_family)


def test_damaged_images_of_a_user_are_named(digits_family, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(PdiffError, match="a.png: unreadable or damaged"):
        folder.read_support(tmp_path, digits_family)


def test_a_png_that_is_postscript_is_not_run(tmp_path, monkeypatch):
    """Pillow tells formats by their contents, and has Ghostscript, another program, run what is PostScript."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 3\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(program)
    with pytest.raises(PdiffError, match="a.png: unreadable or damaged"):
        folder.read_image(tmp_path / "a.png")
    assert not (tmp_path / "ran").exists()


def test_enormous_images_and_texts_are_refused_before_they_are_unpacked(tmp_path):
    Image.fromarray(np.zeros((5000, 4000), np.uint8)).save(tmp_path / "a.png", compress_level=9)
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(PdiffError, match="a.png: of 4000 x 5000 pixels; allowed: at most 16,777,216"):
        folder.read_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(PdiffError, match="b.png: no regular file"):
        folder.read_image(tmp_path / "b.png")
    (tmp_path / "description.txt").write_text("x" * 70_000)
    with pytest.raises(PdiffError, match="description.txt: no regular file of at most 65,536 bytes"):
        folder.describe(tmp_path)
