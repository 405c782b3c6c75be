"""Labelled images in three parts, and what pixels and labels may be."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, Shaped

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


def pixels(images: Shaped[np.ndarray, "n ..."], where: str) -> Float[np.ndarray, "n features"]:
    """Flattened images, float32 in [0, 1]: whole numbers over the largest of their dtype, other numbers as they are.

    Raises:
      PdiffError: `where` has another dtype, another rank, or values that are not finite or not in [0, 1].
    """
    kind = images.dtype
    if not (kind in (np.uint8, np.uint16, np.bool_) or kind.kind == "f"):
        raise PdiffError(f"{where}: images of dtype {kind}; allowed: uint8, uint16, bool, or floats in [0, 1]")
    if images.ndim not in (3, 4) or not images.size:
        raise PdiffError(f"{where}: images of shape {images.shape}; allowed: (n, height, width), or with channels")
    x = images.reshape(len(images), -1).astype(np.float32)
    if kind in (np.uint8, np.uint16):
        return x / np.float32(np.iinfo(kind).max)
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
        raise PdiffError(f"{where}: image {row} holds values that are not finite")
    if x.min() < 0 or x.max() > 1:
        raise PdiffError(f"{where}: pixels from {x.min():g} to {x.max():g}; allowed: from 0 to 1")
    return x


def labels(values: Shaped[np.ndarray, "n ..."], num_classes: int, where: str) -> Int[np.ndarray, " n"]:
    """int32 labels.

    Raises:
      PdiffError: those of `where` are not whole numbers from 0 to num_classes - 1.
    """
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise PdiffError(f"{where}: labels of dtype {values.dtype} and shape {values.shape}; allowed: whole numbers")
    strange = values[(values < 0) | (values >= num_classes)]
    if len(strange):
        raise PdiffError(f"{where}: got the label {strange[0]}; allowed: 0 to {num_classes - 1}")
    return values.astype(np.int32)
