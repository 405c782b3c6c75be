"""The arrays of one network from a file or checkpoint that nobody vouches for.

Nothing is unpickled or run. The size that a file claims in its index is checked before anything of that size is read
or allocated, and the index is compared with the contents.
"""

import dataclasses
import json
import math
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import safetensors
import tensorstore as ts
from flax import traverse_util
from jaxtyping import Shaped

from pdiff.errors import PdiffError

FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
DTYPES = FLOATS | {
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
ALLOWED = tuple(str(d) for d in FLOATS.values())
MOST_LEAVES, LONGEST_NAME = 20_000, 400
HEADER_BYTES = 64 << 20  # most of a safetensors header, or of the text beside networks
FILES = (".safetensors", ".npz", ".msgpack")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
ORBAX_INDEX = "_METADATA"  # in the folder of each tree that Orbax saved

Arrays = dict[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class File:
    """What a file holds: arrays by name, its metadata, and what was read otherwise than it was written."""

    arrays: Arrays
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


class Budget:
    """How many bytes an import may still read; all files share one.

    Args:
      megabytes: of 10^6 bytes, `zoo.import_mb`.
    """

    def __init__(self, megabytes: float):
        self._megabytes, self._left = megabytes, megabytes * 1e6

    def take(self, size: int) -> None:
        """Raises PdiffError if `size` bytes are more than what is left."""
        if size < 0 or size > self._left:
            raise PdiffError(
                f"says that it holds {size:,} bytes; allowed: {self._megabytes:g} MB for all networks together "
                "(--config.zoo.import_mb)"
            )
        self._left -= size


def kind_of(path: Path) -> str | None:
    """'safetensors', 'npz', 'msgpack' or 'orbax' for what `read` can read, by its name or what lies in it; else None.

    Raises:
      PdiffError: a folder holds several trees that Orbax saved.
    """
    if path.is_dir():
        return "orbax" if _orbax_tree(path) else None
    ending = path.suffix.lower()
    return ending[1:] if ending in FILES else None


def read(path: Path, budget: Budget) -> File:
    """The leaves of the network at `path` by name ('/' joins the keys of a tree), in their own dtypes, in sorted order.

    Raises:
      PdiffError: it cannot be read, says other than what it holds, or is not made of finite floats. The message
        does not name the file, which the caller does.
    """
    readers = {"safetensors": _safetensors, "npz": _npz, "msgpack": _msgpack, "orbax": _orbax}
    kind = kind_of(path)
    if kind is None:
        raise PdiffError(refusal(path))
    metadata: dict[str, str] = {}
    leaves = _safetensors(path, budget, metadata) if kind == "safetensors" else readers[kind](path, budget)
    check_names(leaves)
    return File(dict(sorted(leaves.items())), metadata)


def check_floats(leaves: Arrays) -> None:
    """Raises PdiffError unless all arrays are finite floats of the dtypes that are learned."""
    for name, value in leaves.items():
        if str(value.dtype) not in ALLOWED:
            raise PdiffError(f"{shown(name)} is {value.dtype}; allowed: {', '.join(ALLOWED)}")
        if not value.size:
            raise PdiffError(f"{shown(name)} has shape {value.shape}, no elements")
        if not np.isfinite(value.astype(np.float32, copy=False)).all():
            raise PdiffError(f"{shown(name)} holds values that are not finite")


def check_names(names: Mapping[str, Any]) -> None:
    """Raises PdiffError unless the names are plain, not too many, and none is a branch of another."""
    if not names:
        raise PdiffError("holds no arrays")
    if len(names) > MOST_LEAVES:
        raise PdiffError(f"holds {len(names)} arrays; allowed: at most {MOST_LEAVES}")
    branches = {name[:i] for name in names for i, c in enumerate(name) if c == "/"}
    for name in names:
        parts = name.split("/")
        if len(name) > LONGEST_NAME or not name.isprintable() or not all(p.strip(". ") for p in parts):
            raise PdiffError(
                f"the name {shown(name)} of an array; allowed: at most {LONGEST_NAME} printable characters, "
                "keys joined by '/' and none of them empty or of dots alone"
            )
        if name in branches:
            raise PdiffError(f"{shown(name)} is an array and also the beginning of another's name")


def text(path: Path) -> str:
    """A small text file beside networks, UTF-8 with or without a byte-order mark.

    Raises:
      PdiffError: it is no regular file, too large, or not such text.
    """
    try:
        return bounded(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise PdiffError(f"is no UTF-8 text (byte {e.start}); save it as UTF-8") from e


def json_of(path: Path) -> Any:
    """The JSON in a small file, without NaN, infinity or keys that come twice.

    Raises:
      PdiffError: it is not such JSON.
    """
    return parse_json(text(path))


def parse_json(content: str | bytes) -> Any:
    """As `json_of`, of the text itself."""

    def once(pairs: list[tuple[str, Any]]) -> dict:
        if len(dict(pairs)) < len(pairs):
            twice = Counter(k for k, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {shown(twice)} comes twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(content, object_pairs_hook=once, parse_constant=refuse)
    except RecursionError as e:
        raise PdiffError("is no JSON that can be read: nested too deeply") from e
    except ValueError as e:  # of which JSONDecodeError and UnicodeDecodeError are kinds
        raise PdiffError(f"is no JSON that can be read: {e}") from e


def bounded(path: Path, most: int = HEADER_BYTES) -> bytes:
    """The contents of a regular file of at most `most` bytes."""
    size = _size(path)
    if size > most:
        raise PdiffError(f"has {size:,} bytes; allowed: at most {most:,}")
    with open(path, "rb") as f:
        return f.read(most + 1)[:most]


def refusal(path: Path) -> str:
    """Why a file is not one that networks are read from."""
    with open(path, "rb") as f:
        start = f.read(4) if _size(path) else b""
    if start == b"PK\x03\x04":
        what = "is a zip archive, as torch.save writes, which holds a pickle that can run anything"
    elif start[:1] == b"\x80" or path.suffix.lower() in PICKLES:
        what = "is a pickle, which can run anything when it is read"
    else:
        what = "is no file of networks that is known"
    return f"{what}; save it as safetensors (safetensors.torch.save_file), .npz, .msgpack of Flax, or with Orbax"


def shown(name: Any) -> str:
    """A name from a file, for a message: quoted, without control characters, not too long."""
    quoted = repr(name)
    return quoted if len(quoted) <= 120 else f"{quoted[:117]}…"


def _size(path: Path) -> int:
    """Bytes of a regular file; a pipe or a device would be waited for, for ever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise PdiffError("is no regular file")
    return status.st_size


def _safetensors(path: Path, budget: Budget, metadata: dict[str, str]) -> Arrays:
    size = _size(path)
    with open(path, "rb") as f:
        start = f.read(8)
        if len(start) < 8:
            raise PdiffError(f"is truncated: {len(start)} bytes, no safetensors header")
        (length,) = struct.unpack("<Q", start)
        if start[:4] == b"PK\x03\x04" or start[0] == 0x80 and length > size:
            raise PdiffError(refusal(path))
        if length > min(size - 8, HEADER_BYTES):
            raise PdiffError(f"is truncated or no safetensors: its header says {length:,} bytes of {size - 8:,}")
        header = parse_json(f.read(length))
        if not isinstance(header, dict):
            raise PdiffError("is no safetensors: its header is no JSON object")
        _known_dtypes(header)
        metadata |= header.get("__metadata__", {})
        budget.take(size)
        f.seek(0)
        data = f.read(size)
    try:
        tensors = safetensors.deserialize(data)
    except Exception as e:  # the library's own error, which is no subclass of anything narrower
        raise PdiffError(f"is damaged: {e}") from e
    return {name: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"]) for name, t in tensors}


def _known_dtypes(header: dict) -> None:
    for name, entry in header.items():
        if name != "__metadata__" and (not isinstance(entry, dict) or entry.get("dtype") not in DTYPES):
            got = entry.get("dtype") if isinstance(entry, dict) else entry
            raise PdiffError(f"{shown(name)} is {shown(got)}; allowed: {', '.join(DTYPES)}")


def _npz(path: Path, budget: Budget) -> Arrays:
    size, leaves = _size(path), {}
    with open(path, "rb") as f:
        if f.read(4) != b"PK\x03\x04":  # Python finds an archive behind anything; NumPy reads it as something else then
            raise PdiffError("is damaged or no .npz: it does not begin as a zip archive")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_LEAVES:
                raise PdiffError(f"holds {len(members)} arrays; allowed: at most {MOST_LEAVES}")
            budget.take(max(size, sum(m.file_size for m in members)))
            for member in members:
                name = member.filename
                if not name.endswith(".npy"):
                    raise PdiffError(f"{shown(name)} in it is no array; a torch file must be saved as safetensors")
                if name[:-4] in leaves:
                    raise PdiffError(f"{shown(name)} is in it twice")
                with archive.open(member) as f:
                    leaves[name[:-4]] = _npy(f, member.file_size, name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as e:
        raise PdiffError(f"is damaged or no .npz: {e or type(e).__name__}") from e
    return leaves


def _npy(f: Any, size: int, name: str) -> np.ndarray:
    """An array of a zip member of `size` bytes, whose header is believed only if it says the same."""
    version = np.lib.format.read_magic(f)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise PdiffError(f"{shown(name)} is of .npy version {version}; allowed: 1.0, 2.0")
    try:
        shape, fortran, dtype = header(f)
    except (RecursionError, MemoryError) as e:
        raise PdiffError(f"{shown(name)}: its header cannot be read") from e
    if dtype.hasobject:
        raise PdiffError(f"{shown(name)} holds Python objects, which are pickles; save it as an array of numbers")
    if str(dtype) not in ALLOWED:
        raise PdiffError(f"{shown(name)} is {dtype}; allowed in .npz: float32, float16")
    expected, left = math.prod(shape) * dtype.itemsize, size - f.tell()
    if any(n < 0 for n in shape) or expected != left:
        raise PdiffError(f"{shown(name)}: its header says shape {shape}, {expected:,} bytes, and {left:,} follow")
    data = f.read()
    if len(data) != expected:
        raise PdiffError(f"{shown(name)} is truncated")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _msgpack(path: Path, budget: Budget) -> Arrays:
    size = _size(path)
    budget.take(size)
    try:
        tree = flax.serialization.msgpack_restore(bounded(path, size))
    except Exception as e:  # msgpack and Flax raise whatever the bytes make them stumble over
        raise PdiffError(f"is damaged or no Flax msgpack: {e or type(e).__name__}") from e
    return _leaves(tree)


def _leaves(tree: Any) -> Arrays:
    """The arrays of nested dicts by path; lists, as Flax keeps them, are dicts by then."""
    if not isinstance(tree, dict):
        raise PdiffError("holds no tree of arrays")
    try:
        flat = traverse_util.flatten_dict(tree)
    except RecursionError as e:
        raise PdiffError("is nested too deeply") from e
    for path, value in flat.items():
        if not all(isinstance(k, str) and "/" not in k for k in path):
            raise PdiffError(f"the name {shown(path)} of an array; allowed: texts without '/'")
        if not isinstance(value, np.ndarray):
            raise PdiffError(f"{shown('/'.join(path))} is a {type(value).__name__}; allowed: an array")
    return {"/".join(path): value for path, value in flat.items()}


def _orbax_tree(path: Path) -> Path | None:
    """The folder of the one tree of a checkpoint that Orbax saved, alone or through a CheckpointManager."""
    if (path / ORBAX_INDEX).is_file():
        return path
    if not (path / "_CHECKPOINT_METADATA").is_file():
        return None
    items = sorted(p.name for p in path.iterdir() if (p / ORBAX_INDEX).is_file())
    if len(items) > 1:
        raise PdiffError(f"holds several trees ({', '.join(items[:5])}); allowed: one; point to the folder of one")
    return path / items[0] if items else None


def _orbax(path: Path, budget: Budget) -> Arrays:
    """Reads each array by TensorStore itself, as Orbax's own reader prints tracebacks over what is damaged."""
    where = _orbax_tree(path)
    for file in where.rglob("*"):
        if file.is_symlink() or not (file.is_dir() or stat.S_ISREG(file.stat().st_mode)):
            raise PdiffError(f"{file.name} in it is a link or no regular file")
    index = json_of(where / ORBAX_INDEX)
    names = _orbax_names(index)
    store = {"driver": "file", "path": f"{where.absolute()}/"}
    store = {"driver": "ocdbt", "base": store} if index.get("use_ocdbt", True) else store
    driver, context = "zarr3" if index.get("use_zarr3") else "zarr", ts.Context()
    leaves = {}
    try:
        for keys in names:
            name = "/".join(keys)
            place = {**store, "path": store.get("path", "") + ".".join(keys)}
            spec = {"driver": driver, "kvstore": place, "fill_missing_data_reads": False}
            array = ts.open(spec, read=True, open=True, context=context).result()
            dtype = array.dtype.numpy_dtype
            if str(dtype) not in ALLOWED:
                raise PdiffError(f"{shown(name)} is {dtype}; allowed: {', '.join(ALLOWED)}")
            if "blosc" in json.dumps(array.spec().to_json().get("metadata", {})):
                raise PdiffError(
                    f"{shown(name)} is compressed by blosc, of which a small file can unpack to gigabytes; "
                    "allowed: zstd, as Orbax writes, gzip or nothing"
                )
            chunk = array.chunk_layout.read_chunk.shape or array.shape  # which is read as a whole
            budget.take(max(math.prod(array.shape), math.prod(chunk)) * dtype.itemsize)
            leaves[name] = np.asarray(array.read().result())
    except (ValueError, NotImplementedError, OverflowError, OSError, RuntimeError) as e:
        reason = str(e).split(" [")[0].splitlines()[0]
        raise PdiffError(f"is damaged or no Orbax checkpoint: {reason[:300]}") from e
    return leaves


def _orbax_names(index: Any) -> list[tuple[str, ...]]:
    """The keys of each leaf that Orbax's index of a tree lists."""
    tree = index.get("tree_metadata") if isinstance(index, dict) else None
    if not isinstance(tree, dict) or not tree or len(tree) > MOST_LEAVES:
        raise PdiffError(f"{ORBAX_INDEX} lists no tree of 1 to {MOST_LEAVES} arrays")
    names = []
    for leaf in tree.values():
        keys = leaf.get("key_metadata") if isinstance(leaf, dict) else None
        keys = [k.get("key") if isinstance(k, dict) else None for k in keys] if isinstance(keys, list) else []
        if not keys or not all(isinstance(k, str) and k.strip(". ") and "/" not in k for k in keys):
            raise PdiffError(f"{ORBAX_INDEX} lists {shown(keys)}; allowed: keys that are texts without '/'")
        names.append(tuple(keys))
    check_names({"/".join(n): None for n in names})
    return names
