"""A residual network with BatchNorm: a network is its parameters and its running statistics.

The tree is `{'params': …, 'batch_stats': …}`; `pdiff/zoo/finetune.py` says how training treats the running statistics.
"""

from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.targets.base import RUNNING
from pdiff.targets.layers import Conv
from pdiff.weights.permutations import Axes, PermutationSpec, Units, conv, dense, norm

MOMENTUM = 0.9  # running <- 0.9 running + 0.1 of the batch; fine-tuning is too short for Flax's 0.99
# Keeps a channel that hardly varies from being blown up: the gain is at most 1 / sqrt(epsilon) = 32, even where a
# generated running variance is below zero, which counts as zero (see `targets.base.with_running_statistics`).
EPSILON = 1e-3


class Block(nn.Module):
    """x + two 3x3 convolutions, each after BatchNorm and ReLU (figure 4e of He et al. 2016, Identity Mappings).

    Where the shape changes, x goes through a strided 1x1 convolution, `shortcut`, after the first ReLU.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n height width inputs"], train: bool
    ) -> Float[Array, "n out_height out_width channels"]:
        h = nn.relu(_norm(train)(x))
        if self.stride > 1 or x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, self.stride, use_bias=False, name="shortcut")(h)
        h = Conv(self.channels, stride=self.stride, use_bias=False)(h)
        h = nn.relu(_norm(train)(h))
        return x + Conv(self.channels, use_bias=False)(h)


class ResNet(nn.Module):
    """3x3 convolution -> the blocks of each stage, halving from the second on -> BatchNorm, ReLU, mean, Dense.

    With `train`, BatchNorm (Ioffe & Szegedy 2015) normalises by the batch and updates the running statistics, which
    is what `mutable=['batch_stats']` then returns; without, it normalises by the running statistics.
    """

    channels: tuple[int, ...]
    num_classes: int
    image_shape: tuple[int, ...]
    blocks: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n features"], train: bool = False) -> Float[Array, "n classes"]:
        x = x.reshape(len(x), *self.image_shape[:2], -1)
        x = Conv(self.channels[0], use_bias=False, name="stem")(x)
        for i, (channels, halves) in enumerate(self.plan()):
            x = Block(channels, 2 if halves else 1, name=f"block_{i}")(x, train)
        x = nn.relu(_norm(train)(x))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))

    def plan(self) -> list[tuple[int, bool]]:
        """Of each block its channels, and whether it halves the image, which begins a stage and a residual stream."""
        return [(c, bool(i) and not k) for i, c in enumerate(self.channels) for k in range(self.blocks)]


def _norm(train: bool) -> nn.Module:
    # The fast variance, E[x^2] - E[x]^2, cancels where a channel's mean is large.
    return nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, use_fast_variance=False)


def make_module(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The module for the `target` part of a run's config: `target.widths` are the channels of its stages, of
    `target.blocks` blocks each.

    Raises:
      PdiffError: no stage, or more stages than the image can be halved.
    """
    widths = tuple(config.widths)
    if not widths:
        raise PdiffError(f"target.widths: got {widths}; allowed for a resnet: the channels of at least one stage")
    if len(image_shape) not in (2, 3) or min(image_shape[:2]) >> (len(widths) - 1) < 1:
        raise PdiffError(f"target.widths: got {widths}; images of shape {image_shape} cannot be halved so often")
    return ResNet(widths, num_classes, image_shape, config.blocks)


def permutation_spec(module: ResNet) -> PermutationSpec:
    """The channels of each residual stream, which all that reads and writes it shares, and those inside each block.

    A stream reaches from the shortcut that begins it to the next; the first begins with the stem.
    """
    units = {"stream_0": Units(module.channels[0])}
    axes, stream = conv("params/stem", None, "stream_0", use_bias=False), "stream_0"
    for i, (channels, halves) in enumerate(module.plan()):
        block, hidden, inputs = f"block_{i}", f"hidden_{i}", stream
        if halves:
            stream = f"stream_{i}"
            axes |= conv(f"params/{block}/shortcut", inputs, stream, use_bias=False)
        units |= {hidden: Units(channels), stream: Units(channels)}
        axes |= _batch_norm(f"{block}/BatchNorm_0", inputs) | _batch_norm(f"{block}/BatchNorm_1", hidden)
        axes |= conv(f"params/{block}/Conv_0", inputs, hidden, use_bias=False)
        axes |= conv(f"params/{block}/Conv_1", hidden, stream, use_bias=False)
    return PermutationSpec(axes | _batch_norm("BatchNorm_0", stream) | dense("params/head", stream, None), units)


def _batch_norm(path: str, units: str) -> Axes:
    return norm(f"params/{path}", units) | {f"{RUNNING}/{path}/{leaf}": (units,) for leaf in ("mean", "var")}
