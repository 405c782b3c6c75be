"""Arrays as NumPy saves them: .npz, .npy, and one array with a row for each network beside the shapes of its leaves.

Rows are those of a 2-d array in FILE.npy, or alone in FILE.safetensors, and shapes.json beside it says what the columns
are: {"path of a leaf": [its shape], ...} in their order. A row is named FILE.npy#12, counted from 0.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from pdiff.errors import PdiffError
from pdiff.imports import safetensors_file
from pdiff.imports.reading import (
    BFLOAT16,
    MOST_LEAVES,
    ZIP,
    ZIP_STUMBLES,
    Arrays,
    Budget,
    File,
    byte_count,
    damaged,
    filled,
    json_of,
    shown,
    size_of,
    unread,
)

SHAPES = "shapes.json"
ARRAY = "array"  # the one leaf of a .npy
ROWS = (".npy", ".safetensors")
STUMBLES = (*ZIP_STUMBLES, TypeError)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, budget: Budget) -> File:
    """The arrays of a .npz."""
    size, arrays = size_of(path), {}
    with open(path, "rb") as f:
        if f.read(4) != ZIP:  # Python finds an archive behind anything; NumPy reads it as something else then
            raise PdiffError("is damaged or no .npz: it does not begin as a zip archive")
    with damaged(".npz", *STUMBLES), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_LEAVES:
            raise PdiffError(f"holds {len(members)} arrays; allowed: at most {MOST_LEAVES}")
        budget.take(max(size, sum(m.file_size for m in members)))
        for member in members:
            name = member.filename
            if not name.endswith(".npy"):
                raise PdiffError(f"{shown(name)} in it is no array; a torch file must be saved as safetensors")
            if name[:-4] in arrays:
                raise PdiffError(f"{shown(name)} is in it twice")
            with archive.open(member) as f:
                arrays[name[:-4]] = _array(f, member.file_size, name)
    return _with_bfloat16(arrays)


def read_npy(path: Path, budget: Budget) -> File:
    """A .npy as a network with one leaf."""
    size = size_of(path)
    budget.take(size)
    with damaged(".npy", *STUMBLES), open(path, "rb") as f:
        return _with_bfloat16({ARRAY: _array(f, size, path.name)})


def _array(f: Any, size: int, name: str) -> Shaped[np.ndarray, "..."]:
    """An array of `size` bytes with its header, which is believed only if it says the same."""
    shape, fortran, dtype = _header(f, size, name)
    if dtype.hasobject:
        return unread("holds Python objects, which are pickles; save it as an array of numbers")
    if dtype.names or dtype.subdtype:
        return unread("is an array of records; save its fields as arrays")
    flat = filled(f, byte_count(shape, dtype.itemsize), dtype, -1) if dtype.itemsize else np.empty(shape, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(f: Any, size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(f)
    if version not in HEADERS:
        raise PdiffError(f"{shown(name)} is of .npy version {version}; allowed: 1.0, 2.0")
    try:
        shape, fortran, dtype = HEADERS[version](f)
    except Exception as e:  # of Python's own parser, among others
        reason = (str(e) or type(e).__name__).splitlines()[0][:200]
        raise PdiffError(f"{shown(name)}: its header cannot be read: {reason}") from e
    shape = tuple(int(n) for n in shape)
    if dtype.hasobject:
        return shape, fortran, dtype
    expected, left = byte_count(shape, dtype.itemsize), size - f.tell()
    if expected != left:
        raise PdiffError(f"{shown(name)}: its header says shape {shape}, {expected:,} bytes, and {left:,} follow")
    return shape, fortran, dtype


def _with_bfloat16(arrays: Arrays) -> File:
    """NumPy writes bfloat16 as two bytes that mean nothing, '|V2'; nobody else does."""
    void = [n for n, a in arrays.items() if a.dtype.kind == "V" and a.dtype.itemsize == 2]
    notes = (f"'|V2' is taken as bfloat16 ({len(void)} arrays)",) if void else ()
    return File(arrays | {n: arrays[n].view(BFLOAT16) for n in void}, {}, notes)


# --- one array with a row for each network --------------------------------------------------------------


def split_row(path: Path) -> tuple[Path, int | None]:
    """The file and the number of a row that FILE.npy#12 names; None for other paths."""
    name, _, number = path.name.rpartition("#")
    if not name.lower().endswith(ROWS) or not re.fullmatch("0|[1-9][0-9]{0,8}", number):
        return path, None
    return path.with_name(name), int(number)


def rows_of(path: Path, shapes: Path) -> int | None:
    """How many networks lie in the rows of the array in `path`, of which the file `shapes` says what the columns are.

    They are named `path`#0, `path`#1, ... None if `path` is of another format, or holds other than one 2-d array.

    Raises:
      PdiffError: the file is damaged, or its columns are not as many as the shapes want. It does not name the file.
    """
    place = _place(path) if path.suffix.lower() in ROWS else None
    if place is None:
        return None
    _check_columns(place[1], read_shapes(shapes))
    return place[1][0]


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves, in the order of the columns.

    Raises:
      PdiffError: it is no such JSON.
    """
    try:
        content = json_of(path)
        if not isinstance(content, dict) or not 0 < len(content) <= MOST_LEAVES:
            raise PdiffError(f'is no object of 1 to {MOST_LEAVES} shapes; allowed: {{"path of a leaf": [3, 2], ...}}')
        for name, shape in content.items():
            if not byte_count(shape, 1):
                raise PdiffError(f"{shown(name)} has shape {shown(shape)}, no elements")
    except PdiffError as e:
        raise PdiffError(f"{path.name} {e}") from e
    return {name: tuple(shape) for name, shape in content.items()}


def read_row(path: Path, row: int, budget: Budget) -> File:
    """The network in one row; nothing else of the array is read."""
    place = _place(path)
    if place is None:
        raise PdiffError("does not hold one 2-d array alone, with a row for each network")
    dtype, (count, width), start = place
    shapes = read_shapes(path.with_name(SHAPES))
    _check_columns((count, width), shapes)
    if row >= count:
        raise PdiffError(f"has no row {row}; allowed: 0 to {count - 1}")
    budget.take(width * dtype.itemsize)
    with open(path, "rb") as f:
        f.seek(start + row * width * dtype.itemsize)
        columns = filled(f, width * dtype.itemsize, dtype, -1)
    ends = np.cumsum([byte_count(s, 1) for s in shapes.values()])[:-1]
    pieces = np.split(columns, ends)
    return _with_bfloat16({n: piece.reshape(s) for (n, s), piece in zip(shapes.items(), pieces, strict=True)})


def _place(path: Path) -> tuple[np.dtype, tuple[int, int], int] | None:
    """Dtype, shape and first byte of the one 2-d array in a file; None if there is no such."""
    if path.suffix.lower() not in ROWS:
        return None
    size = size_of(path)
    with damaged(path.suffix, *STUMBLES), open(path, "rb") as f:
        if path.suffix.lower() == ".safetensors":
            entries, _ = safetensors_file.header(f, path, size)
            entry = next(iter(entries.values())) if len(entries) == 1 else None
            if entry is None or len(entry.shape) != 2 or entry.dtype not in safetensors_file.DTYPES:
                return None
            return np.dtype(safetensors_file.DTYPES[entry.dtype]), entry.shape, entry.start
        shape, fortran, dtype = _header(f, size, path.name)
        if len(shape) != 2 or dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize:
            return None
        if fortran and min(shape) > 1:
            reason = "is in Fortran order, in which a network does not lie in one piece"
            raise PdiffError(f"{reason}; save it with np.save(file, np.ascontiguousarray(array))")
        return dtype, shape, f.tell()


def _check_columns(shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wanted = sum(byte_count(s, 1) for s in shapes.values())
    if shape[1] != wanted:
        raise PdiffError(f"has {shape[1]:,} columns, and the shapes of {SHAPES} want {wanted:,}; allowed: as many")
