"""Checks of what users hand over from Python: networks, and images to show them."""

import reprlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from pdiff.errors import PdiffError
from pdiff.system.logs import log
from pdiff.tasks.base import Family
from pdiff.tasks.support import TOLERANCE
from pdiff.weights import spec as spec_lib
from pdiff.weights.spec import LeafSpec

DARK = 0.1  # images whose brightest pixel is below it were perhaps divided by too much
MANY = 4  # leaves that a message names


def stacked(networks: Any, leaves: Sequence[LeafSpec], also_one: bool = False) -> int | None:
    """How many networks there are along axis 0 of every leaf.

    Args:
      leaves: of one network.
      also_one: one network without that axis is right too; it gives None.

    Raises:
      PdiffError: it is no tree of such networks.
    """
    try:
        shapes = {path: tuple(np.shape(leaf)) for path, leaf in spec_lib.flatten(networks)}
    except (TypeError, ValueError) as e:
        raise PdiffError(f"networks: got a {type(networks).__name__} of what is no array; {_right(leaves)}") from e
    wanted = {leaf.path: leaf.shape for leaf in leaves}
    if shapes.keys() != wanted.keys():
        strange = sorted(wanted.keys() ^ shapes.keys())[0]
        wrong = f"some {'with' if strange in shapes else 'without'} the leaf {strange!r}"
        nothing = not shapes or "" in shapes  # no tree, or one without leaves
        raise PdiffError(f"networks: got {reprlib.repr(networks) if nothing else wrong}; {_right(leaves)}")
    if isinstance(networks, dict) and any("/" in key for key in networks):
        unflatten = "flax.traverse_util.unflatten_dict(arrays, sep='/')"
        raise PdiffError(f"networks: got arrays by path, as a file has them; allowed: a tree, which {unflatten} makes")
    if shapes == wanted:
        if also_one:
            return None
        one = "one network, without an axis 0 that counts networks"
        raise PdiffError(f"networks: got {one}; allowed: stacked ones, as jax.tree.map(lambda w: w[None], network)")
    for path, shape in shapes.items():
        if not shape or shape[1:] != wanted[path]:
            raise PdiffError(f"networks: got {path} of shape {shape}; {_right(leaves)}")
    counts = {shape[0] for shape in shapes.values()}
    if len(counts) > 1 or 0 in counts:
        raise PdiffError(f"networks: got {sorted(counts)} of them in its leaves; allowed: as many in each, at least 1")
    return counts.pop()


def images(
    x: Any, family: Family, name: str = "images"
) -> Float[np.ndarray, "n features"] | Float[Array, "n features"]:
    """Images to show to networks, (images, features) or (images, *image_shape), as (images, features) in float32.

    Of a family whose inputs are texts, they are texts, or what the family reads of them.

    Raises:
      PdiffError: they have another shape, or pixels that are not in [0, 1]; traced ones are looked at by shape alone.
    """
    if family.reads is not None:
        return _texts(x, family, name)
    flat, whole = family.features, family.image_shape
    allowed = f"allowed: (images, {flat})" + (f" or (images, {', '.join(map(str, whole))})" if len(whole) > 1 else "")
    if not isinstance(x, jax.Array):
        try:
            x = np.asarray(x, np.float32)
        except (TypeError, ValueError) as e:
            raise PdiffError(f"{name}: got a {type(x).__name__} that is no array of numbers; {allowed}") from e
    if x.shape in ((flat,), whole) and x.shape[1:] != (flat,):
        raise PdiffError(f"{name}: got a single image of shape {x.shape}; {allowed}; image[None] is a batch of one")
    if x.ndim < 2 or x.shape[1:] not in ((flat,), whole) or not len(x):
        raise PdiffError(f"{name}: got shape {x.shape}; {allowed}, with pixels from 0 to 1")
    x = x.reshape(len(x), flat).astype(np.float32)
    if not isinstance(x, jax.core.Tracer):
        _check_pixels(np.asarray(x), name)
    return x


def _texts(x: Any, family: Family, name: str) -> Float[np.ndarray, "n features"] | Float[Array, "n features"]:
    """Texts as the family reads them, or what it has read, as it is."""
    allowed = f"allowed: a list of texts, or (texts, {family.features}) numbers, as the family reads them"
    if isinstance(x, str):
        raise PdiffError(f"{name}: got a single text; allowed: a list of texts; [text] is a list of one")
    if isinstance(x, jax.Array):
        read = x
    else:
        array = np.asarray(x)
        if array.dtype.kind == "U" and array.ndim == 1 and len(array):
            return family.reads(array.tolist())
        if array.dtype.kind != "f":
            raise PdiffError(f"{name}: got {reprlib.repr(x)}; {allowed}")
        read = array.astype(np.float32)
    if read.ndim != 2 or read.shape[1] != family.features or not len(read):
        raise PdiffError(f"{name}: got shape {read.shape}; {allowed}")
    if not isinstance(read, jax.core.Tracer) and not np.isfinite(np.asarray(read)).all():
        raise PdiffError(f"{name}: got numbers that are not finite; {allowed}")
    return read


def labels(y: Any) -> np.ndarray | None:
    """Labels of images as an array, if there are any; what may be in it `support.of_images` knows.

    Raises:
      PdiffError: they make no array.
    """
    try:
        return None if y is None else np.asarray(y)
    except ValueError as e:
        raise PdiffError(f"labels: got a {type(y).__name__} that is no array; allowed: a whole number for each") from e


def warn_of_dark(x: Float[np.ndarray, "n features"]) -> None:
    """Warns of images that are all but black: pixels of another scale were perhaps divided by 255."""
    if (brightest := float(x.max())) < DARK:
        message = "warning: images: the brightest pixel of all is %.3g; allowed: 0 to 1, the whole range used"
        log.warning(message + "; were values from 0 to %.0f divided by 255?", brightest, brightest * 255)


def _check_pixels(x: Float[np.ndarray, "n features"], name: str) -> None:
    if not np.isfinite(x).all():
        raise PdiffError(f"{name}: got pixels that are not finite; allowed: from 0 to 1")
    low, high = float(x.min()), float(x.max())
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return
    if low < -TOLERANCE:
        cause = "were they normalised to mean 0, or to -1 to 1?"
    elif high > 255 + TOLERANCE:
        cause = "divide by the largest value that there can be"
    else:
        scale = 16 if high <= 16 else 255
        cause = f"pixels of {'scikit-learn' if scale == 16 else '8 bits'} are divided by {scale}"
    raise PdiffError(f"{name}: got pixels from {low:g} to {high:g}; allowed: from 0 to 1; {cause}")


def _right(leaves: Sequence[LeafSpec]) -> str:
    each = [f"{leaf.path} ({', '.join(map(str, ('networks', *leaf.shape)))})" for leaf in leaves[:MANY]]
    more = f" and {len(leaves) - MANY} more" if len(leaves) > MANY else ""
    return f"allowed: a tree as sample returns it: {', '.join(each)}{more}"
