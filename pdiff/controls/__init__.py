"""Controls: what generated networks are compared with, in closed form and without training of its own.

A control is a frozen dataclass with `sample(tasks, count, random)`, which gives raw (not normalised) tokens of shape
(tasks, count, tokens, dim), and mostly `fit(zoo, …) -> control`. None sees a network of a held-out task.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float, Int

from pdiff.generator.generator import Generator
from pdiff.tasks import Family
from pdiff.weights import codec, stats


@dataclasses.dataclass(frozen=True)
class SeenZoo:
    """What a control may learn from: the seen networks as raw tokens, and their tasks.

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


def raw_by_task(
    generator: Generator, z: Float[np.ndarray, "samples _ _"], num_tasks: int
) -> Float[np.ndarray, "tasks count tokens dim"]:
    """Normal forms in task order as raw tokens, as many for each task."""
    if generator.coordinates:
        tokens = codec.encode_stacked(generator.spec, jax.tree.map(np.asarray, generator.denormalize(z)))
    else:
        tokens = np.asarray(stats.denormalize(generator.stats, z), np.float32)
    return tokens.reshape(num_tasks, -1, *tokens.shape[1:])
