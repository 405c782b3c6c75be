"""The static description of how a parameter tree maps to (tokens, token_dim) float32.

The generated leaves are flattened, joined in the tree's order, padded at the end, and cut into tokens. A `Spec` holds
no arrays and is hashable, so it is a static argument under `jax.jit`. Its masks and indices are NumPy, computed on
first use. `codec.py` interprets it.
"""

import functools
import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree

from pdiff.errors import PdiffError

# Every value of these is a float32, so encoding loses nothing. Wider types would be rounded silently.
EXACT_DTYPES = ("float32", "bfloat16", "float16", "bool", "int8", "uint8", "int16", "uint16")


@dataclass(frozen=True)
class LeafSpec:
    """One array of a parameter tree; `path` is its keys joined with '/', `dtype` a name ('bfloat16')."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Spec:
    """What is generated of a tree, and where each element of it lies in the tokens.

    `leaves` are the generated leaves and `all_leaves` every leaf, both in the tree's order; `generated` marks the
    former among the latter.
    """

    leaves: tuple[LeafSpec, ...]
    all_leaves: tuple[LeafSpec, ...]
    generated: tuple[bool, ...]
    treedef: Any
    token_dim: int

    def __hash__(self) -> int:
        return self._hash  # jit hashes its static arguments on every call; the leaves may be hundreds

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.all_leaves, self.generated, self.treedef, self.token_dim))

    @property
    def num_params(self) -> int:
        """How many numbers are generated; the rest of num_tokens * token_dim is padding."""
        return sum(leaf.size for leaf in self.leaves)

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each of `leaves` begins among the generated numbers."""
        return tuple(itertools.accumulate([leaf.size for leaf in self.leaves[:-1]], initial=0))

    @property
    def num_tokens(self) -> int:
        return -(-self.num_params // self.token_dim)

    @functools.cached_property
    def element_leaf(self) -> Int[np.ndarray, "tokens token_dim"]:
        """int32 index into `leaves` of every element, -1 where it is padding."""
        indices = np.full(self.num_tokens * self.token_dim, -1, np.int32)
        indices[: self.num_params] = np.repeat(np.arange(len(self.leaves)), [leaf.size for leaf in self.leaves])
        return _frozen(indices.reshape(self.num_tokens, self.token_dim))

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "tokens token_dim"]:
        """True where an element is a parameter, False where it is padding."""
        return _frozen(self.element_leaf >= 0)


def make_spec(tree: PyTree, *, generate: str = ".*", token_dim: int = 256) -> Spec:
    """The spec of `tree`, whose leaves are arrays or `jax.ShapeDtypeStruct`s (`jax.eval_shape`).

    `generate` is a regular expression that matches the whole path (`re.fullmatch`) of a generated leaf, such as
    'params/Dense_0/kernel': '.*/Dense_1/.*' or '.*kernel'.

    Raises PdiffError for a width below 1, for an invalid regex and one that selects no parameter, for selected
    leaves that float32 cannot hold exactly, and for paths that two leaves share (a key that contains '/').
    """
    if token_dim < 1:
        raise PdiffError(f"weights.token_dim is {token_dim}, it must be at least 1")
    try:
        pattern = re.compile(generate)
    except re.error as error:
        raise PdiffError(f"target.generate is {generate!r}, not a valid regular expression: {error}") from error
    all_leaves = tuple(_describe(path, leaf) for path, leaf in flatten(tree))
    paths = [leaf.path for leaf in all_leaves]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise PdiffError(f"leaf path {twice[0]!r} names more than one leaf; keys must not contain '/'")
    generated = tuple(pattern.fullmatch(path) is not None for path in paths)
    leaves = tuple(itertools.compress(all_leaves, generated))
    if not sum(leaf.size for leaf in leaves):
        matches = "matches only leaves without elements" if leaves else "matches no leaf"
        raise PdiffError(
            f"target.generate is {generate!r}, which {matches}; it must match a whole path; "
            f"the leaves are: {_listed(paths)}"
        )
    for leaf in leaves:
        if leaf.dtype not in EXACT_DTYPES:
            raise PdiffError(
                f"leaf {leaf.path!r} is {leaf.dtype}, which float32 cannot hold exactly (allowed: "
                f"{', '.join(EXACT_DTYPES)}); exclude it by the regex target.generate, now {generate!r}"
            )
    return Spec(leaves, all_leaves, generated, jax.tree.structure(tree), token_dim)


def flatten(tree: PyTree) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf in the tree's order; None and empty containers are not leaves."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(name(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def _describe(path: str, leaf: Any) -> LeafSpec:
    # A leaf that is no array (a Python number) may stand in the rest, but it cannot be generated.
    dtype = str(leaf.dtype) if hasattr(leaf, "dtype") else f"a Python {type(leaf).__name__}"
    return LeafSpec(path, tuple(getattr(leaf, "shape", ())), dtype)


def _listed(paths: list[str], most: int = 40) -> str:
    more = f" … and {len(paths) - most} more" if len(paths) > most else ""
    return (", ".join(paths[:most]) or "(none)") + more


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # cached and shared by every user of the spec
    return array
