"""A convolutional network with GroupNorm: no running statistics, so a network is its parameters alone."""

from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.targets.layers import Conv
from pdiff.weights.permutations import PermutationSpec, Units, conv, dense, norm

GROUPS = 4


class CNN(nn.Module):
    """Stages of 3x3 convolution, GroupNorm (Wu & He 2018) and ReLU, max-pooled between; then a mean and a Dense layer.

    Layers are named Conv_0, GroupNorm_0, …, Dense_0.
    """

    channels: tuple[int, ...]
    num_classes: int
    image_shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        x = x.reshape(len(x), *self.image_shape[:2], -1)
        for i, channels in enumerate(self.channels):
            x = nn.relu(nn.GroupNorm(GROUPS)(Conv(channels)(x)))
            if i < len(self.channels) - 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def make_module(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The module for the `target` part of a run's config; `target.widths` are the channels of the stages.

    Raises:
      PdiffError: channels that GroupNorm cannot divide, or more stages than the image can be halved.
    """
    widths = tuple(config.widths)
    if not widths or any(w % GROUPS for w in widths):
        raise PdiffError(f"target.widths: got {widths}; allowed for a cnn: multiples of {GROUPS}, at least one")
    if len(image_shape) not in (2, 3) or min(image_shape[:2]) >> (len(widths) - 1) < 1:
        raise PdiffError(f"target.widths: got {widths}; images of shape {image_shape} cannot be halved so often")
    return CNN(widths, num_classes, image_shape)


def permutation_spec(module: CNN) -> PermutationSpec:
    """The channels of each stage: groups of GroupNorm move as wholes, and channels within their group.

    Its statistics are over a group, so moving one channel to another group alone would change the network.
    """
    units = {f"channels_{i}": Units(channels, GROUPS) for i, channels in enumerate(module.channels)}
    axes, inputs = {}, None
    for i, outputs in enumerate(units):
        axes |= conv(f"params/Conv_{i}", inputs, outputs) | norm(f"params/GroupNorm_{i}", outputs)
        inputs = outputs
    return PermutationSpec(axes | dense("params/Dense_0", inputs, None), units)
