"""Normalisation of tokens, so that sigma_data = 1 for every target and every zoo."""

import flax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pdiff.errors import PdiffError
from pdiff.weights.spec import Spec

CENTERS = ("mean", "base")
SCALES = ("param", "leaf", "global")


@flax.struct.dataclass
class Stats:
    """Center and scale of every element; scale 0 marks padding and parameters that are constant over the zoo."""

    center: Float[Array, "tokens token_dim"]
    scale: Float[Array, "tokens token_dim"]


def fit(
    spec: Spec,
    tokens: Float[np.ndarray, "nets tokens token_dim"],
    *,
    center: str = "mean",
    scale: str = "leaf",
    base_tokens: Float[np.ndarray, "tokens token_dim"] | None = None,
) -> Stats:
    """Statistics of a zoo's raw tokens.

    Args:
      center: what is subtracted: the zoo's mean, or the base's weights (`base_tokens`).
      scale: rms of the deviations of each parameter, pooled over each leaf, or over everything.

    Raises:
      PdiffError: an unknown choice, tokens that are not finite, or a zoo in which nothing varies.
    """
    if center not in CENTERS:
        raise PdiffError(f"weights.center: got {center!r}; allowed: {', '.join(CENTERS)}")
    if scale not in SCALES:
        raise PdiffError(f"weights.scale: got {scale!r}; allowed: {', '.join(SCALES)}")
    total = np.zeros(tokens.shape[1:])
    for block in _blocks(tokens):
        total += block.sum(0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise PdiffError("zoo: some weights are not finite; lower --config.zoo.learning_rate")
    mean = (total / len(tokens)).astype(np.float32)
    middle = mean if center == "mean" else np.asarray(base_tokens, np.float32)
    squares, spread = np.zeros(tokens.shape[1:]), np.zeros(tokens.shape[1:])
    for block in _blocks(tokens):
        squares += ((block.astype(np.float64) - middle) ** 2).sum(0)
        spread = np.maximum(spread, np.abs(block - tokens[0]).max(0))
    # Constant means the same bits in every network: with a rounded mean, squares alone would not tell.
    varying = spec.mask & (spread > 0)
    if not varying.any():
        raise PdiffError("zoo: all networks have the same weights; there is nothing to learn")
    pooled = _pool(spec, squares / len(tokens), varying, scale)
    first = np.asarray(tokens[0], np.float32)
    # A constant is restored to its own bits, whatever the center.
    return Stats(
        center=np.where(spec.mask, np.where(varying, middle, first), 0).astype(np.float32),
        scale=np.where(varying, pooled, 0).astype(np.float32),
    )


def normalize(stats: Stats, tokens: Float[Array, "*b tokens token_dim"]) -> Float[Array, "*b tokens token_dim"]:
    """Raw to normalised tokens; zero where nothing varies."""
    safe = jnp.where(stats.scale > 0, stats.scale, 1)
    return jnp.where(stats.scale > 0, (tokens - stats.center) / safe, 0)


def denormalize(stats: Stats, tokens: Float[Array, "*b tokens token_dim"]) -> Float[Array, "*b tokens token_dim"]:
    """The inverse of `normalize`; constants come back exactly, whatever stands in their place."""
    return tokens * stats.scale + stats.center


def varying(stats: Stats) -> Bool[Array, "tokens token_dim"]:
    """Elements that differ between networks of the zoo."""
    return stats.scale > 0


def _blocks(tokens: np.ndarray, rows: int = 1024):
    return (tokens[i : i + rows] for i in range(0, len(tokens), rows))


def _pool(spec: Spec, variance: np.ndarray, varying: np.ndarray, scale: str) -> np.ndarray:
    if scale == "param":
        return np.sqrt(variance)
    if scale == "global":
        return np.full_like(variance, np.sqrt(variance[varying].mean()))
    pooled = np.zeros_like(variance)
    for i in range(len(spec.leaves)):
        own = spec.element_leaf == i
        if (own & varying).any():
            pooled[own] = np.sqrt(variance[own & varying].mean())
    return pooled
