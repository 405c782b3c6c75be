"""Condition encoders: each turns one description of a task into condition tokens.

A condition is a dict with, for each name in use, its inputs and a boolean `keep` for each example; where that is false,
a learned null token stands in: in training for classifier-free guidance, and in samples that give only some conditions.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Bool, Float, Int
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.models.layers import Attention, Dense, Mlp
from pdiff.tasks import Family
from pdiff.tasks.plain import numbers, plain

INDICATOR_PERIOD = 2.0  # of a factor that is 0 or 1: the two are opposite each other


def fourier(x: Float[Array, "*shape"], num_harmonics: int, period: float) -> Float[Array, "*shape features"]:
    """sin and cos of the first harmonics of x / period; smooth in x, and equal at x and x + period."""
    angle = 2 * jnp.pi * (x / period)[..., None] * jnp.arange(1, num_harmonics + 1, dtype=x.dtype)
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
    max_length: int
    num_harmonics: int
    number_period: float

    @nn.compact
    def __call__(self, text: dict[str, Array]) -> Float[Array, "batch 1 width"]:
        """`text` holds what `models.text.Text` does, of any length up to `max_length`."""
        real = text["ids"] > 0
        length = text["ids"].shape[-1]
        values = fourier(text["values"], self.num_harmonics, self.number_period)
        x = nn.Embed(self.vocab_size, self.text_width)(text["ids"])
        x += self.param("position", nn.initializers.normal(0.02), (self.max_length, self.text_width))[:length]
        x += jnp.where(text["is_number"][..., None], Mlp(self.text_width, self.text_width)(values), 0)
        for _ in range(self.depth):
            x += Attention(num_heads=4)(nn.LayerNorm()(x), real[:, None, None, :])
            x += Mlp(4 * self.text_width, self.text_width)(nn.LayerNorm()(x))
        weights = nn.softmax(jnp.where(real, Dense(1)(nn.LayerNorm()(x))[..., 0], -1e9), -1)
        return Mlp(self.width, self.width)(jnp.einsum("bl,blw->bw", weights, x))[:, None]


class SentenceCondition(nn.Module):
    """A description as the unit vector that a frozen encoder makes of it, before training (`models.sentence`)."""

    width: int

    @nn.compact
    def __call__(self, sentence: Float[Array, "batch features"]) -> Float[Array, "batch 1 width"]:
        return Mlp(self.width, self.width)(sentence * sentence.shape[-1] ** 0.5)[:, None]  # to entries of rms 1


class BackgroundCondition(nn.Module):
    """One image of the task without an object in it, such as a camera's empty scene."""

    width: int

    @nn.compact
    def __call__(self, image: Float[Array, "batch features"]) -> Float[Array, "batch 1 width"]:
        return Mlp(self.width, self.width)(nn.gelu(Dense(2 * self.width)(image)))[:, None]


@flax.struct.dataclass
class Context:
    """Encoded conditions: a token for each, and the mean of those that are not null."""

    tokens: Float[Array, "batch tokens width"]
    pooled: Float[Array, "batch width"]


class Conditions(nn.Module):
    """The context of a batch of conditions; where `keep` is false a null token stands in."""

    encoders: Mapping[str, nn.Module]
    width: int

    @nn.compact
    def __call__(self, condition: dict[str, dict]) -> Context:
        tokens, keeps = [], []
        for name, encoder in self.encoders.items():
            keep: Bool[Array, " batch"] = condition[name]["keep"]
            encoded = encoder(condition[name]["inputs"])
            null = self.param(f"null_{name}", nn.initializers.normal(0.02), encoded.shape[1:])
            tokens.append(jnp.where(keep[:, None, None], encoded, null))
            keeps.append(jnp.broadcast_to(keep[:, None], encoded.shape[:2]))
        tokens, keep = jnp.concatenate(tokens, 1), jnp.concatenate(keeps, 1)[..., None]
        nothing = self.param("null", nn.initializers.normal(0.02), (self.width,))
        mean = jnp.where(keep, tokens, 0).sum(1) / jnp.maximum(keep.sum(1, dtype=tokens.dtype), 1)
        return Context(tokens, jnp.where(keep.any(1), mean, nothing))


def number_period(condition: ConfigDict, family: Family) -> float:
    """The period of the numbers in descriptions: what the config says, or for 0 twice their range over seen tasks."""
    if condition.number_period:
        return condition.number_period
    values = [n for t in family.split("seen") for d in t.descriptions for n in numbers(plain(d))]
    return 2 * np.ptp(values).item() if len({*values}) > 1 else 1.0


def factor_units(condition: ConfigDict, family: Family) -> tuple[float, ...]:
    """How much of each factor is 1 in the numbers of a description: the family's `units`, or where the config leaves
    the period open, what makes one period twice the factor's own range.
    """
    if condition.number_period or not family.factor_names:
        return family.units
    span = np.ptp(family.factors(family.split("seen")), 0)
    period = number_period(condition, family)
    return tuple(float(2 * s / period) if s and u else u for s, u in zip(span, family.units, strict=True))


def make_conditions(config: ConfigDict, family: Family, vocab_size: int) -> Conditions:
    """The encoders of a run's config for the tasks of `family`.

    Raises:
      PdiffError: the family lacks what a condition reads.
    """
    width, condition, harmonics = config.model.width, config.condition, config.condition.num_harmonics
    period = number_period(condition, family)
    if "background" in condition.use and family.backgrounds is None:
        raise PdiffError(f"condition.use: got {condition.use}; the family {family.name} has no backgrounds")
    if "factors" in condition.use and not family.factor_names:
        raise PdiffError(f"condition.use: got {condition.use}; the family {family.name} has no factors")

    def factors():
        units = zip(family.factor_periods, factor_units(condition, family), strict=True)
        return FactorsCondition(width, harmonics, tuple(p or period * unit or INDICATOR_PERIOD for p, unit in units))

    def text():
        sizes = (condition.text_width, condition.text_depth, vocab_size, condition.text_max_length)
        return TextCondition(width, *sizes, harmonics, period)

    make = {
        "id": lambda: IdCondition(width, len(family.tasks)),
        "factors": factors,
        "text": text,
        "sentence": lambda: SentenceCondition(width),
        "background": lambda: BackgroundCondition(width),
    }
    return Conditions({name: make[name]() for name in condition.use}, width)


@flax.struct.dataclass
class Mixture:
    """Two conditions to be mixed, `weight` of the way from a to b; it can stand for a condition."""

    a: dict[str, dict]
    b: dict[str, dict]
    weight: Float[ArrayLike, " batch"]
    spherical: bool = flax.struct.field(pytree_node=False, default=False)


def mix(a: Context, b: Context, weight: Float[Array, " batch"], spherical: bool = False) -> Context:
    """The context `weight` of the way from a to b, on the straight line or on the great circle (Shoemake 1985)."""
    return jax.tree.map(lambda u, v: (slerp if spherical else lerp)(u, v, weight), a, b)


def lerp(a: Float[ArrayLike, "batch ..."], b: Float[ArrayLike, "batch ..."], weight: Float[ArrayLike, " batch"]):
    """(1 - weight) a + weight b for each example."""
    w = weight.reshape(-1, *([1] * (a.ndim - 1)))
    return (1 - w) * a + w * b


def slerp(a: Float[ArrayLike, "batch ..."], b: Float[ArrayLike, "batch ..."], weight: Float[ArrayLike, " batch"]):
    """The same along the arc between the directions of a and b, all axes but the first being one vector.

    The norm goes linearly from a's to b's. Parallel vectors are interpolated on the line.
    """
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norm_a, norm_b = (jnp.linalg.norm(f, axis=1, keepdims=True) for f in (flat_a, flat_b))
    unit_a, unit_b = flat_a / jnp.maximum(norm_a, 1e-12), flat_b / jnp.maximum(norm_b, 1e-12)
    angle = jnp.arccos(jnp.clip((unit_a * unit_b).sum(1, keepdims=True), -1, 1))
    w, sine = weight[:, None], jnp.sin(angle)
    safe = jnp.where(sine > 1e-4, sine, 1)
    arc = (jnp.sin((1 - w) * angle) * unit_a + jnp.sin(w * angle) * unit_b) / safe
    unit = jnp.where(sine > 1e-4, arc, (1 - w) * unit_a + w * unit_b)
    return (((1 - w) * norm_a + w * norm_b) * unit).reshape(a.shape)
