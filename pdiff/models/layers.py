"""The two layers that every transformer here is made of."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float


class Mlp(nn.Module):
    """Dense, GELU, Dense."""

    hidden: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch width"]:
        return nn.Dense(self.width, dtype=self.dtype)(nn.gelu(nn.Dense(self.hidden, dtype=self.dtype)(x)))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017)."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "batch tokens width"]:
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width, dtype=self.dtype)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads), 2, 0)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return nn.Dense(width, dtype=self.dtype)(out.reshape(batch, tokens, width))
