"""How the elements of a list of arrays are laid out in tokens.

A layout is data: a tuple of `Block`s, each a run of tokens filled from some leaves. `pack` and
`unpack` interpret it with reshapes, transposes, slices and concatenations only, never a gather or
scatter, so XLA moves whole rows and a batch of trees costs about the memory traffic of a copy.
`pack` takes the array library as an argument: the bookkeeping of `spec.py` packs NumPy arrays of
indices through the very code that packs the weights, so the two cannot disagree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pdiff.errors import PdiffError

LAYOUTS = ("chunk", "neuron")


@dataclass(frozen=True)
class LeafSpec:
    """One array of a parameter tree; `path` is its keys joined with '/', `dtype` a name ('bfloat16')."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """The last part of the path, such as 'kernel' or 'bias'."""
        return self.path.rpartition("/")[2]

    @property
    def module(self) -> str:
        """The path without its last part: leaves of one module share it."""
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class Block:
    """Consecutive tokens, `first_token` onwards, filled from `leaves` (indices, in order of packing).

    With `num_outputs` = n > 0 every leaf is viewed as (size / n, n), and token j holds column j of
    each. With 0 the leaves are flattened, concatenated and cut into tokens.
    """

    leaves: tuple[int, ...]
    first_token: int
    num_tokens: int
    num_outputs: int = 0


def plan(leaves: Sequence[LeafSpec], layout: str, token_dim: int) -> tuple[tuple[Block, ...], int]:
    """The blocks that lay `leaves` out, and the token width.

    chunk: everything flattened and concatenated in order, cut into tokens of `token_dim`.

    neuron: one token for each output neuron of a module, the leaves that share a parent path. The
    module's kernel is its leaf named 'kernel', or else the one of most axes; it must have at least
    two. The outputs are its last axis, or the bias's axes where the kernel's shape ends with those
    (flax's attention projections: kernel (d, heads, head_dim), bias (heads, head_dim)). A token is
    the kernel's column followed by that of every other leaf whose shape ends with the output axes.
    What is left of a module (a normalisation layer's vectors, a bias without its kernel) is
    flattened and cut into tokens of its own. The width is that of the widest column; `token_dim`
    only caps it where no module has a kernel.

    Raises PdiffError for an unknown layout and a width below 1.
    """
    if layout not in LAYOUTS:
        raise PdiffError(f"weights.layout is {layout!r}, allowed are {', '.join(LAYOUTS)}")
    if token_dim < 1:
        raise PdiffError(f"weights.token_dim is {token_dim}, it must be at least 1")
    if layout == "chunk":
        groups = [(tuple(range(len(leaves))), 0)]
    else:
        groups = _neuron_groups(leaves)
        widths = [sum(leaves[i].size for i in members) // n for members, n in groups if n]
        token_dim = max(widths, default=min(token_dim, max(1, sum(leaf.size for leaf in leaves))))
    blocks, first = [], 0
    for members, num_outputs in groups:
        num_tokens = num_outputs or -(-sum(leaves[i].size for i in members) // token_dim)
        blocks.append(Block(members, first, num_tokens, num_outputs))
        first += num_tokens
    return tuple(blocks), token_dim


def _neuron_groups(leaves: Sequence[LeafSpec]) -> list[tuple[tuple[int, ...], int]]:
    """(leaf indices, number of outputs or 0) of every block, module by module in tree order."""
    modules: dict[str, list[int]] = {}
    for i, leaf in enumerate(leaves):
        modules.setdefault(leaf.module, []).append(i)
    groups = []
    for members in modules.values():
        kernels = [i for i in members if len(leaves[i].shape) >= 2 and leaves[i].size]
        columns = ()
        if kernels:
            kernel = max(kernels, key=lambda i: (leaves[i].kind == "kernel", len(leaves[i].shape)))
            outputs = _output_axes(leaves[kernel], [leaves[i] for i in members])
            fits = [i for i in members if i != kernel and _ends_with(leaves[i].shape, outputs)]
            columns = (kernel, *fits)
            groups.append((columns, math.prod(outputs)))
        left = tuple(i for i in members if i not in columns)
        if left:
            groups.append((left, 0))
    return groups


def _output_axes(kernel: LeafSpec, module: Sequence[LeafSpec]) -> tuple[int, ...]:
    for leaf in module:
        if (
            leaf.kind == "bias"
            and 0 < len(leaf.shape) < len(kernel.shape)
            and _ends_with(kernel.shape, leaf.shape)
        ):
            return leaf.shape
    return kernel.shape[-1:]


def _ends_with(shape: tuple[int, ...], tail: tuple[int, ...]) -> bool:
    return len(shape) >= len(tail) and shape[len(shape) - len(tail) :] == tail


def pack(
    blocks: Sequence[Block],
    token_dim: int,
    leaves: Sequence[Any],
    *,
    xp: Any,
    fill: Any = 0,
    batch: tuple[int, ...] = (),
) -> Any:
    """Arrays of one dtype, in the order of the spec's leaves -> (*batch, tokens, token_dim) of that dtype.

    `xp` is numpy or jax.numpy; `fill` goes into the padding; `batch` are axes that all arrays have before their own.
    """
    made = [_pack_block(b, token_dim, [leaves[i] for i in b.leaves], xp, fill, batch) for b in blocks]
    return made[0] if len(made) == 1 else xp.concatenate(made, axis=-2)  # NumPy would copy a single one again


def _pack_block(
    block: Block, token_dim: int, leaves: Sequence[Any], xp: Any, fill: Any, batch: tuple[int, ...]
) -> Any:
    dtype, n = leaves[0].dtype, block.num_outputs
    flat = [leaf.reshape(*batch, math.prod(leaf.shape[len(batch) :])) for leaf in leaves]
    if n:
        columns = [f.reshape(*batch, f.shape[-1] // n, n).swapaxes(-1, -2) for f in flat]  # each (*batch, n, rows)
        padding = token_dim - sum(c.shape[-1] for c in columns)
        return xp.concatenate([*columns, xp.full((*batch, n, padding), fill, dtype)], axis=-1)
    padding = block.num_tokens * token_dim - sum(f.shape[-1] for f in flat)
    joined = xp.concatenate([*flat, xp.full((*batch, padding), fill, dtype)], axis=-1)
    return joined.reshape(*batch, block.num_tokens, token_dim)


def unpack(blocks: Sequence[Block], leaves: Sequence[LeafSpec], tokens: Any) -> list[Any]:
    """The inverse of `pack`: (*batch, tokens, token_dim) -> one array for each leaf, in the tokens' dtype.

    All of them are views where `tokens` is a contiguous NumPy array.
    """
    arrays: list[Any] = [None] * len(leaves)
    batch = tokens.shape[:-2]
    for block in blocks:
        n, start = block.num_outputs, 0
        rows = tokens[..., block.first_token : block.first_token + block.num_tokens, :]
        flat = None if n else rows.reshape(*batch, block.num_tokens * tokens.shape[-1])
        for i in block.leaves:
            length = leaves[i].size // n if n else leaves[i].size
            end = start + length
            part = rows[..., start:end].swapaxes(-1, -2) if n else flat[..., start:end]
            arrays[i] = part.reshape((*batch, *leaves[i].shape))
            start = end
    return arrays
