"""Training the denoiser: one jitted step, and the loop around it."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from tqdm import tqdm

from pdiff import data as data_lib
from pdiff import dist, processes, rng, sharding
from pdiff.checkpoint import Checkpoints
from pdiff.conditioning import make_constants, training_condition
from pdiff.diffusion import losses
from pdiff.errors import PdiffError
from pdiff.evaluators.accuracy import Scorer
from pdiff.generator import Generator
from pdiff.metrics import MetricsWriter
from pdiff.report.validation import accuracy_by_task
from pdiff.sample import Samplers
from pdiff.state import TrainState, init_state, learning_rate_schedule, make_optimizer, update_ema
from pdiff.stopping import StopSignal
from pdiff.weights import codec, stats
from pdiff.zoo.store import Networks

NORMS = "grad_norms"  # of each leaf, which tell the tensor at fault and are not logged
DIVERGED = 1e4  # a denoising loss that is out of hand: of a network that answers zero it is about 1


def loss_fn(
    params: PyTree, generator: Generator, batch: dict, constants: dict, keys: PRNGKeyArray
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean loss over the examples of a batch, and its parts."""
    config = generator.config.diffusion
    generator = generator.bind(constants["generator"])
    streams = jax.vmap(lambda k: jax.random.split(k, 4))(keys)
    networks = batch["params"]
    if generator.config.weights.permute:  # another stream than those below, which stay what they are without it
        networks = generator.permute(networks, jax.vmap(lambda k: jax.random.fold_in(k, 4))(keys))
    x0 = generator.encode(networks)
    sigma = losses.training_noise_ratios(generator.path, streams[:, 1], config.sigma_max, config.at_sigma_max)
    noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(streams[:, 2])
    condition = training_condition(generator, constants, batch["task"], batch["wording"], sigma, streams[:, 0])
    denoise = generator.denoiser(params, generator.context(params, condition))
    denoised = denoise(x0 + sigma[:, None, None] * noise, sigma)

    varying = stats.varying(generator.stats)
    denoising = losses.denoising_loss(denoised, x0, sigma, varying, generator.spread).mean()
    loss, parts = denoising, {"denoising_loss": denoising}
    if config.functional_weight:
        draw = jax.vmap(lambda k: jax.random.randint(k, (config.functional_images,), 0, len(constants["y"])))
        rows = draw(streams[:, 3])
        variables = jax.tree.map(lambda v: v[batch["task"]], constants["variables"])
        x, y = jax.vmap(generator.family.labelled)(variables, constants["x"][rows], constants["y"][rows])
        networks = generator.decode(denoised)
        functional = losses.functional_loss(networks, generator.apply, x, y).mean()
        distance = losses.squared_distance(networks, codec.take(generator.spec, generator.base)).mean()
        loss += config.functional_weight * (functional + config.base_penalty * distance)
        parts |= {"functional_loss": functional, "base_distance": distance}
    return loss, {"loss": loss, **parts}


def train_step(generator: Generator, optimizer: optax.GradientTransformation) -> Callable:
    """(state, batch, constants) -> (state, metrics), of a whole batch, however it lies on devices."""
    config = generator.config
    parts = config.train.microbatches

    def mean_gradients(params: PyTree, batch: dict, constants: dict, keys: PRNGKeyArray):
        def gradients(batch, keys):
            return jax.grad(loss_fn, has_aux=True)(params, generator, batch, constants, keys)

        if parts == 1:
            return gradients(batch, keys)
        # Row r goes to part r mod parts: each part then lies on all devices that the batch is split over.
        split = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), (batch, keys)
        )
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradients, batch, keys))
        add = lambda total, part: (jax.tree.map(jnp.add, total, gradients(*part)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, nothing, split)
        return jax.tree.map(lambda x: x / parts, total)

    def step(state: TrainState, batch: dict, constants: dict):
        keys = rng.per_example(rng.stream(config.seed, "train/step", state.step), batch["index"])
        grads, metrics = mean_gradients(state.params, batch, constants, keys)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, state.step, config.train.ema_decay)
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics[NORMS] = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)])
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return step


def make_step(generator: Generator, optimizer: optax.GradientTransformation, mesh: Mesh) -> Callable:
    """The jitted step over all devices; the state that is passed in is donated.

    The state is laid out by `sharding.state_shardings`, the batch by `dist.BATCH`, the constants are replicated.
    """
    laid_out = _layout(generator, optimizer, mesh)
    whole = NamedSharding(mesh, dist.REPLICATED)
    update = train_step(generator, optimizer)

    def step(state: TrainState, batch: dict, constants: dict):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for the hints of `sharding.by_example`
            return update(state, batch, constants)

    return jax.jit(
        step,
        in_shardings=(laid_out, NamedSharding(mesh, dist.BATCH), whole),
        out_shardings=(laid_out, whole),
        donate_argnums=0,
    )


def abstract_state(generator: Generator, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of a training state."""
    return jax.eval_shape(lambda key: init_state(generator.init(key), optimizer), jax.random.key(0))


def _layout(generator: Generator, optimizer: optax.GradientTransformation, mesh: Mesh) -> PyTree[NamedSharding]:
    return sharding.state_shardings(abstract_state(generator, optimizer), mesh, generator.config.mesh)


def fresh_state(generator: Generator, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first update, made where it will lie."""
    laid_out = _layout(generator, optimizer, mesh)
    make = jax.jit(lambda key: init_state(generator.init(key), optimizer), out_shardings=laid_out)
    return make(dist.replicate(rng.stream(generator.config.seed, "train/init"), mesh))


def train(generator: Generator, networks: Networks, zoo: str, workdir: Path, mesh: Mesh, stop: StopSignal) -> PyTree:
    """Trains to `train.steps` updates, from the newest checkpoint if there is one, and returns the averaged parameters.

    `networks` are the seen ones; `zoo` is their fingerprint.

    Raises:
      PdiffError: training diverged, or all checkpoints are damaged, or they are of other data.
      Interrupted: a signal came; the state is in a checkpoint.
    """
    config = generator.config.train
    optimizer = make_optimizer(config)
    state = fresh_state(generator, optimizer, mesh)
    identity = data_lib.fingerprint(networks, zoo, generator.config.seed, config.batch_size)
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", config.keep_checkpoints)
    checkpoints.prepare()
    state = checkpoints.restore(state, identity) or state
    start = int(state.step)

    step_fn = make_step(generator, optimizer, mesh)
    constants = dist.replicate(make_constants(generator), mesh)
    rows = dist.local_rows(config.batch_size, mesh)
    batches = data_lib.training_batches(
        networks,
        len(generator.family.tasks[0].descriptions),
        seed=generator.config.seed,
        batch_size=config.batch_size,
        start=start,
        stop=config.steps,
        rows=rows,
        place=lambda batch: dist.from_local(batch, rows, config.batch_size, mesh),
    )
    validate = Validation(generator, mesh) if generator.family.data else None  # without images nothing is scored
    writer = MetricsWriter(workdir, start, config.wandb, generator.config.to_dict())
    schedule, factors = learning_rate_schedule(config), generator.family.factor_names
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
                kept = (checkpoints.steps() or ["none"])[-1]
                raise PdiffError(
                    f"training diverged at step {number}: {fault}; the last checkpoint is of step {kept}; "
                    "try a lower --config.train.learning_rate or --config.train.grad_clip, in a new --workdir"
                )
        means = {k: float(np.mean([m[k] for m in fetched])) for k in pending[0] if k != NORMS}
        elapsed, clock = time.perf_counter() - clock, time.perf_counter()
        means |= {"learning_rate": float(schedule(step)), "steps_per_s": len(pending) / elapsed}
        writer.write(step, means)
        progress.set_postfix_str(f"loss {means['loss']:.3f}")
        pending.clear()

    try:
        quiet = not processes.is_first()
        with tqdm(total=config.steps, initial=start, desc="train", unit="step", disable=quiet) as progress:
            for step, batch in zip(range(start + 1, config.steps + 1), batches, strict=False):
                state, metrics = step_fn(state, batch, constants)
                pending.append(metrics)
                progress.update()
                last, stopping = step == config.steps, stop.requested()
                if step % config.log_every == 0 or last:
                    flush(step)
                if validate and (step % config.validate_every == 0 or last):
                    flush(step)
                    scores = validate(state.ema)
                    writer.write(step, {f"validation/{n}": float(s.mean()) for n, s in scores.items()})
                    writer.draw(step, "validation", accuracy_by_task(validate.tasks, factors, scores))
                    clock = time.perf_counter()
                if step % config.checkpoint_every == 0 or last or stopping:
                    flush(step)
                    writer.sync()
                    checkpoints.save(state, identity)
                    stop.check(f"after {step} of {config.steps} training steps, all in a checkpoint")
                    clock = time.perf_counter()
    finally:
        writer.close()
        checkpoints.close()
    return dist.fetch(state.ema)


class Validation:
    """Accuracy, by sampler, of one sample for each of `tasks`: validation tasks, or where there are none, seen ones.

    It is on validation images, which nothing was trained on.
    """

    def __init__(self, generator: Generator, mesh: Mesh):
        self._generator, self._mesh = generator, mesh
        self.tasks = generator.family.split(generator.family.choosing_split)
        self._score = Scorer(generator, "validation", mesh)
        self._samplers = Samplers(generator, mesh)

    def __call__(self, params: PyTree) -> dict[str, Float[np.ndarray, " tasks"]]:
        condition = self._generator.condition(self.tasks, given=self._generator.config.sample.condition)
        key = rng.stream(self._generator.config.seed, "train/validation")
        ids = np.array([t.id for t in self.tasks], np.int32)
        return {
            name: self._samplers.scores(params, name, condition, key, self._score.batch, ids)
            for name in self._generator.config.sample.samplers[:2]
        }


def divergence(metrics: dict, leaves: list[str]) -> str:
    """What is wrong with the metrics of a step, with the tensors at fault among `leaves`; '' if nothing is."""
    odd = {k: float(v) for k, v in metrics.items() if k != NORMS and not np.isfinite(v)}
    norms = np.asarray(metrics[NORMS])
    tensors = [leaves[i] for i in np.flatnonzero(~np.isfinite(norms))]
    loss = float(metrics["denoising_loss"])
    if not odd and not tensors and loss <= DIVERGED:
        return ""
    said = ", ".join(f"{k} is {v:.4g}" for k, v in (odd or {"denoising_loss": loss}).items())
    if tensors:
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        return f"{said}; not finite are the gradients of {', '.join(tensors[:3])}{more} of {len(leaves)} tensors"
    return f"{said}; the largest gradient, of norm {norms.max():.4g}, is that of {leaves[norms.argmax()]}"
