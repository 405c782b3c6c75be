"""Low-rank adapters (Hu et al. 2022) on any target: W + (alpha / rank) A B, as a pure function of (base, adapters).

The tree is the target's own `params` and beside it `lora`, with matrices `a` (inputs, rank) and `b` (rank, outputs) for
each adapted kernel. A kernel of a convolution is treated as (height * width * inputs, outputs), that of an attention
projection as (inputs, heads * features) or (heads * features, outputs). B starts at zero, so that fresh adapters change
nothing; A is random, the same for all networks that share a base. Running statistics stay the target's own
`batch_stats`: generate="lora/.*" keeps the base's, "(lora|batch_stats)/.*" updates them beside the adapters.

No hidden unit can be reordered, because the base fixes their order. Adapters have another symmetry: A M and M^-1 B
change the kernel as A and B do, for every invertible M (rank, rank). Nothing here makes use of it.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdiff.errors import PdiffError
from pdiff.targets.base import RUNNING, Target

ADAPTERS = "lora"


def with_lora(target: Target, rank: int, alpha: float, modules: str, apart: bool = False) -> Target:
    """`target` with adapters on the kernels of modules whose path (such as 'Dense_0') the regex `modules` matches.

    Where it applies adapters `apart` from its kernels itself, it is given the tree as it is.

    Raises:
      PdiffError: no kernel is adapted, or the rank is above a kernel's smaller side.
    """
    shapes = _adapted(target, modules)
    for path, (inputs, outputs) in shapes.items():
        if rank > (most := min(inputs, outputs)):
            where = f"{'/'.join(path)} ({inputs} x {outputs})"
            raise PdiffError(f"target.lora_rank: got {rank}; allowed: at most {most}, the smaller side of {where}")

    def init(key: PRNGKeyArray) -> PyTree:
        adapters = {}
        for i, (path, (inputs, outputs)) in enumerate(shapes.items()):
            a = jax.random.normal(jax.random.fold_in(key, i), (inputs, rank)) / math.sqrt(inputs)
            adapters[(*path, "a")], adapters[(*path, "b")] = a, jnp.zeros((rank, outputs))
        return target.init(key) | {ADAPTERS: traverse_util.unflatten_dict(adapters)}

    def apply(tree: PyTree, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        return target.apply(merged(tree, alpha / rank), x)

    def apply_train(tree: PyTree, x: Float[Array, "n features"]) -> tuple[Float[Array, "n classes"], PyTree]:
        logits, updated = target.apply_train(merged(tree, alpha / rank), x)
        return logits, tree | {RUNNING: updated[RUNNING]}

    if apart:
        return dataclasses.replace(target, init=init)
    apply_train = target.apply_train and apply_train
    return dataclasses.replace(target, init=init, apply=apply, apply_train=apply_train, permutations=None)


def merged(tree: PyTree, scale: float) -> PyTree:
    """The plain tree of the target, with scale * A B added to each adapted kernel."""
    flat = traverse_util.flatten_dict({k: v for k, v in tree.items() if k != ADAPTERS})
    adapters = traverse_util.flatten_dict(tree[ADAPTERS])
    for path in {p[:-1] for p in adapters}:
        kernel = flat[("params", *path)]
        change = adapters[(*path, "a")] @ adapters[(*path, "b")]
        flat[("params", *path)] = kernel + scale * change.reshape(kernel.shape)
    return traverse_util.unflatten_dict(flat)


def _adapted(target: Target, modules: str) -> dict[tuple[str, ...], tuple[int, int]]:
    """Path below `params` of each adapted kernel, and its (inputs, outputs) as a matrix."""
    flat = traverse_util.flatten_dict(target.abstract()["params"])
    kernels = {p: v.shape for p, v in flat.items() if p[-1] == "kernel" and len(v.shape) > 1}
    chosen = {p: s for p, s in kernels.items() if re.fullmatch(modules, "/".join(p[:-1]))}
    if not chosen:
        listed = ", ".join("/".join(p[:-1]) for p in kernels)
        raise PdiffError(f"target.lora_modules: {modules!r} matches no module with a kernel; they are: {listed}")
    return {p: _as_matrix(p, s) for p, s in chosen.items()}


def _as_matrix(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    heads_first = len(shape) == 3 and path[-2] in ("query", "key", "value")  # (inputs, heads, features)
    inputs = shape[0] if heads_first else math.prod(shape[:-1])
    return inputs, math.prod(shape) // inputs
