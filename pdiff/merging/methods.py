"""Methods that merge updates of one module, or of one array, as functions of numbers alone.

| method | what it does | source |
| --- | --- | --- |
| mean | the mean | Ilharco et al. 2023, task arithmetic with weights 1 / n |
| svd | the mean, cut off at the adapters' rank | PEFT, `combination_type="svd"` |
| ties | keep the largest numbers of each, elect a sign for each place, mean of those that have it | Yadav et al. 2023 |
| dare | drop numbers at random, scale up the rest, mean | Yu et al. 2024 |
| dare_ties | drop and scale as dare, then elect signs as ties | mergekit, PEFT |
| lerp, slerp | on the line, or on the arc, between two | mergekit |

Twice the updates give twice the merge, so a scale that all updates of a module share does not matter. The trimming of
TIES is of a whole network in its paper, and of a module here, as in PEFT, which bounds memory. Updates come one at a
time, and what is kept does not grow with their number.
"""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float

LINEAR, ELEMENTWISE, BETWEEN = ("mean", "svd"), ("ties", "dare", "dare_ties"), ("lerp", "slerp")
METHODS = (*LINEAR, *ELEMENTWISE, *BETWEEN)
DENSITY = {"ties": 0.2, "dare": 0.1, "dare_ties": 0.1}  # the share that is kept; as in the papers
PARALLEL = 0.9995  # of the cosine, beyond which an arc is a line; as in mergekit

Array = Float[np.ndarray, "..."]


def weights(method: str, t: float, count: int, inner: Callable[[int, int], float]) -> tuple[float, ...]:
    """What each of `count` updates counts in a merge that is a weighted sum: one of LINEAR or BETWEEN.

    Args:
      t: from the first of two (0) to the second (1).
      inner: of the updates with these numbers, their inner product; only slerp asks for it.
    """
    if method in LINEAR:
        return (1 / count,) * count
    if method == "lerp":
        return 1 - t, t
    return slerp_weights(inner(0, 0), inner(0, 1), inner(1, 1), t)


def slerp_weights(aa: float, ab: float, bb: float, t: float) -> tuple[float, float]:
    """What a and b count on the arc between them (Shoemake 1985), from their inner products.

    With the angle w between them, sin((1 - t) w) / sin(w) and sin(t w) / sin(w); those of the line where they are
    nearly parallel or opposite (PARALLEL), or one of them is zero.
    """
    size = np.sqrt(aa * bb)
    cosine = ab / size if size > 0 else 1.0
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = np.arccos(cosine)
    return float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def elementwise(method: str, updates: Iterable[Array], density: float, random: np.random.Generator) -> Array:
    """A merge by single numbers, one of ELEMENTWISE, of updates of one shape."""
    if method == "ties":
        return disjoint_mean(trimmed(u, density) for u in updates)
    dropped = (kept_at_random(u, density, random) for u in updates)
    return disjoint_mean(dropped) if method == "dare_ties" else _mean(dropped)


def trimmed(update: Array, density: float) -> Array:
    """Zero but for the share `density` of largest magnitude, at least one (Yadav et al. 2023, 4.2, step 1).

    Those of equal magnitude are kept together.
    """
    size = np.abs(update).reshape(-1)
    keep = max(1, int(density * size.size))
    least = np.partition(size, size.size - keep)[size.size - keep]
    return np.where(np.abs(update) >= least, update, 0)


def kept_at_random(update: Array, density: float, random: np.random.Generator) -> Array:
    """Each number with probability `density`, then divided by it, else 0 (Yu et al. 2024, eqs. 2 and 3).

    The drop rate of the paper is 1 - density. The expectation is the update itself.
    """
    kept = random.random(update.shape, np.float32) < density
    return np.where(kept, update / np.asarray(density, update.dtype), 0)


def disjoint_mean(updates: Iterable[Array]) -> Array:
    """At each place, the mean of the numbers that have the elected sign (Yadav et al. 2023, 4.2, steps 2 and 3).

    Elected is the sign of the sum, so that with the larger total magnitude, and plus where they are even. Zeros do
    not count.
    """
    sums, counts = None, None
    for update in updates:
        if sums is None:
            sums, counts = np.zeros((2, *update.shape), update.dtype), np.zeros((2, *update.shape), np.int32)
        for side, has in enumerate((update > 0, update < 0)):
            sums[side] += np.where(has, update, 0)
            counts[side] += has
    means = sums / np.maximum(counts, 1).astype(sums.dtype)
    return np.where(sums[0] + sums[1] >= 0, means[0], means[1])


def _mean(updates: Iterable[Array]) -> Array:
    total, count = None, 0
    for update in updates:
        total, count = update if total is None else total + update, count + 1
    return total / np.asarray(count, total.dtype)
