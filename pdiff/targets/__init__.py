"""The networks whose weights are generated.

A target is a Flax Linen module used as a pure function: `init(rng) -> tree` and `apply(tree, x) -> logits`. A module
with BatchNorm also takes `train`, and becomes `apply_train(tree, x) -> (logits, tree)` too. `get_target` finds one by
the name of its file, so a new target is one new file. In it, `permutation_spec(module)` may say which units can be
reordered, and `published()` which leaves, those that `FROZEN` matches, are not trained but known. A module whose file
has `published` applies adapters itself.
"""

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.targets.base import RUNNING, Target, with_running_statistics
from pdiff.targets.lora import with_lora
from pdiff.weights import permutations

__all__ = ["Target", "get_target"]

_NOT_TARGETS = {"base", "layers", "lora"}


def get_target(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> Target:
    """Builds the target of `config` (the `target` part of a run's config) for a family's images and classes.

    Raises:
      PdiffError: there is no such target, its sizes do not fit, or `generate` matches some running statistics only.
    """
    names = sorted({m.name for m in pkgutil.iter_modules(__path__)} - _NOT_TARGETS)
    if config.name not in names:
        raise PdiffError(f"target.name: got {config.name!r}; allowed: {', '.join(names)}")
    source = importlib.import_module(f"{__name__}.{config.name}")
    module: nn.Module = source.make_module(config, image_shape, num_classes)

    def init(rng: PRNGKeyArray) -> Any:
        return module.init(rng, jnp.zeros((1, math.prod(image_shape)), jnp.float32))

    target = Target(config.name, init, module.apply, config.generate)
    if config.dtype != "float32":
        if not hasattr(module, "dtype"):
            raise PdiffError(f"target.dtype: got {config.dtype!r}; allowed for a {config.name}: float32")
        rounded = module.clone(dtype=jnp.dtype(config.dtype))
        target = dataclasses.replace(target, apply_rounded=rounded.apply)
    if hasattr(source, "permutation_spec"):
        target = dataclasses.replace(target, permutations=source.permutation_spec(module))
        permutations.check(target.permutations, target.abstract())
    if RUNNING in target.abstract():
        target = with_running_statistics(target, module)
    if hasattr(source, "published"):
        whole = _with_published(target.init, source.published)
        target = dataclasses.replace(
            target, init=whole, frozen=source.FROZEN, head=source.HEAD, peft=source.peft(config)
        )
    if config.lora_rank:
        apart = hasattr(source, "published")
        target = with_lora(target, config.lora_rank, config.lora_alpha, config.lora_modules, apart)
    target.updates_running()  # refuses a regex that splits them
    return target


def _with_published(init: Callable, published: Callable[[], dict[str, np.ndarray]]) -> Callable:
    """`init` with the published leaves in the place of its own."""

    def whole(rng: PRNGKeyArray) -> Any:
        leaves = traverse_util.flatten_dict(init(rng), sep="/")
        return traverse_util.unflatten_dict(leaves | jax.tree.map(jnp.asarray, published()), sep="/")

    return whole
