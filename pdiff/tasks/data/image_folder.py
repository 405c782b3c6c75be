"""A user's folder of tasks, of classes, of images: all of it read, every fault at once, and what is likely a mistake.

    ROOT/TASK/CLASS/*.png

Files whose pixels are the same hold one image: it counts once in a class, and is known by its digest, so that it can
be kept on one side of a split wherever else it lies.
"""

import collections
import dataclasses
import difflib
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pdiff.errors import Faults, PdiffError, some
from pdiff.tasks.data.image_files import ENDED, as_rgb, folders, is_named_as_image, read_image, resized, visible

FEWEST = 3  # different images of a class: one each for training, validation and testing
ODD_SIZES = 8  # files of another size than most that are named one by one
LONG_ENOUGH = 4  # letters in the name of a class from which a single other one may be a slip


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """What is in a folder of tasks.

    Attributes:
      tasks: by task and class, the digests of its images, each once, in the order of their files' names.
      pixels: of an image, flattened, by its digest.
      shape: of every image, (height, width) or (height, width, 3).
      resized: whether they had other sizes before.
      notes: a line for all that was changed, or that is likely a mistake.
    """

    tasks: Mapping[str, Mapping[str, Sequence[str]]]
    pixels: Mapping[str, UInt8[np.ndarray, " features"]]
    shape: tuple[int, ...]
    resized: bool
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _File:
    """An image, where it lies below the root, and the (height, width) that it has there."""

    task: str
    label: str
    path: str
    size: tuple[int, int]
    image: UInt8[np.ndarray, "height width *channels"]


def read_folder(root: Path, names: Sequence[str], side: int, known: Sequence[str] = ()) -> ImageFolder:
    """The images of the tasks `names` below `root`.

    Args:
      side: images that are larger than `side` x `side`, or not all of one size, are resized to it; 0 leaves them.
      known: faults of these tasks that are known already, to be told beside those of their images.

    Raises:
      Faults: a line for every file and folder that is wrong.
    """
    faults, files, counts = list(known), [], {}
    for name in names:
        classes, wrong = _listed(root / name)
        faults += wrong
        counts[name] = {label: len(paths) for label, paths in classes.items()}
        for label, path in ((c, p) for c, paths in classes.items() for p in paths):
            place = path.relative_to(root).as_posix()
            try:
                image = read_image(path)
                size = image.shape[0], image.shape[1]
                if side and max(size) > side:  # at once, as memory may not hold all photos
                    image = resized(image, (side, side))
                files.append(_File(name, label, place, size, image))
            except PdiffError as e:
                faults.append(str(e).replace(str(path), place))
    files, notes, wrong = _of_one_size(*_of_one_kind(files), side)
    digests = [hashlib.sha256(f"{f.image.shape}".encode() + f.image.tobytes()).hexdigest() for f in files]
    tasks: dict[str, dict[str, dict[str, None]]] = {n: {c: {} for c in classes} for n, classes in counts.items()}
    for file, digest in zip(files, digests, strict=True):
        tasks[file.task][file.label][digest] = None
    faults += _too_few(tasks, counts) + wrong
    if faults:
        raise Faults(f"tasks.data_dir: {root}", faults)
    return ImageFolder(
        tasks={n: {c: tuple(images) for c, images in classes.items()} for n, classes in tasks.items()},
        pixels={d: f.image.reshape(-1) for d, f in zip(digests, files, strict=True)},
        shape=files[0].image.shape,
        resized=any(f.size != f.image.shape[:2] for f in files),
        notes=(*notes, *_doubtful_classes(counts), *_copies(files, digests)),
    )


def _listed(task: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each class of a task that are named as images, and the faults of its folders."""
    classes, faults = {}, []
    if loose := [p.name for p in visible(task) if is_named_as_image(p) and not p.is_dir()]:
        faults.append(
            f"{task.name}: images beside the folders of its classes: {some(loose)}; allowed: TASK/CLASS/*.png"
        )
    for folder in folders(task):
        there = visible(folder)
        classes[folder.name] = [p for p in there if is_named_as_image(p) and not p.is_dir()]
        for path in (p for p in there if p not in classes[folder.name]):
            what = "a folder in that of a class" if path.is_dir() else "no image"
            faults.append(f"{task.name}/{folder.name}/{path.name}: {what}; allowed: {ENDED}")
    if len(classes) < 2:
        faults.append(f"{task.name}: {len(classes)} classes; allowed: at least two folders of images")
    return classes, faults


def _too_few(tasks: Mapping[str, Mapping[str, Iterable[str]]], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Faults of classes with less than FEWEST different images that can be read."""
    faults = []
    for (task, classes), label in ((entry, label) for entry in tasks.items() for label in entry[1]):
        different, files = len(list(classes[label])), counts[task][label]
        if different < FEWEST:
            got = f"{files} images" if files == different else f"{different} different images in {files} files"
            faults.append(f"{task}/{label}: {got}; allowed: at least {FEWEST}, for training, validation and testing")
    return faults


def _of_one_kind(files: list[_File]) -> tuple[list[_File], list[str]]:
    """All grey or all RGB, with a note if that changed any."""
    grey = [f for f in files if f.image.ndim == 2]
    if len(grey) in (0, len(files)):
        return files, []
    note = f"{len(grey)} images are grey, such as {grey[0].path}, and {len(files) - len(grey)} RGB; all become RGB"
    return [dataclasses.replace(f, image=as_rgb(f.image)) for f in files], [note]


def _of_one_size(files: list[_File], notes: list[str], side: int) -> tuple[list[_File], list[str], list[str]]:
    """All of one size, with a note if that changed any, and the faults of those that have another than most."""
    sizes = collections.Counter(f.size for f in files).most_common()
    if not sizes or (len(sizes) == 1 and (not side or max(sizes[0][0]) <= side)):
        return files, notes, []
    shown = some(f"{width} x {height} ({count} images)" for (height, width), count in sizes)
    if side:
        note = (
            f"images of {shown} are resized to {side} x {side}; a larger --config.tasks.image_side keeps more of them"
        )
        return [dataclasses.replace(f, image=resized(f.image, (side, side))) for f in files], [*notes, note], []
    usual, remedy = sizes[0][0], "--config.tasks.image_side=16 resizes all"
    odd = [f for f in files if f.size != usual]
    if len(odd) > ODD_SIZES:
        return files, notes, [f"images of several sizes: {shown}, such as {odd[0].path}; allowed: one size; {remedy}"]
    allowed = f"allowed: the size of the others, {usual[1]} x {usual[0]}; {remedy}"
    return files, notes, [f"{f.path}: an image of {f.size[1]} x {f.size[0]} pixels; {allowed}" for f in odd]


def _doubtful_classes(tasks: Mapping[str, Iterable[str]]) -> list[str]:
    """Notes on classes that are hardly told apart by name, that one task alone has, or that a task lacks."""
    having = collections.Counter(label for labels in tasks.values() for label in labels)
    pairs = [f"'{a}' and '{b}'" for a, b in itertools.combinations(sorted(having), 2) if _near_equal(a, b)]
    notes = [f"classes that may be one, named in two ways: {some(pairs)}"] if pairs else []
    where = {label: next(t for t, labels in tasks.items() if label in labels) for label in having}
    if len(tasks) > 1 and (single := [f"{c} ({where[c]})" for c, count in sorted(having.items()) if count == 1]):
        notes.append(f"classes that one task alone has: {some(single)}")
    shared = {c for c, count in having.items() if count > 1}
    if lacking := [
        f"{t} ({some(sorted(shared - set(labels)))})" for t, labels in tasks.items() if shared - set(labels)
    ]:
        notes.append(f"tasks that lack classes of others: {some(lacking)}")
    return notes


def _near_equal(a: str, b: str) -> bool:
    """Whether two names differ in nothing but case, punctuation, a plural, or one letter of a word."""
    words = [re.findall(r"[^\W_]+", name.lower()) for name in (a, b)]
    short, long = sorted(map("".join, words), key=len)
    if long in (short, f"{short}s", f"{short}es"):
        return True
    apart = [pair for pair in zip(*words, strict=False) if pair[0] != pair[1]]
    if len(words[0]) != len(words[1]) or len(apart) != 1 or min(map(len, apart[0])) < LONG_ENOUGH:
        return False
    x, y = apart[0]
    changes = [op[1:] for op in difflib.SequenceMatcher(None, x, y, autojunk=False).get_opcodes() if op[0] != "equal"]
    first, last, start, stop = changes[0]
    letters = x[first:last] + y[start:stop]  # a digit is no slip: it counts
    return len(changes) == 1 and max(last - first, stop - start) == 1 and letters.isalpha()


def _copies(files: Sequence[_File], digests: Sequence[str]) -> list[str]:
    """Notes on images that lie in several files, which come task by task and class by class."""
    by_digest: dict[str, list[_File]] = {}
    for file, digest in zip(files, digests, strict=True):
        by_digest.setdefault(digest, []).append(file)
    in_class, in_task, in_tasks = [], [], []
    for a, b in (pair for group in by_digest.values() for pair in itertools.pairwise(group)):
        kind = in_tasks if a.task != b.task else in_task if a.label != b.label else in_class
        kind.append(f"{a.path} = {b.path}")
    kinds = {
        "several times in a class, where it counts once": in_class,
        "under two classes of a task": in_task,
        "in two tasks": in_tasks,
    }
    return [f"the same image {what}: {some(pairs)}" for what, pairs in kinds.items() if pairs]
