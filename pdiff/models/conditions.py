"""Condition encoders: each turns one description of a task into condition tokens.

A condition is a dict with, for each name in use, its inputs and a boolean `keep` for each
example; where that is false a learned null token stands in. That is what training drops for
classifier-free guidance, and what a sample that gives only some of the conditions sees.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from pdiff.models.layers import Attention, Mlp


def fourier(x: Float[Array, "*shape"], num_harmonics: int, period: float) -> Float[Array, "*shape features"]:
    """sin and cos of the first harmonics of x / period; smooth in x, and equal at x and x + period."""
    angle = 2 * jnp.pi * (x / period)[..., None] * jnp.arange(1, num_harmonics + 1)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class IdCondition(nn.Module):
    """A table of one learned token for each task."""

    width: int
    num_tasks: int

    @nn.compact
    def __call__(self, ids: Int[Array, " batch"]) -> Float[Array, "batch 1 width"]:
        return nn.Embed(self.num_tasks, self.width)(ids)[:, None]


class FactorsCondition(nn.Module):
    """A task's continuous factors, as Fourier features of each."""

    width: int
    num_harmonics: int
    periods: tuple[float, ...]

    @nn.compact
    def __call__(self, factors: Float[Array, "batch factors"]) -> Float[Array, "batch 1 width"]:
        features = [fourier(factors[:, i], self.num_harmonics, p) for i, p in enumerate(self.periods)]
        return Mlp(self.width, self.width)(jnp.concatenate(features, -1))[:, None]


class TextCondition(nn.Module):
    """A small transformer over pieces and number values, pooled to one token."""

    width: int
    text_width: int
    depth: int
    vocab_size: int
    num_harmonics: int
    number_period: float

    @nn.compact
    def __call__(self, text: dict[str, Array]) -> Float[Array, "batch 1 width"]:
        real = text["ids"] > 0
        length = text["ids"].shape[-1]
        values = fourier(text["values"], self.num_harmonics, self.number_period)
        x = nn.Embed(self.vocab_size, self.text_width)(text["ids"])
        x += self.param("position", nn.initializers.normal(0.02), (length, self.text_width))
        x += jnp.where(text["is_number"][..., None], Mlp(self.text_width, self.text_width)(values), 0)
        for _ in range(self.depth):
            x += Attention(num_heads=4)(nn.LayerNorm()(x), real[:, None, None, :])
            x += Mlp(4 * self.text_width, self.text_width)(nn.LayerNorm()(x))
        weights = nn.softmax(jnp.where(real, nn.Dense(1)(nn.LayerNorm()(x))[..., 0], -1e9), -1)
        return Mlp(self.width, self.width)(jnp.einsum("bl,blw->bw", weights, x))[:, None]


class Conditions(nn.Module):
    """All condition tokens of a batch, null where `keep` is false."""

    encoders: dict[str, nn.Module]
    width: int

    @nn.compact
    def __call__(self, condition: dict[str, dict]) -> Float[Array, "batch tokens width"]:
        tokens = []
        for name, encoder in self.encoders.items():
            keep: Bool[Array, " batch"] = condition[name]["keep"]
            encoded = encoder(condition[name]["inputs"])
            null = self.param(f"null_{name}", nn.initializers.normal(0.02), encoded.shape[1:])
            tokens.append(jnp.where(keep[:, None, None], encoded, null))
        return jnp.concatenate(tokens, 1)
