"""Networks of a zoo: in memory, or with their parameters on disk where there are too many of them."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import ArrayLike, Bool, Float, Int, PyTree, Shaped

READ_TOGETHER = 256  # records that are decoded at a time


@dataclasses.dataclass(frozen=True)
class Columns:
    """What is in memory of each network, wherever its parameters are; `[rows]` of a subclass has them too.

    Attributes:
      task: task ids; -1 for the base and for task-blind networks.
      seed: fine-tuning seed.
      step: updates done when the network was kept.
      validation_accuracy, test_accuracy: on the task's own images.
    """

    task: Int[ArrayLike, " nets"]
    seed: Int[ArrayLike, " nets"]
    step: Int[ArrayLike, " nets"]
    validation_accuracy: Float[ArrayLike, " nets"]
    test_accuracy: Float[ArrayLike, " nets"]

    def __len__(self) -> int:
        return len(self.task)

    def blocks(self, rows: int) -> Iterator["Networks"]:
        """All of them in order, with the parameters of at most `rows` at a time."""
        return (self[start : start + rows] for start in range(0, len(self), rows))


COLUMNS = tuple(f.name for f in dataclasses.fields(Columns))


@dataclasses.dataclass(frozen=True)
class Networks(Columns):
    """Fine-tuned networks of one split, stacked.

    Attributes:
      params: the generated part of the tree, or (the base's) the whole of it, with a leading axis.
    """

    params: PyTree[Shaped[ArrayLike, "nets ..."]]

    def __getitem__(self, rows) -> "Networks":
        return jax.tree.map(lambda a: a[rows], self)

    @property
    def params_bytes(self) -> int:
        """Size of all parameters."""
        return sum(a.nbytes for a in jax.tree.leaves(self.params))

    @staticmethod
    def concatenate(parts: list["Networks"]) -> "Networks":
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)


jax.tree_util.register_dataclass(Networks)


@dataclasses.dataclass(frozen=True)
class StoredNetworks(Columns):
    """Networks as `Networks` has them, but for `params`, which stay on disk: `[rows]` reads those of some.

    Attributes:
      source: records by number, as a TFDS data source gives them. It may be read by several threads.
      shapes: the parameters of one network, abstractly.
      memory: how many bytes of parameters may be in memory at once (`in_memory`).
    """

    source: Sequence[dict]
    shapes: PyTree[jax.ShapeDtypeStruct]
    memory: float

    def __getitem__(self, rows: slice | Int[np.ndarray, " some"] | Bool[np.ndarray, " nets"]) -> Networks:
        index = np.arange(len(self))[rows]
        flat = traverse_util.flatten_dict(self.shapes, sep="/")
        params = {path: np.empty((len(index), *s.shape), s.dtype) for path, s in flat.items()}
        for start in range(0, len(index), READ_TOGETHER):
            records = self.source.__getitems__(index[start : start + READ_TOGETHER].tolist())
            for i, record in enumerate(records, start):
                for path, value in traverse_util.flatten_dict(record["params"], sep="/").items():
                    params[path][i] = value
        others = {n: getattr(self, n)[index] for n in COLUMNS}
        return Networks(params=traverse_util.unflatten_dict(params, sep="/"), **others)

    @property
    def params_bytes(self) -> int:
        """Size of all parameters, if they were in memory."""
        return len(self) * tree_bytes(self.shapes)


def tree_bytes(shapes: PyTree[jax.ShapeDtypeStruct]) -> int:
    """Size of the arrays of a tree, which may be abstract."""
    return sum(s.size * s.dtype.itemsize for s in jax.tree.leaves(shapes))
