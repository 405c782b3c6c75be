"""Merges of seen networks as controls for held-out tasks: what people make of adapters that they have, untrained.

For adapters all is measured on updates. A merge has more ranks than the adapters, so each stands in two rows: exactly,
and as the nearest network of the adapters' rank, which could be loaded (`…_svd`; of the mean it is `merged_svd`).
Of the mean, TIES and DARE there is one network for all tasks; lines and arcs go between two seen tasks, at the place
that factors or numbers in descriptions give. Several networks of a task count as their mean.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer

from pdiff.measures.weight_space import MEASURES, Inner, Params, Reference
from pdiff.merging import methods, networks, updates
from pdiff.merging.networks import Members, Method
from pdiff.system.logs import log
from pdiff.tasks.base import Family, Task
from pdiff.tasks.plain import NUMBER, numbers, plain

DENSITIES = (0.1, 0.2, 0.5, 0.8)  # of TIES and DARE, among which validation tasks choose
MOST_NUMBERS = 1e10  # that TIES and DARE go through, all together; some minutes

Measures = dict[str, Float[np.ndarray, "tasks 1"]]


@dataclasses.dataclass(frozen=True)
class Merges:
    """Merges of the seen networks, against the networks of each split.

    Attributes:
      members: the seen networks, a member for each of the family's seen tasks.
      references: by split, in the space that the merges are in: of updates for adapters, else of weights.
      choosing: the tasks that densities are chosen on.
      scales: of the updates of each module; 1 where it is not there.
      seed: of what DARE drops.
    """

    family: Family
    members: Members
    references: Mapping[str, Reference]
    choosing: tuple[Task, ...]
    scales: Mapping[str, float]
    seed: int

    def measures(self, tasks: Sequence[Task]) -> dict[str, Measures]:
        """By control, each of MEASURES for tasks of one split."""
        found = {}
        for name, products in self._blind.items():
            found[name] = self._measured([products] * len(tasks), tasks)
        for name in methods.BETWEEN:
            pairs = [self._between(Method(name, t=t), a, b) for a, b, t in (between(self.family, t) for t in tasks)]
            named = [_named(name, *pair) for pair in pairs]
            found |= {n: self._measured([products[n] for products in named], tasks) for n in named[0]}
        return found

    @functools.cached_property
    def densities(self) -> dict[str, float]:
        """The share of numbers that TIES and DARE keep, as validation tasks choose; empty where neither applies."""
        if not self.members.adapters and self.members.base is None:
            return {}
        if self.members.numbers * 2 * (len(DENSITIES) + 1) > MOST_NUMBERS:
            log.info("controls: TIES and DARE are left out, as these networks are large; --mode=merge makes them")
            return {}

        def score(name: str, density: float) -> float:
            products, _ = self._products(Method(name, density, seed=self.seed), self.members, exact_only=True)
            return float(self._measured([products] * len(self.choosing), self.choosing)["distance"].mean())

        return {n: min(DENSITIES, key=functools.partial(score, n)) for n in ("ties", "dare")}

    @functools.cached_property
    def _blind(self) -> dict[str, "_Products"]:
        """Of the merges that are the same for all tasks; the mean of networks that are no adapters is the soup."""
        chosen = {n: Method(n, density, seed=self.seed) for n, density in self.densities.items()}
        chosen = {"mean": Method("mean")} | chosen if self.members.adapters else chosen
        products = {n: _named(n, *self._products(m, self.members)) for n, m in chosen.items()}
        return {n: p for named in products.values() for n, p in named.items()}

    def _between(self, method: Method, a: Task, b: Task) -> tuple["_Products", "_Products | None"]:
        ids = [t.id for t in self.family.split("seen")]
        groups = [self.members.groups[ids.index(task.id)] for task in (a, b)]
        return self._products(method, dataclasses.replace(self.members, groups=groups))

    def _products(
        self, method: Method, members: Members, exact_only: bool = False
    ) -> tuple["_Products", "_Products | None"]:
        """Of a merge, and of the network of the adapters' rank next to it; a module at a time is in memory."""
        near_too = members.adapters and not exact_only
        exact, near = _Products.of(self.references), _Products.of(self.references) if near_too else None
        for name, update in networks.merged(method, members):
            weight = self.scales.get(name, 1.0) ** 2
            exact.add(name, update, weight)
            if near is not None:
                is_array = name in members.params
                rank = 0 if is_array else members.params[f"{name}/A"].shape[1]
                near.add(name, update if is_array else updates.truncated(update, rank), weight)
        return exact, near

    def _measured(self, products: Sequence["_Products"], tasks: Sequence[Task]) -> Measures:
        split = tasks[0].split
        found = self.references[split].measures_of(_Products.inner(products, split), np.array([t.id for t in tasks]))
        return {m: found[m][:, None] for m in MEASURES}


@dataclasses.dataclass
class _Products:
    """Inner products of one merge with the networks of each split, and with itself, summed up by module."""

    networks: Mapping[str, Params]
    sums: dict[str, Float[np.ndarray, " nets"]]
    square: float = 0.0

    @classmethod
    def of(cls, references: Mapping[str, Reference]) -> "_Products":
        own = {split: r.own for split, r in references.items()}
        return cls(own, {split: np.zeros(len(r.own_task)) for split, r in references.items()})

    def add(self, name: str, update: networks.Merged, weight: float) -> None:
        """Another module, or an array where networks have one of this name."""
        for split, params in self.networks.items():
            if name in params:
                flat = params[name].reshape(len(params[name]), -1)
                self.sums[split] += flat.astype(np.float64) @ update.reshape(-1).astype(np.float64)
            else:
                self.sums[split] += weight * updates.inner(update, params[f"{name}/B"], params[f"{name}/A"])
        is_array = name in self.networks["seen"]
        if is_array:
            self.square += float(np.vdot(update, update.astype(np.float64)))
        else:
            self.square += weight * updates.square(update)

    @staticmethod
    def inner(several: Sequence["_Products"], split: str) -> Inner:
        """As what is measured of networks of a split."""
        sums = {s: np.stack([p.sums[s] for p in several]) for s in (split, "seen")}
        return Inner(sums[split], sums["seen"], np.array([p.square for p in several]))


def between(family: Family, task: Task) -> tuple[Task, Task, float]:
    """Two seen tasks other than `task`, and where it lies on the line from the first (0) to the second (1).

    The first is the nearest. The second is, of those that lie in the direction of the task as seen from the first, the
    nearest, counting how far the line to it passes by the task; or the second nearest where there is none. The place is
    the projection, from 0 to 1. All this is of factors; without factors, of the numbers in descriptions, among the
    tasks whose descriptions are otherwise the same. Where there are no two such, the two with the most similar words
    are taken, half way.
    """
    seen = [t for t in family.split("seen") if t.id != task.id]
    if family.factor_names:
        places = family.factors([*seen, task]).astype(np.float64)
    else:
        seen, places = _numbered(seen, task)
    if not len(places):
        seen = _by_words([t for t in family.split("seen") if t.id != task.id], task)
        return seen[0], seen[1], 0.5
    apart = np.linalg.norm(places[:-1] - places[-1], axis=1)
    order = np.argsort(apart, kind="stable")
    first, second = order[0], order[1]
    line, gap = places[:-1] - places[first], places[-1] - places[first]
    length = (line**2).sum(1)
    along = line @ gap / np.where(length > 0, length, 1)
    passes = np.linalg.norm(gap - np.clip(along, 0, 1)[:, None] * line, axis=1)
    if (along > 0).any():
        second = np.where(along > 0, apart + passes, np.inf).argmin()
    return seen[first], seen[second], float(np.clip(along[second], 0, 1))


def _numbered(seen: Sequence[Task], task: Task) -> tuple[list[Task], Float[np.ndarray, "tasks numbers"]]:
    """Those of the seen tasks whose description is the task's but for the numbers in it, and these numbers, the task's
    last, in units of their spread; nothing where there are no two, or no numbers."""
    wanted = _words_and_numbers(task)
    alike = [t for t in seen if _words_and_numbers(t)[0] == wanted[0] and wanted[1]]
    if len(alike) < 2:
        return [], np.zeros((0, 0))
    places = np.array([_words_and_numbers(t)[1] for t in (*alike, task)])
    return alike, places / np.maximum(places[:-1].std(0), 1e-9)


def _words_and_numbers(task: Task) -> tuple[str, list[float]]:
    """The first description without its numbers, which leave a mark, and the numbers."""
    text = plain(task.descriptions[0])
    return NUMBER.sub("#", text), numbers(text)


def _by_words(seen: Sequence[Task], task: Task) -> list[Task]:
    """The seen tasks, those first whose descriptions are nearest by their letters in ones, twos and threes."""
    texts = [plain(t.descriptions[0]) for t in (*seen, task)]
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit_transform(texts).toarray()
    order = np.argsort(np.linalg.norm(features[:-1] - features[-1], axis=1), kind="stable")
    return [seen[i] for i in order]


def _named(name: str, exact: _Products, near: _Products | None) -> dict[str, _Products]:
    near_name = "merged_svd" if name == "mean" else f"merged_{name}_svd"
    return {f"merged_{name}": exact} | ({near_name: near} if near is not None else {})


def members_of(family: Family, params: Params, task: np.ndarray, base: Params | None, adapters: bool) -> Members:
    """The seen networks, by path, a member for each seen task; `base` has a leading axis of 1."""
    groups = [np.flatnonzero(task == t.id) for t in family.split("seen")]
    return Members(params, groups, None if base is None else {p: base[p][0] for p in params}, adapters)
