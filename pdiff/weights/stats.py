"""Center and scale of a zoo's tokens, so that what the denoiser sees has sigma_data = 1.

The preconditioning of EDM (Karras et al. 2022, table 1) takes the data's standard deviation as a constant. It is
measured here, once for each zoo, and stored beside the codec, never typed in.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NoReturn

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from pdiff.errors import PdiffError
from pdiff.weights.spec import Spec
from pdiff.weights.table import Span, Table, over

CENTERS = ("mean", "base")
SCALES = ("param", "leaf", "global")

BLOCK_ELEMENTS = 1 << 22  # elements of the zoo in memory as float64 at a time: 32 MiB

Zoo = Float[np.ndarray, "n tokens token_dim"] | Iterable[Float[np.ndarray, "some tokens token_dim"]]

# A parameter whose values span no more than a few roundings of float32, or next to nothing, carries no information:
# dividing by such a scale would blow rounding up to unit variance.
RELATIVE_SPAN = 8 * float(np.finfo(np.float32).eps)
ABSOLUTE_SPAN = 1e-30


@flax.struct.dataclass
class Stats:
    """x = center + scale * z. The scale is 0 in padding and where a parameter is constant over the zoo."""

    center: Float[ArrayLike, "tokens token_dim"]
    scale: Float[ArrayLike, "tokens token_dim"]


def fit(
    spec: Spec,
    tokens: Zoo,
    *,
    center: str = "mean",
    scale: str = "leaf",
    base_tokens: Float[np.ndarray, "tokens token_dim"] | None = None,
) -> Stats:
    """The statistics of a zoo of n networks.

    `tokens` is an array, perhaps a memory map, or blocks of networks, one after the other. It is read once, in blocks,
    and what is held in memory does not grow with the number of networks.

    The center is the zoo's mean, or `base_tokens`. The scale is the root mean square of the deviations from it: of each
    parameter (`param`), pooled over the varying parameters of a leaf (`leaf`) or over all of them (`global`), so that
    `normalize` leaves a pooled rms of 1. A parameter that is constant over the zoo, up to rounding, has scale 0, and as
    its center the value it has, even where the base differs: that is the one value it can be generated with.

    Raises PdiffError for unknown modes, wrong shapes, non-finite values, and a zoo that is constant.
    """
    shape = (spec.num_tokens, spec.token_dim)
    _check_arguments(shape, center, scale, base_tokens)
    seen, low, high, first = _summary(spec, tokens)
    value, constant = _value(seen, low, high, first)
    varies = spec.mask & ~constant
    _check_varies(spec, bool(varies.any()), seen.count)
    middle = value if center == "mean" else np.where(varies, base_tokens, value)
    middle = np.where(spec.mask, middle, 0).astype(np.float32)
    # Around the rounded center, because that is the one that `normalize` subtracts: E (x - c)^2 = var x + (E x - c)^2.
    square = seen.squares / seen.count + np.square(seen.mean - middle)
    width = np.where(varies, np.sqrt(_pooled(spec, square, varies, scale)), 0).astype(np.float32)
    return Stats(center=jnp.asarray(middle), scale=jnp.asarray(width))


def fit_table(
    spec: Spec,
    table: Table,
    *,
    center: str = "mean",
    scale: str = "leaf",
    base_tokens: Float[np.ndarray, "tokens token_dim"] | None = None,
) -> Stats:
    """As `fit`, of a table of networks: nothing but the statistics themselves and a slice is in memory.

    Raises as `fit`.
    """
    shape = (spec.num_tokens, spec.token_dim)
    _check_arguments(shape, center, scale, base_tokens)
    middle, width = (np.zeros(spec.num_tokens * spec.token_dim, np.float32) for _ in range(2))
    totals, counts = np.zeros(len(spec.leaves)), np.zeros(len(spec.leaves), np.int64)
    base = None if center == "mean" else base_tokens.reshape(-1)

    def one(span: Span, x: np.ndarray) -> tuple[int, float, int]:
        """The leaf, the sum of the mean squares, and the number of weights that vary."""
        leaf, start, stop = span
        _check_columns_finite(spec, leaf, x)
        seen = moments(x)
        value, constant = _value(seen, *(f(0).astype(np.float64) for f in (x.min, x.max)), x[0])
        middle[start:stop] = value if base is None else np.where(constant, value, base[start:stop])
        square = seen.squares / seen.count + np.square(seen.mean - middle[start:stop])
        width[start:stop] = np.where(constant, 0, np.sqrt(square))
        return leaf, float(square[~constant].sum()), int((~constant).sum())

    for leaf, total, count in over(spec, table, one):
        totals[leaf] += total
        counts[leaf] += count
    _check_varies(spec, bool(counts.any()), len(table))
    if scale == "global":
        totals[:], counts[:] = totals.sum(), counts.sum()
    for total, count, start, leaf in zip(totals, counts, spec.starts, spec.leaves, strict=True):
        if scale != "param":
            part = width[start : start + leaf.size]
            part[part > 0] = np.sqrt(total / max(count, 1))
    return Stats(center=jnp.asarray(middle.reshape(shape)), scale=jnp.asarray(width.reshape(shape)))


def normalize(stats: Stats, tokens: Float[ArrayLike, "*n tokens token_dim"]) -> Float[Array, "*n tokens token_dim"]:
    """z = (x - center) / scale, and 0 where the scale is 0."""
    on = varying(stats)
    return jnp.where(on, (tokens - stats.center) / jnp.where(on, stats.scale, 1), 0)


def denormalize(stats: Stats, tokens: Float[ArrayLike, "*n tokens token_dim"]) -> Float[Array, "*n tokens token_dim"]:
    """x = center + scale * z, and exactly the center where the scale is 0, whatever z holds there."""
    return jnp.where(varying(stats), stats.center + stats.scale * tokens, stats.center)


def varying(stats: Stats) -> Bool[Array, "tokens token_dim"]:
    """True where there is something to generate: neither padding nor constant over the zoo."""
    return stats.scale > 0


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of some rows: how many, their mean, and the sum of squared deviations from it, by element, float64."""

    count: int
    mean: Float[np.ndarray, "..."]
    squares: Float[np.ndarray, "..."]


def moments(block: Float[np.ndarray, "rows ..."]) -> Moments:
    """Of the rows of a block, in two passes over it."""
    mean = block.mean(0, dtype=np.float64)
    off = block - mean
    return Moments(len(block), mean, np.square(off, out=off).sum(0))


def merged(a: Moments, b: Moments) -> Moments:
    """Of the rows of both: the parallel update of Chan, Golub & LeVeque 1983 (equation 2.1), which does not cancel."""
    count, delta = a.count + b.count, b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    return Moments(count, mean, a.squares + b.squares + np.square(delta) * (a.count * b.count / count))


def _value(
    seen: Moments, low: np.ndarray, high: np.ndarray, first: np.ndarray
) -> tuple[Float[np.ndarray, "..."], Bool[np.ndarray, "..."]]:
    """The mean of each element, and whether it is constant, up to rounding."""
    # The first network rather than the mean, so that a constant keeps every bit, the sign of -0 included.
    value = np.where(low == high, first, seen.mean)
    return value, high - low <= RELATIVE_SPAN * np.maximum(np.abs(low), np.abs(high)) + ABSOLUTE_SPAN


def _blocks(tokens: Zoo) -> Iterator[np.ndarray]:
    """Blocks of at most BLOCK_ELEMENTS elements, however large the blocks of `tokens` are."""
    for networks in (tokens,) if hasattr(tokens, "ndim") else tokens:
        rows = max(1, BLOCK_ELEMENTS // max(1, networks[:1].size))
        for start in range(0, len(networks), rows):
            yield networks[start : start + rows]
        del networks  # before the next is made


def _summary(spec: Spec, tokens: Zoo) -> tuple[Moments, np.ndarray, np.ndarray, np.ndarray]:
    """Moments, minimum and maximum of every element over the zoo, and the first network."""
    seen = low = high = first = None
    shape = (spec.num_tokens, spec.token_dim)
    allowed = f"(n, {shape[0]}, {shape[1]}) with n >= 1"
    for block in _blocks(tokens):
        if block.shape[1:] != shape:
            raise PdiffError(f"the zoo's tokens have shape {block.shape}, allowed is {allowed}")
        _check_finite(spec, block, seen.count if seen else 0)
        least, most = block.min(0).astype(np.float64), block.max(0).astype(np.float64)
        if seen is None:
            seen, low, high, first = moments(block), least, most, np.array(block[0])
        else:
            seen = merged(seen, moments(block))
            np.minimum(low, least, out=low)
            np.maximum(high, most, out=high)
        del block  # before the next is made
    if seen is None:
        raise PdiffError(f"the zoo has no networks, allowed are tokens {allowed}")
    return seen, low, high, first


def _check_varies(spec: Spec, varies: bool, count: int) -> None:
    if not varies:
        raise PdiffError(
            f"all {spec.num_params} parameters are the same in all {count} networks "
            "of the zoo; there is no distribution to learn"
        )


def _check_columns_finite(spec: Spec, leaf: int, columns: np.ndarray) -> None:
    if not np.isfinite(columns).all():
        network, column = np.argwhere(~np.isfinite(columns))[0]
        _refuse(int(network), float(columns[network, column]), repr(spec.leaves[leaf].path))


def _refuse(network: int, value: float, where: str) -> NoReturn:
    raise PdiffError(
        f"network {network} of the zoo has {value} in {where}; weights must be finite; lower --config.zoo.learning_rate"
    )


def _check_finite(spec: Spec, block: np.ndarray, start: int) -> None:
    """`start` is the number of the block's first network."""
    if np.isfinite(block).all():
        return
    network, token, element = np.argwhere(~np.isfinite(block))[0]
    leaf = spec.element_leaf[token, element]
    where = repr(spec.leaves[leaf].path) if leaf >= 0 else "padding"
    _refuse(start + int(network), float(block[network, token, element]), where)


def _pooled(spec: Spec, square: np.ndarray, varies: np.ndarray, scale: str) -> np.ndarray:
    """The mean squares pooled as `scale` says, over varying elements."""
    if scale == "param":
        return square
    if scale == "global":
        return np.full_like(square, square[varies].mean())
    leaf = spec.element_leaf[varies]
    total = np.bincount(leaf, square[varies], minlength=len(spec.leaves))
    count = np.bincount(leaf, minlength=len(spec.leaves))
    return (total / np.maximum(count, 1))[spec.element_leaf]  # padding reads the last leaf, masked later


def _check_arguments(shape: tuple[int, int], center: str, scale: str, base: np.ndarray | None) -> None:
    if center not in CENTERS:
        raise PdiffError(f"weights.center is {center!r}, allowed are {', '.join(CENTERS)}")
    if scale not in SCALES:
        raise PdiffError(f"weights.scale is {scale!r}, allowed are {', '.join(SCALES)}")
    if center == "base":
        got = "none" if base is None else np.shape(base)
        if got != shape:
            raise PdiffError(f"weights.center is 'base', which needs base_tokens of shape {shape}, got {got}")
        if not np.isfinite(base).all():
            raise PdiffError("base_tokens hold a value that is not finite")
