"""Training: one jitted step and the loop around it, for each `Stage`: the mean (`stages.mean`), then the prior."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from pdiff import rng
from pdiff.errors import PdiffError
from pdiff.rng import Keys
from pdiff.system import dist, processes, sharding
from pdiff.system.checkpoint import Checkpoints
from pdiff.system.stopping import StopSignal
from pdiff.tasks.base import Task
from pdiff.training.metrics import MetricsWriter
from pdiff.training.state import TrainState, init_state, learning_rate_schedule, make_optimizer, update_ema

NORMS = "grad_norms"  # of each leaf, which tell the tensor at fault and are not logged
DIVERGED = 1e4  # a loss out of hand: a network that answers zero has about 1, or a few nats

# (tasks, names of their factors, {name: accuracy of each task}) -> a matplotlib figure
Picture = Callable[[Sequence[Task], Sequence[str], dict[str, Float[np.ndarray, " tasks"]]], Any]
Losses = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]  # mean over the examples, and its parts by name


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
      name: of the model, in messages, and of its random streams.
      config: of the run, whose `train` gives way to `settings`.
      settings: as `config.train`, with this stage's steps, batch size and learning rate.
      folder: of the checkpoints, in the workdir.
      before: updates of the stages before, which metrics count too.
      init: key -> fresh parameters.
      loss: (params, batch, constants, keys) -> that of a batch.
      constants: what every step reads, an argument of it that is replicated once and not baked into its program.
      batches: (start, stop, rows, place) -> as `data.training_batches`, at least with `index`.
      identity: what a resumed run's batches must agree on.
      validate: averaged parameters -> accuracy of each of `tasks`, by what drew the networks; None measures nothing.
      tasks: those of `validate`.
      factor_names: of the factors of `tasks`.
    """

    name: str
    config: ConfigDict
    settings: ConfigDict
    folder: str
    before: int
    init: Callable[[PRNGKeyArray], PyTree]
    loss: Callable[[PyTree, dict, PyTree, Keys], Losses]
    constants: PyTree
    batches: Callable[..., Iterator[dict]]
    identity: dict
    validate: Callable[[PyTree], dict[str, Float[np.ndarray, " tasks"]]] | None = None
    tasks: Sequence[Task] = ()
    factor_names: Sequence[str] = ()

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.settings)


def train_step(stage: Stage) -> Callable:
    """(state, batch, constants) -> (state, metrics), of a whole batch, however it lies on devices."""
    seed, settings, optimizer = stage.config.seed, stage.settings, stage.optimizer
    parts = settings.microbatches

    def mean_gradients(params: PyTree, batch: dict, constants: PyTree, keys: Keys):
        def gradients(batch, keys):
            return jax.grad(stage.loss, has_aux=True)(params, batch, constants, keys)

        if parts == 1:
            return gradients(batch, keys)
        # Row r goes to part r mod parts: each part then lies on all devices that the batch is split over.
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), (batch, keys))
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradients, batch, keys))
        add = lambda total, part: (jax.tree.map(jnp.add, total, gradients(*part)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, nothing, split)
        return jax.tree.map(lambda x: x / parts, total)

    def step(state: TrainState, batch: dict, constants: PyTree):
        keys = rng.per_example(rng.stream(seed, f"{stage.name}/step", state.step), batch["index"])
        grads, metrics = mean_gradients(state.params, batch, constants, keys)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, state.step, settings.ema_decay)
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics[NORMS] = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)])
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return step


def make_step(stage: Stage, mesh: Mesh) -> Callable:
    """The jitted step over all devices; the state that is passed in is donated.

    The state is laid out by `sharding.state_shardings`, the batch by `dist.BATCH`, the constants are replicated.
    """
    layout, update = _layout(stage, mesh), train_step(stage)
    rows, whole = NamedSharding(mesh, dist.BATCH), NamedSharding(mesh, dist.REPLICATED)

    def step(state: TrainState, batch: dict, constants: PyTree):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for the hints of `sharding.by_example`
            return update(state, batch, constants)

    return jax.jit(step, in_shardings=(layout, rows, whole), out_shardings=(layout, whole), donate_argnums=0)


def abstract_state(stage: Stage) -> TrainState:
    """Shapes and dtypes of a training state."""
    return jax.eval_shape(lambda key: init_state(stage.init(key), stage.optimizer), jax.random.key(0))


def _layout(stage: Stage, mesh: Mesh) -> PyTree[NamedSharding]:
    return sharding.state_shardings(abstract_state(stage), mesh, stage.config.mesh)


def fresh_state(stage: Stage, mesh: Mesh) -> TrainState:
    """The state before the first update, made where it will lie."""
    make = jax.jit(lambda key: init_state(stage.init(key), stage.optimizer), out_shardings=_layout(stage, mesh))
    return make(dist.replicate(rng.stream(stage.config.seed, f"{stage.name}/init"), mesh))


def train(stage: Stage, workdir: Path, mesh: Mesh, stop: StopSignal, picture: Picture | None = None) -> PyTree:
    """Trains to the last update, from the newest checkpoint if there is one, and returns the averaged parameters.

    `picture` makes the figure that TensorBoard shows of each validation.

    Raises:
      PdiffError: training diverged, or all checkpoints are damaged, or they are of other data.
      Interrupted: a signal came; the state is in a checkpoint.
    """
    settings, state = stage.settings, fresh_state(stage, mesh)
    checkpoints = Checkpoints(Path(workdir) / stage.folder, settings.keep_checkpoints)
    checkpoints.prepare()
    if restored := checkpoints.restore(state.parts, stage.identity):
        step, parts = restored
        state = TrainState(dist.place(np.int32(step), state.step.sharding), **parts)
    start = int(state.step)
    if start >= settings.steps:
        checkpoints.close()
        return dist.fetch(state.ema)

    step_fn = make_step(stage, mesh)
    constants = dist.replicate(stage.constants, mesh)
    rows = dist.local_rows(settings.batch_size, mesh)
    place = functools.partial(dist.from_local, rows=rows, size=settings.batch_size, mesh=mesh)
    batches = stage.batches(start=start, stop=settings.steps, rows=rows, place=place)
    end = stage.before + settings.steps
    writer = MetricsWriter(workdir, stage.before + start, settings.wandb, stage.config.to_dict(), end)
    schedule = learning_rate_schedule(settings)
    leaves = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree.leaves_with_path(state.params)]
    pending: list[dict] = []
    clock = time.perf_counter()

    def flush(step: int) -> None:
        """Fetches the metrics since the last time: the only place where the host waits for the device."""
        nonlocal clock
        if not pending:
            return
        fetched = jax.device_get(pending)
        for number, metrics in enumerate(fetched, step - len(pending) + 1):
            if fault := divergence(metrics, leaves):
                newest = (checkpoints.steps() or ["none"])[-1]
                raise PdiffError(
                    f"training of the {stage.name} diverged at step {number}: {fault}; the last checkpoint is of step "
                    f"{newest}; try a lower learning rate (--config.train.learning_rate, "
                    "--config.mean.learning_rate) or --config.train.grad_clip, in a new --workdir"
                )
        means = {k: float(np.mean([m[k] for m in fetched])) for k in pending[0] if k != NORMS}
        elapsed, clock = time.perf_counter() - clock, time.perf_counter()
        means |= {"learning_rate": float(schedule(step)), "steps_per_s": len(pending) / elapsed}
        writer.write(stage.before + step, means)
        progress.set_postfix_str(f"loss {means['loss']:.3f}")
        pending.clear()

    try:
        quiet, label = not processes.is_first(), f"train {stage.name}"
        with tqdm(total=settings.steps, initial=start, desc=label, unit="step", disable=quiet) as progress:
            for step, batch in zip(range(start + 1, settings.steps + 1), batches, strict=False):
                state, metrics = step_fn(state, batch, constants)
                pending.append(metrics)
                progress.update()
                last, stopping = step == settings.steps, stop.requested()
                if step % settings.log_every == 0 or last:
                    flush(step)
                if stage.validate and (step % settings.validate_every == 0 or last):
                    flush(step)
                    scores, at = stage.validate(state.ema), stage.before + step
                    writer.write(at, {f"validation/{n}": float(s.mean()) for n, s in scores.items()})
                    if picture:
                        writer.draw(at, "validation", picture(stage.tasks, stage.factor_names, scores))
                    clock = time.perf_counter()
                if step % settings.checkpoint_every == 0 or last or stopping:
                    flush(step)
                    writer.sync()
                    checkpoints.save(step, state.parts, stage.identity)
                    where = f"after {step} of {settings.steps} training steps of the {stage.name}, all in a checkpoint"
                    stop.check(where)
                    clock = time.perf_counter()
    finally:
        writer.close()
        checkpoints.close()
    return dist.fetch(state.ema)


def divergence(metrics: dict, leaves: list[str]) -> str:
    """What is wrong with the metrics of a step, with the tensors at fault among `leaves`; '' if nothing is."""
    odd = {k: float(v) for k, v in metrics.items() if k != NORMS and not np.isfinite(v)}
    norms = np.asarray(metrics[NORMS])
    tensors = [leaves[i] for i in np.flatnonzero(~np.isfinite(norms))]
    loss = float(metrics["loss"])
    if not odd and not tensors and loss <= DIVERGED:
        return ""
    values = ", ".join(f"{k} is {v:.4g}" for k, v in (odd or {"loss": loss}).items())
    if tensors:
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        return f"{values}; not finite are the gradients of {', '.join(tensors[:3])}{more} of {len(leaves)} tensors"
    return f"{values}; the largest gradient, of norm {norms.max():.4g}, is that of {leaves[norms.argmax()]}"
