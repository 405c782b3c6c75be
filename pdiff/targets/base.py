"""What a target network is: pure functions of a tree of parameters and, where it has them, running statistics."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdiff.errors import PdiffError
from pdiff.weights.permutations import PermutationSpec

RUNNING = "batch_stats"  # Flax's name of the collection


@dataclasses.dataclass(frozen=True)
class Peft:
    """How a network is written as an adapter of PEFT.

    Attributes:
      names: by leaf path, what PEFT calls it. Matrices are transposed there.
      config: adapter_config.json.
    """

    names: dict[str, str]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A target network as pure functions.

    Attributes:
      name: as in the config.
      init: rng -> the tree `{'params': …}`, beside it `'batch_stats'` where there are running statistics and `'lora'`
        where there are adapters.
      apply: (tree, inputs (n, features)) -> logits (n, classes). It normalises by the running statistics.
      generate: regex over whole leaf paths: what is fine-tuned and generated. The rest stays the base's.
      apply_train: (tree, inputs) -> (logits normalised by the batch, the tree with running statistics updated). None
        where there are no running statistics: then `apply` is for training too.
      apply_rounded: `apply` in fewer bits, for gradients; None where `apply` is for them too.
      frozen: regex over whole leaf paths that pretraining leaves as `init` has them, because they were published.
      head: regex over whole leaf paths that is the last layer; "" where nobody needs to know.
      peft: what its generated leaves are called as an adapter of PEFT; None if they are none.
      permutations: which units of the whole tree can be reordered; None if unknown, or if none can.
    """

    name: str
    init: Callable[[PRNGKeyArray], PyTree]
    apply: Callable[[PyTree, Float[Array, "n features"]], Float[Array, "n classes"]]
    generate: str = ".*"
    apply_train: Callable[[PyTree, Float[Array, "n features"]], tuple[Float[Array, "n classes"], PyTree]] | None = None
    apply_rounded: Callable[[PyTree, Float[Array, "n features"]], Float[Array, "n classes"]] | None = None
    frozen: str = ""
    head: str = ""
    peft: Peft | None = None
    permutations: PermutationSpec | None = None

    @property
    def differentiated(self) -> Callable[[PyTree, Float[Array, "n features"]], Float[Array, "n classes"]]:
        """What stands for `apply` where gradients are taken."""
        return self.apply_rounded or self.apply

    def abstract(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the tree, without computing it."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def symmetry(self) -> PermutationSpec | None:
        """The permutations of the generated part, which leave all else of the tree as it is; None if there are none."""
        if self.permutations is None:
            return None
        paths = traverse_util.flatten_dict(self.abstract(), sep="/")
        spec = self.permutations.restricted([p for p in paths if re.fullmatch(self.generate, p)])
        return spec if spec.units else None

    def generated_permutations(self, field: str) -> PermutationSpec:
        """`symmetry`, for a config field that needs it; `field` is its name and value, for the message.

        Raises:
          PdiffError: there is none.
        """
        if spec := self.symmetry():
            return spec
        if self.permutations is None:
            raise PdiffError(
                f"{field}: needs hidden units that can be reordered, which a {self.name} with low-rank adapters, or "
                "without a permutation_spec in its module, does not have; allowed: the field's default"
            )
        raise PdiffError(
            f"{field}: target.generate is {self.generate!r}, and none of {', '.join(self.permutations.units)} "
            "acts on leaves that it matches alone, so no unit can be reordered; allowed: a wider one, such as '.*'"
        )

    def updates_running(self) -> bool:
        """Whether running statistics are fine-tuned and generated, which is where `generate` matches them.

        Raises:
          PdiffError: it matches some of them only. The layers would then disagree on what they normalise by.
        """
        if self.apply_train is None:
            return False
        paths = ["/".join(p) for p in traverse_util.flatten_dict(self.abstract()) if p[0] == RUNNING]
        matched = [p for p in paths if re.fullmatch(self.generate, p)]
        if len(matched) not in (0, len(paths)):
            raise PdiffError(
                f"target.generate: got {self.generate!r}, which matches {len(matched)} of {len(paths)} running "
                f"statistics, such as {matched[0]!r}; allowed: all of '{RUNNING}/.*' or none"
            )
        return bool(matched)


def with_running_statistics(target: Target, module: nn.Module) -> Target:
    """`target`, whose `module` has BatchNorm and takes `train`, as functions that never see a negative variance.

    A generated running variance can be below zero, which no variance is: it counts as 0 wherever it is used, to
    normalise and as the past in an update. A NaN stays one. Gradients do not flow to running statistics in training.
    """

    def apply(tree, x):
        return module.apply(_not_negative(tree), x)

    def apply_train(tree, x):
        running = jax.lax.stop_gradient(_not_negative(tree)[RUNNING])
        logits, updated = module.apply(tree | {RUNNING: running}, x, train=True, mutable=[RUNNING])
        return logits, tree | updated

    return dataclasses.replace(target, apply=apply, apply_train=apply_train)


def _not_negative(tree: PyTree) -> PyTree:
    """The tree with its running variances, the leaves named 'var', clamped at 0."""
    running = traverse_util.flatten_dict(tree[RUNNING])
    clamped = {p: jnp.maximum(v, 0) if p[-1] == "var" else v for p, v in running.items()}
    return tree | {RUNNING: traverse_util.unflatten_dict(clamped)}
