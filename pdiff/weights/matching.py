"""Networks of independent initialisations in one order of their hidden units (Ainsworth et al. 2023, Git Re-Basin)."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float, Int, PyTree
from scipy.optimize import linear_sum_assignment

from pdiff.weights.permutations import PermutationSpec, permuted
from pdiff.weights.spec import flatten

MAX_SWEEPS = 100  # of coordinate descent; it takes a few, and each costs one assignment for each permutation
MAX_ROUNDS = 20  # of matching to the mean; few units change after so many
RELATIVE_RISE = 1e-9  # of the objective, below which a rise is rounding; without it equal units could change for ever

Stack = PyTree[Float[np.ndarray, "nets ..."]]


@dataclasses.dataclass(frozen=True)
class Matching:
    """Attributes:
    permutations: for `apply_permutation`.
    objective: the inner product with the reference before the first change and after each, rising.
    """

    permutations: dict[str, Int[np.ndarray, " _"]]
    objective: tuple[float, ...]


def weight_matching(spec: PermutationSpec, reference: PyTree, params: PyTree) -> Matching:
    """The order of the units of `params` in which its inner product with `reference` is large, so the distance small.

    Coordinate descent (algorithm 1 there): with the others held fixed, the best permutation is a linear assignment.
    It ends where no permutation alone can do better, which for one hidden layer is the best of all, and for more a
    local optimum. Both trees have exactly the leaves of `spec`. Runs on the host, in float64.
    """
    a, b = ({path: np.asarray(leaf, np.float64) for path, leaf in flatten(tree)} for tree in (reference, params))
    orders = {name: np.arange(units.size) for name, units in spec.units.items()}
    objective = [sum(float(np.vdot(a[path], b[path])) for path in spec.axes)]
    least = RELATIVE_RISE * np.sqrt(sum(np.vdot(x, x) for x in a.values()) * sum(np.vdot(x, x) for x in b.values()))
    for _ in range(MAX_SWEEPS):
        before = len(objective)
        for name, units in spec.units.items():
            gain = _gain(spec, name, a, b, orders)
            order = _assign(gain, units.groups)
            rise = _total(gain, order) - _total(gain, orders[name])
            if rise > least:
                orders[name] = order
                objective.append(objective[-1] + rise)
        if len(objective) == before:
            break
    return Matching(orders, tuple(objective))


def align(spec: PermutationSpec, networks: Stack, reference: PyTree) -> Stack:
    """Every network, of a stack of them, matched to `reference`. NumPy throughout: nothing compiles."""
    flat = {path: np.array(leaf) for path, leaf in flatten(networks)}
    for i in range(len(next(iter(flat.values())))):
        orders = weight_matching(spec, reference, _row(networks, i)).permutations
        for path, names in spec.axes.items():
            flat[path][i] = permuted(flat[path][i], names, orders)
    return traverse_util.unflatten_dict(flat, sep="/")


def align_to_mean(spec: PermutationSpec, networks: Stack) -> tuple[Stack, PyTree]:
    """Networks matched to the first of them, then to their mean until that settles; and the mean, for others to match.

    As MergeMany there (algorithm 3), with the mean of all in place of all but one. A round can only lower the summed
    squared distance to the mean, as in k-means, so it settles.
    """
    aligned = align(spec, networks, _row(networks, 0))
    for _ in range(MAX_ROUNDS):
        mean = jax.tree.map(lambda a: a.mean(0, dtype=np.float64), aligned)
        again = align(spec, aligned, mean)
        if all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (aligned, again)), strict=True)):
            break
        aligned = again
    return aligned, mean


def _row(networks: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda a: a[i], networks)


def _gain(spec: PermutationSpec, name: str, a: Mapping, b: Mapping, orders: Mapping) -> Float[np.ndarray, "n n"]:
    """What unit j of `b` adds to the inner product in the place of unit i of `a`, the others being where they are."""
    total = 0.0
    for path, names in spec.axes.items():
        if name in names:
            axis = names.index(name)
            x, y = a[path], permuted(b[path], names, orders, but=name)
            x, y = (np.moveaxis(leaf, axis, 0).reshape(leaf.shape[axis], -1) for leaf in (x, y))
            total = total + x @ y.T
    return total


def _assign(gain: Float[np.ndarray, "units units"], groups: int) -> Int[np.ndarray, " units"]:
    """The allowed permutation of the largest total gain: an assignment of groups by their own best assignments."""
    if groups == 1:
        return linear_sum_assignment(gain, maximize=True)[1]
    size = len(gain) // groups
    blocks = gain.reshape(groups, size, groups, size).swapaxes(1, 2)
    within = np.array([[_assign(block, 1) for block in row] for row in blocks])
    best = np.array([[_total(b, w) for b, w in zip(*row, strict=True)] for row in zip(blocks, within, strict=True)])
    source = _assign(best, 1)
    return np.concatenate([size * g + within[i, g] for i, g in enumerate(source)])


def _total(gain: Float[np.ndarray, "units units"], order: Int[np.ndarray, " units"]) -> float:
    return float(gain[np.arange(len(order)), order].sum())
