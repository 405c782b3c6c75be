"""Parameter tree -> tokens and back, as exact inverses, under `jit` and `vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from pdiff.errors import PdiffError
from pdiff.weights.spec import Spec, path_name


def encode(spec: Spec, params: PyTree) -> Float[Array, "tokens token_dim"]:
    """The generated leaves of `params` as tokens; padding is zero.

    Raises:
      PdiffError: `params` does not have the structure and shapes of the spec.
    """
    leaves = _checked_leaves(spec, params)
    flat = [jnp.ravel(leaves[i]).astype(jnp.float32) for i in spec.positions]
    vector = jnp.concatenate(flat)
    if spec.layout == "chunk":  # the order is the same, so padding is all there is to do
        padding = spec.num_tokens * spec.token_dim - spec.num_params
        return jnp.pad(vector, (0, padding)).reshape(spec.num_tokens, spec.token_dim)
    return jnp.where(spec.mask, vector[np.maximum(spec.source, 0)], 0)


def decode(spec: Spec, tokens: Float[Array, "tokens token_dim"], rest: PyTree | None = None) -> PyTree:
    """The tree of `tokens`; leaves that are not generated come from `rest`, a whole tree.

    Values are cast back to each leaf's dtype: integers are rounded and clipped, booleans cut at a half.

    Raises:
      PdiffError: `rest` is missing where it is needed, or has another structure.
    """
    if rest is None and len(spec.leaves) < spec.num_leaves:
        raise PdiffError(
            f"decode: {spec.num_leaves - len(spec.leaves)} of {spec.num_leaves} leaves are not generated; give `rest`"
        )
    vector = tokens.reshape(-1)
    if spec.layout == "neuron":
        vector = vector[_destination(spec)]
    leaves = [None] * spec.num_leaves if rest is None else list(_checked_leaves(spec, rest))
    start = 0
    for position, leaf in zip(spec.positions, spec.leaves, strict=True):
        leaves[position] = _cast(vector[start : start + leaf.size].reshape(leaf.shape), jnp.dtype(leaf.dtype))
        start += leaf.size
    return jax.tree_util.tree_unflatten(spec.treedef, leaves)


def _destination(spec: Spec) -> np.ndarray:
    """The inverse of `spec.source`: for each element of the concatenated leaves its place in the flat grid."""
    place = np.empty(spec.num_params, np.int32)
    grid = spec.source.reshape(-1)
    place[grid[grid >= 0]] = np.flatnonzero(grid >= 0)
    return place


def _cast(x: Float[Array, "..."], dtype: jnp.dtype) -> Array:
    if dtype == jnp.bool_:
        return x > 0.5
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return jnp.clip(jnp.round(x), info.min, info.max).astype(dtype)
    return x.astype(dtype)


def _checked_leaves(spec: Spec, params: PyTree) -> list:
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    if treedef != spec.treedef:
        raise PdiffError(f"parameter tree: got {treedef}; allowed: {spec.treedef}")
    for position, leaf in zip(spec.positions, spec.leaves, strict=True):
        path, value = flat[position]
        if np.shape(value) != leaf.shape:
            raise PdiffError(f"parameter tree: {path_name(path)} has shape {np.shape(value)}; allowed: {leaf.shape}")
    return [value for _, value in flat]
