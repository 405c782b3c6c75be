"""All networks of a folder, read and compared with one another: of one shape, finite, none twice."""

import dataclasses
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from pdiff.errors import AGAIN, Faults, PdiffError
from pdiff.imports import arrays, manifest, mapping, peft
from pdiff.imports.arrays import Arrays, shown
from pdiff.imports.columns import Columns
from pdiff.imports.manifest import Row
from pdiff.imports.mapping import Place
from pdiff.system import files

BAR_AFTER_S = 3  # what takes longer shows how far it is and how long it will take
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
      columns: the arrays by path, float32, which holds every value of the allowed dtypes, in the order of `rows`.
      leaves: by path.
      base: the whole tree that the networks started from, if the folder has it.
      adapter: the config of the first, where the networks are adapters of PEFT; they agree in what counts.
      digest: sha256 of all of this.
    """

    rows: tuple[Row, ...]
    columns: Columns
    leaves: dict[str, Leaf]
    base: dict[str, Float[np.ndarray, "..."]] | None
    adapter: dict[str, Any] | None
    digest: str


def read(source: Path, megabytes: float, manifest_path: Path | None = None, scratch: Path | None = None) -> Source:
    """Everything in the folder `source`, network by network.

    All are read twice: to check them, so that all faults are told at once, and to keep them.

    Args:
      megabytes: of 10^6 bytes; what a single network may take, and what all may take in memory, half for their arrays.
        More lie on disk.
      scratch: a folder on that disk; by default that of the system for temporary files.

    Raises:
      PdiffError: the folder or its manifest cannot be read, or (Faults) some of its networks are wrong, a line each.
    """
    rows = manifest.rows(source, manifest_path)
    files.verify_sums(source)
    layout = source / mapping.NAME
    rules = mapping.read(layout) if layout.is_file() else None
    first, digests, faults = None, [], []
    for row in tqdm(rows, desc="check", unit="network", delay=BAR_AFTER_S):
        try:
            network = _network(source, row, rules, arrays.Budget(megabytes))
            first = first or network.outline
            faults += [f"{row.file}: {fault}" for fault in _unlike(first, network.outline)]
            digests.append(network.digest)
        except (PdiffError, OSError) as e:
            faults.append(f"{row.file}: {e}")
    faults = faults or _twice(rows, digests)
    if faults:
        raise Faults(str(source), faults)
    leaves = {p: Leaf(shape, dtype, first.places[p]) for p, (shape, dtype) in first.arrays.items()}
    shapes = {p: leaf.shape for p, leaf in leaves.items()}
    columns = Columns(shapes, len(rows), megabytes * 1e6 / 2, scratch or Path(tempfile.gettempdir()))
    for i, row in enumerate(tqdm(rows, desc="read", unit="network", delay=BAR_AFTER_S)):
        network = _network(source, row, rules, arrays.Budget(megabytes))
        if network.digest != digests[i]:
            raise PdiffError(f"{source / row.file}: has changed while it was read; {AGAIN}")
        for path, value in network.arrays.items():
            columns.write(path, i, value.astype(np.float32))
    base = _base(source, rules, arrays.Budget(megabytes))
    digest = hashlib.sha256("\n".join([*digests, repr(rows)]).encode())
    digest.update(b"" if base is None else _digest(base).encode())
    return Source(tuple(rows), columns, leaves, base, first.adapter, digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class _Outline:
    """What is compared of networks: shape and dtype of each array, what it was called, and the adapter's config."""

    arrays: dict[str, tuple[tuple[int, ...], str]]
    places: dict[str, Place]
    adapter: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class _Network:
    arrays: Arrays
    places: dict[str, Place]
    adapter: dict[str, Any] | None
    digest: str

    @property
    def outline(self) -> _Outline:
        return _Outline({p: (a.shape, str(a.dtype)) for p, a in self.arrays.items()}, self.places, self.adapter)


def _network(source: Path, row: Row, rules: tuple[mapping.Rule, ...] | None, budget: arrays.Budget) -> _Network:
    path, adapter = inside(source, row.file), None
    files.verify_sums(path)
    if peft.is_adapter(path):
        for name in (peft.CONFIG, peft.MODEL):
            if (path / name).is_symlink():
                inside(source, f"{row.file}/{name}")
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
        leaves = arrays.read(inside(source, names[0]), budget)
        leaves = leaves if rules is None else mapping.apply(rules, leaves)[0]
    except PdiffError as e:
        raise PdiffError(f"{source / names[0]}: {e}") from e
    return {p: a.astype(np.float32) for p, a in leaves.items()}


def _unlike(first: _Outline, other: _Outline) -> list[str]:
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
    for name, (shape, dtype) in sorted(first.arrays.items()):
        if (theirs := other.arrays[name]) != (shape, dtype):
            return [f"{shown(name)} is {theirs[1]} {theirs[0]}; the first network has {dtype} {shape}"]
    return []


def _twice(rows: Sequence[Row], digests: Sequence[str]) -> list[str]:
    """A line for each network that is another bit for bit: it would count twice, or be in two splits."""
    files: dict[str, str] = {}
    lines = []
    for row, digest in zip(rows, digests, strict=True):
        if (first := files.setdefault(digest, row.file)) != row.file:
            lines.append(f"{row.file}: is bit for bit {first}; leave one of them out")
    return lines


def _digest(leaves: Arrays) -> str:
    digest = hashlib.sha256()
    for path, value in leaves.items():
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()
