"""The diffusion transformer over weight tokens (after Peebles & Xie 2023, with condition tokens in context)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.models.conditions import Conditions, Context, make_conditions
from pdiff.models.layers import Attention, Dense, Mlp, noise_features
from pdiff.sharding import by_example
from pdiff.tasks import Family
from pdiff.weights.spec import Spec


class Block(nn.Module):
    """A transformer block whose shift, scale and gate come from `vector` (adaLN-zero: it starts as the identity)."""

    num_heads: int
    mlp_ratio: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], vector: Float[Array, "batch width"]
    ) -> Float[Array, "batch tokens width"]:
        width = x.shape[-1]
        modulation = Dense(6 * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation")(
            nn.silu(vector)
        )
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(by_example(modulation)[:, None], 6, -1)
        h = _layer_norm(self.dtype)(x) * (1 + scale1) + shift1
        x = by_example(x + gate1 * Attention(self.num_heads, self.dtype, name="attention")(h))
        h = _layer_norm(self.dtype)(x) * (1 + scale2) + shift2
        return by_example(x + gate2 * Mlp(int(self.mlp_ratio * width), width, self.dtype, name="mlp")(h))


class DiT(nn.Module):
    """Weight tokens in, weight tokens out; zero at initialization.

    Attributes:
      mean_width: hidden width of a direct path from the context to all weights. It carries the conditional mean, the
        transformer what is left (the division of labour of CorrDiff, Mardani et al. 2025, in one model).
      token_leaf, token_kind, token_position: for each token its leaf, the leaf's kind and the token's
        place in the leaf; their learned embeddings tell tokens apart.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    mean_width: int
    token_leaf: tuple[int, ...]
    token_kind: tuple[int, ...]
    token_position: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens token_dim"],
        c_noise: Float[Array, " batch"],
        context: Context,
    ) -> Float[Array, "batch tokens token_dim"]:
        tokens, token_dim = x.shape[1:]
        vector = Mlp(self.width, self.width, name="noise")(noise_features(c_noise))
        pooled = by_example(context.pooled)
        vector = by_example(vector + Dense(self.width, name="pooled")(pooled)).astype(self.dtype)

        h = Dense(self.width, dtype=self.dtype, name="in")(x)
        for name in ("leaf", "kind", "position"):
            h += _table(getattr(self, f"token_{name}"), self.width, name, self.dtype)
        h = by_example(jnp.concatenate([by_example(h), by_example(context.tokens.astype(self.dtype))], 1))
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            h = block(self.num_heads, self.mlp_ratio, self.dtype, name=f"block_{i}")(h, vector)
        h = by_example(h[:, :tokens])
        final = Dense(2 * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="final")(
            nn.silu(vector)
        )
        shift, scale = jnp.split(by_example(final)[:, None], 2, -1)
        h = _layer_norm(self.dtype)(h) * (1 + scale) + shift
        out = Dense(token_dim, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")(h)
        out = by_example(out.astype(jnp.float32))
        if self.mean_width:
            hidden = nn.gelu(Dense(self.mean_width, name="mean_in")(pooled))
            mean = Dense(tokens * token_dim, kernel_init=nn.initializers.zeros, name="mean_out")(hidden)
            out += by_example(mean.reshape(out.shape))
        return out


class ConditionalDiT(nn.Module):
    """F(x, c_noise, condition) in two parts, so that samplers encode a condition once and contexts can be mixed."""

    conditions: Conditions
    dit: DiT

    def __call__(
        self, x: Float[Array, "batch tokens token_dim"], c_noise: Float[Array, " batch"], condition: dict[str, dict]
    ) -> Float[Array, "batch tokens token_dim"]:
        return self.denoise(x, c_noise, self.encode(condition))

    def encode(self, condition: dict[str, dict]) -> Context:
        return self.conditions(condition)

    def denoise(
        self, x: Float[Array, "batch tokens token_dim"], c_noise: Float[Array, " batch"], context: Context
    ) -> Float[Array, "batch tokens token_dim"]:
        return self.dit(x, c_noise, context)


def make_model(config: ConfigDict, spec: Spec, family: Family, vocab_size: int) -> ConditionalDiT:
    """The transformer of a run's config for the tokens of `spec` and the tasks of `family`.

    Raises:
      PdiffError: the sequence would be longer than `model.max_tokens`, or the family lacks what a condition reads.
    """
    model, condition = config.model, config.condition
    length = spec.num_tokens + len(condition.use)
    if length > model.max_tokens:
        raise PdiffError(
            f"model.max_tokens: the sequence has {length} tokens ({spec.num_tokens} of weights); allowed: at most "
            f"{model.max_tokens}; raise weights.token_dim or model.max_tokens"
        )
    dit = DiT(
        width=model.width,
        depth=model.depth,
        num_heads=model.num_heads,
        mlp_ratio=model.mlp_ratio,
        mean_width=model.mean_width,
        token_leaf=tuple(np.asarray(spec.token_leaf).tolist()),
        token_kind=tuple(np.asarray(spec.token_kind).tolist()),
        token_position=tuple(np.asarray(spec.token_position).tolist()),
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
    )
    return ConditionalDiT(make_conditions(config, family, vocab_size), dit)


def _layer_norm(dtype) -> nn.LayerNorm:
    return nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-6, dtype=dtype)


def _table(indices: tuple[int, ...], width: int, name: str, dtype) -> Float[Array, "tokens width"]:
    ids: Int[Array, " tokens"] = jnp.asarray(indices)
    embed = nn.Embed(
        max(indices) + 1, width, embedding_init=nn.initializers.normal(0.02), dtype=dtype, name=f"embed_{name}"
    )
    return embed(ids)


def count_parameters(params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(x.size for x in jax.tree.leaves(params))
