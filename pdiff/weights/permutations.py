"""Permutation symmetries of a network, as data.

The units of a hidden layer can be put into any order, with the kernels that lead into and out of them, and the network
computes the same. What may be reordered together is data, as in Git Re-Basin (Ainsworth et al. 2023, section 2 and
samuela/git-re-basin): for every axis of every leaf, the name of the permutation that acts on it, or None. A target
module's function `permutation_spec` returns it, made of `dense`, `conv` and `norm`.

A permutation is an array of indices: unit i of a permuted leaf is unit `permutation[i]` of the leaf. It may act on one
axis of a leaf at most. On two, finding the best one would be a quadratic assignment; no target here needs it.
"""

import dataclasses
from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Int, PyTree, Shaped

from pdiff.errors import PdiffError
from pdiff.weights.spec import flatten

Names = tuple[str | None, ...]  # of the permutations on a leaf's axes
Axes = dict[str, Names]
Permutations = Mapping[str, Int[ArrayLike, " _"]]
Leaf = Shaped[Array | np.ndarray, "*shape"]


@dataclasses.dataclass(frozen=True)
class Units:
    """`size` units that change places, in `groups` equal runs of neighbours.

    A run moves as a whole, and units move within it, as the channels of a GroupNorm can: its statistics are over a run.
    With one group every order is allowed.
    """

    size: int
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class PermutationSpec:
    """What can be reordered in a tree without changing its network.

    Attributes:
      axes: leaf path -> for each axis the name of the permutation that acts on it, or None.
      units: name -> what it permutes.
    """

    axes: Mapping[str, Names]
    units: Mapping[str, Units]

    def restricted(self, paths: Collection[str]) -> "PermutationSpec":
        """The permutations that act on no other leaf than `paths`, for a tree of these leaves alone.

        A permutation that also acts on a leaf that stays as it is would change the network.
        """
        fixed = {name for path, names in self.axes.items() if path not in paths for name in names}
        inside = {path: names for path, names in self.axes.items() if path in paths}
        axes = {path: tuple(None if name in fixed else name for name in names) for path, names in inside.items()}
        return PermutationSpec(axes, {name: units for name, units in self.units.items() if name not in fixed})


def dense(path: str, inputs: str | None, outputs: str | None) -> Axes:
    """The axes of a Flax Dense layer with a bias: kernel (in, out)."""
    return {f"{path}/kernel": (inputs, outputs), f"{path}/bias": (outputs,)}


def conv(path: str, inputs: str | None, outputs: str | None, use_bias: bool = True) -> Axes:
    """The axes of a Flax Conv layer: kernel (height, width, in, out)."""
    kernel = {f"{path}/kernel": (None, None, inputs, outputs)}
    return kernel | ({f"{path}/bias": (outputs,)} if use_bias else {})


def norm(path: str, units: str | None) -> Axes:
    """The axes of a normalisation layer's scale and bias."""
    return {f"{path}/scale": (units,), f"{path}/bias": (units,)}


def check(spec: PermutationSpec, tree: PyTree) -> None:
    """Raises PdiffError unless `spec` fits `tree`, of arrays or `jax.ShapeDtypeStruct`s.

    It must name every leaf and no other, with one entry for each axis, each permutation once in a leaf at most, on an
    axis of its size; every permutation must act somewhere, on units that its groups divide.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(tree)}
    if odd := sorted(shapes.keys() ^ spec.axes.keys()):
        raise PdiffError(f"permutations: leaf {odd[0]!r} is {'not covered' if odd[0] in shapes else 'not in the tree'}")
    for path, names in spec.axes.items():
        _check_leaf(spec, path, names, shapes[path])
    for name, units in spec.units.items():
        if not any(name in names for names in spec.axes.values()):
            raise PdiffError(f"permutations: {name!r} acts on no leaf")
        if units.groups < 1 or units.size % units.groups:
            raise PdiffError(f"permutations: {name!r} has {units.size} units, not {units.groups} equal groups of them")


def _check_leaf(spec: PermutationSpec, path: str, names: Names, shape: tuple[int, ...]) -> None:
    if len(names) != len(shape):
        raise PdiffError(f"permutations: {path!r} has {len(names)} axes in the specification, and shape {shape}")
    acting = [name for name in names if name is not None]
    if len(set(acting)) < len(acting):
        raise PdiffError(f"permutations: {path!r} has {names}; allowed: each name once")
    for axis, name in enumerate(names):
        if name is None:
            continue
        if name not in spec.units:
            raise PdiffError(f"permutations: {path!r} names {name!r}; allowed: {', '.join(spec.units) or 'none'}")
        size, length = spec.units[name].size, shape[axis]
        if size != length:
            raise PdiffError(f"permutations: {name!r} has {size} units, axis {axis} of {path!r} has {length}")


def apply_permutation(
    spec: PermutationSpec, permutations: Permutations, params: PyTree[Shaped[ArrayLike, "..."]]
) -> PyTree[Shaped[Array, "..."]]:
    """`params`, of exactly the leaves of `spec`, with its units reordered. Pure, for use under jit and vmap.

    Raises:
      PdiffError: `params` is another tree.
    """
    flat = dict(flatten(params))
    if odd := sorted(flat.keys() ^ spec.axes.keys()):
        raise PdiffError(f"permutations: leaf {odd[0]!r} is {'not covered' if odd[0] in flat else 'missing'}")
    flat = {path: permuted(jnp.asarray(leaf), spec.axes[path], permutations) for path, leaf in flat.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def permuted(leaf: Leaf, names: Names, permutations: Permutations, but: str | None = None) -> Leaf:
    """One leaf with every axis reordered by its permutation, except by `but`. NumPy stays NumPy."""
    for axis, name in enumerate(names):
        if name is not None and name != but:
            leaf = leaf.take(permutations[name], axis)
    return leaf
