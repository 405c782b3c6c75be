"""What generated networks are compared with.

A baseline is a frozen dataclass with `fit(zoo, …) -> baseline` and `sample(tasks, count, random)`, which
gives raw (not normalised) tokens of shape (tasks, count, tokens, dim). None of them sees a network of
a held-out task.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from pdiff.tasks import Family


@dataclasses.dataclass(frozen=True)
class SeenZoo:
    """What a baseline may learn from: the seen networks as raw tokens, and their tasks.

    Attributes:
      tokens: (networks, tokens, dim).
      base: the pretrained base as tokens.
      task, seed: of each network.
    """

    family: Family
    tokens: Float[np.ndarray, "nets tokens dim"]
    base: Float[np.ndarray, "tokens dim"]
    task: Int[np.ndarray, " nets"]
    seed: Int[np.ndarray, " nets"]

    def rows_of(self, task: int) -> Int[np.ndarray, " rows"]:
        """Rows of the networks of a task."""
        return np.flatnonzero(self.task == task)
