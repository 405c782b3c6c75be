"""Networks as the rows of a table of numbers, read a few columns at a time.

What is computed weight by weight (statistics, inner products, a basis) needs all networks at once, but only a slice of
their weights: so memory is that of a slice, whatever the networks' size. Networks that are in memory are read where
they are; others are copied to a file without a name, gone as soon as the process is, since a zoo on disk keeps each
network in one piece.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, PyTree

from pdiff.errors import PdiffError
from pdiff.system import files
from pdiff.weights.spec import Spec, flatten

SLICE = 1 << 22  # elements of a slice, all networks together: 32 MiB as float64

Columns = tuple[int, int, Float[np.ndarray, "nets columns"]]


@runtime_checkable
class Table(Protocol):
    """Networks by rows, the generated weights by columns, in the order of the spec's leaves and without padding."""

    def __len__(self) -> int: ...

    def slices(self) -> Iterator[Columns]:
        """(start, stop, float32 array of columns `start` … `stop - 1`), in order, each within one leaf."""
        ...


class InMemory:
    """The table of networks in memory, given as the generated part of their trees."""

    def __init__(self, spec: Spec, parts: PyTree[np.ndarray]):
        by_path = dict(flatten(parts))
        self._leaves = [by_path[leaf.path].reshape(len(by_path[leaf.path]), -1) for leaf in spec.leaves]
        self._spec = spec

    def __len__(self) -> int:
        return len(self._leaves[0])

    def slices(self) -> Iterator[Columns]:
        for leaf, start, stop in spans(self._spec, SLICE // len(self)):
            values, offset = self._leaves[leaf], self._spec.starts[leaf]
            yield start, stop, np.asarray(values[:, start - offset : stop - offset], np.float32)


class OnDisk:
    """The table of networks that come block by block, in a file without a name in `folder`.

    Raises:
      PdiffError: the disk has no room for it.
    """

    def __init__(self, spec: Spec, blocks: Iterable[PyTree[np.ndarray]], count: int, folder: Path):
        files.require_space(folder, 4 * count * spec.num_params, "the table of the zoo's weights")
        self._spec, self._count = spec, count
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it is as long as these are
        written = 0
        for block in blocks:
            by_path = dict(flatten(block))
            for row in range(len(by_path[spec.leaves[0].path])):
                for leaf in spec.leaves:
                    self._file.write(memoryview(np.ascontiguousarray(by_path[leaf.path][row], np.float32).reshape(-1)))
                written += 1
            del block, by_path  # before the next comes
        self._file.flush()
        if written != count:
            raise PdiffError(f"the zoo has {written} networks; expected: {count}")

    def __len__(self) -> int:
        return self._count

    def slices(self) -> Iterator[Columns]:
        for _, start, stop in spans(self._spec, SLICE // self._count):
            values = np.empty((self._count, stop - start), np.float32)
            for row in range(self._count):
                read_into(self._file.fileno(), values[row], 4 * (row * self._spec.num_params + start))
            yield start, stop, values


def spans(spec: Spec, most: int) -> Iterator[tuple[int, int, int]]:
    """(number of the leaf, start, stop) of all generated weights in order, at most `most` (at least one) together."""
    for number, leaf in enumerate(spec.leaves):
        first = spec.starts[number]
        for start in range(first, first + leaf.size, max(1, most)):
            yield number, start, min(start + max(1, most), first + leaf.size)


def read_into(descriptor: int, values: np.ndarray, offset: int) -> None:
    """Fills a contiguous array with the bytes of an open file from `offset` on; several threads may do so.

    Raises:
      OSError: the file ends before.
    """
    view = memoryview(values.reshape(-1).view(np.uint8))
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise OSError(f"a file of weights ends {len(view)} bytes too early")
        view, offset = view[count:], offset + count
