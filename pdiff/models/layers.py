"""Layers that the models share."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

Tokens = Float[Array, "batch tokens width"]


@jax.custom_vjp
def matmul(x: Float[Array, "rows features"], kernel: Float[Array, "features outputs"]) -> Float[Array, "rows outputs"]:
    """x @ kernel, with a gradient of the kernel in the kernel's own order of axes. It has no forward-mode derivative.

    JAX's own rule transposes that gradient at the end, which XLA cannot fold into the product where devices sum
    gradients in between: the optimizer would then read all of them column by column.
    """
    return x @ kernel


def _matmul_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _matmul_backward(saved, gradient):
    x, kernel = saved
    return gradient @ kernel.T, jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


class Dense(nn.Module):
    """x @ kernel + bias, as Flax's layer of that name. `dtype` is that of the inputs and outputs.

    The product is of two matrices, whatever axes x has: for the gradient of a product over more axes XLA brings its
    operands into the order of a matrix product first, which on CPU takes longer than the product itself.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch outputs"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        rows = matmul(x.reshape(-1, x.shape[-1]), kernel) + bias
        return rows.reshape(*x.shape[:-1], self.features)


class Mlp(nn.Module):
    """Dense, GELU, Dense."""

    hidden: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch width"]:
        h = nn.gelu(Dense(self.hidden, dtype=self.dtype, name="up")(x))
        return Dense(self.width, dtype=self.dtype, name="down")(h)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017)."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, mask: Bool[Array, "..."] | None = None) -> Tokens:
        batch, tokens, width = x.shape
        qkv = Dense(3 * width, dtype=self.dtype, name="qkv")(x)
        # Head by head, so that a split of the columns over devices is one of the heads.
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, self.num_heads, 3, width // self.num_heads), 3, 0)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return Dense(width, dtype=self.dtype, name="out")(out.reshape(batch, tokens, width))


def noise_features(c_noise: Float[Array, " batch"], features: int = 64) -> Float[Array, "batch features"]:
    """Sinusoidal features of c_noise = log(sigma)/4, from one period over its whole range to ones 60 times finer."""
    frequencies = jnp.exp(jnp.linspace(jnp.log(0.5), jnp.log(30.0), features // 2))
    angle = c_noise[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class Conv1D(nn.Module):
    """A 1-D convolution as one matrix product: on a CPU, XLA's own takes far longer, its gradients above all.

    Padding is with zeros so that the output has 1/stride of the length, which stride must divide.
    """

    features: int
    kernel: int
    stride: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "batch length channels"]) -> Float[Array, "batch short features"]:
        short, before = x.shape[1] // self.stride, (self.kernel - self.stride) // 2
        padded = jnp.pad(x, ((0, 0), (before, self.kernel), (0, 0)))
        end = self.stride * (short - 1) + 1
        windows = [padded[:, i : i + end : self.stride] for i in range(self.kernel)]
        return Dense(self.features, kernel_init=self.kernel_init)(jnp.concatenate(windows, -1))


def upsampled(h: Float[Array, "batch length channels"], factor: int) -> Float[Array, "batch long fewer"]:
    """`factor` times the length and a part of the channels each (the sub-pixel shuffle of Shi et al. 2016, in 1-D)."""
    return h.reshape(len(h), h.shape[1] * factor, h.shape[2] // factor)
