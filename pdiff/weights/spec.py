"""The static description of how a parameter tree maps to tokens.

A spec is made from shapes alone and is hashable, so that jitted functions can close over it. Two
layouts place the generated elements in a (num_tokens, token_dim) grid:

  chunk   all leaves flattened, concatenated, and cut every token_dim elements
  neuron  a token for each output neuron: its column of the kernel, then its bias; leaves
          that no kernel's outputs match are cut into chunks of the widest token
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, PyTree

from pdiff.errors import PdiffError

LAYOUTS = ("chunk", "neuron")
# The dtypes whose every value float32 holds exactly.
EXACT_DTYPES = ("float32", "bfloat16", "float16", "bool", "int8", "uint8", "int16", "uint16")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One generated leaf; `path` is its keys joined with '/', as 'params/Dense_0/kernel'."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """The last part of the path: 'kernel', 'bias', …"""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which leaves are generated, and where in the tokens each of their elements lies.

    Attributes:
      leaves: the generated leaves, in tree order.
      num_leaves: leaves of the whole tree.
      treedef: structure of the whole tree.
      positions: place of each generated leaf among the whole tree's leaves.
      layout, token_dim, num_tokens: of the grid.
    """

    leaves: tuple[Leaf, ...]
    num_leaves: int
    treedef: Any
    positions: tuple[int, ...]
    layout: str
    token_dim: int
    num_tokens: int

    @property
    def num_params(self) -> int:
        """Generated scalars."""
        return sum(leaf.size for leaf in self.leaves)

    @functools.cached_property
    def source(self) -> Int[np.ndarray, "tokens token_dim"]:
        """For each grid element its index in the concatenated leaves; -1 where padding."""
        if self.layout == "chunk":
            grid = np.full(self.num_tokens * self.token_dim, -1, np.int32)
            grid[: self.num_params] = np.arange(self.num_params)
            return grid.reshape(self.num_tokens, self.token_dim)
        grid = np.full((self.num_tokens, self.token_dim), -1, np.int32)
        for i, row in enumerate(_neuron_rows(self.leaves, self.token_dim)):
            grid[i, : len(row)] = row
        return grid

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "tokens token_dim"]:
        """True where an element is a parameter, not padding."""
        return self.source >= 0

    @functools.cached_property
    def element_leaf(self) -> Int[np.ndarray, "tokens token_dim"]:
        """For each grid element the index of its leaf; -1 where padding."""
        ends = np.cumsum([leaf.size for leaf in self.leaves])
        return np.where(self.mask, np.searchsorted(ends, self.source, side="right"), -1).astype(np.int32)

    @functools.cached_property
    def token_leaf(self) -> Int[np.ndarray, " tokens"]:
        """The leaf of each token's first element."""
        return self.element_leaf[:, 0] if self.token_dim else np.zeros(0, np.int32)

    @functools.cached_property
    def token_kind(self) -> Int[np.ndarray, " tokens"]:
        """A number for the kind of each token's leaf."""
        kinds = sorted({leaf.kind for leaf in self.leaves})
        return np.array([kinds.index(self.leaves[i].kind) for i in self.token_leaf], np.int32)

    @functools.cached_property
    def token_position(self) -> Int[np.ndarray, " tokens"]:
        """How many tokens of the same leaf come before each."""
        counts: dict[int, int] = {}
        positions = []
        for leaf in self.token_leaf.tolist():
            positions.append(counts.get(leaf, 0))
            counts[leaf] = positions[-1] + 1
        return np.array(positions, np.int32)


def make_spec(tree: PyTree, *, generate: str = ".*", layout: str = "chunk", token_dim: int = 256) -> Spec:
    """The spec of a tree of arrays or `jax.ShapeDtypeStruct`s (as `jax.eval_shape` gives).

    Args:
      generate: regex; a leaf is generated if it matches the whole path ('.*Dense_1.*').
      token_dim: width of a chunk. The neuron layout takes the widest neuron instead.

    Raises:
      PdiffError: bad regex, layout or width; no leaf matches; or a matching leaf's dtype has values
        that float32 cannot hold.
    """
    if layout not in LAYOUTS:
        raise PdiffError(f"weights.layout: got {layout!r}; allowed: {', '.join(LAYOUTS)}")
    if token_dim < 1:
        raise PdiffError(f"weights.token_dim: got {token_dim}; allowed: at least 1")
    try:
        pattern = re.compile(generate)
    except re.error as e:
        raise PdiffError(f"target.generate: {generate!r} is not a regular expression: {e}") from e
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves, positions = [], []
    for i, (path, leaf) in enumerate(flat):
        name = path_name(path)
        if pattern.fullmatch(name):
            dtype = str(jnp.result_type(leaf))
            if dtype not in EXACT_DTYPES:
                raise PdiffError(
                    f"target.generate: leaf {name} has dtype {dtype}; allowed: {', '.join(EXACT_DTYPES)}; "
                    f"write a regex that leaves it out of {generate!r}"
                )
            leaves.append(Leaf(name, tuple(np.shape(leaf)), dtype))
            positions.append(i)
    if not any(leaf.size for leaf in leaves):
        names = ", ".join(path_name(p) for p, _ in flat[:20])
        raise PdiffError(f"target.generate: {generate!r} matches no leaf with elements; the paths are: {names}")
    leaves = tuple(leaves)
    if layout == "chunk":
        num_tokens = -(-sum(leaf.size for leaf in leaves) // token_dim)
    else:
        token_dim = max(len(row) for row in _neuron_rows(leaves, None))
        num_tokens = len(_neuron_rows(leaves, token_dim))
    return Spec(leaves, len(flat), treedef, tuple(positions), layout, token_dim, num_tokens)


def path_name(path: tuple) -> str:
    """('params', 'Dense_0', 'kernel') as a key path -> 'params/Dense_0/kernel'."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def _neuron_rows(leaves: tuple[Leaf, ...], width: int | None) -> list[np.ndarray]:
    """Element indices of each neuron token. Leaves that belong to no kernel are cut every `width` (None: not at all)."""
    starts = np.cumsum([0] + [leaf.size for leaf in leaves])
    index = [np.arange(a, a + leaf.size, dtype=np.int32).reshape(leaf.shape) for a, leaf in zip(starts, leaves, strict=False)]
    kernels = {leaf.parent: i for i, leaf in enumerate(leaves) if len(leaf.shape) > 1 and leaf.size}
    members: dict[int, list[int]] = {i: [i] for i in kernels.values()}
    alone = []
    for i, leaf in enumerate(leaves):
        kernel = kernels.get(leaf.parent)
        if kernel is not None and i != kernel and leaf.shape[-1:] == leaves[kernel].shape[-1:] and leaf.size:
            members[kernel].append(i)
        elif i != kernel and leaf.size:
            alone.append(i)
    rows = []
    for group in members.values():
        columns = [index[i].reshape(-1, leaves[i].shape[-1]) for i in group]
        rows += list(np.concatenate(columns, 0).T)
    for i in alone:
        flat = index[i].reshape(-1)
        cut = width or (max((len(r) for r in rows), default=min(len(flat), 256)))
        rows += [flat[j : j + cut] for j in range(0, len(flat), cut)]
    return rows
