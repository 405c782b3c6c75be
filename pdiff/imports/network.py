"""One network of a folder: its arrays by path, and all that is compared with the others."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pdiff.errors import PdiffError
from pdiff.imports import arrays, links, lora, mapping
from pdiff.imports.arrays import Arrays, shown
from pdiff.imports.manifest import Row
from pdiff.imports.mapping import Place
from pdiff.system import files

CONFIG = "config.json"  # of transformers, beside a whole model


@dataclasses.dataclass(frozen=True)
class Outline:
    """What is known of a network without its arrays.

    Attributes:
      shapes: by path: the shape and the dtype of what is generated.
      places: by path, what it was called.
      constants: digests of the arrays of whole numbers, by name.
      adapter: of a LoRA.
      metadata: of a safetensors file.
      beside: config.json of transformers, {} if there is none.
      notes: what was read otherwise than it was written.
      digest: sha256 of all arrays.
    """

    shapes: dict[str, tuple[tuple[int, ...], str]]
    places: dict[str, Place]
    constants: dict[str, str]
    adapter: lora.Adapter | None
    metadata: dict[str, str]
    beside: dict[str, Any]
    notes: tuple[str, ...]
    digest: str


@dataclasses.dataclass(frozen=True)
class Network:
    """One network: what is generated of it, by path and in the dtypes that came, and its whole numbers, by name."""

    arrays: Arrays
    constants: Arrays
    outline: Outline


def read(source: Path, row: Row, rules: tuple[mapping.Rule, ...] | None, megabytes: float) -> Network:
    """The network of a row, of at most `megabytes` (of 10^6 bytes).

    Raises:
      PdiffError: it cannot be read, or is not made of finite floats. The message does not name the file.
    """
    path, limit = links.inside(source, row.file), arrays.Budget(megabytes)
    files.verify_sums(path)
    adapter, metadata, constants = None, {}, {}
    if lora.is_adapter(path):
        leaves, adapter, notes = lora.read(path, limit)
        places = {p: Place(p) for p in leaves}
    else:
        file = arrays.read(path, limit)
        leaves, notes, metadata = file.arrays, file.notes, file.metadata
        places = {p: Place(p) for p in leaves}
        if rules is None and (found := lora.recognise(path, file)) is not None:
            leaves, adapter, more = found
            notes, places = (*notes, *more), {p: Place(p) for p in leaves}
    if adapter is not None and rules is not None:
        raise PdiffError(f"is a LoRA, which needs no {mapping.NAME}; allowed: a source without it")
    if adapter is None:
        if rules is not None:
            leaves, places = mapping.apply(rules, leaves)
        random = [p for p, a in leaves.items() if arrays.is_random_state(p, a)]
        notes = (*notes, *(f"{shown(p)} is a random state and left out" for p in random[:1]))
        whole = [p for p, a in leaves.items() if a.dtype.kind in "iub" and p not in random]
        constants = {places[p].name: mapping.inverse(leaves[p], places[p].transform) for p in whole}
        leaves = {p: a for p, a in leaves.items() if p not in {*whole, *random}}
        if not leaves:
            raise PdiffError(f"holds no weights: {shown((whole or random)[0])} and all others are whole numbers")
    arrays.check_floats(leaves)
    leaves = dict(sorted(leaves.items()))
    outline = Outline(
        {p: (a.shape, str(a.dtype)) for p, a in leaves.items()},
        {p: places[p] for p in leaves},
        {n: digest_of({n: a}) for n, a in constants.items()},
        adapter,
        metadata,
        {} if adapter is not None else _config_beside(source, path),
        notes,
        digest_of(leaves),
    )
    return Network(leaves, constants, outline)


def unlike(first: Outline, other: Outline) -> list[str]:
    """How a network differs from the first that could be read; one line, of what differs first."""
    if (first.adapter is None) != (other.adapter is None):
        return ["is a LoRA and the first network is not, or the other way round; allowed: one kind"]
    if first.adapter is not None and (fields := lora.differing(first.adapter, other.adapter)):
        return [f"differs from the first: {'; '.join(fields)}"]
    if lines := _lacking(set(first.shapes), set(other.shapes)) or _lacking(set(first.constants), set(other.constants)):
        return lines
    for name, (shape, dtype) in sorted(first.shapes.items()):
        theirs, their_dtype = other.shapes[name]
        if dtype != their_dtype or _but_for_rank(name, shape, first) != _but_for_rank(name, theirs, other):
            return [f"{shown(name)} is {their_dtype} {theirs}; the first network has {dtype} {shape}"]
    for name, digest in first.constants.items():
        if other.constants[name] != digest:
            rule = f'{{"ignore": ["{name}"]}}'
            return [
                f"{shown(name)}, of whole numbers, is not the same as in the first network, and cannot be generated; "
                f"leave it out by a {mapping.NAME} in the source: {rule}"
            ]
    return []


def digest_of(leaves: Arrays) -> str:
    """sha256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for path, value in leaves.items():
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _but_for_rank(path: str, shape: tuple[int, ...], outline: Outline) -> tuple[int, ...]:
    """The shape without the axis of an adapter's rank, which `lora.to_rank` makes the same in all."""
    if outline.adapter is None or not path.startswith(f"{lora.TREE}/"):
        return shape
    return shape[1:] if path.endswith("/A") else shape[:1]


def _lacking(first: set[str], other: set[str]) -> list[str]:
    odd = sorted(first ^ other)
    if lacking := [n for n in odd if n in first]:
        return [f"lacks {shown(lacking[0])}, which the first network has ({len(odd)} such arrays)"]
    return [f"has also {shown(odd[0])}, which the first network lacks ({len(odd)} such arrays)"] if odd else []


def _config_beside(source: Path, path: Path) -> dict[str, Any]:
    """config.json of transformers, in the folder of a whole model."""
    folder = path if path.is_dir() else path.parent
    if arrays.kind_of(path) not in ("safetensors", "sharded") or not (folder / CONFIG).is_file():
        return {}
    try:
        config = arrays.json_of(links.inside(source, str((folder / CONFIG).relative_to(source))))
    except PdiffError as e:
        raise PdiffError(f"{CONFIG} beside it {e}") from e
    return config if isinstance(config, dict) else {}
