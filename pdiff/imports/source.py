"""All networks of a folder, read and compared with one another: of one shape, finite, none twice."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pdiff.errors import Faults, PdiffError
from pdiff.imports import arrays, lora, manifest, mapping
from pdiff.imports.arrays import Arrays, shown
from pdiff.imports.manifest import Row
from pdiff.imports.mapping import Place
from pdiff.system import files
from pdiff.system.logs import log

BASES = ("base.safetensors", "base.npz", "base.msgpack", "base")


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
      adapter: how the first came, where the networks are adapters (`lora.Adapter` as JSON); they agree in what counts.
      digest: sha256 of all of this.
    """

    rows: tuple[Row, ...]
    params: dict[str, Float[np.ndarray, "nets ..."]]
    leaves: dict[str, Leaf]
    base: dict[str, Float[np.ndarray, "..."]] | None
    adapter: dict[str, Any] | None
    digest: str


def read(source: Path, megabytes: float, manifest_path: Path | None = None) -> Source:
    """Everything in the folder `source`, of which at most `megabytes` (of 10^6 bytes) are read.

    Raises:
      PdiffError: the folder or its manifest cannot be read, or (Faults) some of its networks are wrong, a line each.
    """
    rows = manifest.rows(source, manifest_path)
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
    base = _base(source, rules, budget)
    digest = hashlib.sha256("\n".join([*(n.digest for n in networks), repr(rows)]).encode())
    digest.update(b"" if base is None else _digest(base).encode())
    adapter = first.adapter
    for network in networks[1:] if adapter is not None else ():
        adapter = lora.shared(adapter, network.adapter)
    facts = None if adapter is None else dataclasses.asdict(adapter)
    return Source(tuple(rows), params, leaves, base, facts, digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class _Network:
    arrays: Arrays
    places: dict[str, Place]
    adapter: lora.Adapter | None
    digest: str


def _network(source: Path, row: Row, rules: tuple[mapping.Rule, ...] | None, budget: arrays.Budget) -> _Network:
    path, adapter = inside(source, row.file), None
    files.verify_sums(path)
    if (folder := lora.folder_of(path)) is not None:
        for name in (lora.CONFIG, *lora.FILES):
            if (folder / name).is_symlink():
                inside(source, str((folder / name).relative_to(source)))
        if rules is not None:
            raise PdiffError(f"is a LoRA folder, which needs no {mapping.NAME}; allowed: a source without it")
        leaves, adapter, notes = lora.read(folder, budget)
    elif path.is_dir() and arrays.kind_of(path) is None:
        raise PdiffError("is a folder without a network; allowed: one of PEFT or of Orbax, or the path of a file")
    else:
        file = arrays.read(path, budget)
        network = None if rules is not None else lora.recognise(path, file)
        leaves, adapter, notes = network or (file.arrays, None, file.notes)
        if rules is not None:
            leaves, places = mapping.apply(rules, leaves)
        elif adapter is None:
            places = {p: Place(p) for p in leaves}
        if adapter is None:
            arrays.check_floats(leaves)
    if adapter is not None:
        places = {p: Place(name) for p, name in lora.names(adapter).items()}
    for note in notes:
        log.info("%s: %s", row.file, note)
    leaves = dict(sorted(leaves.items()))
    return _Network(leaves, places, adapter, _digest(leaves))


def inside(source: Path, file: str) -> Path:
    """The path of `file` below `source`.

    Raises:
      PdiffError: there is nothing, or what is there lies elsewhere, through a link or upwards.
    """
    path = source / file
    if not path.exists():
        raise PdiffError("does not exist")
    if not path.resolve().is_relative_to(source.resolve()):
        raise PdiffError(f"leads out of {source}, through a link or '..'; copy the files themselves into it (cp -L)")
    return path


def _base(source: Path, rules: tuple[mapping.Rule, ...] | None, budget: arrays.Budget) -> Arrays | None:
    names = [name for name in BASES if (source / name).exists()]
    if not names:
        return None
    if len(names) > 1:
        raise PdiffError(f"{source}: holds {' and '.join(names)}; allowed: one base")
    try:
        leaves = arrays.read(inside(source, names[0]), budget).arrays
        leaves = leaves if rules is None else mapping.apply(rules, leaves)[0]
    except PdiffError as e:
        raise PdiffError(f"{source / names[0]}: {e}") from e
    return {p: a.astype(np.float32) for p, a in leaves.items()}


def _unlike(first: _Network, other: _Network) -> list[str]:
    """How a network differs from the first that could be read; one line, of what differs first."""
    if (first.adapter is None) != (other.adapter is None):
        return ["is an adapter and the first network is not, or the other way round; allowed: one kind"]
    if first.adapter is not None and (fields := lora.differing(other.adapter, first.adapter)):
        return [f"differs from the first: {'; '.join(fields)}"]
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
