"""Are generated networks copies of the zoo's?

Two distances to the nearest network that the generator learned from: the overlap of wrong answers
(intersection over union), and the L2 distance of weights. Each stands beside the same
distance of one zoo network to the others, which is what an honest new training run would show.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from pdiff.evaluators.accuracy import Scorer
from pdiff.tasks.base import Task


def iou_of_wrong(
    right_a: Bool[np.ndarray, "a images"], right_b: Bool[np.ndarray, "b images"]
) -> Float[np.ndarray, "a b"]:
    """Overlap of the images that networks get wrong, in [0, 1]; two networks without a wrong answer overlap fully."""
    a, b = (~right_a).astype(np.float32), (~right_b).astype(np.float32)
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def l2_distances(a: Float[np.ndarray, "a params"], b: Float[np.ndarray, "b params"]) -> Float[np.ndarray, "a b"]:
    """Euclidean distances between rows, computed in float64 so that a copy is at distance 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))


class ZooErrors:
    """Wrong answers of every zoo network on each of some tasks' images, computed once."""

    def __init__(
        self, score: Scorer, networks: PyTree[Float[np.ndarray, "nets ..."]], count: int, tasks: Sequence[Task]
    ):
        self._right = {t.id: score.right(networks, np.full(count, t.id)) for t in tasks}

    def overlap(self, task: int, right: Bool[np.ndarray, "nets images"]) -> Float[np.ndarray, "nets zoo"]:
        """IoU of wrong answers of some networks with every zoo network, all on the images of `task`."""
        return iou_of_wrong(right, self._right[task])

    def among(self, task: int, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows zoo"]:
        """The same for zoo networks themselves; a network's overlap with itself is NaN."""
        overlap = iou_of_wrong(self._right[task][rows], self._right[task])
        overlap[np.arange(len(rows)), rows] = np.nan
        return overlap


def spread(tokens: Float[np.ndarray, "tasks count params"]) -> Float[np.ndarray, " pairs"]:
    """L2 distances between every two networks of one task; near zero for a generator that has collapsed."""
    i, j = np.triu_indices(tokens.shape[1], 1)
    return np.sqrt(((tokens[:, i] - tokens[:, j]) ** 2).sum(-1)).reshape(-1)
