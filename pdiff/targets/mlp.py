"""A multi-layer perceptron of any widths."""

from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict


class MLP(nn.Module):
    """features -> widths[0] -> … -> num_classes, with ReLU between. Layers are named Dense_0, Dense_1, …"""

    widths: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


def make_module(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The module for the `target` part of a run's config; inputs are flattened images."""
    return MLP(tuple(config.widths), num_classes)
