"""The prior's diffusion transformer, over tokens of coefficients (after Peebles & Xie 2023).

It is conditioned on a set of networks, the `members`: coefficients of the mean's networks for tasks that the
description allows. A precise description has one, a vague one several, drawn evenly from the tasks that it covers, and
no description has some of all. So the prior can be conditioned on whatever the mean can.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from pdiff.models.layers import Attention, Dense, Mlp, Tokens, noise_features
from pdiff.system.sharding import by_example

LEAST_VARIANCE = 1e-8  # under the root of a deviation, which has no gradient at 0


class Block(nn.Module):
    """A transformer block whose shift, scale and gate come from `vector` (adaLN-zero: it starts as the identity)."""

    num_heads: int
    mlp_ratio: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens, vector: Float[Array, "batch width"]) -> Tokens:
        width = x.shape[-1]
        modulation = Dense(6 * width, self.dtype, nn.initializers.zeros, name="modulation")(nn.silu(vector))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(by_example(modulation)[:, None], 6, -1)
        h = _layer_norm(self.dtype)(x) * (1 + scale1) + shift1
        x = by_example(x + gate1 * Attention(self.num_heads, self.dtype, name="attention")(h))
        h = _layer_norm(self.dtype)(x) * (1 + scale2) + shift2
        return by_example(x + gate2 * Mlp(int(self.mlp_ratio * width), width, self.dtype, name="mlp")(h))


class DiT(nn.Module):
    """Coefficient tokens in, coefficient tokens out; zero at initialization.

    Each token is read beside the members' mean and standard deviation of the same coefficients; one more token has the
    mean and deviation of learned features of each member (Deep Sets, Zaheer et al. 2017).
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens token_dim"],
        c_noise: Float[Array, " batch"],
        members: Float[Array, "batch members components"],
    ) -> Float[Array, "batch tokens token_dim"]:
        tokens, token_dim = x.shape[1:]
        features = _moments(Mlp(self.width, self.width, name="member")(by_example(members)))
        described = by_example(Dense(self.width, name="set")(nn.gelu(features)))
        vector = Mlp(self.width, self.width, name="noise")(noise_features(c_noise))
        vector = by_example(vector + described).astype(self.dtype)

        beside = _moments(members).reshape(len(x), 2, tokens, token_dim)
        x = jnp.concatenate([x, beside[:, 0], beside[:, 1]], -1)
        h = Dense(self.width, dtype=self.dtype, name="in")(by_example(x))
        h += self.param("token_position", nn.initializers.normal(0.02), (tokens, self.width)).astype(self.dtype)
        h = by_example(jnp.concatenate([by_example(h), described[:, None].astype(self.dtype)], 1))
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            h = block(self.num_heads, self.mlp_ratio, self.dtype, name=f"block_{i}")(h, vector)
        h = by_example(h[:, :tokens])
        final = Dense(2 * self.width, self.dtype, nn.initializers.zeros, name="final")(nn.silu(vector))
        shift, scale = jnp.split(by_example(final)[:, None], 2, -1)
        h = _layer_norm(self.dtype)(h) * (1 + scale) + shift
        out = Dense(token_dim, self.dtype, nn.initializers.zeros, name="last")(h)
        return by_example(out.astype(jnp.float32))


def _moments(x: Float[Array, "batch members features"]) -> Float[Array, "batch twice"]:
    """Mean and standard deviation of each feature over the members."""
    return jnp.concatenate([x.mean(1), jnp.sqrt(x.var(1) + LEAST_VARIANCE)], -1)


def make_dit(config: ConfigDict) -> DiT:
    """The transformer of the `model` part of a run's config."""
    sizes = (config.width, config.depth, config.num_heads, config.mlp_ratio)
    return DiT(*sizes, dtype=jnp.dtype(config.dtype), remat=config.remat)


def _layer_norm(dtype) -> nn.LayerNorm:
    return nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-6, dtype=dtype)


def count_parameters(params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(x.size for x in jax.tree.leaves(params))
