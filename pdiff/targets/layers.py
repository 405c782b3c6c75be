"""Layers that stay fast when every network of a batch has its own kernel: the leaves, names and numbers of Flax's."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Conv(nn.Module):
    """`nn.Conv` with a square kernel and SAME padding: the same leaves, names and numbers.

    XLA turns a convolution that is mapped over kernels into a grouped one, which CPUs and GPUs do slowly. Gathering
    the patches first leaves a matrix product, which maps to a batched one.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n height width inputs"]) -> Float[Array, "n out_height out_width features"]:
        side, step = self.kernel_size, self.stride
        kernel = self.param("kernel", nn.linear.default_kernel_init, (side, side, x.shape[-1], self.features))
        pads = jax.lax.padtype_to_pads(x.shape[1:3], (side, side), (step, step), "SAME")
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        rows, columns = ((-(-size // step) - 1) * step + 1 for size in x.shape[1:3])

        def shifted(i, j):  # what kernel[i, j] is applied to
            return padded[:, i : i + rows : step, j : j + columns : step]

        patches = jnp.concatenate([shifted(i, j) for i in range(side) for j in range(side)], -1)
        out = patches @ kernel.reshape(-1, self.features)
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,))
        return out


class Dense(nn.Module):
    """`nn.Dense` on examples in columns: the same leaves, names and numbers, for a transposed input and output.

    The gradient of a kernel sums over examples. Mapped over kernels, CPUs make that product twice as fast where
    examples come last, and so they do softmax and its like.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "inputs n"]) -> Float[Array, "features n"]:
        kernel = self.param("kernel", nn.linear.default_kernel_init, (len(x), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Without the barrier XLA would fold the transpose into the product, which is then the slow one.
        return jax.lax.optimization_barrier(kernel.T) @ x + bias[:, None]
