"""All networks of a folder, read one by one and compared with one another: of one shape, finite, none twice."""

import dataclasses
import functools
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from pdiff.errors import AGAIN, Faults, PdiffError, some
from pdiff.imports import arrays, lora, manifest, mapping, network
from pdiff.imports.arrays import Arrays
from pdiff.imports.columns import Columns
from pdiff.imports.manifest import Row
from pdiff.imports.mapping import Place
from pdiff.imports.network import Network, Outline
from pdiff.system import files
from pdiff.zoo.store import BAR_AFTER_S


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
      base: what the networks started from, if the folder has it.
      adapter: of the first, where the networks are LoRAs; they agree in what counts.
      metadata: of safetensors, what all networks share.
      constants: arrays of whole numbers by their names in the files, the same in all networks.
      beside: config.json of transformers, where each network has one.
      notes: what was read otherwise than it was written, a line each.
      digest: sha256 of all of this but the notes.
    """

    rows: tuple[Row, ...]
    columns: Columns
    leaves: dict[str, Leaf]
    base: dict[str, Float[np.ndarray, "..."]] | None
    adapter: lora.Adapter | None
    metadata: dict[str, str]
    constants: Arrays
    beside: dict[str, Any]
    notes: tuple[str, ...]
    digest: str


def read(
    source: Path, megabytes: float, manifest_path: Path | None = None, scratch: Path | None = None, rank: int = 0
) -> Source:
    """Everything in the folder `source`, network by network.

    All are read twice: to check them, so that all faults are told at once, and to keep them.

    Args:
      megabytes: of 10^6 bytes; what a single network may take, and what all may take in memory, half for their arrays.
        More lie on disk.
      scratch: a folder on that disk; by default that of the system for temporary files.
      rank: that all adapters are brought to; 0 keeps theirs, or takes the largest where they differ.

    Raises:
      PdiffError: the folder or its manifest cannot be read, or (Faults) some of its networks are wrong, a line each.
    """
    listing = manifest.rows(source, manifest_path)
    files.verify_sums(source)
    layout = source / mapping.NAME
    rules = mapping.read(layout) if layout.is_file() else None
    read_one = functools.partial(network.read, source, rules=rules, megabytes=megabytes)
    outlines = _checked(source, listing.rows, read_one)
    rank = rank or _common_rank(outlines)
    columns, errors = None, []
    for i, row in enumerate(tqdm(listing.rows, desc="read", unit="network", delay=BAR_AFTER_S)):
        one = read_one(row)
        if one.outline.digest != outlines[i].digest:
            raise PdiffError(f"{source / row.file}: has changed while it was read; {AGAIN}")
        if rank:
            one, error = _at_rank(one, rank)
            errors.append(error)
        if columns is None:
            shapes = {p: shape for p, (shape, _) in one.outline.shapes.items()}
            place = scratch or Path(tempfile.gettempdir())
            columns, first = Columns(shapes, len(listing.rows), megabytes * 1e6 / 2, place), one
        for path, value in one.arrays.items():
            columns.write(path, i, value.astype(np.float32))
    outline = first.outline
    base = _base(source, listing, rules, arrays.Budget(megabytes), rank)
    digest = hashlib.sha256("\n".join([*(o.digest for o in outlines), repr(listing.rows), str(rank)]).encode())
    digest.update(b"" if base is None else network.digest_of(base).encode())
    metadata, dropped = _shared([o.metadata for o in outlines])
    beside, differing = _shared([o.beside for o in outlines])
    notes = [*listing.notes, *_counted(outlines)]
    if dropped:
        notes.append(f"metadata that differs between networks is left out: {some(dropped)}")
    if differing:
        notes.append(f"{network.CONFIG} differs between networks in {some(differing)}; those of the first are kept")
    if rank:
        notes += _about_rank(listing.rows, errors, rank)
    return Source(
        rows=tuple(listing.rows),
        columns=columns,
        leaves={p: Leaf(*outline.shapes[p], outline.places[p]) for p in outline.shapes},
        base=base,
        adapter=outline.adapter,
        metadata=metadata,
        constants=first.constants,
        beside=outlines[0].beside
        and (beside | {n: outlines[0].beside[n] for n in differing if n in outlines[0].beside}),
        notes=tuple(notes),
        digest=digest.hexdigest(),
    )


def _checked(source: Path, rows: Sequence[Row], read_one: Callable[[Row], Network]) -> list[Outline]:
    """The outlines of all networks.

    Raises:
      Faults: some cannot be read, are unlike the first that can, or the same as another.
    """
    outlines: list[Outline] = []
    faults = []
    for row in tqdm(rows, desc="check", unit="network", delay=BAR_AFTER_S):
        try:
            outlines.append(read_one(row).outline)
            faults += [f"{row.file}: {fault}" for fault in network.unlike(outlines[0], outlines[-1])]
        except (PdiffError, OSError) as e:
            faults.append(f"{row.file}: {e}")
    if not faults:
        first_of: dict[str, str] = {}
        for row, outline in zip(rows, outlines, strict=True):
            if (first := first_of.setdefault(outline.digest, row.file)) != row.file:  # in two splits, or counted twice
                faults.append(f"{row.file}: is bit for bit {first}; leave one of them out")
    if faults:
        raise Faults(str(source), faults)
    return outlines


def _common_rank(outlines: Sequence[Outline]) -> int:
    """The largest rank of adapters that differ in the rank of a module; 0 where none do."""
    if outlines[0].adapter is None or all(o.shapes == outlines[0].shapes for o in outlines):
        return 0
    return max(o.adapter.rank for o in outlines)


def _at_rank(one: Network, rank: int) -> tuple[Network, float]:
    """The same adapter with each module at that rank, and the relative error of its updates."""
    if one.outline.adapter is None:
        raise PdiffError(f"zoo.rank: got {rank}; allowed where the networks are LoRAs; here 0")
    leaves, adapter, error = lora.to_rank(one.arrays, one.outline.adapter, rank)
    shapes = {p: (a.shape, str(a.dtype)) for p, a in sorted(leaves.items())}
    outline = dataclasses.replace(one.outline, shapes=shapes, places={p: Place(p) for p in shapes}, adapter=adapter)
    return dataclasses.replace(one, arrays=leaves, outline=outline), error


def _about_rank(rows: Sequence[Row], errors: Sequence[float], rank: int) -> list[str]:
    """What the common rank costs: the relative error of each network's updates, where it is more than rounding."""
    worst = [f"{r.file} {e:.2%}" for e, r in sorted(zip(errors, rows, strict=True), key=lambda x: -x[0]) if e > 1e-6]
    kept = f"lost of the updates: {some(worst, 8)}" if worst else "all updates are kept exactly"
    return [f"adapters are brought to rank {rank} with scale 1, by the SVD of their updates; {kept}"]


def _base(source: Path, listing: manifest.Listing, rules, limit: arrays.Budget, rank: int) -> Arrays | None:
    raise NotImplementedError


def _shared(found: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The entries that all have, and the names of those that some have otherwise or not at all."""
    shared = {k: v for k, v in found[0].items() if all(k in f and f[k] == v for f in found)}
    return shared, sorted({k for f in found for k in f} - set(shared))


def _counted(outlines: Sequence[Outline]) -> list[str]:
    """The notes on single networks, each once, and of how many networks it is."""
    counts = Counter(note for o in outlines for note in dict.fromkeys(o.notes))
    return [f"{note} (in {count} of {len(outlines)} networks)" for note, count in counts.items()]
