"""What can be done with several samples of one task, after they are drawn.

Averages need nothing but the samples. Choosing needs a support set: by the likelihood of its labels, or, when it
has none, by how sure a sample is of its answers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree


def weight_mean(networks: PyTree[Float[np.ndarray, "tasks count ..."]]) -> PyTree[Float[np.ndarray, "tasks ..."]]:
    """The mean of each task's samples in weight space (a soup, Wortsman et al. 2022)."""
    return jax.tree.map(lambda w: np.mean(w, 1), networks)


def function_mean_accuracy(
    apply: Callable,
    networks: PyTree[Float[np.ndarray, "tasks count ..."]],
    x: Float[np.ndarray, "tasks images features"],
    y: Int[np.ndarray, "tasks images"],
) -> Float[np.ndarray, " tasks"]:
    """Accuracy of the mean of the samples' class probabilities (an ensemble)."""

    @jax.jit
    def one(args):
        nets, x, y = args
        return (jax.nn.softmax(jax.vmap(apply, (0, None))(nets, x), -1).mean(0).argmax(-1) == y).mean()

    return np.asarray(jax.lax.map(one, (networks, x, y)))


def log_likelihood(
    apply: Callable, network: PyTree, x: Float[Array, "images features"], y: Int[Array, " images"]
) -> Float[Array, ""]:
    """Mean log-likelihood, in nats, of support labels under one network."""
    return jnp.take_along_axis(jax.nn.log_softmax(apply(network, x), -1), y[:, None], 1).mean()


def negative_entropy(apply: Callable, network: PyTree, x: Float[Array, "images features"]) -> Float[Array, ""]:
    """Minus the mean entropy, in nats, of a network's answers on support images without labels."""
    logp = jax.nn.log_softmax(apply(network, x), -1)
    return (jnp.exp(logp) * logp).sum(-1).mean()


def best(
    apply: Callable,
    networks: PyTree[Float[np.ndarray, "tasks count ..."]],
    x: Float[np.ndarray, "tasks images features"],
    y: Int[np.ndarray, "tasks images"] | None,
) -> PyTree[Float[np.ndarray, "tasks ..."]]:
    """The sample of each task that its support set prefers: by likelihood, or by entropy when `y` is None."""

    def score(network, x, y):
        return negative_entropy(apply, network, x) if y is None else log_likelihood(apply, network, x, y)

    each = jax.vmap(jax.vmap(score, (0, None, None)), (0, 0, None if y is None else 0))
    chosen = np.asarray(jax.jit(each)(networks, x, y)).argmax(1)
    return jax.tree.map(lambda w: np.asarray(w)[np.arange(len(chosen)), chosen], networks)
