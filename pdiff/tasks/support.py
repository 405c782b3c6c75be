"""Support sets: a few images of a task itself, with or without labels, by which a network is adapted to it."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from pdiff.errors import PdiffError

UNKNOWN = -1  # the label of an image without one
TOLERANCE = 1e-3  # of pixels, which rounding may put a little outside of [0, 1]


@dataclasses.dataclass(frozen=True)
class Support:
    """Support images of a batch of tasks. `real` is false in padding; a label is -1 where it is not given."""

    x: Float[np.ndarray, "batch images features"]
    y: Int[np.ndarray, "batch images"]
    real: Bool[np.ndarray, "batch images"]

    @property
    def tree(self) -> dict[str, np.ndarray]:
        return dataclasses.asdict(self)


def of_images(
    images: ArrayLike, labels: ArrayLike | None, num_classes: int, features: int, pixels: bool = True
) -> Support:
    """One support set from a user's own images, flat or not; labels from 0 to num_classes - 1, or none.

    Where these are no `pixels`, they may be any finite numbers.

    Raises:
      PdiffError: the shapes do not fit, images have other than `features` numbers, one of which is not finite or not
        in [0, 1], or a label is out of range.
    """
    x = np.asarray(images, np.float32)
    if x.ndim > 2 and x[0].size == features:
        x = x.reshape(len(x), -1)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise PdiffError(f"support: got images of shape {x.shape}; allowed: (images, {features}), all finite")
    if pixels and (x.min() < -TOLERANCE or x.max() > 1 + TOLERANCE):
        raise PdiffError(f"support: got pixels from {x.min():g} to {x.max():g}; allowed: from 0 to 1")
    if x.shape[1] != features:
        raise PdiffError(f"support: got images of {x.shape[1]} numbers; allowed: {features}")
    y = np.full(len(x), UNKNOWN) if labels is None else np.asarray(labels)
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or y.max() >= num_classes or y.min() < UNKNOWN:
        span = f" from {y.min()} to {y.max()}" if y.size and y.dtype.kind in "iuf" else ""
        raise PdiffError(
            f"support: got labels of shape {y.shape}, {y.dtype}{span}, for {len(x)} images; allowed: a whole number "
            f"from 0 to {num_classes - 1} for each, {UNKNOWN} where it is not known"
        )
    return Support(x[None], y.astype(np.int32)[None], np.ones((1, len(x)), bool))
