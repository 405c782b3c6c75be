"""The rows of the refined zoo, and those of them that stand for a set of tasks."""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from pdiff.tasks.language import TaskSet

MEMBERS = 32  # networks that stand for a set of tasks; a power of two, so that a mean of equal ones is exact


@flax.struct.dataclass
class RefinedZoo:
    """Rows of the refined zoo.

    Attributes:
      coefficients: of each network.
      means: those of the mean's network for the same condition; they differ only where the zoo itself is learned from.
      factors: of the task of each.
    """

    coefficients: Float[ArrayLike, "rows components"]
    means: Float[ArrayLike, "rows components"]
    factors: Float[ArrayLike, "rows factors"]

    @property
    def everything(self) -> Float[Array, "members components"]:
        """Networks that stand for no description: some of all rows, evenly."""
        return jnp.asarray(self.means)[np.linspace(0, len(self.means) - 1, MEMBERS).round().astype(int)]

    def rows_of(self, tasks: TaskSet) -> Int[np.ndarray, " some"]:
        """The rows whose tasks are in a set."""
        return np.flatnonzero(tasks.contains(np.asarray(self.factors, np.float64)))

    def draw(self, tasks: TaskSet, count: int, random: np.random.Generator) -> Int[np.ndarray, " count"]:
        """Rows in a set, drawn evenly: their counts differ by one at most. Empty if none is in the set."""
        rows = random.permutation(self.rows_of(tasks))
        return random.permutation(np.resize(rows, count)) if len(rows) else rows
