"""What a few labelled images say of a network, and what the mean of several networks' answers is worth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree


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
