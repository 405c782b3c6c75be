"""Labelled images that families are built on, read from installed packages only."""

from collections.abc import Mapping

import numpy as np

from pdiff.tasks.base import Images


def digits() -> Mapping[str, Images]:
    """scikit-learn's 1,797 digits: 8x8 pixels, row-major, in [0, 1]; 1,200 / 200 / 397 images.

    The three parts are a fixed permutation of the whole, so that no setting of a run moves an
    image from one part to another.
    """
    from sklearn.datasets import load_digits  # 1 s to import, and only needed here

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    order = np.random.RandomState(0).permutation(len(x))
    parts = {"train": order[:1200], "validation": order[1200:1400], "test": order[1400:]}
    return {name: Images(x[rows], y[rows], rows) for name, rows in parts.items()}
