"""Networks as the rows of a table of numbers, read a few columns at a time.

What is computed weight by weight (statistics, inner products, a basis) needs all networks at once, but only a slice of
their weights: so memory is that of a slice, whatever the networks' size. Networks that are in memory are read where
they are; others are copied to a file without a name, gone as soon as the process is, since a zoo on disk keeps each
network in one piece.
"""

import collections
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import threadpoolctl
from jaxtyping import Float, PyTree

from pdiff.errors import PdiffError
from pdiff.system import files
from pdiff.weights.spec import Spec, flatten

SLICE = 1 << 20  # elements of a slice, all networks together: 8 MiB as float64

Span = tuple[int, int, int]  # number of a leaf, and the first and the last but one of some of its weights


@runtime_checkable
class Table(Protocol):
    """Networks by rows, the generated weights by columns, in the order of the spec's leaves and without padding."""

    def __len__(self) -> int: ...

    def read(self, span: Span) -> Float[np.ndarray, "nets columns"]:
        """Some columns as float32; several threads may do so."""
        ...


def over(spec: Spec, table: Table, one: Callable[[Span, np.ndarray], Any]) -> Iterator:
    """`one(span, columns)` of all columns in order, slice by slice and several at a time."""
    return in_order(lambda span: one(span, table.read(span)), spans(spec, SLICE // len(table)))


def in_order(one: Callable[[Any], Any], items: Iterable) -> Iterator:
    """Results of `one` in order, from as many threads as there are cores, a few ahead of what is taken.

    Linear algebra within them does without threads of its own: for slices these cost more than they bring, by far where
    other processes have the cores too.
    """
    threads = len(os.sched_getaffinity(0))
    waiting: collections.deque[Future] = collections.deque()
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(one, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class InMemory:
    """The table of networks in memory, given as the generated part of their trees."""

    def __init__(self, spec: Spec, parts: PyTree[np.ndarray]):
        by_path = dict(flatten(parts))
        self._leaves = [by_path[leaf.path].reshape(len(by_path[leaf.path]), -1) for leaf in spec.leaves]
        self._spec = spec

    def __len__(self) -> int:
        return len(self._leaves[0])

    def read(self, span: Span) -> Float[np.ndarray, "nets columns"]:
        leaf, start, stop = span
        values, offset = self._leaves[leaf], self._spec.starts[leaf]
        return np.asarray(values[:, start - offset : stop - offset], np.float32)


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

    def read(self, span: Span) -> Float[np.ndarray, "nets columns"]:
        _, start, stop = span
        values = np.empty((self._count, stop - start), np.float32)
        for row in range(self._count):
            read_into(self._file.fileno(), values[row], 4 * (row * self._spec.num_params + start))
        return values


def spans(spec: Spec, most: int) -> Iterator[Span]:
    """All generated weights in order, at most `most` (at least one) together."""
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
