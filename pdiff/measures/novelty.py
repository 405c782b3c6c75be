"""Are generated networks copies of the zoo's?

Distances to the networks that the generator learned from: the overlap of wrong answers (intersection over union), the
L2 distance and the cosine of weights, how much of the nearest network a network inherits, and how far it is from every
average of them. Each stands beside the same distance of a zoo network to the others, which is what an honest new
training run would show. A training run is a seed: minibatches are drawn from it alone, so networks of one seed, whether
of one task or of several, or kept at several steps, are never each other's reference.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import nnls

from pdiff.system.evenly import evenly


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


def cosine_distances(a: Float[np.ndarray, "a params"], b: Float[np.ndarray, "b params"]) -> Float[np.ndarray, "a b"]:
    """1 - cosine between rows, in [0, 2]; computed from unit vectors' L2 distance so that a copy is at 0."""
    a, b = (x / np.maximum(np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True), 1e-300) for x in (a, b))
    return l2_distances(a, b) ** 2 / 2


@dataclasses.dataclass(frozen=True)
class Compared:
    """The zoo networks that a task's networks are compared with.

    Attributes:
      rows: rows of the zoo: the task's own networks, then those of its nearest tasks.
      own: how many of them, at the front, are the task's own.
      run: the training run (seed) of each.
    """

    rows: Int[np.ndarray, " nets"]
    own: int
    run: Int[np.ndarray, " nets"]

    def others(self, chosen: Int[np.ndarray, " chosen"]) -> Bool[np.ndarray, "chosen nets"]:
        """Which of `rows` are a reference for the chosen ones of them: other runs; in a zoo of one run, all others."""
        if len(set(self.run.tolist())) > 1:
            return self.run[chosen][:, None] != self.run[None]
        return chosen[:, None] != np.arange(len(self.rows))[None]

    def references(self, most: int) -> Int[np.ndarray, " chosen"]:
        """Places in `rows` of the task's own networks that stand for its runs, at most `most`, evenly chosen.

        One for each run, the last that was kept of it; all where there is only one run.
        """
        last = {int(r): i for i, r in enumerate(self.run[: self.own])}
        rows = np.array(sorted(last.values())) if len(last) > 1 else np.arange(self.own)
        return rows[evenly(len(rows), most)]


def compared(
    task: Int[np.ndarray, " zoo"], run: Int[np.ndarray, " zoo"], nearest: Int[np.ndarray, " tasks"], most: int
) -> Compared:
    """The networks of a zoo that those of the task `nearest[0]` are compared with.

    All of its own, because a copy is to be found whichever it is of, and then those of the next tasks until there are
    `most` in all.

    Args:
      task: of each zoo network.
      run: of each zoo network.
      nearest: ids of the zoo's tasks from the nearest to the farthest, beginning with the task itself.
    """
    order = {int(t): i for i, t in enumerate(nearest)}
    place = np.array([order[int(t)] for t in task])
    of_task = np.flatnonzero(place == 0)
    near = np.argsort(place, kind="stable")
    rows = np.concatenate([of_task, near[place[near] > 0][: max(most - len(of_task), 0)]])
    return Compared(rows, len(of_task), run[rows])


def inherited(
    x: Float[np.ndarray, "nets params"],
    zoo: Float[np.ndarray, "zoo params"],
    nearest: Int[np.ndarray, " nets"],
    rest: Bool[np.ndarray, "nets zoo"],
) -> Float[np.ndarray, " nets"]:
    """The share of its nearest network's individuality that a network has: <x - m, z - m> / |z - m|^2.

    z is the nearest network and m the mean of the `rest`, which z must not be among. A copy of z has 1, and so has z
    with any amount of independent noise; the mean of k networks about 1/k; an independent network about 1/n, where n
    networks make m.
    """
    mean = rest @ zoo.astype(np.float64) / np.maximum(rest.sum(1, keepdims=True), 1)
    z = zoo[nearest] - mean
    return ((x - mean) * z).sum(1) / np.maximum((z**2).sum(1), 1e-300)


def average_distances(
    x: Float[np.ndarray, "nets params"], zoo: Float[np.ndarray, "zoo params"], others: Bool[np.ndarray, "nets zoo"]
) -> Float[np.ndarray, " nets"]:
    """L2 distance of each row to the nearest weighted average (weights at least 0, of sum 1) of its `others`.

    Non-negative least squares, with the sum as one more, heavy equation (Haskell & Hanson 1981, section 4).
    """
    both = np.concatenate([zoo, x]).astype(np.float64) - zoo.astype(np.float64).mean(0)
    # Columns with the rows' inner products, and so their distances, in as many dimensions as there are networks.
    squared, axes = np.linalg.eigh(both @ both.T)
    points = np.sqrt(np.maximum(squared, 0))[:, None] * axes.T
    averaged, wanted = points[:, : len(zoo)], points[:, len(zoo) :]
    heavy = 100 * max(np.linalg.norm(averaged, axis=0).max(), 1e-30)
    system = np.concatenate([averaged, np.full((1, len(zoo)), heavy)])
    distances = []
    for i, allowed in enumerate(others):
        weights, _ = nnls(system[:, allowed], np.append(wanted[:, i], heavy), maxiter=50 * len(zoo))
        distances.append(np.linalg.norm(averaged[:, allowed] @ (weights / weights.sum()) - wanted[:, i]))
    return np.array(distances)


def disagreement(predicted: Int[np.ndarray, "nets images"]) -> Float[np.ndarray, " pairs"]:
    """The share of images that every two networks answer differently, in [0, 1]."""
    i, j = np.triu_indices(len(predicted), 1)
    return np.array([(predicted[a] != predicted[b]).mean() for a, b in zip(i, j, strict=True)])


def spread(tokens: Float[np.ndarray, "tasks count params"]) -> Float[np.ndarray, " pairs"]:
    """L2 distances between every two networks of one task; near zero for a generator that has collapsed."""
    i, j = np.triu_indices(tokens.shape[1], 1)
    return np.sqrt(((tokens[:, i] - tokens[:, j]) ** 2).sum(-1)).reshape(-1)
