"""How the memory of the mean's training step grows with the number of generated parameters. The prior's does not.

    python -m benchmarks.memory --out=docs/memory.json --plot=docs/memory.svg

Each size is an MLP whose weights are the output of the same small network, measured in a process of its own. Up to 10^6
parameters two steps are really run; beyond, the same step is compiled for abstract arrays of which none is ever
allocated. A few minutes on 2 cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import smoke
from pdiff.compile import aot
from pdiff.models.dit import count_parameters
from pdiff.report import style
from pdiff.system import dist, files
from pdiff.training import train

# Generated parameters, about: hidden widths of the MLP, and the width of a token.
SIZES: dict[int, tuple[tuple[int, ...], int]] = {
    10_000: ((64, 64, 16), 64),
    30_000: ((128, 128, 32), 128),
    100_000: ((256, 256, 64), 256),
    300_000: ((464, 464, 128), 512),
    1_000_000: ((920, 920, 100), 1024),
    3_000_000: ((1600, 1600, 200), 2048),
    10_000_000: ((3000, 3000, 260), 4096),
    30_000_000: ((5300, 5300, 300), 16384),
    100_000_000: ((9800, 9800, 300), 32768),
}
LARGEST_RUN = 1_000_000
LINEAR_FROM = 300_000  # below, what does not depend on the target is most of it
BATCH, STEPS = 4, 2


def make_config(size: int) -> ConfigDict:
    """The smoke scenario with that target, and a narrow mean that learns from networks and from what they do."""
    config = smoke.get_config()
    widths, token_dim = SIZES[size]
    with config.unlocked():
        config.target.widths = widths
        config.weights.token_dim = token_dim
        config.model.update(dict(width=64, depth=2, remat=True))
        config.mean.update(dict(width=4, batch_size=BATCH, functional_images=8, zoo_weight=1.0))
        config.train.batch_size = BATCH
    return config


def measure(size: int) -> dict:
    """Memory of one size, in bytes, in this process."""
    generator, mesh = aot.shapes(make_config(size)), dist.make_mesh(jax.devices()[:1])
    program = aot.program(generator, mesh, "mean")
    arguments = program.arguments
    resident, start = _resident(), time.perf_counter()
    compiled = program.step.lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    found = {
        "num_params": generator.spec.num_params,
        "tokens": generator.spec.num_tokens,
        "token_dim": generator.spec.token_dim,
        "model_params": count_parameters(arguments[0].params),
        "compile_s": time.perf_counter() - start,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "argument_bytes": analysis.argument_size_in_bytes,
    }
    if size <= LARGEST_RUN:
        compiling, before = _peak(), _resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        found["step_s"] = run_steps(compiled, arguments, aot.stage(generator, mesh, "mean"), mesh)[-1]
        found["resident_bytes"] = max(compiling, _peak()) - resident
        found["running_bytes"] = _peak() - before
    return found


def run_steps(compiled, arguments: tuple, stage: train.Stage, mesh: Mesh, steps: int = STEPS) -> list[float]:
    """The seconds of each training step, on ones in place of data; the first is slower."""
    state = train.fresh_state(stage, mesh)
    batch = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), arguments[1])
    constants = jax.tree.map(
        lambda x: np.ones(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, stage.constants
    )
    batch, constants = dist.shard(batch, mesh, dist.BATCH), dist.replicate(constants, mesh)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch, constants))
        seconds.append(time.perf_counter() - start)
    return seconds


def _resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """The most bytes of this process that were in memory at once."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def slope(rows: list[dict], name: str) -> float:
    """The exponent b of memory = a * parameters^b, by least squares, from LINEAR_FROM parameters on."""
    points = [(r["num_params"], r[name]) for r in rows if name in r and r["num_params"] > 0.8 * LINEAR_FROM]
    return float(np.polyfit(*np.log(np.array(points, float)).T, 1)[0])


@style.styled
def plot(found: dict) -> str:
    """Memory against generated parameters, on logarithmic axes."""
    rows, fig = found["sizes"], style.figure(6.4, 4)
    axes = fig.subplots()
    shown = (
        ("total_bytes", "compiled step: arguments and temporaries", style.BLUE, "o-"),
        ("argument_bytes", "of which arguments", style.GREEN, "s--"),
        ("running_bytes", "two real steps: growth of the process", style.VERMILLION, "^-"),
    )
    for name, label, colour, mark in shown:
        points = [(r["num_params"], r[name] / 1e6) for r in rows if name in r]
        axes.plot(*zip(*points, strict=True), mark, color=colour, label=label, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="generated parameters", ylabel="MB")
    power = found["slopes"]["total_bytes"]
    axes.set_title(f"Memory of the mean's step, batch {found['batch']}: it grows as parameters^{power:.2f}")
    axes.legend(loc="upper left")
    return style.svg(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--plot", type=Path, help="the SVG file to write")
    parser.add_argument("--most", type=int, default=max(SIZES), help="largest size to measure")
    parser.add_argument("--size", type=int, choices=SIZES, help="measure this one alone, and print it")
    args = parser.parse_args()
    if args.size:
        print(json.dumps(measure(args.size)))
        return
    if not (args.out and args.plot):
        parser.error("--out, --plot: give both")
    rows = []
    for size in (s for s in SIZES if s <= args.most):
        command = [sys.executable, "-m", "benchmarks.memory", f"--size={size}"]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        row = json.loads(made.splitlines()[-1])
        rows.append(row | {"total_bytes": row["temporary_bytes"] + row["argument_bytes"]})
        print(json.dumps(rows[-1]), file=sys.stderr)
    names = ("total_bytes", "argument_bytes", "temporary_bytes", "running_bytes", "resident_bytes")
    slopes = {n: slope(rows, n) for n in names if sum(n in r for r in rows) > 1}
    found = {"batch": BATCH, "backend": jax.default_backend(), "slopes": slopes, "sizes": rows}
    files.write_atomic(args.out, json.dumps(found, indent=1).encode())
    files.write_atomic(args.plot, plot(found).encode())


if __name__ == "__main__":
    main()
