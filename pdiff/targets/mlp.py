"""A multi-layer perceptron of any widths."""

import itertools

from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from pdiff.targets.layers import Dense
from pdiff.weights.permutations import PermutationSpec, Units, dense


class MLP(nn.Module):
    """features -> widths[0] -> … -> num_classes, with ReLU between. Layers are named Dense_0, Dense_1, …"""

    widths: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        x = x.T
        for width in self.widths:
            x = nn.relu(Dense(width)(x))
        return Dense(self.num_classes)(x).T


def make_module(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The module for the `target` part of a run's config; inputs are flattened images."""
    return MLP(tuple(config.widths), num_classes)


def permutation_spec(module: MLP) -> PermutationSpec:
    """The units of each hidden layer, in any order."""
    hidden = {f"hidden_{i}": Units(width) for i, width in enumerate(module.widths)}
    axes = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise((None, *hidden, None))):
        axes |= dense(f"params/Dense_{i}", inputs, outputs)
    return PermutationSpec(axes, hidden)
