"""How long the main job waits for its first training step: tracing, XLA's compilation, and the step itself.

    python -m benchmarks.first_step            # this process alone, as JSON

Each measurement is a process of its own, as what is compiled once stays compiled; the second kind finds what the first
left in the persistent cache.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks import train_step
from benchmarks.timing import Row, Spread
from pdiff.system import dist, machine
from pdiff.training import stages, train
from pdiff.training.state import init_state

GOALS = {"cold": ("< 15 s without a cache", 15.0), "cached": ("< 4 s with the persistent compilation cache", 4.0)}


def first_step() -> dict[str, float]:
    """Seconds of the parts of a run's first training step, the mean's, in this process, all it takes being there."""
    made, mesh = train_step.make_generator(), dist.make_mesh()
    stage = train_step.make_stage(made, stages.MEAN)
    state, size = init_state(train_step.random_parameters(made.init_mean), stage.optimizer), stage.settings.batch_size
    rows = dist.local_rows(size, mesh)
    batch = dist.from_local(next(train_step.batches(stage)), rows, size, mesh)
    constants = dist.replicate(stage.constants, mesh)
    jax.block_until_ready((state, constants, batch))
    times = [time.perf_counter()]
    traced = train.make_step(stage, mesh).trace(state, batch, constants)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    step = lowered.compile()
    times.append(time.perf_counter())
    (layout, *_), _ = step.input_shardings
    jax.block_until_ready(step(dist.place(state, layout), batch, constants))
    times.append(time.perf_counter())
    parts = dict(zip(("trace", "lower", "compile", "run"), np.diff(times).tolist(), strict=True))
    return {"total": times[-1] - times[0]} | parts


def measure(effort: float = 1.0) -> list[Row]:
    """Cold and cached, alternating, each cache in a folder of its own."""
    found: dict[str, list[dict]] = {kind: [] for kind in GOALS}
    for _ in range(max(1, round(2 * effort))):
        with tempfile.TemporaryDirectory() as cache:
            for kind in GOALS:
                found[kind].append(_in_a_process(cache))
    rows = []
    for kind, (goal, most) in GOALS.items():
        totals = Spread.of([f["total"] for f in found[kind]])
        mean = {n: sum(f[n] for f in found[kind]) / len(found[kind]) for n in found[kind][0]}
        notes = ", ".join(f"{n} {s:.2f} s" for n, s in mean.items() if n != "total")
        rows.append(
            Row("first training step", f"main job, {kind}", "one first step", totals,
                goals={goal: totals.median < most}, notes=notes)
        )  # fmt: skip
    return rows


def _in_a_process(cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_step"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(made.splitlines()[-1])


if __name__ == "__main__":
    machine.set_up()
    print(json.dumps(first_step()))
