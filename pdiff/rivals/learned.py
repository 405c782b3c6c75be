"""What the rivals share: the zoo that they are trained on, the loop that does it, and sampling.

All are given pdiff's own zoo, normalisation, condition encoders, optimizer, averaging and batch size, and as much time
as pdiff's training took. What is their own is in one file each.
"""

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree
from tqdm import tqdm

from pdiff import rng
from pdiff.controls import raw_by_task
from pdiff.generator import conditioning
from pdiff.generator.generator import Generator
from pdiff.models.conditions import Context, make_conditions
from pdiff.system import dist
from pdiff.system.stopping import StopSignal
from pdiff.tasks.base import Task
from pdiff.training.state import TrainState, decays, init_state, update_ema
from pdiff.zoo.store import Networks

TIMED_STEPS = 20  # the first updates, which tell how long one takes
LEARNING_RATE, WARMUP = 2e-3, 0.05  # the rate at its height, and the share of updates that leads up to it

# (params, data of the batch, condition_at, keys) -> mean loss; `condition_at(sigma)` is the batch's training condition.
Loss = Callable[[PyTree, Float[Array, "batch ..."], Callable, Key[Array, " batch"]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class TrainingZoo:
    """The seen networks, and the means to learn from them.

    Attributes:
      generator: whose conditions, statistics and config are used.
      x0: the networks as normalised tokens.
      task: of each network.
      seconds: wall-clock time for training; compilation comes on top.
      steps: updates of each stage of training, in place of as many as fit into `seconds`; 0 for those.
    """

    generator: Generator
    x0: Float[np.ndarray, "nets tokens dim"]
    task: Int[np.ndarray, " nets"]
    mesh: Mesh
    stop: StopSignal
    seconds: float
    steps: int = 0

    @classmethod
    def of(cls, generator: Generator, networks: Networks, mesh: Mesh, stop: StopSignal, seconds: float, steps: int):
        """The zoo of a generator's seen networks."""
        x0 = np.asarray(jax.jit(generator.normalize)(networks.params))
        return cls(generator, x0, networks.task, mesh, stop, seconds, steps)

    @functools.cached_property
    def _constants(self) -> dict:
        """The tables that conditions are drawn from, on every device; all fits share them."""
        return dist.replicate(conditioning.make_constants(self.generator), self.mesh)

    def fit(
        self, name: str, loss: Loss, params: PyTree, data: Float[np.ndarray, "nets ..."], share: float = 1.0
    ) -> PyTree[np.ndarray]:
        """Trains `params` on `data` (a row for each network) for that share of the time; returns their average.

        Raises:
          Interrupted: a signal came; this fit starts anew with the next command.
        """
        config = self.generator.config.train
        # A plain Adam step, scaled in `_step`: how many updates there will be is known only once some were timed.
        optimizer = optax.chain(
            optax.clip_by_global_norm(config.grad_clip),
            optax.scale_by_adam(b2=0.99),
            optax.add_decayed_weights(config.weight_decay, decays),
        )
        step = _step(self, name, loss, optimizer)
        state = dist.replicate(jax.jit(lambda p: init_state(p, optimizer))(params), self.mesh)
        tables = dist.replicate({"data": data, "task": self.task}, self.mesh) | {"constants": self._constants}
        index = dist.shard(np.arange(config.batch_size, dtype=np.int32), self.mesh)
        total, warmup, start = self.steps, TIMED_STEPS, 0.0
        with tqdm(desc=name, unit="step", total=total or None) as progress:
            n = 0
            while n < (total or n + 1):
                done = n / total if total else 0.0
                rate = LEARNING_RATE * min(1.0, (n + 1) / warmup) * (1 + np.cos(np.pi * done)) / 2
                state, value = step(state, index, tables, np.float32(rate))
                n += 1
                progress.update()
                if n == 1 or n == TIMED_STEPS:
                    jax.block_until_ready(state)
                    now = time.perf_counter()
                    if n == TIMED_STEPS and not total:
                        total = max(TIMED_STEPS, int(share * self.seconds * (TIMED_STEPS - 1) / (now - start)))
                        warmup, progress.total = max(TIMED_STEPS, int(WARMUP * total)), total
                    start = now
                if n % config.log_every == 0:
                    progress.set_postfix_str(f"loss {float(value):.4f}")
                    self.stop.check(f"while {name} was being trained")
        return jax.device_get(state.ema)


def _step(zoo: TrainingZoo, name: str, loss: Loss, optimizer: optax.GradientTransformation) -> Callable:
    """(state, index, tables, learning rate) -> (state, loss), over all devices."""
    generator = zoo.generator
    config, wordings = generator.config, len(generator.family.tasks[0].descriptions)

    def step(state: TrainState, index, tables, rate):
        keys = rng.per_example(rng.stream(config.seed, f"{name}/step", state.step), index)
        drawn, wording, condition_keys, loss_keys = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 4))(keys), 1, 0)
        row = jax.vmap(lambda k: jax.random.randint(k, (), 0, len(zoo.task)))(drawn)
        wording = jax.vmap(lambda k: jax.random.randint(k, (), 0, wordings))(wording)
        task = tables["task"][row]

        def condition_at(sigma):
            return conditioning.training_condition(generator, tables["constants"], task, wording, condition_keys, sigma)

        value, grads = jax.value_and_grad(loss)(state.params, tables["data"][row], condition_at, loss_keys)
        value, grads = jax.lax.pmean((value, grads), dist.ALL)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        ema = update_ema(state.ema, params, state.step, config.train.ema_decay)
        return TrainState(state.step + 1, params, ema, opt_state), value

    in_specs = (dist.REPLICATED, dist.SHARDED, dist.REPLICATED, dist.REPLICATED)
    return dist.data_parallel(step, zoo.mesh, in_specs, (dist.REPLICATED, dist.REPLICATED), donate_argnums=0)


@dataclasses.dataclass(frozen=True)
class Learned(abc.ABC):
    """A rival: a trained generator of another kind. `fit` makes one; `Class(generator, mesh, params)` restores one.

    Attributes:
      params: everything that was learned, arrays only.
    """

    generator: Generator
    mesh: Mesh
    params: PyTree[np.ndarray | np.float32]

    @classmethod
    @abc.abstractmethod
    def fit(cls, zoo: TrainingZoo) -> "Learned":
        """Trains one on the zoo."""

    @abc.abstractmethod
    def draw(self, params: PyTree, given: PyTree, keys: Key[Array, " batch"]) -> Float[Array, "batch tokens dim"]:
        """A sample of normalised tokens for each row of `given`. Pure."""

    def given(self, tasks: Sequence[Task], count: int) -> PyTree[np.ndarray]:
        """What `count` samples for each task are conditioned on, in task order: pdiff's own condition."""
        return conditioning.sample_condition(self.generator, tasks, count)

    def tuned(self, validation_accuracy: Callable[["Learned"], float]) -> "Learned":
        """With the options that do best on what chooses among options; this has none."""
        return self

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        """`count` networks for each task as raw tokens, under the same conditions as pdiff's."""
        key = jax.random.key(int(random.integers(2**31)))
        batch = dist.round_up(self.generator.config.sample.batch_size, self.mesh)
        params = dist.replicate(self.params, self.mesh)
        index = np.arange(len(tasks) * count, dtype=np.int32)
        rows = (self.given(tasks, count), index)
        z = dist.map_chunks(lambda r: self._drawn(params, key, *dist.shard(r, self.mesh)), rows, len(index), batch)
        return raw_by_task(self.generator, z, len(tasks))

    @functools.cached_property
    def _drawn(self) -> Callable:
        def draw(params, key, given, index):
            return self.draw(params, given, rng.per_example(key, index))

        in_specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED, dist.SHARDED)
        return dist.data_parallel(draw, self.mesh, in_specs, dist.SHARDED)


class Conditioned(nn.Module):
    """A network of (x, c_noise, vector) with pdiff's condition encoders in front of it."""

    conditions: nn.Module
    network: nn.Module

    def __call__(self, x: Float[Array, "batch ..."], c_noise: Float[Array, " batch"], condition: dict):
        return self.denoise(x, c_noise, self.encode(condition))

    def encode(self, condition: dict) -> Context:
        return self.conditions(condition)

    def denoise(self, x: Float[Array, "batch ..."], c_noise: Float[Array, " batch"], context: Context):
        return self.network(x, c_noise, context.pooled)


def conditioned(generator: Generator, network: nn.Module) -> Conditioned:
    """`network` behind fresh encoders of the conditions that `generator` reads."""
    encoders = make_conditions(generator.config, generator.family, generator.tokenizer.vocab_size)
    return Conditioned(encoders, network)


def init(generator: Generator, model: nn.Module, shape: tuple[int, ...]) -> PyTree:
    """Fresh parameters of a conditioned network whose data has that shape."""
    condition = generator.condition([generator.family.tasks[0]], given=())
    key = rng.stream(generator.config.seed, "baselines/init")
    return jax.jit(model.init)(key, jnp.zeros((1, *shape)), jnp.zeros(1), condition)["params"]


def normal(keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch ..."]:
    """Standard normal noise for each key."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
