"""The mean: a network from the condition of a task to one network for it (a hypernetwork, Ha et al. 2017).

The prior's refined zoo consists of its networks, draws for a precise description lie around them, and it is the control
`hypernetwork`.
"""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from pdiff.models.conditions import Conditions, Context
from pdiff.models.layers import Dense
from pdiff.system.sharding import by_example


class MeanNetwork(nn.Module):
    """Condition in, normalised weights out; zero at initialization, which is the centre of the zoo.

    Attributes:
      hidden: width of the layer before the weights.
      shape: (tokens, token_dim) of the weights.
    """

    conditions: Conditions
    hidden: int
    shape: tuple[int, int]

    def setup(self):
        self.inner = Dense(self.hidden)
        self.weights = Dense(math.prod(self.shape), kernel_init=nn.initializers.zeros)

    def __call__(self, condition: dict[str, dict]) -> Float[Array, "batch tokens token_dim"]:
        return self.decode(self.encode(condition))

    def encode(self, condition: dict[str, dict]) -> Context:
        return self.conditions(condition)

    def decode(self, context: Context) -> Float[Array, "batch tokens token_dim"]:
        hidden = nn.gelu(self.inner(by_example(context.pooled)))
        return by_example(self.weights(hidden).reshape(-1, *self.shape))
