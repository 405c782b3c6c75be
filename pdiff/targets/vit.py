"""A small vision transformer (Dosovitskiy et al. 2021)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.weights.permutations import Axes, PermutationSpec, Units, dense, norm

HEADS = 4
PATCHES = 4  # along each side of the image


class Block(nn.Module):
    """Pre-norm self-attention and an MLP of twice the width."""

    @nn.compact
    def __call__(self, x: Float[Array, "n tokens width"]) -> Float[Array, "n tokens width"]:
        width = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(2 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(h)


class ViT(nn.Module):
    """Patches with learned positions -> one block for each entry of `widths` -> mean -> logits."""

    width: int
    depth: int
    num_classes: int
    image_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        height, width = (side // PATCHES for side in self.image_shape[:2])
        x = x.reshape(len(x), PATCHES, height, PATCHES, width, -1)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), PATCHES**2, -1)
        x = nn.Dense(self.width, name="embed")(x)
        x += self.param("position", nn.initializers.normal(0.02), (PATCHES**2, self.width))
        for i in range(self.depth):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(self.num_classes, name="head")(jnp.mean(nn.LayerNorm(name="norm")(x), 1))


def make_module(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The module for the `target` part of a run's config; `target.widths` holds the width once for each block.

    Raises:
      PdiffError: widths that differ or that the heads do not divide, or an image that is not 4 x 4 equal patches.
    """
    widths = tuple(config.widths)
    if not widths or len(set(widths)) > 1 or widths[0] % HEADS:
        raise PdiffError(f"target.widths: got {widths}; allowed: one multiple of {HEADS}, once for each block")
    if len(image_shape) not in (2, 3) or any(side % PATCHES for side in image_shape[:2]):
        raise PdiffError(f"target.name: a vit needs sides that {PATCHES} divides; the images are {image_shape}")
    return ViT(widths[0], len(widths), num_classes, image_shape)


def permutation_spec(module: ViT) -> PermutationSpec:
    """The residual stream, the heads of each block as wholes, and the hidden units of its MLP.

    Within a head, queries and keys, and likewise values and outputs, share any invertible matrix, not only
    permutations. That larger symmetry is left out.
    """
    units = {"stream": Units(module.width)}
    axes = dense("params/embed", None, "stream") | {"params/position": (None, "stream")}
    for i in range(module.depth):
        units |= {f"heads_{i}": Units(HEADS), f"hidden_{i}": Units(2 * module.width)}
        block = f"params/block_{i}"
        axes |= norm(f"{block}/LayerNorm_0", "stream") | _attention(f"{block}/attention", f"heads_{i}")
        axes |= norm(f"{block}/LayerNorm_1", "stream")
        axes |= dense(f"{block}/Dense_0", "stream", f"hidden_{i}") | dense(f"{block}/Dense_1", f"hidden_{i}", "stream")
    return PermutationSpec(axes | norm("params/norm", "stream") | dense("params/head", "stream", None), units)


def _attention(path: str, heads: str) -> Axes:
    axes = {f"{path}/out/kernel": (heads, None, "stream"), f"{path}/out/bias": ("stream",)}
    for name in ("query", "key", "value"):
        axes |= {f"{path}/{name}/kernel": ("stream", heads, None), f"{path}/{name}/bias": (heads, None)}
    return axes
