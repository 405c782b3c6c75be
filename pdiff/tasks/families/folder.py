"""Your own images: a folder of tasks, each with images of its own.

    tasks.data_dir/TASK_NAME/CLASS_NAME/*.png           also .jpg and .jpeg; grey or RGB
    tasks.data_dir/TASK_NAME/description.txt            optional: what the task is, a wording on each line

Images that are larger than `tasks.image_side`, or not all of one size, are resized to squares of it; if it is 0, all
have to be of one size. All faults of the folder are told at once (`image_folder`), and `Family.notes` has the rest.

The classes are those of all tasks together; a task may lack some, but needs two. Tasks have no factors, so what
is made of factors (nearest tasks, ridge, lines between tasks, mixing) does not exist here, nor do interp tasks.

`tasks.held_out` names the unseen tasks, or they are drawn by a fixed permutation of the names (`split_tasks`). Images
of each class of a task are split by a fixed permutation of their sorted file names: a fifth for testing, a fifth for
validation, the rest for training. An image that lies in several places is in the same part in all of them.

A family's tasks share rows, so here a shared row is nothing but a number, and a task's variables are the table of its
images and labels that the number looks up. All tables have the same length. Down a table the task's classes take
turns, and the images of a class follow one another in a circle, so that a small task or class repeats its images. A
task's accuracy is therefore the mean over its classes of the accuracy within a class, not the mean over its images (but
for one row more or less of each). All tables lie in memory, one byte for a pixel.
"""

import difflib
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, UInt8
from ml_collections import ConfigDict

from pdiff.errors import PdiffError, some
from pdiff.tasks.base import SPLITS, Family, Images, Task, hold_out, same_descriptions, words_of
from pdiff.tasks.data.image_files import ENDED, as_rgb, folders, is_named_as_image, read_image, resized, visible
from pdiff.tasks.data.image_folder import ImageFolder, read_folder

PARTS = ("train", "validation", "test")
DESCRIPTION = "description.txt"
MOST_TEXT = 1 << 16  # bytes of a description.txt
WORDINGS = ("{}", "images of {}", "recognise {}", "a classifier for {}")
HELD_OUT_WORDINGS = ("a recogniser of {}", "classifier for images of {}")  # of characters that are in the others
SUITED = -1  # of tasks.num_unseen and tasks.num_validation: as many as suit the number of tasks
MOST_UNSEEN, MOST_VALIDATION = 16, 20  # of those
HELD_OUT_SHARE = 4  # one of so many tasks is held out

Parts = Mapping[str, Mapping[str, Sequence[str]]]  # of a task: by class and part, the digests of its images


def render(variables: dict[str, ArrayLike], x: Float[ArrayLike, "n 1"]) -> Float[Array, "n features"]:
    """The task's images at the row numbers `x`, in [0, 1]."""
    return jnp.asarray(variables["x"])[_rows(x)].astype(jnp.float32) / 255


def relabel(variables: dict[str, ArrayLike], x: Float[ArrayLike, "n 1"], y: Int[ArrayLike, " n"]) -> Int[Array, " n"]:
    """The task's labels at the row numbers `x`."""
    return jnp.asarray(variables["y"])[_rows(x)]


def make_family(config: ConfigDict) -> Family:
    """The family of `config` (the `tasks` part of a run's config).

    Raises:
      PdiffError: the folder is missing, holds too few tasks, classes or images, or something that cannot be read.
    """
    root = Path(config.data_dir).expanduser()
    if not config.data_dir or not root.is_dir():
        raise PdiffError(f"tasks.data_dir: got {config.data_dir!r}, no such folder; allowed: a folder of tasks")
    names = [p.name for p in folders(root)]
    split_of = split_tasks(names, config)
    chosen = sorted(split_of.items(), key=lambda item: (SPLITS.index(item[1]), item[0]))
    described, faults = {}, []
    for name, _ in chosen:
        try:
            described[name] = describe(root / name)
        except PdiffError as e:
            faults.append(str(e).replace(f"{root}/", ""))
    images = read_folder(root, sorted(split_of), config.image_side, faults)
    parts, astray = split_images(images)
    class_names = sorted(set().union(*images.tasks.values()))
    lengths = _lengths(parts, len(class_names), config.eval_images)
    tables = [_table(parts[name], class_names, lengths, images) for name, _ in chosen]
    variables = {key: np.stack([t[key] for t in tables]) for key in ("x", "y")}
    tasks = _tasks(described, chosen)
    return Family(
        name="folder",
        factor_names=(),
        factor_periods=(),
        num_classes=len(class_names),
        image_shape=images.shape,
        data=_shared(lengths),
        tasks=tasks,
        variables=variables,
        render=render,
        relabel=relabel,
        describe=None,
        class_names=tuple(class_names),
        pretraining={key: v[[t.split == "seen" for t in tasks]] for key, v in variables.items()},
        pretraining_on_all=True,
        resizes=images.resized,
        notes=(
            *_summary(names, split_of, images),
            *images.notes,
            *astray,
            *same_descriptions({t.name: t.descriptions for t in tasks}),
        ),
    )


def split_tasks(names: Collection[str], config: ConfigDict) -> dict[str, str]:
    """The split of each task, unless it is left out: unseen are those that `held_out` names, or some that are drawn.

    Raises:
      PdiffError: there is no task of a name, or none is left for a seen one.
    """
    start = f"tasks.data_dir: {config.data_dir} has"
    if not names:
        raise PdiffError(f"{start} no folder in it; allowed: a folder for each task, with one for each class in it")
    unseen = _named(names, config.held_out)
    if unseen and config.num_unseen not in (SUITED, len(unseen)):
        raise PdiffError(
            f"tasks.num_unseen: got {config.num_unseen}, while tasks.held_out names {len(unseen)}; allowed: "
            f"{SUITED}, which leaves the choice to tasks.held_out"
        )
    suited = len(names) // HELD_OUT_SHARE
    num_unseen = min((suited + 1) // 2, MOST_UNSEEN) if config.num_unseen == SUITED else config.num_unseen
    num_validation = config.num_validation
    if num_validation == SUITED:
        num_validation = min(suited // 2, MOST_VALIDATION, max(len(names) - len(unseen) - 2, 0))
    if len(names) <= (num_held_out := (len(unseen) or num_unseen) + num_validation):
        raise PdiffError(
            f"{start} {len(names)} tasks, of which {num_held_out} would be held out (tasks.num_unseen or "
            f"tasks.held_out, and tasks.num_validation); allowed: fewer than all; {SUITED}, as in configs/folder.py, "
            "holds out as many as suit"
        )
    counts = {"num_unseen": 0 if unseen else num_unseen, "num_validation": num_validation, "num_seen": config.num_seen}
    rest = [n for n in names if n not in unseen]
    return dict.fromkeys(unseen, "unseen") | hold_out(rest, ConfigDict(counts), 0, start)


def _named(names: Collection[str], text: str) -> list[str]:
    """The tasks that a text names, separated by commas.

    Raises:
      PdiffError: there is none of a name; the message has the nearest.
    """
    wanted = [text] if text in names else [n for n in (part.strip() for part in text.split(",")) if n]
    faults = []
    for name in (n for n in wanted if n not in names):
        near = difflib.get_close_matches(name.lower(), {n.lower(): n for n in names}, 3)
        near = [n for n in sorted(names) if n.lower() in near]
        faults.append(f"no task {name!r}, {'nearest are' if near else 'there are'} {some(near or sorted(names))}")
    if faults:
        raise PdiffError(f"tasks.held_out: got {text!r}: {'; '.join(faults)}")
    return list(dict.fromkeys(wanted))


def split_images(images: ImageFolder) -> tuple[dict[str, Parts], list[str]]:
    """By task and class, the images of each part, and a note on those that are not in the same part everywhere.

    A class that shares no image with any other has a fifth of them (at least one) each for testing and validation. An
    image that lies in several places goes where it is in the first of these, unless a part would be left empty.
    """
    part_of: dict[str, str] = {}
    parts: dict[str, dict[str, dict[str, list[str]]]] = {}
    astray = []
    for name, classes in sorted(images.tasks.items()):
        parts[name] = {}
        for label, digests in classes.items():
            parts[name][label] = split = _split(digests, part_of)
            for part, image in ((part, image) for part, images_of in split.items() for image in images_of):
                if part_of.setdefault(image, part) != part:
                    astray.append(f"{name}/{label} has one for {part}, elsewhere it is for {part_of[image]}")
    note = "images that are in several places, too few to be kept on one side of the split: "
    return parts, [note + some(astray)] if astray else []


def _split(digests: Sequence[str], part_of: Mapping[str, str]) -> dict[str, list[str]]:
    """The images of one class of a task by part, at least one in each; those of `part_of` keep theirs."""
    shuffled = [digests[i] for i in np.random.RandomState(0).permutation(len(digests))]
    fifth = max(1, round(len(digests) / 5))
    split = {part: [d for d in shuffled if part_of.get(d) == part] for part in ("test", "validation", "train")}
    free = [d for d in shuffled if d not in part_of]
    for part in ("test", "validation"):
        lacking = max(0, fifth - len(split[part]))
        split[part], free = split[part] + free[:lacking], free[lacking:]
    split["train"] += free
    for part in (p for p in split if not split[p]):
        split[part] = [max(split.values(), key=len).pop()]
    return split


def _summary(names: Collection[str], split_of: Mapping[str, str], images: ImageFolder) -> list[str]:
    """What is in the folder, and what is held out."""
    by_split = {split: sorted(n for n, s in split_of.items() if s == split) for split in SPLITS}
    height, width, *channels = images.shape
    classes = len(set().union(*images.tasks.values()))
    notes = [
        f"folder: {len(split_of)} tasks of {classes} classes, {len(images.pixels):,} different images of "
        f"{width} x {height}, {'RGB' if channels else 'grey'}; {len(by_split['seen'])} tasks seen"
    ]
    if left_out := sorted(set(names) - set(split_of)):
        notes.append(f"tasks left out, as tasks.num_seen has fewer: {some(left_out)}")
    if unseen := by_split["unseen"]:
        notes.append(
            f"held out as unseen: {some(unseen, MOST_UNSEEN)}; a bare name says nothing of a task that was never "
            "seen, so ask for these by a few labelled images (--mode=adapt)"
        )
    if validation := by_split["validation"]:
        notes.append(f"held out to make choices (validation): {some(validation, MOST_VALIDATION)}")
    return notes


def read_support(
    folder: Path, family: Family
) -> tuple[Float[np.ndarray, "images features"], Int[np.ndarray, " images"] | None]:
    """Images of a task of `family` that a user has: all in the folder, without labels, or in a folder for each class.

    Classes are named as the family names them, or by their numbers. Pixels are in [0, 1].

    Raises:
      PdiffError: there is no such folder, no image in it, one of another size or kind, no such class, or the family
        has no images.
    """
    if not family.data:
        raise PdiffError("--support: networks that were imported without images cannot be asked about any")
    if not folder.is_dir():
        raise PdiffError(f"--support: got {str(folder)!r}, no such folder; allowed: a folder of images")
    label_of = {str(i): i for i in range(family.num_classes)} | {name: i for i, name in enumerate(family.classes)}
    classes = folders(folder)
    for where in classes:
        if where.name not in label_of:
            raise PdiffError(f"--support: {where}: no class of this generator; allowed: {', '.join(family.classes)}")
    paths = [p for where in (classes or [folder]) for p in visible(where)]
    loose = [p for p in visible(folder) if classes and not p.is_dir()]
    for path in (*loose, *(p for p in paths if not is_named_as_image(p))):
        wanted = "images in the classes' folders alone" if path in loose else ENDED
        raise PdiffError(f"--support: {path}: got it among the images; allowed: {wanted}")
    if not paths:
        raise PdiffError(f"--support: {folder}: no image in it; allowed: {ENDED}")
    images = [_alike(path, family) for path in paths]
    x = np.stack(images).astype(np.float32) / 255
    return x, np.array([label_of[p.parent.name] for p in paths], np.int32) if classes else None


def _alike(path: Path, family: Family) -> UInt8[np.ndarray, " features"]:
    """The pixels of a file as the family's own images are: of RGB where these are, and resized where these were."""
    image, shape = read_image(path), family.image_shape
    image = as_rgb(image) if len(shape) == 3 else image
    if family.resizes and image.ndim == len(shape):
        image = resized(image, shape[:2])
    if image.shape != shape:
        raise PdiffError(f"--support: {path}: an image of {image.shape}; allowed: {shape}")
    return image.reshape(-1)


def _rows(x: Float[ArrayLike, "n 1"]) -> Int[Array, " n"]:
    return jnp.asarray(x[:, 0], jnp.int32)  # exact below 2^24, more rows than memory has room for


def _lengths(tasks: Mapping[str, Parts], num_classes: int, eval_images: int) -> dict[str, int]:
    """Rows of each part: enough for every image of every task when its classes take turns, a multiple of `num_classes`.

    Validation and test rows are at most `eval_images`, if that is above 0, made such a multiple.
    """
    lengths = {}
    for part in PARTS:
        most = max(len(classes) * max(len(split[part]) for split in classes.values()) for classes in tasks.values())
        if eval_images and part != "train":
            most = min(most, eval_images)
        lengths[part] = math.ceil(most / num_classes) * num_classes
    return lengths


def _table(
    classes: Parts, class_names: Sequence[str], lengths: Mapping[str, int], images: ImageFolder
) -> dict[str, np.ndarray]:
    """A task's images and labels, one part below the other."""
    x, y = [], []
    for part, length in lengths.items():
        turns = [(class_names.index(label), split[part]) for label, split in classes.items()]
        for row in range(length):
            label, digests = turns[row % len(turns)]
            x.append(images.pixels[digests[row // len(turns) % len(digests)]])
            y.append(label)
    return {"x": np.stack(x), "y": np.array(y, np.int32)}


def _shared(lengths: dict[str, int]) -> dict[str, Images]:
    """Row numbers for images, which are each task's to read; so are their labels, which stand for nothing here."""
    data, start = {}, 0
    for part, length in lengths.items():
        rows = np.arange(start, start + length)
        data[part] = Images(rows[:, None].astype(np.float32), np.zeros(length, np.int32), rows)
        start += length
    return data


def describe(task: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings: made of the task's name, or the lines of its description.txt.

    If there are at least two different lines, the last is held out; with one, nothing is.

    Raises:
      PdiffError: the file is empty or no text.
    """
    path = task / DESCRIPTION
    if not path.exists():
        words = words_of(task.name)
        return tuple(w.format(words) for w in WORDINGS), tuple(w.format(words) for w in HELD_OUT_WORDINGS)
    try:
        if not path.is_file() or path.stat().st_size > MOST_TEXT:
            raise PdiffError(f"{path}: no regular file of at most {MOST_TEXT:,} bytes, which is allowed")
        stripped = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
        lines = tuple(dict.fromkeys(filter(None, stripped)))
    except (OSError, UnicodeError) as e:
        raise PdiffError(f"{path}: unreadable: {e}; allowed: UTF-8 text") from e
    if not lines:
        raise PdiffError(f"{path}: empty; allowed: a wording of the description on each line")
    return (lines[:-1], lines[-1:]) if len(lines) > 1 else (lines, ())


def _tasks(
    described: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]], chosen: Sequence[tuple[str, str]]
) -> tuple[Task, ...]:
    """The tasks of (name, split), all with as many wordings as the one with most, repeating theirs."""
    most = max(len(trained) for trained, _ in described.values())
    tasks = []
    for name, split in chosen:
        trained, held_out = described[name]
        wordings = tuple(itertools.islice(itertools.cycle(trained), most))
        tasks.append(Task(name, len(tasks), split, (), wordings, held_out))
    return tuple(tasks)
