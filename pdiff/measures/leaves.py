"""Generated weights leaf by leaf: how they are distributed, and how a kernel looks beside its nearest zoo network's."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdiff.measures.two_sample import leaf_distances, thinned
from pdiff.system.evenly import evenly
from pdiff.weights.spec import Spec

BINS = 40
MOST_EXAMPLES = 3
MOST_SIDE = 64  # rows and columns of a kernel that are shown

Flat = Float[np.ndarray, "_ params"]


def compare(spec: Spec, tasks: Sequence[tuple[Flat, Flat]]) -> list[dict]:
    """For each generated leaf: distances of the distributions of its weights, and histograms.

    Args:
      tasks: generated and zoo networks of each task, as flat tokens.

    Returns:
      For each leaf {"path", "ks", "wasserstein", "edges", "generated", "zoo"}: see `two_sample.leaf_distances`;
      densities between `edges`; and, where tasks have two zoo networks, `zoo_ks` and `zoo_wasserstein` of one half of
      them against the other.
    """
    which, rows = spec.element_leaf.reshape(-1), []
    for i, leaf in enumerate(spec.leaves):
        of_leaf = which == i
        drawn, zoo = (np.concatenate([t[j][:, of_leaf].reshape(-1) for t in tasks]) for j in (0, 1))
        if not len(drawn):
            continue
        row = {"path": leaf.path, **leaf_distances(drawn, zoo), **_histograms(drawn, zoo)}
        halves = [t[len(t) % 2 :, of_leaf] for _, t in tasks if len(t) > 1]
        if halves:
            a, b = (np.concatenate([h[j::2].reshape(-1) for h in halves]) for j in (0, 1))
            row |= {f"zoo_{n}": v for n, v in leaf_distances(a, b).items()}
        rows.append(row)
    return rows


def _histograms(drawn: Float[np.ndarray, " n"], zoo: Float[np.ndarray, " m"]) -> dict:
    drawn, zoo = thinned(drawn), thinned(zoo)
    low, high = np.quantile(np.concatenate([drawn, zoo]), [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    counts = (np.histogram(np.clip(v, edges[0], edges[-1]), edges, density=True)[0] for v in (drawn, zoo))
    return {"edges": edges.tolist(), **{n: c.tolist() for n, c in zip(("generated", "zoo"), counts, strict=True)}}


def examples(spec: Spec, tasks: Sequence[tuple[int, Flat, Flat, Flat]]) -> list[dict]:
    """The first kernel of a few generated networks and of the zoo network that is nearest in L2 of all weights.

    Args:
      tasks: of each task its id, generated networks, each one's nearest zoo network, and that one's own nearest.

    Returns:
      {"task", "path", "generated", "nearest", "next"}: at most MOST_SIDE rows (inputs) and columns (outputs).
    """
    i = next((i for i, leaf in enumerate(spec.leaves) if len(leaf.shape) > 1), 0)
    leaf, of_leaf = spec.leaves[i], spec.element_leaf.reshape(-1) == i
    places = [(t, j) for t in range(len(tasks)) for j in range(len(tasks[t][1]))]
    chosen = evenly(len(places), MOST_EXAMPLES)
    rows = []
    for t, j in (places[c] for c in chosen):
        task, *networks = tasks[t]
        kernels = [_corner(v[j][of_leaf], leaf.shape) for v in networks]
        by_name = dict(zip(("generated", "nearest", "next"), kernels, strict=True))
        rows.append({"task": task, "path": leaf.path} | by_name)
    return rows


def _corner(values: Float[np.ndarray, " n"], shape: tuple[int, ...]) -> list[list[float]]:
    table = values.reshape(-1, shape[-1] if shape else 1)[:MOST_SIDE, :MOST_SIDE]
    return [[round(float(v), 4) for v in row] for row in table]
