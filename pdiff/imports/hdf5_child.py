"""A process of its own that reads the HDF5 file on its standard input, for `keras_file`, which starts it.

HDF5's library is C that was not written for bytes of strangers: damaged files crash it, or make it run or allocate
without end. Here that ends this process alone, which may take `BYTES` for what it holds, `SECONDS` of a processor, and
open no file. It imports nothing of pdiff, as that would take longer than reading.

On its standard output comes a line of JSON: {"error": a text}, or {"arrays": [[name, dtype, shape], ...]} and then the
bytes of each in this order. `dtype` is NumPy's; "bfloat16", which Keras writes as bytes without a meaning and an
attribute; or a text that begins with "!", for what is not read, without bytes.
"""

import json
import math
import os
import resource
import sys

import h5py
import numpy as np

MOST_OBJECTS, DEEPEST = 50_000, 64
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # others are plug-ins, or sizes of their own
SPARE = 256 << 20  # bytes for the library itself


class Refused(Exception):
    """Why the file is not read."""


def main(limit: int, seconds: int) -> None:
    """Reads standard input, writes standard output."""
    _confine(limit, seconds)
    out = sys.stdout.buffer
    try:
        with h5py.File(sys.stdin.buffer, "r") as file:
            found = _datasets(file)
            heads = [(name, *_head(name, data)) for name, data in found]
            size = sum(math.prod(shape) * np.dtype(_stored(dtype)).itemsize for _, dtype, shape in heads)
            if size > limit:
                raise Refused(f"says that it holds {size:,} bytes")
            out.write(json.dumps({"arrays": heads}).encode() + b"\n")
            for (_, data), (_, dtype, _) in zip(found, heads, strict=True):
                if not dtype.startswith("!"):
                    out.write(np.ascontiguousarray(data[()]).tobytes())
    except Exception as e:  # whatever the library says
        reason = f"{e}" if isinstance(e, Refused) else f"is damaged or no HDF5: {(str(e) or type(e).__name__)[:300]}"
        out.write(json.dumps({"error": reason}).encode() + b"\n")
    out.flush()
    os._exit(0)  # the library's own tidying up over a damaged file is not waited for


def _confine(limit: int, seconds: int) -> None:
    if os.path.exists("/proc/self/statm"):  # elsewhere the system does not bound memory this way
        with open("/proc/self/statm") as f:
            most = int(f.read().split()[0]) * resource.getpagesize() + 2 * limit + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 3),
    ):
        resource.setrlimit(what, (most, most))


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """All datasets below the root by path; a link to a group above makes paths without end, which are bounded."""
    found, waiting, count = [], [("", file, 0)], 0
    while waiting:
        path, group, depth = waiting.pop()
        for name in group:
            count += 1
            where = f"{path}{name}"
            if count > MOST_OBJECTS or depth >= DEEPEST:
                raise Refused(f"holds more than {MOST_OBJECTS} objects, or more than {DEEPEST} groups in one another")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise Refused(f"{where!r} is a link to another place, which is not followed")
            thing = group[name]
            if isinstance(thing, h5py.Group):
                waiting.append((f"{where}/", thing, depth + 1))
            elif isinstance(thing, h5py.Dataset):
                found.append((where, thing))
    return found


def _head(name: str, data: h5py.Dataset) -> tuple[str, list[int]]:
    """The dtype and shape of a dataset all of whose bytes lie in the file."""
    if data.shape is None:
        return "!is empty", [0]
    if data.is_virtual or data.external:
        raise Refused(f"{name!r} has its values in another file")
    dtype, shape = data.dtype, [int(n) for n in data.shape]
    marked = str(data.attrs.get("dtype", "")) if dtype == np.dtype("V2") else ""
    if dtype.kind not in "biuf" and marked != "bfloat16":
        return f"!is {dtype.str} of HDF5, no array of numbers", [0]
    size, plist = math.prod(shape) * dtype.itemsize, data.id.get_create_plist()
    for i in range(plist.get_nfilters()):
        if plist.get_filter(i)[0] not in FILTERS:
            raise Refused(f"{name!r} has the filter {plist.get_filter(i)[0]}; allowed: {', '.join(FILTERS.values())}")
    if data.chunks:
        grid = math.prod(-(-n // c) for n, c in zip(shape, data.chunks, strict=True))
        if math.prod(data.chunks) * dtype.itemsize > max(4 * size, 1 << 20):
            raise Refused(f"{name!r} has shape {tuple(shape)} and chunks of {data.chunks}, much larger")
        if data.id.get_num_chunks() != grid:
            raise Refused(f"{name!r} has {data.id.get_num_chunks()} of its {grid} chunks; the others are missing")
    elif data.id.get_storage_size() < size:
        raise Refused(f"{name!r} has {data.id.get_storage_size():,} of its {size:,} bytes; the others are missing")
    return marked or dtype.str, shape


def _stored(dtype: str) -> str:
    return {"bfloat16": "V2"}.get(dtype, "V0" if dtype.startswith("!") else dtype)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
