"""How far are networks from those of their task, where nothing but weights is known of them?

All is computed from inner products. Those of the weights are the plain ones. Adapters have a second space, that of
their updates, in which two adapters that do the same are one point however they are factored; its inner products
take products of factors alone: <B A, B' A'> = sum of (B^T B') * (A A'^T).

`distance` is in units of the zoo: the rms distance of the seen tasks' mean networks from the mean of them all, which
so scores about 1 itself. `relative_error` is the distance from the task's mean network by that network's own norm, or
by the zoo's unit where that norm is zero, as of an adapter that changes nothing. `cosine` is of the deviations from
the zoo's mean: 1 goes the task's way, 0 says nothing of it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Float, Int

BLOCK = 1 << 20  # columns that are in float64 at a time
MEASURES = ("distance", "relative_error", "cosine")

Params = dict[str, Float[np.ndarray, "_ ..."]]  # by path, with a leading axis of networks
Gram = Callable[[Params, Params], Float[np.ndarray, "a b"]]


def gram_of_weights(a: Params, b: Params) -> Float[np.ndarray, "a b"]:
    """Inner products of all weights, in float64."""
    return _of_arrays(a, b, a)


def gram_of_updates(a: Params, b: Params, scales: Mapping[str, float] | None = None) -> Float[np.ndarray, "a b"]:
    """Inner products of the updates scale * B A of all adapted modules; no update is computed.

    The ranks in `a` may be others than in `b`. Arrays beside the adapters, such as a head, count as they are.

    Args:
      scales: of each module, such as lora/MODULE; 1 where it is not there.
    """
    modules = [p[:-2] for p in a if p.endswith("/A")]
    total = _of_arrays(a, b, set(a) - {f"{m}/{side}" for m in modules for side in "AB"})
    for module in modules:
        square = (scales or {}).get(module, 1.0) ** 2
        a_in, a_out = a[f"{module}/A"].astype(np.float64), a[f"{module}/B"].astype(np.float64)
        for j in range(_count(b)):
            inner_in = a_in @ b[f"{module}/A"][j].astype(np.float64).T
            inner_out = a_out.swapaxes(1, 2) @ b[f"{module}/B"][j].astype(np.float64)
            total[:, j] += square * (inner_in * inner_out).sum((1, 2))
    return total


def _of_arrays(a: Params, b: Params, paths: Iterable[str]) -> Float[np.ndarray, "a b"]:
    total = np.zeros((_count(a), _count(b)))
    for path in paths:
        left, right = a[path].reshape(_count(a), -1), b[path].reshape(_count(b), -1)
        for start in range(0, left.shape[1], BLOCK):
            part = slice(start, start + BLOCK)
            total += left[:, part].astype(np.float64) @ right[:, part].astype(np.float64).T
    return total


def _count(params: Params) -> int:
    return len(next(iter(params.values())))


@dataclasses.dataclass(frozen=True)
class Inner:
    """All that measures need of some networks: inner products with `Reference.own` and `seen`, and with themselves."""

    own: Float[np.ndarray, "nets own"]
    seen: Float[np.ndarray, "nets seen"]
    square: Float[np.ndarray, " nets"]

    def repeated(self, count: int) -> "Inner":
        """As many copies of each network, one after the other."""
        return Inner(*(np.repeat(getattr(self, f.name), count, 0) for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Reference:
    """The networks of a split's tasks, and the zoo that a generator learned from, in one space.

    Attributes:
      gram: the inner product of the space.
      own, own_task: networks of the split's tasks, and the task of each.
      seen: the zoo; `unit` is its unit of distance.
    """

    gram: Gram
    own: Params
    own_task: Int[np.ndarray, " own"]
    seen: Params
    unit: float

    @classmethod
    def of(cls, gram: Gram, own: Params, own_task: np.ndarray, seen: Params, seen_task: np.ndarray) -> "Reference":
        """With the unit measured; for a zoo of one task it is the rms distance of networks from their mean."""
        inner = gram(seen, seen)
        groups = [np.flatnonzero(seen_task == t) for t in np.unique(seen_task)]
        groups = groups if len(groups) > 1 else [[i] for i in range(len(seen_task))]
        means = _averaging(groups, len(seen_task))
        means = means - means.mean(0)
        return cls(gram, own, own_task, seen, float(np.sqrt(np.einsum("ti,ij,tj->t", means, inner, means).mean())))

    def inner(self, nets: Params) -> Inner:
        """Inner products of networks with those that they are measured by."""
        return Inner(self.gram(nets, self.own), self.gram(nets, self.seen), _squares(self.gram, nets))

    def measures(self, nets: Params, task: Int[np.ndarray, " nets"]) -> dict[str, Float[np.ndarray, " nets"]]:
        """Each of MEASURES for network i against the mean of its task's own."""
        return self.measures_of(self.inner(nets), task)

    def measures_of(self, inner: Inner, task: Int[np.ndarray, " nets"]) -> dict[str, Float[np.ndarray, " nets"]]:
        """The same of networks that are known by their inner products alone."""
        return self._against(inner, _averaging([np.flatnonzero(self.own_task == t) for t in task], len(self.own_task)))

    def own_measures(self) -> tuple[dict[str, np.ndarray], Int[np.ndarray, " some"]] | None:
        """The same of each own network against the others of its task, and the tasks; None if all are alone."""
        task = self.own_task
        others = [np.setdiff1d(np.flatnonzero(task == t), [i]) for i, t in enumerate(task)]
        rows = np.array([i for i, o in enumerate(others) if len(o)], int)
        if not len(rows):
            return None
        mine = _averaging([others[i] for i in rows], len(task))
        return self._against(self.inner({p: v[rows] for p, v in self.own.items()}), mine), task[rows]

    def _against(self, inner: Inner, mine: Float[np.ndarray, "nets own"]) -> dict[str, np.ndarray]:
        to_own = (inner.own * mine).sum(1)
        own_own = np.einsum("ij,jk,ik->i", mine, self._own_own, mine)
        to_zoo, zoo_zoo = inner.seen.mean(1), self._zoo_zoo
        own_zoo = mine @ self._own_zoo
        square = inner.square
        distance = np.sqrt(np.maximum(square - 2 * to_own + own_own, 0))
        moved, wanted = square - 2 * to_zoo + zoo_zoo, own_own - 2 * own_zoo + zoo_zoo
        size = np.sqrt(np.maximum(moved, 0) * np.maximum(wanted, 0))
        there = (moved > 1e-10 * square) & (wanted > 1e-10 * own_own)  # else a deviation is rounding alone
        norm = np.where(own_own > 1e-10 * self.unit**2, np.sqrt(np.abs(own_own)), self.unit)
        return {
            "distance": distance / self.unit,
            "relative_error": distance / norm,
            "cosine": np.where(there, (to_own - to_zoo - own_zoo + zoo_zoo) / np.where(there, size, 1), 0),
        }

    @functools.cached_property
    def _own_own(self) -> Float[np.ndarray, "own own"]:
        return self.gram(self.own, self.own)

    @functools.cached_property
    def _own_zoo(self) -> Float[np.ndarray, " own"]:
        return self.gram(self.own, self.seen).mean(1)

    @functools.cached_property
    def _zoo_zoo(self) -> float:
        return float(self.gram(self.seen, self.seen).mean())

    def nearest(self, nets: Params, skip: Int[np.ndarray, " nets"] | None = None) -> Float[np.ndarray, " nets"]:
        """Distance of each network to the nearest of the zoo, in units of it; of network i not to `skip[i]` of it."""
        square = _squares(self.gram, nets)[:, None] - 2 * self.gram(nets, self.seen) + _squares(self.gram, self.seen)
        if skip is not None:
            square[np.arange(len(square)), skip] = np.inf
        return np.sqrt(np.maximum(square.min(1), 0)) / self.unit


def _averaging(groups: list, count: int) -> Float[np.ndarray, "groups count"]:
    """A row for each group of indices that averages over it."""
    rows = np.zeros((len(groups), count))
    for i, group in enumerate(groups):
        rows[i, group] = 1 / len(group)
    return rows


def _squares(gram: Gram, params: Params) -> Float[np.ndarray, " nets"]:
    """Squared norms, one network at a time."""
    networks = ({p: v[i : i + 1] for p, v in params.items()} for i in range(_count(params)))
    return np.array([gram(one, one)[0, 0] for one in networks])
