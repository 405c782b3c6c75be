"""Labelled images that families are built on, read from installed packages and local files only.

`load` finds a data set by the name in `tasks.data`: one of `LOADERS`, or `tfds:NAME` for any TFDS data set that lies
prepared in `tasks.data_dir` (see `prepared`). Nothing is ever downloaded.
"""

import dataclasses
import gzip
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks.base import Images
from pdiff.tasks.data.dataset import DataSet

TFDS = "tfds:"


def load(config: ConfigDict) -> DataSet:
    """The data set `config.data` (of the `tasks` part of a run's config).

    `config.eval_images` is the most validation and the most test images that are kept (0: all), chosen by a fixed
    permutation.

    Raises:
      PdiffError: there is no such data set, or it is not sound.
    """
    if config.data in LOADERS:
        data = LOADERS[config.data](config)
    elif config.data.startswith(TFDS):
        data = _prepared(config, config.data.removeprefix(TFDS))
    else:
        raise PdiffError(f"tasks.data: got {config.data!r}; allowed: {', '.join(LOADERS)}, {TFDS}NAME")
    return dataclasses.replace(data, parts={p: _at_most(p, i, config.eval_images) for p, i in data.parts.items()})


def digits(config: ConfigDict) -> DataSet:
    """scikit-learn's 1,797 digits: 8x8 pixels; 1,200 / 200 / 397 images.

    The three parts are a fixed permutation of the whole, so that no setting of a run moves an image to another part.
    """
    # What `sklearn.datasets.load_digits` reads. Importing scikit-learn for it would take longer than sampling does.
    where = Path(find_spec("sklearn").submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(where, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    x, y = (table[:, :-1] / 16).astype(np.float32), table[:, -1].astype(np.int32)
    order = np.random.RandomState(0).permutation(len(x))
    parts = {"train": order[:1200], "validation": order[1200:1400], "test": order[1400:]}
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return DataSet({name: Images(x[rows], y[rows], rows) for name, rows in parts.items()}, (8, 8), names)


def fashion_mnist(config: ConfigDict) -> DataSet:
    """Zalando's 70,000 articles of clothing: 28x28 pixels; 55,000 / 5,000 / 10,000 images.

    As `python -m pdiff.tasks.data.fashion_mnist` writes them into `config.data_dir`.
    """
    return _prepared(config, "fashion_mnist:1.0.0")


LOADERS = {"digits": digits, "fashion_mnist": fashion_mnist}


# Height and width (and channels), numbers of images and class names of data sets that are not in a package.
FASHION_NAMES = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle_boot"
CIFAR_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
SHAPES = {
    "fashion_mnist": ((28, 28), (55000, 5000, 10000), FASHION_NAMES),
    "tfds:cifar10": ((32, 32, 3), (45000, 5000, 10000), CIFAR_NAMES),
}


def shapes_of(config: ConfigDict) -> DataSet | None:
    """The data set `config.data` with black images that take no memory, for programs that are compiled and not run.

    None where its shapes are not known without it, and where it is in a package and can as well be read.
    """
    if config.data not in SHAPES:
        return None
    shape, counts, names = SHAPES[config.data]
    parts, start = {}, 0
    for part, count in zip(("train", "validation", "test"), counts, strict=True):
        black = np.broadcast_to(np.float32(0), (count, math.prod(shape)))
        labels = np.arange(count, dtype=np.int32) % len(names.split())
        parts[part] = _at_most(part, Images(black, labels, np.arange(start, start + count)), config.eval_images)
        start += count
    return DataSet(parts, shape, tuple(n.replace("_", " ") for n in names.split()))


def _prepared(config: ConfigDict, name: str) -> DataSet:
    from pdiff.tasks.data import prepared  # TFDS takes seconds to import

    return prepared.read(name, config.data_dir)


def _at_most(part: str, images: Images, count: int) -> Images:
    """All training images; of another part at most `count`, if that is above 0."""
    if part == "train" or not 0 < count < len(images.y):
        return images
    rows = np.sort(np.random.RandomState(0).permutation(len(images.y))[:count])
    return Images(images.x[rows], images.y[rows], images.index[rows])
