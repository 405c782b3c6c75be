"""The networks whose weights are generated.

A target is a Flax Linen module used as a pure function: `init(rng) -> params` and
`apply(params, x) -> logits`. `get_target` finds one by the name of its module.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from ml_collections import ConfigDict

from pdiff.errors import PdiffError


@dataclasses.dataclass(frozen=True)
class Target:
    """A target network as pure functions.

    Attributes:
      name: as in the config.
      init: rng -> the parameter tree `{'params': …}`.
      apply: (parameter tree, inputs (n, features)) -> logits (n, classes).
    """

    name: str
    init: Callable[[PRNGKeyArray], PyTree]
    apply: Callable[[PyTree, Float[Array, "n features"]], Float[Array, "n classes"]]

    def abstract(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the parameter tree, without computing it."""
        return jax.eval_shape(self.init, jax.random.key(0))


def get_target(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> Target:
    """Builds the target `config.name` for a family's images and classes.

    Raises:
      PdiffError: there is no such target.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if config.name not in names:
        raise PdiffError(f"target.name: got {config.name!r}; allowed: {', '.join(names)}")
    module: nn.Module = importlib.import_module(f"{__name__}.{config.name}").make_module(
        config, image_shape, num_classes
    )
    features = 1
    for n in image_shape:
        features *= n

    def init(rng: PRNGKeyArray) -> Any:
        return module.init(rng, jnp.zeros((1, features), jnp.float32))

    return Target(config.name, init, module.apply)
