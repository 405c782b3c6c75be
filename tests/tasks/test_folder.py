"""The folder family: files become tables without loss, splits are fixed and disjoint, mistakes are named."""

import os
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import folder as folder_scenario
from configs import smoke
from pdiff import run
from pdiff import workdir as workdir_lib
from pdiff.config.fields import defaults
from pdiff.errors import Faults, PdiffError
from pdiff.generator import generator
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.tasks.data.image_files import read_image
from pdiff.tasks.data.image_folder import ImageFolder
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


@pytest.fixture(scope="module")
def digits_family():
    return get_family(smoke.get_config().tasks)


def table(family, task, part):
    """A task's images and labels of a part, by the family's interface."""
    own = jax.tree.map(lambda v: v[task.id], family.variables)
    images = family.data[part]
    x, y = jax.jit(family.labelled)(own, images.x, images.y)
    return np.asarray(x), np.asarray(y)


def files_of(root, task, family, part):
    """{class label: pixels of its files in a part}, read anew: the fifths of a fixed permutation of sorted names."""
    found = {}
    for c, name in enumerate(CLASSES):
        paths = sorted((root / task.name / name).glob("*.png"))
        if paths:
            shuffled = [paths[i] for i in np.random.RandomState(0).permutation(len(paths))]
            fifth = max(1, round(len(paths) / 5))
            first, last = {"test": (0, fifth), "validation": (fifth, 2 * fifth), "train": (2 * fifth, None)}[part]
            found[c] = np.stack([np.asarray(Image.open(p)).reshape(-1) for p in shuffled[first:last]])
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


def image_folder(tasks):
    """As `read_folder` gives it, of made-up digests."""
    return ImageFolder(tasks, {}, (4, 3), False, ())


@pytest.mark.parametrize("count", range(3, 40))
def test_images_are_split_by_fifths_and_none_is_in_two_parts(count):
    digests = [f"{i:03d}" for i in range(count)]
    parts, notes = folder.split_images(image_folder({"a": {"b": digests}}))
    split = parts["a"]["b"]
    assert sorted(d for part in split.values() for d in part) == digests and not notes
    assert all(len(split[p]) == max(1, round(count / 5)) for p in ("validation", "test")) and split["train"]


def test_an_image_of_several_places_is_in_one_part():
    random, every = np.random.RandomState(3), [f"{i:03d}" for i in range(60)]
    tasks = {t: {c: random.permutation(every)[:20].tolist() for c in "xyz"} for t in "abcdef"}
    parts, notes = folder.split_images(image_folder(tasks))
    place = {}
    for classes in parts.values():
        for split in classes.values():
            for part, digests in split.items():
                assert digests and all(place.setdefault(d, part) == part for d in digests)
    assert not notes and set(place.values()) == set(folder.PARTS)


def test_images_that_cannot_be_kept_in_one_part_are_told():
    first = {"a": {"x": list("pqr"), "y": list("stu"), "z": list("vwx")}}
    alone, _ = folder.split_images(image_folder(first))
    training = [split["train"][0] for split in alone["a"].values()]
    parts, notes = folder.split_images(image_folder(first | {"b": {"x": training}}))
    assert all(len(digests) == 1 for digests in parts["b"]["x"].values()) and parts["a"] == alone["a"]
    assert re.search("too few to be kept on one side .* b/x has one for .*, elsewhere it is for train", notes[0])


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
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png"), np.where(grey > 127, 255, 0))
    colour = picture(3, (3,))
    image = Image.fromarray(colour).quantize(256)
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(image.convert("RGB")))


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


def copies(c):
    """A mistake: all images of class `c` in one task are the same."""

    def change(root):
        first, *others = sorted((root / "orchard_b" / c).iterdir())
        for path in others:
            shutil.copy(first, path)

    return change


def leave(c, count):
    """A mistake: only `count` images of class `c` in one task."""
    return lambda root: [p.unlink() for p in sorted((root / "orchard_b" / c).iterdir())[count:]]


MISTAKES = {
    "one class": (lambda root: make_task(root, "orchard_z", {"apples": 5}), "orchard_z: 1 classes; allowed: at least"),
    "no class": (lambda root: (root / "orchard_z").mkdir(), "orchard_z: 0 classes"),
    "empty class": (leave("pears", 0), "pears: 0 images; allowed: at least 3"),
    "few images": (leave("plums", 2), "plums: 2 images; allowed: at least 3"),
    "copies": (copies("plums"), "orchard_b/plums: 1 different images in 5 files; allowed: at least 3"),
    "mixed sizes": (first_plum(lambda p: save(p, np.zeros((5, 3), np.uint8))),
                    "plums/00.png: an image of 3 x 5 pixels; allowed: .* 3 x 4; --config.tasks.image_side=16 resizes"),
    "truncated": (first_plum(lambda p: p.write_bytes(p.read_bytes()[:-30])), "00.png: unreadable or damaged"),
    "no image": (first_plum(lambda p: p.write_bytes(b"plum")), "00.png: unreadable or damaged"),
    "16 bits": (first_plum(lambda p: save(p, np.zeros((4, 3), np.uint16))), "mode I;16; allowed: grey or RGB"),
    "transparent": (first_plum(lambda p: save(p, picture(0, (4,)))), "mode RGBA; allowed: grey or RGB"),
    "other file": (first_plum(lambda p: p.with_name("x.gif").write_bytes(b"")), "x.gif: no image; allowed: .*png"),
    "folder": (first_plum(lambda p: (p.parent / "more.png").mkdir()), "plums/more.png: a folder in that of a class"),
    "no folder": (first_plum(lambda p: p.rename(p.parents[1] / "a.png")), "orchard_b: images beside .*: a.png"),
    "empty text": (description(b" \n"), "orchard_b/description.txt: empty"),
    "no text": (description(b"\xff\xfe\xff"), "orchard_b/description.txt: unreadable"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_folder_is_named(name, tmp_path):
    make_folder(tmp_path, 4)
    mistake, message = MISTAKES[name]
    mistake(tmp_path)
    with pytest.raises(Faults, match=message) as error:
        get_family(config_of(tmp_path, num_validation=1, num_unseen=1))
    assert len(error.value.lines) == 1


def test_all_mistakes_are_told_at_once(tmp_path):
    for i, (mistake, _) in enumerate(MISTAKES.values()):
        mistake(make_folder(tmp_path / f"{i}", 3))
        for task in (tmp_path / f"{i}").iterdir():
            task.rename(tmp_path / f"{task.name}_{i:02d}")
        (tmp_path / f"{i}").rmdir()
    with pytest.raises(Faults) as error:
        get_family(config_of(tmp_path, num_seen=100))
    assert len(error.value.lines) == len(MISTAKES)
    for i, (_, message) in enumerate(MISTAKES.values()):
        message = re.sub(r"orchard_(\w)", rf"orchard_\1_{i:02d}", message)
        assert [line for line in error.value.lines if re.search(message, line)], message


# Ten folders as people have them. Each is a change of a sound one, and what the family's notes then say.
ORDINARY = {
    "left by systems": (lambda root: [(root / p).write_bytes(b"x") for p in (
        "Thumbs.db", "orchard_a/.DS_Store", "orchard_a/apples/Thumbs.db", "orchard_b/plums/desktop.ini",
        "orchard_b/plums/._00.png", "README.txt", "orchard_a/notes.txt")], []),
    "near-equal classes": (lambda root: make_task(root, "orchard_c", {"Apples": 5, "plum": 5}, 7000), [
        "classes that may be one, named in two ways: 'Apples' and 'apples', 'plum' and 'plums'",
        "classes that one task alone has: Apples \\(orchard_c\\), plum \\(orchard_c\\)"]),
    "classes of one task": (lambda root: make_task(root, "orchard_c", {"figs": 5}, 7000), [
        "classes that one task alone has: figs \\(orchard_c\\)"]),
    "a class is missing": (lambda root: shutil.rmtree(root / "orchard_b" / "pears"), [
        "tasks that lack classes of others: orchard_a \\(pears\\), orchard_b \\(pears\\)$"]),
    "an image under two classes": (lambda root: shutil.copy(
        root / "orchard_b/apples/00.png", root / "orchard_b/plums/zz.png"), [
        "the same image under two classes of a task: orchard_b/apples/00.png = orchard_b/plums/zz.png$"]),
    "an image in two tasks": (lambda root: shutil.copytree(
        root / "orchard_b/plums", root / "orchard_c/plums", dirs_exist_ok=True), [
        "the same image in two tasks: orchard_b/plums/00.png = orchard_c/plums/00.png, .* and 2 more$"]),
    "an image twelve times": (lambda root: [shutil.copy(
        root / "orchard_b/apples/00.png", root / f"orchard_b/apples/copy{i:02d}.png") for i in range(11)], [
        "the same image several times in a class, where it counts once: .* and 8 more$"]),
    "grey beside colour": (first_plum(lambda p: save(p, picture(0, (3,)))), [
        "images are grey, such as orchard_a/apples/00.png, and 1 RGB; all become RGB"]),
    "opaque alpha": (first_plum(lambda p: Image.open(p).convert("LA").save(p)), []),
    "two folders of one name": (lambda root: shutil.copytree(root / "orchard_b", root / "orchard-b"), [
        "tasks with the same description, .*: orchard-b = orchard_b \\('",
        "the same image in two tasks: "]),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_folder_is_a_family_and_what_is_doubtful_is_told(name, tmp_path):
    make_folder(tmp_path, 5)
    change, messages = ORDINARY[name]
    usual = get_family(config_of(tmp_path, num_unseen=1)).notes
    change(tmp_path)
    family = get_family(config_of(tmp_path, num_unseen=1))
    new = [note for note in family.notes if note not in usual and not note.startswith(("folder:", "held out"))]
    assert len(new) == len(messages), new
    for message in messages:
        assert any(re.search(message, note) for note in new), new


def test_images_of_several_sizes_are_resized_if_that_is_wanted(tmp_path, digits_family):
    make_folder(tmp_path, 4)
    (tmp_path / "orchard_b/plums/00.png").unlink()
    photo = np.zeros((48, 64), np.uint8)
    photo[:, 32:] = 200
    save(tmp_path / "orchard_b/plums/00.jpg", photo)
    family = get_family(config_of(tmp_path, num_unseen=1, image_side=8))
    assert family.image_shape == (8, 8) and family.resizes
    (note,) = [n for n in family.notes if "resized" in n]
    assert re.match(r"images of 3 x 4 \(\d+ images\), 64 x 48 \(1 images\) are resized to 8 x 8", note)
    (found,) = [x for x in family.variables["x"].reshape(-1, 8, 8) if x[:, 5:].min() > 180 and x[:, :3].max() < 20][:1]
    assert found.shape == (8, 8)
    x, _ = folder.read_support(tmp_path / "orchard_b" / "plums", family)
    assert x.shape == (5, 64)
    same = get_family(config_of(make_folder(tmp_path / "small", 4), num_unseen=1, image_side=8))
    assert same.image_shape == (4, 3) and not same.resizes  # of one size already, and smaller


def test_photos_are_turned_as_their_exif_says(tmp_path):
    image = Image.fromarray(picture(5))
    exif = image.getexif()
    exif[0x0112] = 6  # the top of the scene is at the right of the pixels
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(picture(5), -1))


@pytest.mark.parametrize("count, unseen, validation", [(2, 0, 0), (4, 1, 0), (6, 1, 0), (8, 1, 1), (12, 2, 1)])
def test_as_many_tasks_are_held_out_as_suit(count, unseen, validation):
    config = defaults().tasks
    config.update(dict(num_unseen=folder.SUITED, num_validation=folder.SUITED))
    splits = list(folder.split_tasks([f"t{i}" for i in range(count)], config).values())
    assert splits.count("unseen") == unseen and splits.count("validation") == validation


def test_unseen_tasks_can_be_named(root):
    family = get_family(config_of(root, num_unseen=folder.SUITED, held_out="orchard_e, orchard_b"))
    assert [t.name for t in family.split("unseen")] == ["orchard_b", "orchard_e"]
    assert len(family.split("validation")) == 1 and len(family.split("seen")) == 3
    assert any("held out as unseen: orchard_b, orchard_e" in note for note in family.notes)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(data_dir=""), "tasks.data_dir: got '', no such folder"),
        (dict(data_dir="/nowhere/at/all"), "tasks.data_dir: got '/nowhere/at/all', no such folder"),
        (dict(num_unseen=5), "has 6 tasks, of which 6 would be held out .* configs/folder.py"),
        (
            dict(num_unseen=-1, held_out="Orchard_b,orchad_c,zoo"),
            "no task 'Orchard_b', nearest are orchard_.*; no task 'orchad_c', .*orchard_c.*; no task 'zoo', there are ",
        ),
        (dict(held_out="orchard_b"), "tasks.num_unseen: got 2, while tasks.held_out names 1; allowed: -1"),
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
        config.condition.update(dict(use=("text",), text_width=16))
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


def test_a_folder_of_one_task_is_refused_before_any_work(tmp_path):
    make_task(tmp_path / "cameras", "gate")
    config = folder_scenario.get_config().copy_and_resolve_references()
    with config.unlocked():
        config.tasks.data_dir = str(tmp_path / "cameras")
    with pytest.raises(PdiffError, match="1 seen task, .*--config.refined.of=zoo"):
        run.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_scenario_of_folders_reads_names_that_it_holds_out(tmp_path):
    make_folder(tmp_path, 4)
    config = folder_scenario.get_config().copy_and_resolve_references()
    with config.unlocked():
        config.tasks.update(dict(data_dir=str(tmp_path), held_out="jetty_9"))
    with pytest.raises(PdiffError, match="no task 'jetty_9'"):
        get_family(config.tasks)
    make_task(tmp_path, "jetty_9", start=9000)
    family = get_family(config.tasks)
    (task,) = family.split("unseen")
    tokenizer = generator.make_tokenizer(config, family)
    assert all((tokenizer.encode(d).ids > 1).any() for d in (*task.descriptions, *task.held_out_descriptions))


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
        read_image(tmp_path / "a.png")
    assert not (tmp_path / "ran").exists()


def test_enormous_images_and_texts_are_refused_before_they_are_unpacked(tmp_path):
    Image.fromarray(np.zeros((5000, 4000), np.uint8)).save(tmp_path / "a.png", compress_level=9)
    assert (tmp_path / "a.png").stat().st_size < 100_000
    with pytest.raises(PdiffError, match="a.png: of 4000 x 5000 pixels; allowed: at most 16,777,216"):
        read_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(PdiffError, match="b.png: no regular file"):
        read_image(tmp_path / "b.png")
    (tmp_path / "description.txt").write_text("x" * 70_000)
    with pytest.raises(PdiffError, match="description.txt: no regular file of at most 65,536 bytes"):
        folder.describe(tmp_path)
