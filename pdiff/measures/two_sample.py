"""Do two sets of networks, generated and fine-tuned, look like draws from one distribution?

All but `leaf_distances` work on matrices of distances, so that they serve weight space and function space alike.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from pdiff.system.evenly import evenly

PERMUTATIONS = 999
NEIGHBOURS = 3  # k of Kynkäänniemi et al. 2019
MOST_WEIGHTS = 10_000  # of a leaf that are compared


def nearest_neighbour_test(distances: Sequence[Float[np.ndarray, "_ _"]], random: np.random.Generator) -> dict | None:
    """Leave-one-out 1-nearest-neighbour two-sample test (Lopez-Paz & Oquab 2017), of several tasks together.

    Above `expected`, the sets are told apart; below it, networks lie nearest to the other set's, as copies do (Xu et
    al. 2018). Networks equally near count in equal shares.

    Args:
      distances: of each task: among m networks of one set and then m of the other; tasks with m < 2 are left out.

    Returns:
      {"accuracy", "expected", "p_value", "n"}: the share of networks whose nearest neighbour is of their own set, what
      it is if both are one distribution, (m - 1) / (2m - 1), which is 0.5 for many, and the two-sided p-value of 999
      permutations of the labels within tasks. None if no task is left.
    """
    tasks = [d for d in distances if len(d) >= 4]
    if not tasks:
        return None
    n, same, permuted, expected = sum(map(len, tasks)), 0.0, np.zeros(PERMUTATIONS), 0.0
    for d in tasks:
        size = len(d)
        nearest, labels = _nearest_shares(d), np.repeat([1.0, -1.0], size // 2)
        shuffled = random.permuted(np.tile(labels, (PERMUTATIONS, 1)), axis=1)
        same += (size + labels @ nearest @ labels) / 2
        permuted += (size + ((shuffled @ nearest) * shuffled).sum(1)) / 2
        expected += size * (size // 2 - 1) / (size - 1)
    farther = np.abs(permuted - expected) >= abs(same - expected) - 1e-9
    p_value = (1 + farther.sum()) / (1 + PERMUTATIONS)
    return {"accuracy": float(same / n), "expected": expected / n, "p_value": float(p_value), "n": n}


def _nearest_shares(d: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Row i: 1 at the nearest neighbour of i, in equal shares if several are equally near."""
    d = d + np.diag(np.full(len(d), np.inf))
    nearest = d <= d.min(1, keepdims=True) + 1e-9
    return nearest / nearest.sum(1, keepdims=True)


def precision_recall(distances: Sequence[Float[np.ndarray, "_ _"]]) -> dict | None:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2) of a set against a reference.

    A set's manifold is the union of balls about its points, each as wide as the distance to the point's k-th nearest
    neighbour in the set, k = 3 or, with fewer points, all others.

    Args:
      distances: of each task: among m networks of the set and then m reference ones; tasks with m < 2 are left out.

    Returns:
      {"precision", "recall"}: the share of the set within the reference's manifold, and of the reference within the
      set's, in [0, 1], over all tasks. None if no task is left.
    """
    tasks = [d for d in distances if len(d) >= 4]
    if not tasks:
        return None
    within = [_within(d) for d in tasks]
    precision, recall = (float(np.concatenate(w).mean()) for w in zip(*within, strict=True))
    return {"precision": precision, "recall": recall}


def _within(d: Float[np.ndarray, "both both"]) -> tuple[np.ndarray, np.ndarray]:
    m = len(d) // 2
    k = min(NEIGHBOURS, m - 1)
    generated, real = (np.sort(d[s, s], 1)[:, k] for s in (slice(m), slice(m, None)))  # place 0 is the point itself
    across = d[:m, m:]
    return (across <= real[None]).any(1), (across <= generated[:, None]).any(0)


def leaf_distances(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> dict[str, float]:
    """How unlike two sets of weights of one leaf are distributed.

    Returns:
      {"ks", "wasserstein"}: the Kolmogorov–Smirnov statistic in [0, 1], and the Wasserstein-1 distance in standard
      deviations of `b`.
    """
    a, b = thinned(a), thinned(b)
    scale = max(float(b.std()), 1e-30)
    return {
        "ks": float(stats.ks_2samp(a, b, method="asymp").statistic),
        "wasserstein": float(stats.wasserstein_distance(a / scale, b / scale)),
    }


def thinned(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, " n"]:
    """At most MOST_WEIGHTS of the values, evenly chosen, as float64."""
    values = np.asarray(values, np.float64).reshape(-1)
    rows: Int[np.ndarray, " n"] = evenly(len(values), MOST_WEIGHTS)
    return values[rows]
