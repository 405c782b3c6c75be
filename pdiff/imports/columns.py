"""Arrays of many networks by path: in memory if they fit, else in a file on disk that has no name.

A zoo is read network by network and written shard by shard, but some steps want one array of all networks at once: the
gauge of a module, the mean. So arrays lie column by column. The file is gone as soon as the process is, however that
ends.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pdiff.system import files

Rows = slice | list[int]


class Columns:
    """Float32 arrays by path with a leading axis of networks, zero at first.

    Args:
      shapes: of one network's arrays, by path.
      count: of networks.
      memory: bytes that all of it may take in memory.
      folder: on whose disk it lies otherwise.

    Raises:
      PdiffError: that disk has no room for it.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], count: int, memory: float, folder: Path):
        self.shapes, self._count = dict(shapes), count
        size = 4 * count * sum(map(math.prod, shapes.values()))
        self._arrays, self._file = {}, None
        if size <= memory:
            self._arrays = {path: np.zeros((count, *shape), np.float32) for path, shape in shapes.items()}
            return
        files.require_space(folder, size, "the networks that are imported")
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it is as long as these are
        sizes = [4 * count * math.prod(shape) for shape in shapes.values()]
        self._starts = dict(zip(shapes, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self._file.truncate(size)

    def __len__(self) -> int:
        return self._count

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def read(self, path: str, rows: Rows = slice(None)) -> Float[np.ndarray, "rows ..."]:
        """A copy of the array at `path` of some networks."""
        if self._file is None:
            return np.array(self._arrays[path][rows])
        numbers = np.arange(self._count)[rows]
        values = np.empty((len(numbers), *self.shapes[path]), np.float32)
        for flat, number in zip(values.reshape(len(numbers), -1), numbers.tolist(), strict=True):
            self._seek(path, number)
            self._file.readinto(memoryview(flat).cast("B"))
        return values

    def write(self, path: str, row: int, value: Float[np.ndarray, "..."]) -> None:
        """Sets the array at `path` of one network."""
        if self._file is None:
            self._arrays[path][row] = value
        else:
            self._seek(path, row)
            self._file.write(memoryview(np.ascontiguousarray(value, np.float32).reshape(-1)).cast("B"))

    def mean(self, path: str, rows: Sequence[int]) -> Float[np.ndarray, "..."]:
        """The mean of an array over some networks, computed in float64 from one at a time."""
        total = np.zeros(self.shapes[path])
        for row in rows:
            total += self.read(path, [row])[0]
        return np.asarray(total / len(rows), np.float32)

    def _seek(self, path: str, row: int) -> None:
        self._file.seek(self._starts[path] + 4 * row * math.prod(self.shapes[path]))
