"""What a few labelled images say of a network, and what the mean of several networks' answers is worth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree


def ensemble(
    apply: Callable,
    networks: PyTree[Float[np.ndarray, "tasks count ..."]],
    x: Float[np.ndarray, "tasks images features"],
    y: Int[np.ndarray, "tasks images"],
) -> tuple[Float[np.ndarray, " tasks"], Float[np.ndarray, " tasks"]]:
    """Accuracy, and mean log-likelihood of the labels in nats, of the mean of the networks' class probabilities."""

    @jax.jit
    def one(args):
        nets, x, y = args
        p = jax.nn.softmax(jax.vmap(apply, (0, None))(nets, x), -1).mean(0)
        likely = jnp.log(jnp.maximum(jnp.take_along_axis(p, y[:, None], 1), 1e-12)).mean()
        return (p.argmax(-1) == y).mean(), likely

    accuracy, likely = jax.lax.map(one, (networks, x, y))
    return np.asarray(accuracy), np.asarray(likely)


def log_likelihood(
    apply: Callable,
    network: PyTree,
    x: Float[Array, "images features"],
    y: Int[Array, " images"],
    real: Bool[Array, " images"] | bool = True,
) -> Float[Array, ""]:
    """Mean log-likelihood, in nats, of the labels of those support images that are `real`, under one network."""
    likely = jnp.take_along_axis(jax.nn.log_softmax(apply(network, x), -1), y[:, None], 1)[:, 0]
    return jnp.where(real, likely, 0).sum() / jnp.maximum(jnp.broadcast_to(real, y.shape).sum(), 1)


def negative_entropy(
    apply: Callable, network: PyTree, x: Float[Array, "images features"], real: Bool[Array, " images"] | bool = True
) -> Float[Array, ""]:
    """Minus the mean entropy, in nats, of a network's answers on those support images that are `real`."""
    logp = jax.nn.log_softmax(apply(network, x), -1)
    sure = (jnp.exp(logp) * logp).sum(-1)
    return jnp.where(real, sure, 0).sum() / jnp.maximum(jnp.broadcast_to(real, sure.shape).sum(), 1)
