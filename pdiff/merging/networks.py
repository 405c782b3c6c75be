"""Merges of whole networks, a module at a time.

An adapter's update of a module is scale * B A. All adapters of a zoo have the same scale there, so merges of B A are
those of updates divided by it, and are written with that scale again. Any other array is merged by its difference from
the base: those of plain networks, and heads beside adapters.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from pdiff.merging import methods, updates
from pdiff.merging.updates import Factors

Params = Mapping[str, Float[np.ndarray, "nets ..."]]
Arrays = Mapping[str, Float[np.ndarray, "..."]]
Merged = Factors | Float[np.ndarray, "..."]


@dataclasses.dataclass(frozen=True)
class Method:
    """How to merge.

    Attributes:
      name: one of `methods.METHODS`.
      density: the share of numbers that the methods by single numbers keep, from 0 to 1.
      t: from the first (0) to the second (1), of the methods between two.
      seed: of what dare drops.
    """

    name: str
    density: float = 1.0
    t: float = 0.5
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Members:
    """What is merged.

    Attributes:
      params: networks by path; those of adapters are pairs MODULE/A (r, inputs) and MODULE/B (outputs, r).
      groups: the numbers of the networks of each member. Several are one member, their mean, such as seeds of a task.
      base: the arrays that all came from; None where that is not known, or zero, as for adapters' pairs.
      adapters: whether paths that end in /A and /B are pairs.
    """

    params: Params
    groups: Sequence[Int[np.ndarray, "..."]]
    base: Arrays | None = None
    adapters: bool = False

    @property
    def modules(self) -> list[str]:
        """The modules of adapters."""
        return [p[:-2] for p in self.params if p.endswith("/A")] if self.adapters else []

    @property
    def arrays(self) -> list[str]:
        """The paths of everything else."""
        pairs = {f"{m}/{side}" for m in self.modules for side in "AB"}
        return [p for p in self.params if p not in pairs]

    @property
    def numbers(self) -> int:
        """How many numbers all members have when they are multiplied out."""
        pairs = ((self.params[f"{m}/B"], self.params[f"{m}/A"]) for m in self.modules)
        sizes = [b.shape[1] * a.shape[2] for b, a in pairs]
        sizes += [int(np.prod(self.params[p].shape[1:])) for p in self.arrays]
        return len(self.groups) * sum(sizes)


def merged(method: Method, members: Members) -> Iterator[tuple[str, Merged]]:
    """(module, its merged update) of adapters' modules, then (path, merged array) of all other arrays.

    Updates of methods that are weighted sums come as factors whose ranks have added up. Of arrays whose base is not
    known, `slerp` takes the angle between the arrays themselves, as mergekit does, and a method by single numbers is
    the mean.
    """
    for module in members.modules:
        yield module, _of_factors(method, members, module)
    for path in members.arrays:
        yield path, _of_arrays(method, members, path)


def at_rank(
    pieces: Iterator[tuple[str, Merged]], like: Params, scales: Mapping[str, float] | None = None
) -> tuple[dict[str, Float[np.ndarray, "1 ..."]], float]:
    """A merge as a network that can be written: updates as the nearest ones of the rank that `like` has; float32.

    Args:
      like: networks of the same tree.
      scales: of the updates of each module, 1 where it is not there; they weigh modules in the error.

    Returns:
      The network by path, with a leading axis of 1, and how far its updates are from the merge's, all together, by the
      merge's norm (0 where there are no adapters).
    """
    network, rest, whole = {}, 0.0, 0.0
    for name, update in pieces:
        if name in like:
            network[name] = update[None].astype(np.float32)
            continue
        near = updates.truncated(update, like[f"{name}/A"].shape[1])
        network |= {f"{name}/A": near.a[None].astype(np.float32), f"{name}/B": near.b[None].astype(np.float32)}
        scale, size = (scales or {}).get(name, 1.0), updates.square(update)
        rest += scale**2 * max(size - updates.square(near), 0.0)  # what is cut off is orthogonal to what stays
        whole += scale**2 * size
    return {p: network[p] for p in like}, float(np.sqrt(rest / whole)) if whole else 0.0


def _of_factors(method: Method, members: Members, module: str) -> Merged:
    b, a = members.params[f"{module}/B"], members.params[f"{module}/A"]
    each = [updates.weighted([Factors(b[i], a[i]) for i in g], [1 / len(g)] * len(g)) for g in members.groups]
    if method.name in methods.ELEMENTWISE:
        return methods.elementwise(method.name, map(updates.dense, each), method.density, _random(method, module))

    def inner(i: int, j: int) -> float:
        return float(updates.inner(each[i], each[j].b[None], each[j].a[None])[0])

    return updates.weighted(each, methods.weights(method.name, method.t, len(each), inner))


def _of_arrays(method: Method, members: Members, path: str) -> Merged:
    values, base = members.params[path], None if members.base is None else members.base[path].astype(np.float64)
    start = 0.0 if base is None else base
    each = (values[g].mean(0, dtype=np.float64) - start for g in members.groups)  # one at a time
    if method.name in methods.ELEMENTWISE and base is not None:
        change = methods.elementwise(method.name, each, method.density, _random(method, path))
    else:
        each = list(each) if method.name in methods.BETWEEN else each
        name = "mean" if method.name in methods.ELEMENTWISE else method.name
        counts = methods.weights(name, method.t, len(members.groups), lambda i, j: float(np.vdot(each[i], each[j])))
        change = sum(w * change for w, change in zip(counts, each, strict=True))
    return (start + change).astype(np.float32)


def _random(method: Method, name: str) -> np.random.Generator:
    return np.random.default_rng([method.seed, zlib.crc32(name.encode())])
