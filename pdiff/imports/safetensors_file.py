"""Safetensors: one file, or a folder of shards with the index of which array lies where.

The header is checked as the format has it: offsets without holes or overlaps, each as long as shape and dtype say. Then
each array is read by itself, so that a network is in memory once.
"""

import dataclasses
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from pdiff.errors import PdiffError
from pdiff.imports.reading import (
    HEADER_BYTES,
    ZIP,
    Budget,
    File,
    byte_count,
    filled,
    json_of,
    parse_json,
    refusal,
    shown,
    size_of,
    unread,
)

INDEX = ".safetensors.index.json"
METADATA = "__metadata__"
DTYPES = {  # F4 and F6, which share bytes, and what comes later are not read
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_, "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one array lies in a file: `start` bytes from its beginning, `size` bytes long."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read(path: Path, budget: Budget) -> File:
    """The arrays of one file."""
    size = size_of(path)
    with open(path, "rb") as f:
        entries, metadata = header(f, path, size)
        budget.take(sum(e.size for e in entries.values()))
        arrays = {}
        for name, e in sorted(entries.items(), key=lambda pair: pair[1].start):
            f.seek(e.start)
            known = e.dtype in DTYPES
            arrays[name] = filled(f, e.size, np.dtype(DTYPES[e.dtype]), e.shape) if known else _unknown(e)
    return File(arrays, metadata)


def _unknown(entry: Entry) -> Shaped[np.ndarray, " 0"]:
    return unread(f"is {shown(entry.dtype)} of safetensors, which is not read; save it as F32, F16 or BF16")


def header(f: Any, path: Path, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """What the header of an open file of `size` bytes says, checked against these, and the metadata.

    Raises:
      PdiffError: it is something else, truncated, or says what cannot be.
    """
    start = f.read(8)
    if len(start) < 8:
        raise PdiffError(f"is truncated: {len(start)} bytes, no safetensors header")
    (length,) = struct.unpack("<Q", start)
    if start[:4] == ZIP or start[0] == 0x80 and length > size:
        raise PdiffError(refusal(path))
    if length > min(size - 8, HEADER_BYTES):
        raise PdiffError(f"is truncated or no safetensors: its header says {length:,} bytes of {size - 8:,}")
    content = parse_json(f.read(length))
    if not isinstance(content, dict):
        raise PdiffError("is no safetensors: its header is no JSON object")
    metadata = content.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise PdiffError(f"is damaged: {METADATA} is {shown(metadata)}; allowed: an object of texts")
    entries = {name: _entry(name, e, 8 + length) for name, e in content.items()}
    end = 8 + length
    for name, e in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].size)):
        if e.start != end:
            raise PdiffError(f"is damaged: {shown(name)} begins at byte {e.start:,}; the one before ends at {end:,}")
        end = e.start + e.size
    if end != size:
        raise PdiffError(f"is damaged or truncated: its header speaks of {end:,} bytes, and it has {size:,}")
    return entries, metadata


def _entry(name: str, entry: Any, start: int) -> Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PdiffError(f"is damaged: {shown(name)} is {shown(entry)}; allowed: dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    try:
        itemsize = np.dtype(DTYPES[dtype]).itemsize if isinstance(dtype, str) and dtype in DTYPES else 0
        byte_count(offsets, 1)
        size = byte_count(shape, itemsize)
    except PdiffError as e:
        raise PdiffError(f"is damaged: {shown(name)}: {e}") from e
    if not isinstance(dtype, str) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise PdiffError(f"is damaged: {shown(name)} is {shown(entry)}")
    if itemsize and size != offsets[1] - offsets[0]:
        said = f"its header says {dtype} {tuple(shape)}, {size:,} bytes, and {offsets[1] - offsets[0]:,} are its own"
        raise PdiffError(f"is damaged: {shown(name)}: {said}")
    return Entry(dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])


def index_in(folder: Path) -> Path | None:
    """The index of the shards in a folder, if it has one.

    Raises:
      PdiffError: it has several.
    """
    names = sorted(p for p in folder.glob(f"*{INDEX}") if not p.name.startswith("."))
    if len(names) > 1:
        some = ", ".join(p.name for p in names[:5])
        raise PdiffError(f"holds several sharded networks ({some}); allowed: one; name an index in a manifest")
    return names[0] if names else None


def shards(index: Path) -> dict[str, list[str]]:
    """The names of the arrays in each shard, by the shard's file name, as the index says.

    Raises:
      PdiffError: it is no such index, or names something outside of its folder.
    """
    try:
        content = json_of(index)
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not places:
            raise PdiffError("has no weight_map; allowed: an object with the file of each array")
        by_file: dict[str, list[str]] = {}
        for name, file in places.items():
            plain = isinstance(file, str) and file == Path(file).name and file.isprintable() and "\\" not in file
            if not plain or file in (".", "..") or not file.endswith(".safetensors"):
                allowed = "allowed: the name of a .safetensors file beside it"
                raise PdiffError(f"has {shown(name)} in {shown(file)}; {allowed}")
            by_file.setdefault(file, []).append(name)
    except PdiffError as e:
        raise PdiffError(f"{index.name} {e}") from e
    return by_file


def read_sharded(path: Path, budget: Budget) -> File:
    """The arrays of all shards of the folder `path`, or of those that the index `path` names."""
    index = path if path.name.endswith(INDEX) else index_in(path)
    if index is None:
        raise PdiffError(f"holds no *{INDEX}")
    by_file = shards(index)
    lacking = [file for file in by_file if not (index.parent / file).exists()]
    if lacking:
        raise PdiffError(f"lacks {lacking[0]}, which {index.name} names ({len(lacking)} of {len(by_file)} shards)")
    arrays, metadata, disputed = {}, {}, set()
    for file, names in by_file.items():
        try:
            shard = read(index.parent / file, budget)
            if odd := sorted(set(shard.arrays) ^ set(names)):
                where = "lacks" if odd[0] in names else "also holds"
                raise PdiffError(f"{where} {shown(odd[0])}, unlike what {index.name} says ({len(odd)} such arrays)")
        except PdiffError as e:
            raise PdiffError(f"{file} {e}") from e
        arrays |= shard.arrays
        disputed |= {k for k, v in shard.metadata.items() if metadata.setdefault(k, v) != v}
    notes = (f"shards disagree about {', '.join(sorted(map(shown, disputed)))} of their metadata",) if disputed else ()
    return File(arrays, {k: v for k, v in metadata.items() if k not in disputed}, notes)
