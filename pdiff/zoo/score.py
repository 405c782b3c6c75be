"""Is a network right on a task's images? Rendered and answered in blocks, so that memory does not grow with them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

BLOCK, NUMBERS = 512, 1 << 19  # images at a time, and numbers in them: what a CPU's core keeps in its cache

Apply = Callable[[PyTree, Float[Array, "n features"]], Float[Array, "n classes"]]
Labelled = Callable[[Any, Array, Array], tuple[Array, Array]]  # as `Family.labelled`


def right(
    apply: Apply,
    labelled: Labelled,
    network: PyTree,
    variables: Any,
    x: Float[ArrayLike, "n shared"],
    y: Int[ArrayLike, " n"],
) -> Bool[Array, " n"]:
    """Which of the shared images a network gets right as the task with these variables has them. Pure; vmap it.

    `labelled` is the family's, or another that makes the task's images and labels of the shared ones.
    """
    predicted, labels = answers(apply, labelled, network, variables, x, y)
    return predicted == labels


def answers(
    apply: Apply,
    labelled: Labelled,
    network: PyTree,
    variables: Any,
    x: Float[ArrayLike, "n shared"],
    y: Int[ArrayLike, " n"],
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """The classes that a network predicts for the shared images as the task has them (`labelled`), and their labels."""

    def answer(rows):
        images, labels = labelled(variables, *rows)
        return apply(network, images).argmax(-1), labels

    return in_blocks(answer, (jnp.asarray(x), jnp.asarray(y)))


def in_blocks(answer: Callable[[PyTree], PyTree[Array]], rows: PyTree[Array]) -> PyTree[Array]:
    """`answer` over the leading axis of `rows`, at most BLOCK of them at a time, and fewer where they are large."""
    count, size = len(jax.tree.leaves(rows)[0]), block_size(rows)
    if count <= size:
        return answer(rows)
    blocks = -(-count // size)
    index = jnp.minimum(jnp.arange(blocks * size), count - 1).reshape(blocks, size)  # the last row fills up
    answers = jax.lax.map(lambda i: answer(jax.tree.map(lambda a: a[i], rows)), index)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], answers)


def block_size(rows: PyTree[ArrayLike]) -> int:
    """How many rows `in_blocks` takes at a time."""
    count = max(1, len(jax.tree.leaves(rows)[0]))
    return max(1, min(BLOCK, NUMBERS // max(1, max(np.size(a) // count for a in jax.tree.leaves(rows)))))
