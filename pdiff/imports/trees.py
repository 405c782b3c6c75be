"""Trees of arrays as Flax and Orbax save them: msgpack, and the folder of a checkpoint."""

import json
import math
import stat
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import tensorstore as ts
from flax import traverse_util
from jaxtyping import Shaped

from pdiff.errors import PdiffError
from pdiff.imports.reading import (
    MOST_LEAVES,
    Arrays,
    Budget,
    File,
    bounded,
    check_names,
    damaged,
    json_of,
    shown,
    size_of,
    unread,
)

INDEX = "_METADATA"  # in the folder of each tree that Orbax saved
STUMBLES = (ValueError, NotImplementedError, OverflowError, OSError, RuntimeError)


def read_msgpack(path: Path, budget: Budget) -> File:
    """The arrays and numbers of a tree that Flax serialised."""
    size = size_of(path)
    budget.take(size)
    with damaged("Flax msgpack", Exception):  # msgpack and Flax raise whatever the bytes make them stumble over
        tree = flax.serialization.msgpack_restore(bounded(path, size))
    return File(_leaves(tree))


def _leaves(tree: Any) -> Arrays:
    """The leaves of nested dicts by path; lists, as Flax keeps them, are dicts by then. None is no leaf."""
    if not isinstance(tree, dict):
        raise PdiffError("holds no tree of arrays")
    try:
        flat = traverse_util.flatten_dict(tree)
    except RecursionError as e:
        raise PdiffError("is nested too deeply") from e
    leaves: Arrays = {}
    for path, value in flat.items():
        if not all(isinstance(k, str) or type(k) is int for k in path):
            raise PdiffError(f"the name {shown(path)} of an array; allowed: texts and whole numbers")
        name = "/".join(map(str, path))
        if name in leaves:
            raise PdiffError(f"{shown(name)} is the name of two arrays")
        if value is not None:
            leaves[name] = _leaf(value)
    return leaves


def _leaf(value: Any) -> Shaped[np.ndarray, "..."]:
    if isinstance(value, (np.ndarray, np.generic, bool, int, float, complex)):
        return np.asarray(value)
    return unread(f"is a {type(value).__name__}, no array")


def orbax_tree(path: Path) -> Path | None:
    """The folder of the one tree of a checkpoint that Orbax saved, alone or through a CheckpointManager.

    Raises:
      PdiffError: there are several.
    """
    if (path / INDEX).is_file():
        return path
    if not (path / "_CHECKPOINT_METADATA").is_file():
        return None
    items = sorted(p.name for p in path.iterdir() if (p / INDEX).is_file())
    if len(items) > 1:
        raise PdiffError(f"holds several trees ({', '.join(items[:5])}); allowed: one; point to the folder of one")
    return path / items[0] if items else None


def read_orbax(path: Path, budget: Budget) -> File:
    """Reads each array by TensorStore itself, as Orbax's own reader prints tracebacks over what is damaged."""
    where = orbax_tree(path)
    if where is None:
        raise PdiffError("holds no tree that Orbax saved")
    for file in where.rglob("*"):
        if file.is_symlink() or not (file.is_dir() or stat.S_ISREG(file.stat().st_mode)):
            raise PdiffError(f"{file.name} in it is a link or no regular file")
    index = json_of(where / INDEX)
    kinds = _orbax_kinds(index)
    store = {"driver": "file", "path": f"{where.absolute()}/"}
    store = {"driver": "ocdbt", "base": store} if index.get("use_ocdbt", True) else store
    driver, context = "zarr3" if index.get("use_zarr3") else "zarr", ts.Context()
    leaves = {}
    with damaged("Orbax checkpoint", *STUMBLES):
        for keys, kind in kinds.items():
            if kind == "string":
                leaves["/".join(keys)] = unread("is a text, no array")
                continue
            place = {**store, "path": store.get("path", "") + ".".join(keys)}
            spec = {"driver": driver, "kvstore": place, "fill_missing_data_reads": False}
            leaves["/".join(keys)] = _orbax_array(spec, context, "/".join(keys), budget)
    return File(leaves)


def _orbax_array(spec: dict, context: ts.Context, name: str, budget: Budget) -> Shaped[np.ndarray, "..."]:
    array = ts.open(spec, read=True, open=True, context=context).result()
    dtype = array.dtype.numpy_dtype
    if dtype.hasobject:
        return unread(f"is {dtype}, no array of numbers")
    if "blosc" in json.dumps(array.spec().to_json().get("metadata", {})):
        raise PdiffError(
            f"{shown(name)} is compressed by blosc, of which a small file can unpack to gigabytes; "
            "allowed: zstd, as Orbax writes, gzip or nothing"
        )
    chunk = array.chunk_layout.read_chunk.shape or array.shape  # which is read as a whole
    budget.take(max(math.prod(array.shape), math.prod(chunk)) * dtype.itemsize)
    return np.asarray(array.read().result())


def _orbax_kinds(index: Any) -> dict[tuple[str, ...], str]:
    """The keys of each leaf that Orbax's index of a tree lists, and what it is: 'string', or '' for an array.

    None and empty branches are no leaves.
    """
    tree = index.get("tree_metadata") if isinstance(index, dict) else None
    if not isinstance(tree, dict) or not tree or len(tree) > MOST_LEAVES:
        raise PdiffError(f"{INDEX} lists no tree of 1 to {MOST_LEAVES} arrays")
    kinds: dict[tuple[str, ...], str] = {}
    for leaf in tree.values():
        keys = leaf.get("key_metadata") if isinstance(leaf, dict) else None
        keys = [k.get("key") if isinstance(k, dict) else None for k in keys] if isinstance(keys, list) else []
        keys = tuple(str(k) if type(k) is int else k for k in keys)  # of a list
        if not keys or not all(isinstance(k, str) and k.strip(". ") for k in keys):
            raise PdiffError(f"{INDEX} lists {shown(keys)}; allowed: keys that are texts or whole numbers")
        value = leaf.get("value_metadata")
        value = value if isinstance(value, dict) else {}
        if value.get("skip_deserialize") is not True:
            if keys in kinds:
                raise PdiffError(f"{INDEX} lists {shown(keys)} twice")
            kinds[keys] = "string" if value.get("value_type") == "string" else ""
    names = ["/".join(keys) for keys in kinds]
    check_names(dict.fromkeys(names))
    if len(set(names)) < len(names):
        raise PdiffError(f"{INDEX} lists two arrays of one name")
    return kinds
