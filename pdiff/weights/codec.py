"""Parameter trees <-> tokens, as exact inverses: pure, and at home under `jax.jit` and `jax.vmap`.

    tokens = jax.vmap(partial(encode, spec))(stacked)              # (n, tokens, token_dim)
    stacked = jax.vmap(partial(decode, spec, rest=base))(tokens)   # the tree, with a leading n

`decode` under `vmap` repeats the base's leaves n times where they are outputs of the mapped
function. Where a large base is shared, keep networks as their generated part, which is what zoos
hold (`take`, `encode_part`, `decode_part`), and `complete` it inside the mapped function that uses it.

Where networks are NumPy arrays anyway, `encode_stacked` and `decode_stacked` are the same without a device: nothing is
compiled for each number of networks, and decoding copies nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from pdiff.errors import PdiffError
from pdiff.weights.layout import LeafSpec, pack, unpack
from pdiff.weights.spec import Spec, flatten


def encode(spec: Spec, params: PyTree) -> Float[Array, "tokens token_dim"]:
    """The generated leaves of `params`, the whole tree, as float32 tokens; padding is 0.

    Raises PdiffError where `params` is not the tree that `spec` describes.
    """
    return encode_part(spec, select(spec, params))


def take(spec: Spec, params: PyTree) -> PyTree:
    """The generated part of the whole tree `params`: the same tree without its other leaves."""
    return traverse_util.unflatten_dict(select(spec, params), sep="/")


def encode_part(spec: Spec, part: PyTree) -> Float[Array, "tokens token_dim"]:
    """A generated part, as `take` or `select` give it, as float32 tokens; padding is 0.

    Raises PdiffError where it is another.
    """
    return _encode(spec, part, jnp)


def encode_stacked(
    spec: Spec, parts: PyTree[Float[np.ndarray, "nets ..."]]
) -> Float[np.ndarray, "nets tokens token_dim"]:
    """`encode_part` of stacked networks in NumPy; raises as it does, and where not all have the same number."""
    return _encode(spec, parts, np, next(map(np.shape, jax.tree.leaves(parts)), ())[:1])


def decode_part(spec: Spec, tokens: Float[Array, "tokens token_dim"]) -> PyTree:
    """The generated part of `tokens`, as `take` gives it; values as in `decode`."""
    return traverse_util.unflatten_dict(decode_flat(spec, tokens), sep="/")


def decode_stacked(
    spec: Spec, tokens: Float[np.ndarray, "nets tokens token_dim"]
) -> PyTree[Float[np.ndarray, "nets ..."]]:
    """`decode_part` of stacked tokens in NumPy. Float32 leaves are views of `tokens`, if that is contiguous."""
    tokens = np.asarray(tokens)
    _check_tokens(spec, tokens.shape[1:])
    return traverse_util.unflatten_dict(_unpacked(spec, tokens, np), sep="/")


def complete(spec: Spec, part: PyTree, rest: PyTree | None = None) -> PyTree:
    """The whole tree of a generated part, and `rest` for all other leaves; raises as `merge` does."""
    return merge(spec, dict(flatten(part)), rest)


def decode(spec: Spec, tokens: Float[Array, "tokens token_dim"], rest: PyTree | None = None) -> PyTree:
    """The parameter tree of `tokens`, each leaf in its own dtype: decode(encode(x), x) is x bit for bit.

    `rest` is a whole tree (the base) that supplies the leaves that are not generated; its generated
    leaves are not read. Tokens that were never encoded, such as a sample, are brought into range:
    integers are rounded and clipped, booleans are value > 0.5, padding is ignored.

    Raises PdiffError where leaves are not generated and `rest` is missing or another tree.
    """
    return merge(spec, decode_flat(spec, tokens), rest)


def decode_flat(spec: Spec, tokens: Float[Array, "tokens token_dim"]) -> dict[str, Array]:
    """The generated leaves by path, as `select` gives them."""
    _check_tokens(spec, jnp.shape(tokens))
    return _unpacked(spec, jnp.asarray(tokens), jnp)


def select(spec: Spec, params: PyTree) -> dict[str, Any]:
    """The generated leaves of the whole tree `params` by path, in the order of `spec.leaves`."""
    flat = _matched(spec, params, "params")
    for leaf in spec.leaves:
        _check(leaf, flat[leaf.path], "params")
    return {leaf.path: flat[leaf.path] for leaf in spec.leaves}


def merge(spec: Spec, flat: Mapping[str, Any], rest: PyTree | None = None) -> PyTree:
    """The whole tree from the generated leaves by path, and all other leaves from `rest`.

    Raises PdiffError where `flat` is not what `select` gives, and as `decode` does for `rest`.
    """
    _check_generated(spec, flat)
    if rest is None:
        kept = [leaf.path for leaf, made in zip(spec.all_leaves, spec.generated, strict=True) if not made]
        if kept:
            raise PdiffError(
                f"leaf {kept[0]!r} is not generated ({len(kept)} such leaves): "
                "give `rest`, the whole tree that supplies them"
            )
        values = flat
    else:
        values = {**_matched(spec, rest, "rest"), **flat}
    return jax.tree.unflatten(spec.treedef, [values[leaf.path] for leaf in spec.all_leaves])


def _encode(spec: Spec, part: PyTree, xp: Any, batch: tuple[int, ...] = ()) -> Any:
    flat = dict(flatten(part))
    _check_generated(spec, flat, batch)
    leaves = [xp.asarray(flat[leaf.path]).astype(xp.float32, copy=False) for leaf in spec.leaves]
    return pack(spec.blocks, spec.token_dim, leaves, xp=xp, batch=batch)


def _unpacked(spec: Spec, tokens: Any, xp: Any) -> dict[str, Any]:
    arrays = unpack(spec.blocks, spec.leaves, tokens)
    return {leaf.path: _cast(array, leaf.dtype, xp) for leaf, array in zip(spec.leaves, arrays, strict=True)}


def _check_tokens(spec: Spec, shape: tuple[int, ...]) -> None:
    if shape != (spec.num_tokens, spec.token_dim):
        raise PdiffError(
            f"tokens have shape {shape}, the spec has {(spec.num_tokens, spec.token_dim)}; use jax.vmap for a batch"
        )


def _check_generated(spec: Spec, flat: Mapping[str, Any], batch: tuple[int, ...] = ()) -> None:
    odd = sorted(set(flat) ^ {leaf.path for leaf in spec.leaves})
    if odd:
        raise PdiffError(f"leaf {odd[0]!r} is {'not generated' if odd[0] in flat else 'missing'}")
    for leaf in spec.leaves:
        _check(leaf, flat[leaf.path], "flat", batch=batch)


def _cast(array: Any, dtype: str, xp: Any) -> Any:
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

    Containers may differ (a FrozenDict for a dict). Dtypes are compared by `select` alone: what
    is not generated passes through, whatever it is.
    """
    flat = dict(flatten(tree))
    odd = sorted(set(flat) ^ {leaf.path for leaf in spec.all_leaves})
    if odd:
        state = "not in the spec" if odd[0] in flat else "missing"
        raise PdiffError(f"{name} is not the tree that the spec describes: leaf {odd[0]!r} is {state}")
    for leaf in spec.all_leaves:
        _check(leaf, flat[leaf.path], name, dtype=False)
    return flat


def _check(leaf: LeafSpec, value: Any, name: str, dtype: bool = True, batch: tuple[int, ...] = ()) -> None:
    shape = tuple(getattr(value, "shape", ()))
    if shape != (*batch, *leaf.shape):
        raise PdiffError(f"leaf {leaf.path!r} of {name} has shape {shape}, the spec has {(*batch, *leaf.shape)}")
    found = str(getattr(value, "dtype", type(value).__name__))
    if dtype and found != leaf.dtype:
        raise PdiffError(f"leaf {leaf.path!r} of {name} is {found}, the spec has {leaf.dtype}")
