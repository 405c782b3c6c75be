"""Your own images: a folder of tasks, each with images of its own.

    tasks.data_dir/TASK_NAME/CLASS_NAME/*.png           also .jpg and .jpeg; grey or RGB, of one size everywhere
    tasks.data_dir/TASK_NAME/description.txt            optional: what the task is, a wording on each line

The classes are those of all tasks together; a task may lack some, but needs two. Tasks have no factors, so what
is made of factors (nearest tasks, ridge, lines between tasks, mixing) does not exist here, nor do interp tasks.

Tasks are split by a fixed permutation of their names (`hold_out`), images of each class of a task by a fixed
permutation of their sorted file names: a fifth for testing, a fifth for validation, the rest for training.

A family's tasks share rows, so here a shared row is nothing but a number, and a task's variables are the table of its
images and labels that the number looks up. All tables have the same length. Down a table the task's classes take
turns, and the images of a class follow one another in a circle, so that a small task or class repeats its images. A
task's accuracy is therefore the mean over its classes of the accuracy within a class, not the mean over its files (but
for one row more or less of each). All tables lie in memory, one byte for a pixel.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from pdiff.errors import PdiffError
from pdiff.tasks.base import SPLITS, Family, Images, Task, hold_out, words_of

PARTS = ("train", "validation", "test")
ENDINGS = (".png", ".jpg", ".jpeg")
DESCRIPTION = "description.txt"
MOST_PIXELS = 1 << 24  # of an image, which is looked at before any of them is unpacked
MOST_TEXT = 1 << 16  # bytes of a description.txt
WORDINGS = ("{}", "images of {}", "recognise {}", "a classifier for {}")
HELD_OUT_WORDINGS = ("a recogniser of {}", "classifier for images of {}")  # of characters that are in the others

Files = dict[str, list[Path]]  # by class, sorted by name


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
    split_of = hold_out([p.name for p in _folders(root)], config, 0, f"tasks.data_dir: {config.data_dir} has")
    chosen = sorted(split_of.items(), key=lambda item: (SPLITS.index(item[1]), item[0]))
    files = [_files(root / name) for name, _ in chosen]
    class_names = sorted(set().union(*files))
    pixels, shape = _read_all(path for by_class in files for paths in by_class.values() for path in paths)
    lengths = _lengths(files, len(class_names), config.eval_images)
    tables = [_table(by_class, class_names, lengths, pixels) for by_class in files]
    variables = {key: np.stack([t[key] for t in tables]) for key in ("x", "y")}
    tasks = _tasks(root, chosen)
    return Family(
        name="folder",
        factor_names=(),
        factor_periods=(),
        num_classes=len(class_names),
        image_shape=shape,
        data=_shared(lengths),
        tasks=tasks,
        variables=variables,
        render=render,
        relabel=relabel,
        describe=None,
        class_names=tuple(class_names),
        pretraining={key: v[[t.split == "seen" for t in tasks]] for key, v in variables.items()},
        pretraining_on_all=True,
    )


def split_files(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The images of one class of a task by part; each has at least one if there are three."""
    ordered = sorted(paths)
    shuffled = [ordered[i] for i in np.random.RandomState(0).permutation(len(paths))]
    fifth = max(1, round(len(paths) / 5))
    return {"test": shuffled[:fifth], "validation": shuffled[fifth : 2 * fifth], "train": shuffled[2 * fifth :]}


def read_image(path: Path) -> UInt8[np.ndarray, "height width *channels"]:
    """The pixels of a grey (height, width) or RGB (height, width, 3) file.

    Raises:
      PdiffError: it cannot be read, is truncated, enormous, no PNG or JPEG whatever its name is, has more than 8
        bits, or is transparent.
    """
    if not path.is_file():
        raise PdiffError(f"{path}: no regular file; allowed: images")
    try:
        # By its contents it could be any of Pillow's formats, of which some are programs for other programs.
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise PdiffError(f"{path}: of {image.width} x {image.height} pixels; allowed: at most {MOST_PIXELS:,}")
            if image.mode in ("1", "P") and not image.has_transparency_data:
                image = image.convert("L" if image.mode == "1" else "RGB")
            if image.mode not in ("L", "RGB") or image.has_transparency_data:
                raise PdiffError(f"{path}: of mode {image.mode}; allowed: grey or RGB, 8 bits, not transparent")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:  # what Pillow's readers raise
        raise PdiffError(f"{path}: unreadable or damaged: {e}") from e


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
    classes = _folders(folder)
    for where in classes:
        if where.name not in label_of:
            raise PdiffError(f"--support: {where}: no class of this generator; allowed: {', '.join(family.classes)}")
    paths = [p for where in (classes or [folder]) for p in _visible(where)]
    loose = [p for p in _visible(folder) if classes and not p.is_dir()]
    for path in (*loose, *(p for p in paths if p.suffix.lower() not in ENDINGS)):
        wanted = "images in the classes' folders alone" if path in loose else f"files that end in {', '.join(ENDINGS)}"
        raise PdiffError(f"--support: {path}: got it among the images; allowed: {wanted}")
    if not paths:
        raise PdiffError(f"--support: {folder}: no image in it; allowed: files that end in {', '.join(ENDINGS)}")
    images = []
    for path in paths:
        image = read_image(path)
        if image.shape != family.image_shape:
            raise PdiffError(f"--support: {path}: an image of {image.shape}; allowed: {family.image_shape}")
        images.append(image.reshape(-1))
    x = np.stack(images).astype(np.float32) / 255
    return x, np.array([label_of[p.parent.name] for p in paths], np.int32) if classes else None


def _rows(x: Float[ArrayLike, "n 1"]) -> Int[Array, " n"]:
    return jnp.asarray(x[:, 0], jnp.int32)  # exact below 2^24, more rows than memory has room for


def _visible(where: Path) -> list[Path]:
    return sorted(p for p in where.iterdir() if not p.name.startswith("."))


def _folders(where: Path) -> list[Path]:
    return [p for p in _visible(where) if p.is_dir()]


def _files(task: Path) -> Files:
    """The files of each class of a task.

    Raises:
      PdiffError: it has one class, a class with too few images, or files that are no images.
    """
    files = {}
    for folder in _folders(task):
        paths = _visible(folder)
        strange = [p for p in paths if p.suffix.lower() not in ENDINGS]
        if strange:
            raise PdiffError(f"{strange[0]}: no image; allowed: files that end in {', '.join(ENDINGS)}")
        if len(paths) < len(PARTS):
            raise PdiffError(f"{folder}: {len(paths)} images; allowed: at least 3, one for each of {', '.join(PARTS)}")
        files[folder.name] = paths
    if len(files) < 2:
        raise PdiffError(f"{task}: {len(files)} classes; allowed: at least two folders of images")
    return files


def _read_all(paths: Iterable[Path]) -> tuple[dict[Path, UInt8[np.ndarray, " features"]], tuple[int, ...]]:
    """The pixels of every file, flattened, and the shape of each.

    Raises:
      PdiffError: one cannot be read, or has another size than those before it.
    """
    pixels, shape = {}, None
    for path in paths:
        image = read_image(path)
        shape = shape or image.shape
        if image.shape != shape:
            raise PdiffError(f"{path}: an image of {image.shape}; allowed: the size of the others, {shape}")
        pixels[path] = image.reshape(-1)
    return pixels, shape


def _lengths(tasks: Sequence[Files], num_classes: int, eval_images: int) -> dict[str, int]:
    """Rows of each part: enough for every image of every task when its classes take turns, a multiple of `num_classes`.

    Validation and test rows are at most `eval_images`, if that is above 0, made such a multiple.
    """
    lengths = {}
    for part in PARTS:
        most = max(len(files) * max(len(split_files(p)[part]) for p in files.values()) for files in tasks)
        if eval_images and part != "train":
            most = min(most, eval_images)
        lengths[part] = math.ceil(most / num_classes) * num_classes
    return lengths


def _table(
    files: Files, class_names: Sequence[str], lengths: dict[str, int], pixels: dict[Path, np.ndarray]
) -> dict[str, np.ndarray]:
    """A task's images and labels, one part below the other."""
    x, y = [], []
    for part, length in lengths.items():
        classes = [(class_names.index(name), split_files(paths)[part]) for name, paths in files.items()]
        for row in range(length):
            label, paths = classes[row % len(classes)]
            x.append(pixels[paths[row // len(classes) % len(paths)]])
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

    If there are at least two lines, the last is held out; with one, nothing is.

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
        lines = tuple(filter(None, (line.strip() for line in path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeError) as e:
        raise PdiffError(f"{path}: unreadable: {e}; allowed: UTF-8 text") from e
    if not lines:
        raise PdiffError(f"{path}: empty; allowed: a wording of the description on each line")
    return (lines[:-1], lines[-1:]) if len(lines) > 1 else (lines, ())


def _tasks(root: Path, chosen: Sequence[tuple[str, str]]) -> tuple[Task, ...]:
    """The tasks of (name, split), all with as many wordings as the one with most, repeating theirs."""
    described = [describe(root / name) for name, _ in chosen]
    most = max(len(trained) for trained, _ in described)
    tasks = []
    for (name, split), (trained, held_out) in zip(chosen, described, strict=True):
        wordings = tuple(itertools.islice(itertools.cycle(trained), most))
        tasks.append(Task(name, len(tasks), split, (), wordings, held_out))
    return tuple(tasks)
