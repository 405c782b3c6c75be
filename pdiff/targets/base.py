"""What a target network is: two pure functions of a parameter tree."""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


@dataclasses.dataclass(frozen=True)
class Target:
    """A target network as pure functions.

    Attributes:
      name: as in the config.
      init: rng -> the parameter tree `{'params': …}`, and `'lora'` beside it where there are adapters.
      apply: (parameter tree, inputs (n, features)) -> logits (n, classes).
      generate: regex over whole leaf paths: what is fine-tuned and generated. The rest stays the base's.
    """

    name: str
    init: Callable[[PRNGKeyArray], PyTree]
    apply: Callable[[PyTree, Float[Array, "n features"]], Float[Array, "n classes"]]
    generate: str = ".*"

    def abstract(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the parameter tree, without computing it."""
        return jax.eval_shape(self.init, jax.random.key(0))
