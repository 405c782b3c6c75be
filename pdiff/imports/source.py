"""All networks of a folder, read one by one and compared with one another: of one shape, finite, none twice."""

import dataclasses
import functools
import hashlib
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from pdiff.errors import AGAIN, Faults, PdiffError, in_words, some
from pdiff.imports import bases, links, lora, manifest, mapping, network
from pdiff.imports.arrays import Arrays, shown
from pdiff.imports.columns import Columns
from pdiff.imports.manifest import Row
from pdiff.imports.mapping import Place
from pdiff.imports.network import Network, Outline
from pdiff.system import files
from pdiff.system.logs import BAR_AFTER_S, log

RATES = {"read": 250.0, "gauge": 40.0, "write": 60.0}  # MB of float32 in a second, measured on two cores
TELL_ABOVE_S = 20


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
      rank: that all adapters are brought to; 0 keeps theirs, which then have to agree.

    Raises:
      PdiffError: the folder or its manifest cannot be read, or (Faults) some of its networks are wrong, a line each.
    """
    source = links.opened(source)
    listing = manifest.rows(source, manifest_path)
    files.verify_sums(source)
    layout = source / mapping.NAME
    rules = mapping.read(layout) if layout.is_file() else None
    read_one = functools.partial(network.read, source, rules=rules, megabytes=megabytes, rank=rank)
    start = time.perf_counter()
    outlines = _checked(source, listing.rows, read_one)
    first = outlines[0]
    _tell_time(first, len(outlines), time.perf_counter() - start)
    base, unfit = _base(source, first, read_one)
    shapes = {p: shape for p, (shape, _) in first.shapes.items()}
    columns = Columns(shapes, len(listing.rows), megabytes * 1e6 / 2, scratch or Path(tempfile.gettempdir()))
    for i, row in enumerate(tqdm(listing.rows, desc="read", unit="network", delay=BAR_AFTER_S)):
        one = read_one(row)
        if one.outline.digest != outlines[i].digest:
            raise PdiffError(f"{source / row.file}: has changed while it was read; {AGAIN}")
        for path, value in one.arrays.items():
            columns.write(path, i, value.astype(np.float32))
    digest = hashlib.sha256("\n".join([*(o.digest for o in outlines), repr(listing.rows), str(rank)]).encode())
    digest.update(b"" if base is None else network.digest_of(base).encode())
    metadata, dropped = _shared([o.metadata for o in outlines])
    _, differing = _shared([o.beside for o in outlines])
    notes = [*listing.notes, *unfit, *_counted(outlines)]
    if dropped:
        notes.append(f"metadata that differs between networks is left out: {some(dropped)}")
    if differing:
        notes.append(f"{network.CONFIG} differs between networks in {some(differing)}; that of the first is kept")
    if first.adapter is not None:
        notes += _about_base([o.adapter for o in outlines])
    if rank:
        notes.append(_about_rank(listing.rows, outlines, rank))
    return Source(
        rows=tuple(listing.rows),
        columns=columns,
        leaves={p: Leaf(*first.shapes[p], first.places[p]) for p in first.shapes},
        base=base,
        adapter=first.adapter and functools.reduce(lora.shared, (o.adapter for o in outlines)),
        metadata=metadata,
        constants=one.constants,
        beside=first.beside if all(o.beside for o in outlines) else {},
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
    adapters = [o.adapter for o in outlines if o.adapter is not None]
    if any(lora.mixed(adapters[0], other) for other in adapters):
        rank = max(a.rank for a in adapters)
        faults.append(f"all: --config.zoo.rank={rank} brings every adapter to that rank and one scale, without loss")
    if not faults:
        first_of: dict[str, str] = {}
        for row, outline in zip(rows, outlines, strict=True):
            if (first := first_of.setdefault(outline.digest, row.file)) != row.file:  # in two splits, or counted twice
                faults.append(f"{row.file}: is bit for bit {first}; leave one of them out")
    if faults:
        raise Faults(str(source), faults)
    return outlines


def _tell_time(first: Outline, count: int, checked_s: float) -> None:
    """Says how much a large import is, and how long the rest may take, on a machine that took `checked_s` to check."""
    numbers = sum(math.prod(shape) for shape, _ in first.shapes.values())
    megabytes = 4e-6 * numbers * count
    seconds = megabytes * sum(1 / rate for kind, rate in RATES.items() if kind != "gauge" or first.adapter is not None)
    seconds *= max(1.0, checked_s * RATES["read"] / megabytes)
    if seconds > TELL_ABOVE_S:
        size = f"{count} networks of {numbers / 1e6:.1f} M parameters, {megabytes / 1e3:.1f} GB as float32"
        log.info("import: %s; about %s if this machine stays as busy as it is", size, in_words(seconds))


def _about_rank(rows: Sequence[Row], outlines: Sequence[Outline], rank: int) -> str:
    """What the common rank costs: the relative error of each network's updates, where it is more than rounding."""
    worst = sorted(((o.lost, r.file) for o, r in zip(outlines, rows, strict=True) if o.lost > 1e-6), reverse=True)
    lost = f"lost of the updates: {some((f'{file} {e:.2%}' for e, file in worst), 8)}"
    return f"zoo.rank: adapters are brought to rank {rank}; {lost if worst else 'no update loses anything'}"


def _about_base(adapters: Sequence[lora.Adapter]) -> list[str]:
    """A line where some adapters name their base model and others name none."""
    bases = [lora.base_of(a) for a in adapters]
    named = [b for b in bases if b]
    if len(named) in (0, len(bases)):
        return []
    kept = f"{shown(bases[0])}, as the first" if bases[0] else "none, as the first"
    return [f"{len(named)} of {len(bases)} adapters name a base model, {shown(named[0])}; what is written names {kept}"]


def _base(source: Path, first: Outline, read_one: Callable[[Row], Network]) -> tuple[Arrays | None, tuple[str, ...]]:
    """The base, and a line if one that lies there is left out."""
    if first.adapter is not None and (unfit := bases.left_out(source)):
        return None, (unfit,)
    file = bases.file_of(source)
    if file is None:
        return None, ()
    try:
        base = read_one(Row(file))
        if unfit := _unlike_base(first, base.outline):
            raise PdiffError(unfit)
    except PdiffError as e:
        if first.adapter is None or lora.is_adapter(source / file):
            raise PdiffError(f"{source / file}: {e}") from e
        return None, (bases.of_adapters(f"{file} {e}"),)
    return {p: a.astype(np.float32) for p, a in base.arrays.items()}, ()


def _unlike_base(first: Outline, base: Outline) -> str | None:
    """Why networks like `first` cannot have started from `base`; plain ones may lack some of its arrays."""
    if first.adapter is None:
        return "is an adapter, and the networks are not" if base.adapter is not None else None
    if base.adapter is not None and (fields := lora.differing(base.adapter, first.adapter)):
        return f"differs from the first network: {'; '.join(fields)}"
    shapes = [{p: shape for p, (shape, _) in outline.shapes.items()} for outline in (first, base)]
    return None if shapes[0] == shapes[1] else "holds other arrays than the adapters"


def _shared(found: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The entries that all have, and the names of those that some have otherwise or not at all."""
    shared = {k: v for k, v in found[0].items() if all(k in f and f[k] == v for f in found)}
    return shared, sorted({k for f in found for k in f} - set(shared))


def _counted(outlines: Sequence[Outline]) -> list[str]:
    """The notes on single networks, each once, and of how many networks it is."""
    counts = Counter(note for o in outlines for note in dict.fromkeys(o.notes))
    return [f"{note} (in {count} of {len(outlines)} networks)" for note, count in counts.items()]
