"""Labelled images that families are built on, read from installed packages and local files only.

`load` finds a data set by the name in `tasks.data`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks.base import Images


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Labelled images in three disjoint parts.

    Attributes:
      parts: `train`, `validation` and `test`; pixels are row-major, in [0, 1].
      image_shape: (height, width) or (height, width, channels).
      class_names: one word or a few for each label, lower case.
    """

    parts: Mapping[str, Images]
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]


def load(config: ConfigDict) -> DataSet:
    """The data set `config.data` (of the `tasks` part of a run's config).

    Raises:
      PdiffError: there is no such data set.
    """
    if config.data not in LOADERS:
        raise PdiffError(f"tasks.data: got {config.data!r}; allowed: {', '.join(LOADERS)}")
    return LOADERS[config.data](config)


def digits(config: ConfigDict) -> DataSet:
    """scikit-learn's 1,797 digits: 8x8 pixels; 1,200 / 200 / 397 images.

    The three parts are a fixed permutation of the whole, so that no setting of a run moves an
    image from one part to another.
    """
    from sklearn.datasets import load_digits  # 1 s to import, and only needed here

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    order = np.random.RandomState(0).permutation(len(x))
    parts = {"train": order[:1200], "validation": order[1200:1400], "test": order[1400:]}
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return DataSet({name: Images(x[rows], y[rows], rows) for name, rows in parts.items()}, (8, 8), names)


LOADERS = {"digits": digits}
