"""All networks of a folder, read and compared with one another: of one shape, finite, none twice."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pdiff.errors import Faults, PdiffError
from pdiff.imports import arrays, bases, links, manifest, mapping, peft
from pdiff.imports.arrays import Arrays, shown
from pdiff.imports.manifest import Row
from pdiff.imports.mapping import Place
from pdiff.system import files


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What all networks have at one path: the shape, the dtype that it came in, and what it was called."""

    shape: tuple[int, ...]
    dtype: str
    place: Place


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
      rows: one for each network.
      params: by path, float32, which holds every value of the allowed dtypes; the leading axis is that of `rows`.
      leaves: by path.
      base: the whole tree that the networks started from, if the folder has it.
      adapter: the config of the first, where the networks are adapters of PEFT; they agree in what counts.
      digest: sha256 of all of this.
      notes: a line on what was left out or read otherwise than it was written.
    """

    rows: tuple[Row, ...]
    params: dict[str, Float[np.ndarray, "nets ..."]]
    leaves: dict[str, Leaf]
    base: dict[str, Float[np.ndarray, "..."]] | None
    adapter: dict[str, Any] | None
    digest: str
    notes: tuple[str, ...] = ()


def read(source: Path, megabytes: float, manifest_path: Path | None = None) -> Source:
    """Everything in the folder `source`, of which at most `megabytes` (of 10^6 bytes) are read.

    Raises:
      PdiffError: the folder or its manifest cannot be read, or (Faults) some of its networks are wrong, a line each.
    """
    source = links.opened(source)
    listing = manifest.rows(source, manifest_path)
    rows = listing.rows
    files.verify_sums(source)
    layout = source / mapping.NAME
    rules = mapping.read(layout) if layout.is_file() else None
    budget = arrays.Budget(megabytes)
    networks, faults = [], []
    for row in rows:
        try:
            networks.append(_network(source, row, rules, budget))
            faults += [f"{row.file}: {fault}" for fault in _unlike(networks[0], networks[-1])]
        except (PdiffError, OSError) as e:
            if isinstance(e, PdiffError) and "zoo.import_mb" in str(e):  # all later files would only say the same
                raise PdiffError(f"{source / row.file}: {e}") from e
            faults.append(f"{row.file}: {e}")
    faults = faults or _twice(rows, networks)
    if faults:
        raise Faults(str(source), faults)
    first = networks[0]
    leaves = {p: Leaf(a.shape, str(a.dtype), first.places[p]) for p, a in first.arrays.items()}
    params = {p: np.stack([n.arrays[p].astype(np.float32) for n in networks]) for p in leaves}
    base, unfit = _base(source, rules, budget, first)
    digest = hashlib.sha256("\n".join([*(n.digest for n in networks), repr(rows)]).encode())
    digest.update(b"" if base is None else _digest(base).encode())
    return Source(tuple(rows), params, leaves, base, first.adapter, digest.hexdigest(), (*listing.notes, *unfit))


@dataclasses.dataclass(frozen=True)
class _Network:
    arrays: Arrays
    places: dict[str, Place]
    adapter: dict[str, Any] | None
    digest: str


def _network(source: Path, row: Row, rules: mapping.Layout | None, budget: arrays.Budget) -> _Network:
    path, adapter = links.inside(source, row.file), None
    files.verify_sums(path)
    if peft.is_adapter(path):
        if rules is not None:
            raise PdiffError(f"is a LoRA folder, which needs no {mapping.NAME}; allowed: a source without it")
        lora = peft.read(path, budget)
        leaves, adapter = lora.arrays, lora.config
        places = {p: Place(name) for p, name in peft.names(list(leaves)).items()}
    elif path.is_dir() and arrays.kind_of(path) is None:
        raise PdiffError("is a folder without a network; allowed: one of PEFT or of Orbax, or the path of a file")
    else:
        leaves = arrays.read(path, budget)
        leaves, places = mapping.apply(rules, leaves) if rules is not None else (leaves, {p: Place(p) for p in leaves})
    leaves = dict(sorted(leaves.items()))
    return _Network(leaves, places, adapter, _digest(leaves))


def _base(
    source: Path, rules: mapping.Layout | None, budget: arrays.Budget, first: _Network
) -> tuple[Arrays | None, tuple[str, ...]]:
    """The base, and a line if one that lies there is left out."""
    if first.adapter is not None and (unfit := bases.left_out(source)):
        return None, (unfit,)
    file = bases.file_of(source)
    if file is None:
        return None, ()
    try:
        base = _network(source, Row(file), rules, budget)
        if unfit := _unlike_base(first, base):
            raise PdiffError(unfit)
    except PdiffError as e:
        if first.adapter is None or peft.is_adapter(source / file):
            raise PdiffError(f"{source / file}: {e}") from e
        return None, (bases.of_adapters(f"{file} {e}"),)
    return {p: a.astype(np.float32) for p, a in base.arrays.items()}, ()


def _unlike_base(first: _Network, base: _Network) -> str | None:
    """Why networks like `first` cannot have started from `base`; plain ones may lack some of its arrays."""
    if first.adapter is None:
        return "is a LoRA folder, and the networks are not" if base.adapter is not None else None
    if base.adapter is not None and (fields := peft.differing(base.adapter, first.adapter)):
        return f"{peft.CONFIG} differs from the first network's: {'; '.join(fields)}"
    shapes = [{path: a.shape for path, a in network.arrays.items()} for network in (first, base)]
    return None if shapes[0] == shapes[1] else "holds other arrays than the adapters"


def _unlike(first: _Network, other: _Network) -> list[str]:
    """How a network differs from the first that could be read; one line, of what differs first."""
    if (first.adapter is None) != (other.adapter is None):
        return ["is a LoRA folder and the first network is not, or the other way round; allowed: one kind"]
    if first.adapter is not None and (fields := peft.differing(other.adapter, first.adapter)):
        return [f"{peft.CONFIG} differs from the first: {'; '.join(fields)}"]
    odd = sorted(set(first.arrays) ^ set(other.arrays))
    if lacking := [n for n in odd if n in first.arrays]:
        return [f"lacks {shown(lacking[0])}, which the first network has ({len(odd)} such arrays)"]
    if odd:
        return [f"has also {shown(odd[0])}, which the first network lacks ({len(odd)} such arrays)"]
    for name, a in sorted(first.arrays.items()):
        b = other.arrays[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return [f"{shown(name)} is {b.dtype} {b.shape}; the first network has {a.dtype} {a.shape}"]
    return []


def _twice(rows: Sequence[Row], networks: Sequence[_Network]) -> list[str]:
    """A line for each network that is another bit for bit: it would count twice, or be in two splits."""
    files: dict[str, str] = {}
    lines = []
    for row, network in zip(rows, networks, strict=True):
        if (first := files.setdefault(network.digest, row.file)) != row.file:
            lines.append(f"{row.file}: is bit for bit {first}; leave one of them out")
    return lines


def _digest(leaves: Arrays) -> str:
    digest = hashlib.sha256()
    for path, value in leaves.items():
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()
