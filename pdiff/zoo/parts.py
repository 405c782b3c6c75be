"""The finished part of a zoo that is being built: files of consecutive networks, each named by its rows and its digest.

Rows count all networks of a zoo, split after split. Every process writes the networks of its own devices, and reads
those of all. So a build may continue with another number of processes.
"""

import bisect
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from pdiff.errors import AGAIN, PdiffError
from pdiff.system import files
from pdiff.zoo.networks import Networks

SUFFIX = "safetensors"


def to_bytes(networks: Networks) -> bytes:
    """Networks as safetensors, named by path."""
    flat = traverse_util.flatten_dict(dataclasses.asdict(networks), sep="/")
    return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in flat.items()})


def from_bytes(data: bytes) -> Networks:
    """What `to_bytes` wrote."""
    return Networks(**traverse_util.unflatten_dict(safetensors.numpy.load(data), sep="/"))


def read_or_make(where: Path, name: str, make: Callable[[], Networks]) -> Networks:
    """Reads the part `name`, or makes and keeps it; a damaged one is made again."""
    for path in where.glob(f"{name}-*.{SUFFIX}"):
        if _intact(path):
            return from_bytes(path.read_bytes())
        path.unlink(missing_ok=True)
    networks = jax.tree.map(np.asarray, make())
    _write(where, name, networks)
    return networks


def keep_rows(where: Path, start: int, networks: Networks) -> None:
    """Keeps the networks of rows `start` onwards."""
    _write(where, f"rows_{start:08d}_{start + len(networks):08d}", networks)


@dataclasses.dataclass(frozen=True)
class Part:
    """A file with the networks of rows `start` … `stop - 1`."""

    start: int
    stop: int
    path: Path

    def read(self, start: int, stop: int) -> Networks:
        """Some of its networks; no others are brought into memory."""
        with safetensors.safe_open(self.path, framework="np") as file:
            rows = slice(start - self.start, stop - self.start)
            flat = {name: file.get_slice(name)[rows] for name in file.keys()}  # noqa: SIM118  it is no mapping
        return Networks(**traverse_util.unflatten_dict(flat, sep="/"))


class Parts:
    """The parts that lie in the folder `where` when this is made."""

    def __init__(self, where: Path):
        parts = (_part(path) for path in Path(where).glob(f"rows_*.{SUFFIX}"))
        self._parts = sorted(parts, key=lambda p: p.start)
        self._longest = max((p.stop - p.start for p in self._parts), default=0)

    def hold(self, start: int, stop: int) -> bool:
        """Whether there are intact parts with all of these rows. Damaged ones are deleted."""
        while (chosen := self._covering(start, stop)) is not None:
            damaged = [part for part, _, _ in chosen if not _intact(part.path)]
            if not damaged:
                return True
            for part in damaged:
                part.path.unlink(missing_ok=True)
                self._parts.remove(part)
        return False

    def read(self, start: int, stop: int) -> Networks:
        """The networks of these rows, from parts that are taken to be intact.

        Raises:
          PdiffError: some are not there.
        """
        chosen = self._covering(start, stop)
        if chosen is None:
            raise PdiffError(f"zoo: networks {start} to {stop - 1} are not kept; {AGAIN} to make them")
        return Networks.concatenate([part.read(a, b) for part, a, b in chosen])

    def _covering(self, start: int, stop: int) -> list[tuple[Part, int, int]] | None:
        """Parts and the rows to take of each that are together the requested rows, or None."""
        chosen = []
        while start < stop:
            low, high = (
                bisect.bisect_right(self._parts, s, key=lambda p: p.start) for s in (start - self._longest, start)
            )
            best = max(self._parts[low:high], key=lambda p: p.stop, default=None)
            if best is None or best.stop <= start:
                return None
            end = min(best.stop, stop)
            chosen.append((best, start, end))
            start = end
        return chosen


@dataclasses.dataclass(frozen=True)
class Rows:
    """Consecutive rows of parts, read slice by slice."""

    parts: Parts
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice) -> Networks:
        first, last, _ = rows.indices(len(self))
        return self.parts.read(self.start + first, self.start + last)


def _part(path: Path) -> Part:
    _, start, stop = path.stem.rsplit("-", 1)[0].split("_")
    return Part(int(start), int(stop), path)


def _write(where: Path, name: str, networks: Networks) -> None:
    data = to_bytes(networks)
    files.write_atomic(where / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.{SUFFIX}", data)


def _intact(path: Path) -> bool:
    try:
        return files.sha256(path)[:16] == path.stem.rsplit("-", 1)[1]
    except FileNotFoundError:  # another process found it damaged, and deleted it
        return False
