"""Parameter trees <-> tokens, as exact inverses: pure functions, for use under `jax.jit` and `jax.vmap`.

    tokens = jax.vmap(partial(encode, spec))(stacked)          # (n, tokens, token_dim)
    parts = jax.vmap(partial(decode_part, spec))(tokens)       # the generated part of the tree, with a leading n

Zoos hold networks as their generated part (`take`, `encode_part`, `decode_part`); `complete` one inside the mapped
function that uses it, so that the rest, a base that all share, is not repeated n times.

For NumPy arrays `encode_stacked` and `decode_stacked` are the same without a device: nothing is compiled for each
number of networks, and decoding copies nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from pdiff.errors import PdiffError
from pdiff.weights.spec import LeafSpec, Spec, flatten

Tokens = Float[np.ndarray, "nets tokens token_dim"]
Parts = PyTree[Shaped[np.ndarray, "nets ..."]]


def encode(spec: Spec, params: PyTree) -> Float[Array, "tokens token_dim"]:
    """The generated leaves of `params`, the whole tree, as float32 tokens; padding is 0.

    Raises PdiffError where `params` is not the tree that `spec` describes.
    """
    return encode_part(spec, take(spec, params))


def take(spec: Spec, params: PyTree) -> PyTree:
    """The generated part of the whole tree `params`: the same tree without its other leaves.

    Raises as `encode` does.
    """
    flat = _matched(spec, params, "params")
    for leaf in spec.leaves:
        _check(leaf, flat[leaf.path], "params")
    return traverse_util.unflatten_dict({leaf.path: flat[leaf.path] for leaf in spec.leaves}, sep="/")


def encode_part(spec: Spec, part: PyTree) -> Float[Array, "tokens token_dim"]:
    """A generated part, as `take` gives it, as float32 tokens; padding is 0.

    Raises PdiffError where it is another.
    """
    return _encode(spec, part, jnp)


def encode_stacked(spec: Spec, parts: Parts) -> Tokens:
    """`encode_part` of stacked networks in NumPy; raises as it does, and where not all have the same number."""
    return _encode(spec, parts, np, next(map(np.shape, jax.tree.leaves(parts)), ())[:1])


def decode_part(spec: Spec, tokens: Float[ArrayLike, "tokens token_dim"]) -> PyTree:
    """The generated part of `tokens`, each leaf in its own dtype: decode_part(encode_part(x)) is x bit for bit.

    Tokens that were never encoded, such as a sample, are brought into range: integers are rounded and clipped,
    booleans are value > 0.5, padding is ignored.
    """
    return _decode(spec, jnp.asarray(tokens), jnp, ())


def decode_stacked(spec: Spec, tokens: Tokens) -> Parts:
    """`decode_part` of stacked tokens in NumPy. Float32 leaves are views of `tokens`, if that is contiguous."""
    tokens = np.asarray(tokens)
    return _decode(spec, tokens, np, tokens.shape[:1])


def complete(spec: Spec, part: PyTree, rest: PyTree) -> PyTree:
    """The whole tree of a generated part, and of `rest`, a whole tree (the base), for all other leaves.

    Of `rest` the generated leaves are not read.

    Raises PdiffError where `part` is not what `take` gives, and where `rest` is another tree.
    """
    generated = _part(spec, part)
    flat = _matched(spec, rest, "rest") | generated
    return jax.tree.unflatten(spec.treedef, [flat[leaf.path] for leaf in spec.all_leaves])


def _encode(spec: Spec, part: PyTree, xp: Any, batch: tuple[int, ...] = ()) -> Any:
    flat = _part(spec, part, batch)
    leaves = [xp.asarray(flat[leaf.path]).astype(xp.float32, copy=False) for leaf in spec.leaves]
    leaves = [x.reshape(*batch, leaf.size) for leaf, x in zip(spec.leaves, leaves, strict=True)]
    padding = xp.zeros((*batch, spec.num_tokens * spec.token_dim - spec.num_params), xp.float32)
    return xp.concatenate([*leaves, padding], axis=-1).reshape(*batch, spec.num_tokens, spec.token_dim)


def _decode(spec: Spec, tokens: Any, xp: Any, batch: tuple[int, ...]) -> PyTree:
    shape, expected = tokens.shape[len(batch) :], (spec.num_tokens, spec.token_dim)
    if shape != expected:
        raise PdiffError(f"tokens have shape {shape}, the spec has {expected}; use jax.vmap for a batch")
    flat, part, start = tokens.reshape(*batch, spec.num_tokens * spec.token_dim), {}, 0
    for leaf in spec.leaves:
        values = flat[..., start : start + leaf.size].reshape(*batch, *leaf.shape)
        part[leaf.path] = cast(values, leaf.dtype, xp)
        start += leaf.size
    return traverse_util.unflatten_dict(part, sep="/")


def _part(spec: Spec, part: PyTree, batch: tuple[int, ...] = ()) -> dict[str, Any]:
    """The leaves of a generated part by path, after a check that paths, shapes and dtypes are the spec's."""
    flat = dict(flatten(part))
    if odd := sorted(set(flat) ^ {leaf.path for leaf in spec.leaves}):
        raise PdiffError(f"leaf {odd[0]!r} is {'not generated' if odd[0] in flat else 'missing'}")
    for leaf in spec.leaves:
        _check(leaf, flat[leaf.path], "part", batch=batch)
    return flat


def cast(array: Any, dtype: str, xp: Any) -> Any:
    """Float32 values as those of a leaf of that dtype, as `decode_part` has them; `xp` is `numpy` or `jax.numpy`."""
    if dtype == "bool":
        return array > 0.5
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        # Clip first: a float beyond the range of an integer type converts to anything at all.
        return xp.clip(xp.round(array), info.min, info.max).astype(dtype)
    with np.errstate(over="ignore"):  # what is beyond a narrower float's range is infinite, as in JAX
        return array.astype(jnp.dtype(dtype), copy=False)


def _matched(spec: Spec, tree: PyTree, name: str) -> dict[str, Any]:
    """The leaves of `tree` by path, after a check that paths and shapes are the spec's.

    Containers may differ (a FrozenDict for a dict). Only `take` compares dtypes: what is not generated passes through.
    """
    flat = dict(flatten(tree))
    if odd := sorted(set(flat) ^ {leaf.path for leaf in spec.all_leaves}):
        state = "not in the spec" if odd[0] in flat else "missing"
        raise PdiffError(f"{name} is not the tree that the spec describes: leaf {odd[0]!r} is {state}")
    for leaf in spec.all_leaves:
        _check(leaf, flat[leaf.path], name, dtype=False)
    return flat


def _check(leaf: LeafSpec, value: Any, name: str, dtype: bool = True, batch: tuple[int, ...] = ()) -> None:
    shape = tuple(getattr(value, "shape", ()))
    if shape != (*batch, *leaf.shape):
        raise PdiffError(f"leaf {leaf.path!r} of {name} has shape {shape}, the spec has {(*batch, *leaf.shape)}")
    kind = str(getattr(value, "dtype", type(value).__name__))
    if dtype and kind != leaf.dtype:
        raise PdiffError(f"leaf {leaf.path!r} of {name} is {kind}, the spec has {leaf.dtype}")
