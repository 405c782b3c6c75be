"""One network of a folder: its arrays by path, and all that is compared with the others."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pdiff.errors import PdiffError, some
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
      lost: the relative error of an adapter's updates, where it was brought to another rank.
      digest: sha256 of all arrays as they came.
    """

    shapes: dict[str, tuple[tuple[int, ...], str]]
    places: dict[str, Place]
    constants: dict[str, str]
    adapter: lora.Adapter | None
    metadata: dict[str, str]
    beside: dict[str, Any]
    notes: tuple[str, ...]
    lost: float
    digest: str


@dataclasses.dataclass(frozen=True)
class Network:
    """One network: what is generated of it, by path and in the dtypes that came, and its whole numbers, by name."""

    arrays: Arrays
    constants: Arrays
    outline: Outline


def read(source: Path, row: Row, rules: mapping.Layout | None, megabytes: float, rank: int = 0) -> Network:
    """The network of a row.

    Args:
      rules: of a layout.json.
      megabytes: of 10^6 bytes, at most.
      rank: that an adapter is brought to; 0 keeps its own.

    Raises:
      PdiffError: it cannot be read, or is not made of finite floats. The message does not name the file.
    """
    path, limit = links.inside(source, row.file), arrays.Budget(megabytes)
    files.verify_sums(path)
    if (folder := lora.folder_of(path)) is not None:
        leaves, adapter, notes = lora.read(folder, limit)
    elif path.is_dir() and arrays.kind_of(path) is None:
        raise PdiffError("is a folder without a network; allowed: one of PEFT or of Orbax, or the path of a file")
    else:
        file = arrays.read(source / row.file, limit)
        leaves, adapter, notes = lora.recognise(path, file) or (file.arrays, None, file.notes)
    if adapter is None:
        if rank:
            raise PdiffError(f"is no adapter; --config.zoo.rank={rank} is for zoos of LoRAs; allowed: 0")
        return _plain(leaves, rules, {} if folder else file.metadata, _config_beside(source, path), notes)
    if rules is not None:
        raise PdiffError(f"is an adapter, which needs no {mapping.NAME}; allowed: a source without it")
    digest, lost = digest_of(leaves), 0.0
    if rank:
        leaves, adapter, lost = lora.to_rank(leaves, adapter, rank)
    places = {p: Place(name) for p, name in lora.names(adapter).items()}
    return _network(leaves, places, {}, adapter=adapter, metadata={}, beside={}, notes=notes, lost=lost, digest=digest)


def _plain(
    leaves: Arrays, rules: mapping.Layout | None, metadata: dict[str, str], beside: dict[str, Any], notes: tuple
) -> Network:
    """A network that is no adapter."""
    places = {p: Place(p) for p in leaves}
    if rules is not None:
        leaves, places = mapping.apply(rules, leaves)
    random = [p for p, a in leaves.items() if arrays.is_random_state(p, a)]
    if random:
        notes = (*notes, f"random states are left out: {some(map(shown, random))}")
    whole = [p for p, a in leaves.items() if a.dtype.kind in "iub" and p not in random]
    constants = {places[p].name: mapping.inverse(leaves[p], places[p].transform) for p in whole}
    weights = {p: a for p, a in leaves.items() if p not in {*whole, *random}}
    if not weights:
        raise PdiffError(f"holds no weights: {shown(next(iter(leaves)))} is {next(iter(leaves.values())).dtype}")
    arrays.check_floats(weights)
    digest = digest_of({p: a for p, a in leaves.items() if p not in random})
    more = {"metadata": metadata, "beside": beside, "notes": notes, "lost": 0.0, "digest": digest}
    return _network(weights, places, constants, adapter=None, **more)


def _network(leaves: Arrays, places: dict[str, Place], constants: Arrays, **facts: Any) -> Network:
    leaves = dict(sorted(leaves.items()))
    outline = Outline(
        shapes={p: (a.shape, str(a.dtype)) for p, a in leaves.items()},
        places={p: places[p] for p in leaves},
        constants={n: digest_of({n: a}) for n, a in constants.items()},
        **facts,
    )
    return Network(leaves, constants, outline)


def unlike(first: Outline, other: Outline) -> list[str]:
    """How a network differs from the first that could be read; one line, of what differs first."""
    if (first.adapter is None) != (other.adapter is None):
        return ["is an adapter and the first network is not, or the other way round; allowed: one kind"]
    if first.adapter is not None and (fields := lora.differing(other.adapter, first.adapter)):
        return [f"differs from the first: {'; '.join(fields)}"]
    if lines := _lacking(set(first.shapes), set(other.shapes)) or _lacking(set(first.constants), set(other.constants)):
        return lines
    for name, (shape, dtype) in sorted(first.shapes.items()):
        if (theirs := other.shapes[name]) != (shape, dtype):
            differing = f"is {theirs[1]} {theirs[0]}; the first network has {dtype} {shape}"
            return [f"{shown(other.places[name].name)} {differing}; allowed: one shape and dtype in all networks"]
    for name, digest in first.constants.items():
        if other.constants[name] != digest:
            rule = f'{{"ignore": ["{mapping.ignoring(name)}"]}}'
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
