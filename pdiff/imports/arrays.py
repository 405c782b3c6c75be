"""The arrays of one network from a file or checkpoint that nobody vouches for.

Nothing is unpickled or run. The size that a file claims in its index is checked before anything of that size is read
or allocated, and the index is compared with the contents. The readers of the formats lie beside this file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pdiff.errors import PdiffError
from pdiff.imports import keras_file, numpy_files, safetensors_file, trees
from pdiff.imports.numpy_files import SHAPES, rows_of, split_row
from pdiff.imports.reading import (
    ALLOWED,
    FILES,
    LONGEST_NAME,
    PICKLES,
    Arrays,
    Budget,
    File,
    bounded,
    check_names,
    json_of,
    parse_json,
    refusal,
    shown,
    text,
    why_unread,
)

__all__ = [
    "ALLOWED", "FILES", "LONGEST_NAME", "PICKLES", "SHAPES", "Arrays", "Budget", "File", "bounded", "check_floats",
    "check_names", "is_random_state", "json_of", "kind_of", "parse_json", "read", "refusal", "rows_of",
    "shown", "split_row", "stem_of", "text",
]  # fmt: skip

_READERS: dict[str, Callable[[Path, Budget], File]] = {
    "safetensors": safetensors_file.read,
    "sharded": safetensors_file.read_sharded,
    "npz": numpy_files.read_npz,
    "npy": numpy_files.read_npy,
    "msgpack": trees.read_msgpack,
    "orbax": trees.read_orbax,
    "h5": keras_file.read_h5,
    "keras": keras_file.read_keras,
}


def kind_of(path: Path) -> str | None:
    """What `read` can read, by its name or what lies in it; else None.

    'safetensors', 'npz', 'npy', 'msgpack', 'h5', 'keras' for files; 'orbax' or 'sharded' for folders, and 'sharded' for
    the index of shards; 'row' for FILE#12, a row of an array (`rows_of`).

    Raises:
      PdiffError: a folder holds several trees that Orbax saved, or several sharded networks.
    """
    if path.is_dir():
        if trees.orbax_tree(path):
            return "orbax"
        return "sharded" if safetensors_file.index_in(path) else None
    if path.name.endswith(safetensors_file.INDEX):
        return "sharded"
    if not path.exists() and numpy_files.split_row(path)[1] is not None:
        return "row"
    ending = path.suffix.lower()
    return ending[1:] if ending in FILES else None


def stem_of(name: str) -> str:
    """The name of a network's file without what says its format: 'a' of a.weights.h5 and of a.safetensors.index.json.

    The row of an array keeps its number: 'weights_12' of weights.npy#12.
    """
    file, row = numpy_files.split_row(Path(name))
    if row is not None:
        return f"{file.stem}_{row}"
    for ending in (safetensors_file.INDEX, ".weights.h5", *FILES):
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


def read(path: Path, limit: Budget) -> File:
    """The leaves of the network at `path` by name ('/' joins the keys of a tree), of any dtype, in sorted order.

    float64 becomes float32, which a note says. Otherwise each is bit for bit what the file holds, in the byte order of
    this machine. `check_floats` refuses what no weights are, for those that are used.

    Raises:
      PdiffError: it cannot be read, says other than what it holds, or is larger than `limit`. The message does not
        name the file, which the caller does.
    """
    kind = kind_of(path)
    if kind is None:
        raise PdiffError(refusal(path))
    if kind == "row":
        array, row = numpy_files.split_row(path)
        file = numpy_files.read_row(array, row, limit)
    else:
        file = _READERS[kind](path, limit)
    check_names(file.arrays)
    leaves, doubles = {}, 0
    for name in sorted(file.arrays):
        value = file.arrays.pop(name)  # so that the wider array is let go of
        double = value.dtype.kind == "f" and value.dtype.itemsize == 8
        doubles += double
        if double or not value.dtype.isnative:
            with np.errstate(over="ignore"):  # to infinity, which `check_floats` refuses
                value = value.astype(np.float32 if double else value.dtype.newbyteorder("="))
        leaves[name] = value
    doubled = (f"float64 is taken as float32 ({doubles} arrays)",) if doubles else ()
    return dataclasses.replace(file, arrays=leaves, notes=(*file.notes, *doubled))


def check_floats(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises PdiffError, naming the array, unless all are of `ALLOWED` dtypes, finite and not empty."""
    for name, value in arrays.items():
        if why := why_unread(value):
            raise PdiffError(f"{shown(name)} {why}")
        if str(value.dtype) not in ALLOWED:
            way = 'save it as one of them, or leave it out with "ignore" in a layout.json'
            raise PdiffError(f"{shown(name)} is {value.dtype}; allowed: {', '.join(ALLOWED)}; {way}")
        if not value.size:
            raise PdiffError(f"{shown(name)} has shape {value.shape}, no elements")
        if not np.isfinite(value.astype(np.float32, copy=False)).all():
            raise PdiffError(f"{shown(name)} holds values that are not finite, as float32")


def is_random_state(name: str, array: np.ndarray) -> bool:
    """Whether a leaf is the state of a random generator, which is no weight: of NNX (`rngs/default/key/value`, and
    `count`) or of Keras (`seed_generator/vars/0`), in whole numbers."""
    keys = [key.lower() for key in name.split("/")]
    return array.dtype.kind in "ui" and any(k in ("rngs", "rng") or k.startswith("seed_generator") for k in keys)
