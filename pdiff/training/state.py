"""What a training step takes and returns."""

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict


@flax.struct.dataclass
class TrainState:
    """A pytree: updates completed, parameters, their moving average, and the optimizer's state."""

    step: Int[Array, ""]
    params: PyTree[Float[Array, "..."]]
    ema: PyTree[Float[Array, "..."]]
    opt_state: optax.OptState

    @property
    def parts(self) -> dict[str, PyTree]:
        """What a checkpoint keeps beside the step."""
        return {"params": self.params, "ema": self.ema, "opt_state": self.opt_state}


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW with linear warm-up and a cosine to zero, after clipping by the global norm (`config` is `train`).

    Weight decay acts on matrices only: biases, norms and embeddings of a single row are left alone.
    """
    schedule = learning_rate_schedule(config)
    adam = optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay, mask=decays)
    return optax.chain(clip_by_global_norm(config.grad_clip), adam)


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """Scales gradients to a global norm of at most `most`, as Optax does, but by one factor and not by a division each.

    XLA fuses a product into what reads it, and writes quotients to memory first.
    """

    def clip(gradients: PyTree, params: PyTree | None) -> PyTree:
        factor = jnp.minimum(1.0, most / optax.global_norm(gradients))
        return jax.tree.map(lambda g: factor * g, gradients)

    return optax.stateless(clip)


def decays(params: PyTree) -> PyTree[bool]:
    """Which parameters weight decay acts on: matrices."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Linear from 0 to `learning_rate` over `warmup_steps`, then a cosine to 0 at `steps`."""
    steps = max(config.steps, config.warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, steps)


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; its average starts at the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def update_ema(ema: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """Moving average whose decay warms up as min(decay, (1 + n) / (10 + n)) after n updates."""
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: rate * e + (1 - rate) * p, ema, params)
