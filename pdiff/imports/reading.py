"""What all readers of networks share: how much they may read, names, small texts, and why a file is refused.

`pdiff.imports.arrays` is what the rest of the code uses; the readers of each format use this.
"""

import contextlib
import dataclasses
import json
import math
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from pdiff.errors import PdiffError

ALLOWED = ("float32", "float16", "bfloat16")  # dtypes of weights
MOST_LEAVES, LONGEST_NAME = 20_000, 400
HEADER_BYTES = 64 << 20  # most of a safetensors header, or of the text beside networks
FILES = (".safetensors", ".npz", ".npy", ".msgpack", ".h5", ".keras")  # endings of files that are networks
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
LFS = b"version https://git-lfs.github.com/spec/"
ZIP = b"PK\x03\x04"
ZIP_STUMBLES = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
CONVERT = "python -m pdiff.convert --source=DIR --out=NEW_DIR"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

Arrays = dict[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class File:
    """What one network's file holds.

    Attributes:
      arrays: by name ('/' joins the keys of a tree), of any dtype; what no dtype of NumPy holds is `unread`.
      metadata: of safetensors; {} of other formats.
      notes: lines about what was read otherwise than it was written.
    """

    arrays: Arrays
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Budget:
    """How many bytes one network may take.

    Args:
      megabytes: of 10^6 bytes, `zoo.import_mb`.
    """

    def __init__(self, megabytes: float):
        self._megabytes, self.left = megabytes, int(megabytes * 1e6)

    def check(self, size: int) -> None:
        """Raises PdiffError if `size` bytes are more than what is left."""
        if size < 0 or size > self.left:
            raise PdiffError(
                f"says that it holds {size:,} bytes; allowed: {self._megabytes:g} MB for one network "
                "(--config.zoo.import_mb)"
            )

    def take(self, size: int) -> None:
        """As `check`, and `size` bytes fewer are left."""
        self.check(size)
        self.left -= size


def unread(why: str) -> Shaped[np.ndarray, " 0"]:
    """Stands for an array that cannot be read, which is refused only if it is used; `why` follows its name then."""
    return np.empty(0, np.dtype("V1", metadata={"why": why}))


def why_unread(array: Shaped[np.ndarray, "..."]) -> str:
    """Why an array is `unread`; '' for others."""
    return (array.dtype.metadata or {}).get("why", "")


def shown(name: Any) -> str:
    """A name from a file, for a message: quoted, without control characters, not too long."""
    quoted = repr(name)
    return quoted if len(quoted) <= 120 else f"{quoted[:117]}…"


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


def byte_count(shape: Any, itemsize: int) -> int:
    """Bytes of an array of that shape.

    Raises:
      PdiffError: `shape` is no list or tuple of whole numbers from 0.
    """
    if not isinstance(shape, (list, tuple)) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise PdiffError(f"{shown(shape)} is no shape; allowed: at most 32 whole numbers from 0")
    return math.prod(shape) * itemsize


def size_of(path: Path) -> int:
    """Bytes of a regular file; a pipe or a device would be waited for, for ever.

    Raises:
      PdiffError: it is no regular file, or only the pointer that Git LFS leaves in its place.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise PdiffError("is no regular file")
    if status.st_size < 1024:
        with open(path, "rb") as f:
            if f.read(len(LFS)) == LFS:
                raise PdiffError("is a Git LFS pointer; git lfs pull fetches the file")
    return status.st_size


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
    size = size_of(path)
    if size > most:
        raise PdiffError(f"has {size:,} bytes; allowed: at most {most:,}")
    with open(path, "rb") as f:
        return f.read(most + 1)[:most]


def refusal(path: Path) -> str:
    """Why a file is not one that networks are read from, and the way on."""
    try:
        size = size_of(path)
    except PdiffError as e:
        return str(e)
    with open(path, "rb") as f:
        start = f.read(4) if size else b""
    way = f"`{CONVERT}` turns the state dicts of PyTorch into safetensors, in a process of its own"
    if start == ZIP:
        return f"is a zip archive, as torch.save writes, which holds a pickle that can run anything; {way}"
    if start[:1] == b"\x80" or path.suffix.lower() in PICKLES:
        return f"is a pickle, which can run anything when it is read; {way}"
    return (
        "is no file of networks that is known; save it as safetensors (safetensors.torch.save_file), .npz, .npy, "
        ".msgpack of Flax, .weights.h5 or .keras of Keras, or with Orbax"
    )


@contextlib.contextmanager
def damaged(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns the errors that a library stumbles with over damaged bytes into one PdiffError that says so."""
    try:
        yield
    except PdiffError:
        raise
    except errors as e:
        reason = (str(e).split(" [")[0].strip() or type(e).__name__).splitlines()[0]  # TensorStore adds where in itself
        raise PdiffError(f"is damaged or no {what}: {reason[:300]}") from e


def filled(f: Any, size: int, dtype: np.dtype, shape: Any) -> Shaped[np.ndarray, "..."]:
    """The next `size` bytes of an open file as an array.

    Raises:
      PdiffError: there are not as many.
    """
    data, start = np.empty(size, np.uint8), 0
    while start < size:  # a pipe gives less at a time
        count = f.readinto(memoryview(data)[start:])
        if not count:
            raise PdiffError(f"is truncated: {size - start:,} bytes are missing")
        start += count
    return data.view(dtype).reshape(shape)
