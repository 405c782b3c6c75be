"""The main job's two training steps against the same steps in PyTorch, and what the mean's waits for its data.

    python -m benchmarks.train_step --profile

prints where the time of a step of each goes as Markdown tables. Input is measured here too, since it shares a step.
"""

import argparse
import collections
import contextlib
import functools
import re
import signal
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from benchmarks import thunks, timing
from benchmarks.timing import Row, Spread
from configs import interp
from pdiff.compile import hlo
from pdiff.generator import generator, refined
from pdiff.generator.generator import Generator
from pdiff.system import dist
from pdiff.targets import Target, get_target
from pdiff.tasks import get_family
from pdiff.training import stages, train
from pdiff.training.state import init_state
from pdiff.zoo.networks import Networks

COMPILE_LIMIT_S = 100  # for torch.compile
TRACED_STEPS = 6
SYNTHETIC = "synthetic data"
INPUT_STEPS = 20  # steps of a turn when the input is measured

# Where an operation belongs: the first pattern that its source (JAX's `op_name`) has.
GROUPS = (
    ("random numbers", r"threefry|_normal|_uniform|_randint|_bernoulli|random_bits|rng_bit|erf_inv"),
    ("text encoder and conditions", r"MeanNetwork\.encode|/conditions/"),
    ("rest of the mean", r"MeanNetwork"),
    ("attention", r"DiT.*/attention"),
    ("MLP", r"DiT.*/mlp"),
    ("members", r"DiT.*/(member|set)/"),
    ("rest of the transformer", r"DiT"),
    ("functional and denoising loss", r"jvp\("),
    ("optimizer and EMA", r"jit\(step\)"),
)


class Step:
    """pdiff's own compiled step of a stage over all devices with its state, which each call donates."""

    def __init__(self, stage: train.Stage, params: PyTree):
        self.stage, self.mesh = stage, dist.make_mesh()
        self.size = stage.settings.batch_size
        self.rows = dist.local_rows(self.size, self.mesh)
        self.constants = dist.replicate(stage.constants, self.mesh)
        step = train.make_step(stage, self.mesh)
        start = time.perf_counter()
        batch = self.placed(next(batches(stage)))
        self.compiled = step.lower(train.abstract_state(stage), batch, self.constants).compile()
        self.compile_s = time.perf_counter() - start
        (layout, *_), _ = self.compiled.input_shardings
        self.state = dist.place(init_state(params, stage.optimizer), layout)

    def placed(self, batch: dict) -> dict:
        """A batch of NumPy arrays, on the devices as `train.train` puts it there."""
        return dist.from_local(batch, self.rows, self.size, self.mesh)

    def __call__(self, batch: dict) -> dict:
        """One update; the metrics."""
        self.state, metrics = self.compiled(self.state, batch, self.constants)
        return metrics

    @functools.cached_property
    def work(self) -> hlo.Work:
        """What one device does in one step."""
        return hlo.analyse(self.compiled.as_text())

    @property
    def matmul_flops(self) -> float:
        """Of one step, on all devices."""
        return self.work.matmul_flops * self.mesh.devices.size


def make_generator() -> Generator:
    """The main job's generator for a zoo of random networks: the same shapes, without the time that a zoo takes."""
    config = interp.get_config()
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    return generator.make_generator(config, family, target, {"base": networks(target, 1), "seen": seen(target, config)})


def refine(made: Generator) -> Generator:
    """The same with a mean of random parameters, and what follows from it."""
    return refined.refine(made, random_parameters(made.init_mean), seen(made.target, made.config), dist.make_mesh())


def make_stage(made: Generator, name: str) -> train.Stage:
    """The mean's training of a generator, or with `stages.PRIOR` the prior's of a refined one."""
    if name == stages.PRIOR:
        return stages.prior(made, "", dist.make_mesh())
    return stages.mean(made, seen(made.target, made.config), "", dist.make_mesh())


def seen(target: Target, config) -> Networks:
    """As many random networks as the zoo of `config` has seen ones."""
    return networks(target, config.tasks.num_seen * config.zoo.seeds_per_task, config.tasks.num_seen)


def networks(target: Target, count: int, tasks: int = 1) -> Networks:
    """`count` random networks of `tasks` tasks, in order of tasks."""
    random, nothing = np.random.default_rng(0), np.zeros(count, np.float32)
    params = jax.tree.map(lambda s: 0.1 * random.standard_normal((count, *s.shape), np.float32), target.abstract())
    task = (np.arange(count) * tasks // count).astype(np.int32)
    whole = nothing.astype(np.int32)
    return Networks(
        task=task, seed=whole, step=whole, validation_accuracy=nothing, test_accuracy=nothing, params=params
    )


def random_parameters(init: Callable, seed: int = 0) -> PyTree[np.ndarray]:
    """Parameters of the shapes that `init` makes, random in every leaf: none starts at zero, so no layer is idle.

    To compile the model's own initialisation would take longer than what is measured here.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        deviation = leaf.shape[0] ** -0.5 if name.endswith("kernel") else 0.05
        return (deviation * random.standard_normal(leaf.shape) + name.endswith("scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def batches(stage: train.Stage, place: Callable[[dict], dict] = lambda batch: batch) -> Iterator[dict]:
    """The real input of training."""
    return stage.batches(start=0, stop=10**9, place=place)


def measure(effort: float = 1.0) -> list[Row]:
    """The rows of the two training steps and of the mean's input."""
    made, peak = make_generator(), timing.peak_flops()
    mean = Step(make_stage(made, stages.MEAN), random_parameters(made.init_mean))
    rows = [_measured(made, mean, peak, effort)]
    source = mean.placed(next(batches(mean.stage)))
    rows.append(_measure_input(mean, source, effort))
    made = refine(made)
    prior = Step(make_stage(made, stages.PRIOR), random_parameters(made.init))
    return [*rows, _measured(made, prior, peak, effort)]


def _measured(made: Generator, step: Step, peak: float, effort: float) -> Row:
    """The row of a step."""
    batch, params = next(batches(step.stage)), jax.device_get(step.state.params)
    placed = step.placed(batch)
    with timing.peak_memory() as memory:
        jax.block_until_ready([step(placed) for _ in range(3)])
    on_cpu = jax.default_backend() == "cpu"  # elsewhere a trace has other names
    in_matmuls = _traced(step, placed)[0] if on_cpu else None

    candidates, notes = {"pdiff": lambda: step(placed)}, []
    rivals = _rivals(made, step, params, batch, notes)
    measured = timing.take_turns(candidates | rivals, max(3, round(15 * effort)))
    of_whole = [step.matmul_flops / s / peak for s in measured.seconds["pdiff"]]
    goals = {f">= 1.3x {name}": measured.ratio(name, "pdiff").median >= 1.3 for name in rivals}
    if in_matmuls:
        rate = step.matmul_flops / in_matmuls
        notes.append(f"{rate / peak:.0%} of it in the matmuls' time, {in_matmuls * 1e3:.0f} ms of a step")
        goals = {">= 70% of peak in the matmuls' time": rate >= 0.7 * peak} | goals
    notes.append(f"compiled in {step.compile_s:.0f} s")
    return Row(
        path="training step",
        what=f"a whole step of the {step.stage.name}, batch {step.size}, {made.spec.num_params} weights generated",
        unit="step",
        **measured.against("pdiff", rivals),
        limit=f"{peak / 1e9:.0f} GFLOP/s in large matmuls; {step.matmul_flops / 1e9:.2f} GFLOP of matmuls in a step",
        share=Spread.of(of_whole),
        goals=goals,
        peak_mb=memory[0] if memory else None,
        bounded_by="train.microbatches",
        notes="; ".join(notes),
        flops=step.matmul_flops,
        moved=step.work.hbm_bytes * step.mesh.devices.size,
    )


def _traced(step: Step, placed: dict) -> tuple[float, dict[str, float]]:
    """Seconds of a step that are the matmuls', and of each operation."""
    jax.block_until_ready(step(placed))
    text = step.compiled.as_text()
    events = thunks.trace(lambda: step(placed), TRACED_STEPS, text)
    spent = {name: s / TRACED_STEPS for name, s in thunks.seconds(events).items()}
    known = thunks.operations(text)
    return sum(s for name, s in spent.items() if name in known and known[name].is_matmul), spent


def _rivals(
    made: Generator, step: Step, params: PyTree, batch: dict, notes: list[str]
) -> dict[str, Callable[[], object]]:
    """The steps in PyTorch, on the same batch and parameters; says in `notes` which are missing, and why."""
    try:
        from benchmarks import torch_dit
    except ImportError:
        notes.append("without PyTorch; pip install -e '.[bench]'")
        return {}
    given = torch_dit.torch_batch(batch)
    eager = torch_dit.Trainer(made, step.stage, params)
    found = {"PyTorch eager": lambda: eager.step(given)}
    compiled = torch_dit.Trainer(made, step.stage, params, compiled=True)
    start = time.perf_counter()
    try:
        with _time_limit(COMPILE_LIMIT_S):
            compiled.step(given)
    except Exception as error:  # whatever a compiler may raise: the row then stands without it
        notes.append(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
        return found
    notes.append(f"torch.compile took {time.perf_counter() - start:.0f} s")
    return found | {"torch.compile": lambda: compiled.step(given)}


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside after so many seconds."""

    def stop(number, frame):
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: one that is raised inside a callback of the garbage collector (JAX has one) is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _measure_input(step: Step, placed: dict, effort: float) -> Row:
    """Steps whose batches come from the zoo as in training, against steps on one batch that stays on the device."""
    source = batches(step.stage, step.placed)

    def real():
        for _ in range(INPUT_STEPS):
            metrics = step(next(source))
        return metrics

    def synthetic():
        for _ in range(INPUT_STEPS):
            metrics = step(placed)
        return metrics

    work = dict.fromkeys(("real", SYNTHETIC), INPUT_STEPS)
    measured = timing.take_turns({"real": real, SYNTHETIC: synthetic}, max(2, round(3 * effort)), work)
    cost = measured.ratio("real", SYNTHETIC)
    prepare = _host_seconds(source)
    return Row(
        path="data input",
        what=f"{INPUT_STEPS} steps of the mean on batches of the zoo, against one batch that stays on the device",
        unit="step",
        **measured.against("real", [SYNTHETIC]),
        limit="a step without input",
        share=measured.ratio(SYNTHETIC, "real"),
        goals={"input costs < 2% of a step": cost.median - 1 < 0.02},
        bounded_by="zoo.memory_mb",
        notes=f"input costs {cost.median - 1:+.1%} ({cost.low - 1:+.1%} .. {cost.high - 1:+.1%}) of a step; a batch is "
        f"made and placed in {prepare * 1e3:.2f} ms of a background thread",
    )


def _host_seconds(source: Iterator[dict], count: int = 100) -> float:
    """Seconds to prepare a batch and place it on the devices, with nothing else running."""
    for _ in range(16):  # what was prepared ahead
        next(source)
    start = time.perf_counter()
    jax.block_until_ready([next(source) for _ in range(count)])
    return (time.perf_counter() - start) / count


def profile() -> str:
    """Where a step's time goes, as two Markdown tables for each stage: by part of the step, and its matrix products."""
    made, peak, tables = make_generator(), timing.peak_flops(), []
    for name in (stages.MEAN, stages.PRIOR):
        made = refine(made) if name == stages.PRIOR else made
        step = Step(make_stage(made, name), random_parameters(made.init if name == stages.PRIOR else made.init_mean))
        _, spent = _traced(step, step.placed(next(batches(step.stage))))
        known = thunks.operations(step.compiled.as_text())
        tables += [f"{name}:", profile_table(spent, known), matmul_table(spent, known, peak)]
    return "\n\n".join(tables)


def profile_table(spent: dict[str, float], known: dict[str, thunks.Operation]) -> str:
    """The table of seconds of operations by name."""
    total, groups, matmuls = sum(spent.values()), collections.Counter(), collections.Counter()
    for name, seconds in spent.items():
        where = group(known[name]) if name in known else "other" if name else "no operation runs"
        groups[where] += seconds
        matmuls[where] += seconds * (name in known and known[name].is_matmul)
    lines = ["| part of a step | ms | share of the step | of which matmuls |", "| --- | --- | --- | --- |"]
    for where, seconds in [*groups.most_common(), ("all", total)]:
        product = sum(matmuls.values()) if where == "all" else matmuls[where]
        lines.append(f"| {where} | {seconds * 1e3:.1f} | {seconds / total:.1%} | {product / total:.1%} |")
    return "\n".join(lines)


def matmul_table(spent: dict[str, float], known: dict[str, thunks.Operation], peak: float, most: int = 20) -> str:
    """The matrix products that take the most time, and at which share of `peak` (FLOP/s) each runs."""
    products = {name: s for name, s in spent.items() if name in known and known[name].is_matmul}
    lines = ["| matmul | ms | MFLOP | share of peak |", "| --- | --- | --- | --- |"]
    for name, seconds in sorted(products.items(), key=lambda item: -item[1])[:most]:
        flops, source = known[name].flops, known[name].source.removeprefix("jit(step)/")
        lines.append(f"| {source} | {seconds * 1e3:.2f} | {flops / 1e6:.0f} | {flops / seconds / peak:.0%} |")
    total, flops = sum(products.values()), sum(known[name].flops for name in products)
    lines.append(f"| all {len(products)} | {total * 1e3:.1f} | {flops / 1e6:.0f} | {flops / total / peak:.0%} |")
    return "\n".join(lines)


def group(operation: thunks.Operation) -> str:
    """The part of a step that an operation belongs to."""
    if operation.only_moves:
        return "copies"
    return next((name for name, pattern in GROUPS if re.search(pattern, operation.source)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="print where a step's time goes, in place of the rows")
    parser.add_argument("--effort", type=float, default=1.0, help="how many turns, times the usual")
    args = parser.parse_args()
    if args.profile:
        print(profile())
        return
    for row in measure(args.effort):
        print(row)


if __name__ == "__main__":
    main()
