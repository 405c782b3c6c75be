"""How time and memory grow with tasks, generated parameters, samples and the transformer's width.

    python -m benchmarks.growth --plot=docs/growth.svg

Each size is measured in a process of its own. Slopes are exponents b of a * size^b, by least squares on logarithms. The
zoo of many tasks is made up in memory, as nothing here depends on its values. Steps are the mean's, for generated
parameters, and those of a transformer of one block, for its width; the mean is told the task's id, and compilation is
most of what this takes.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from benchmarks import many, memory
from benchmarks.timing import Row, Spread, peak_memory
from configs import interp
from pdiff.compile import aot
from pdiff.controls import SeenZoo
from pdiff.controls.neighbours import LinearInterpolation, Nearest
from pdiff.controls.ridge import Ridge
from pdiff.generator import conditioning, generator
from pdiff.report import style
from pdiff.system import dist, files, machine
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.weights import codec
from pdiff.zoo.networks import Networks

SIZES = {
    "tasks": (64, 512, 4096),
    "parameters": (10_000, 1_000_000),
    "samples": (1, 100, 10_000),
    "width": (64, 512),
}
SAMPLER, STEP = "posterior_mean", "training step"
PREFIX = "growth with "  # of the rows' paths
STEEP = 1.1  # a slope above this is explained
WHY = {  # (curve, "time" or "memory"): why its slope may be above STEEP
    ("width", "time"): "the matrix products of a block are quadratic in its width",
}


def measure(effort: float = 1.0) -> list[Row]:
    """A row for each part at each size; each part's largest has the slopes in its notes. Little effort drops sizes."""
    found = []
    for curve, sizes in SIZES.items():
        for size in sizes if effort >= 1 else sizes[:2]:
            command = [sys.executable, "-m", "benchmarks.growth", f"--curve={curve}", f"--size={size}"]
            made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found.append({"curve": curve, "size": size} | json.loads(made.splitlines()[-1]))
    return rows_of(found)


def rows_of(found: list[dict]) -> list[Row]:
    """The rows of what the processes found: `curve`, `size`, and by part `seconds` and `mb`."""
    rows = []
    for one in found:
        for part, seconds in one["seconds"].items():
            row = Row(
                path=f"{PREFIX}{one['curve']}: {part}",
                what=f"{one['size']:,} {one['curve']}",
                unit=part,
                ours=Spread.of(seconds),
                peak_mb=one["mb"].get(part),
            )
            rows.append(row)
    fitted, last = slopes(rows), {r.path: i for i, r in enumerate(rows)}
    for path, i in last.items():
        rows[i] = dataclasses.replace(rows[i], notes=_told(path, fitted[path]))
    return rows


def slopes(rows: list[Row]) -> dict[str, dict[str, float]]:
    """By path the exponents of `time` and, where it was measured, of `memory`."""
    fitted: dict[str, dict[str, float]] = {}
    for path in dict.fromkeys(r.path for r in rows):
        own = [r for r in rows if r.path == path]
        points = {"time": [(size_of(r), r.ours.median) for r in own]}
        points["memory"] = [(size_of(r), r.peak_mb) for r in own if r.peak_mb]
        fitted[path] = {
            name: float(np.polyfit(*np.log(np.array(xy, float)).T, 1)[0]) for name, xy in points.items() if len(xy) > 1
        }
    return fitted


def size_of(row: Row) -> int:
    """The size that a row is of."""
    return int(row.what.split()[0].replace(",", ""))


def curve_of(path: str) -> str:
    """The curve that a path is of."""
    return path.removeprefix(PREFIX).partition(":")[0]


def _told(path: str, fitted: dict[str, float]) -> str:
    told = "; ".join(f"{name} grows as size^{slope:.2f}" for name, slope in fitted.items())
    steep = [name for name, slope in fitted.items() if slope > STEEP]
    why = [WHY[curve_of(path), name] for name in steep if (curve_of(path), name) in WHY]
    return ": ".join([told, *why])


# --- one size, in this process ------------------------------------------------------------------


def with_tasks(count: int) -> dict:
    """What is made of the tasks before training, and the controls of evaluation: the main job with more seen tasks."""
    config = interp.get_config()
    with config.unlocked():
        config.tasks.num_seen = count
    target = get_target(config.target, (8, 8), 10)
    made: dict = {"zoo": _made_up_zoo(target.abstract(), count)}
    zoo = made["zoo"]

    def family():
        made["family"] = get_family(config.tasks)

    def tokenizer():
        generator.make_tokenizer(config, made["family"])

    def statistics():
        made["generator"] = generator.make_generator(config, made["family"], target, zoo)

    def constants():
        conditioning.make_constants(made["generator"])

    def controls():
        seen, spec = zoo["seen"], made["generator"].spec
        tokens = codec.encode_stacked(spec, seen.params)
        base = codec.encode_stacked(spec, zoo["base"].params)[0]
        known = SeenZoo(made["family"], tokens, base, seen.task, seen.seed)
        asked = made["family"].split("seen")[:: max(1, count // 64)]
        for control in (Nearest.fit(known), LinearInterpolation.fit(known), Ridge.fit(known, 4, 1.0)):
            control.sample(asked, 1, np.random.default_rng(0))

    parts = {
        "tasks": family,
        "tokenizer": tokenizer,
        "statistics and tokenizer": statistics,
        "training constants": constants,
        "controls on 64 tasks": controls,
    }
    return _measured(parts)


def _made_up_zoo(shapes: PyTree, count: int) -> dict[str, Networks]:
    """One network of each task, and a base."""
    random = np.random.default_rng(0)

    def networks(n: int, task: np.ndarray) -> Networks:
        params = jax.tree.map(lambda s: random.standard_normal((n, *s.shape), s.dtype), shapes)
        zeros = np.zeros(n)
        return Networks(task, zeros.astype(int), zeros.astype(int), zeros, zeros, params)

    return {"seen": networks(count, np.arange(count)), "base": networks(1, np.array([-1]))}


def with_parameters(size: int) -> dict:
    """A step of the mean and one sample, of `memory.SIZES`."""
    config = memory.make_config(size)
    with config.unlocked():
        config.sample.batch_size = 1
    _simplify(config)
    bench = many.make_bench(many.make_generator(config))
    tasks = bench.generator.family.split("seen")[:1]
    sample = {"one sample": lambda: bench.generate(SAMPLER, tasks, "benchmarks/growth", 1)}
    sample["one sample"]()
    return _merged(_training(config, "mean"), _measured(sample, 5))


def with_samples(count: int) -> dict:
    """Networks of the main job's target, drawn and scored."""
    config = interp.get_config()
    _simplify(config)
    bench = many.make_bench(many.make_generator(config))
    tasks = bench.generator.family.split("seen")[:1]
    draw = {"draw and score": lambda: bench.scores(SAMPLER, tasks, "benchmarks/growth", count)}
    bench.scores(SAMPLER, tasks, "benchmarks/growth", 1)
    return _measured(draw, 5 if count < 1000 else 1)


def with_width(width: int) -> dict:
    """A step of the prior of the main job's size with a wider transformer."""
    config = interp.get_config()
    with config.unlocked():
        config.model.width = width
    _simplify(config)
    return _training(config, "train")


CURVES: dict[str, Callable[[int], dict]] = {
    "tasks": with_tasks, "parameters": with_parameters, "samples": with_samples, "width": with_width,
}  # fmt: skip


def _simplify(config: ConfigDict) -> None:
    with config.unlocked():
        config.model.update(dict(depth=1, remat=False))
        config.condition.use = config.sample.condition = ("id",)


def _training(config: ConfigDict, step: str) -> dict:
    """Seconds of training steps, `step` being of `aot.STEPS`, and the memory of arguments and temporaries, as the
    compiler tells it."""
    made, mesh = aot.shapes(config), dist.make_mesh()
    program = aot.program(made, mesh, step)
    compiled = program.step.lower(*program.arguments).compile()
    analysis = compiled.memory_analysis()
    total = (analysis.temp_size_in_bytes + analysis.argument_size_in_bytes) * mesh.devices.size
    seconds = memory.run_steps(compiled, program.arguments, aot.stage(made, mesh, step), mesh, 4)[1:]
    return {"seconds": {STEP: seconds}, "mb": {STEP: total / 1e6}}


def _measured(parts: dict[str, Callable[[], object]], times: int = 1) -> dict:
    """Seconds of each part, `times` times, and what the process grew by meanwhile."""
    seconds, grown = {name: [] for name in parts}, {}
    for name, part in parts.items():
        with peak_memory() as before:
            pass
        with peak_memory() as peak:
            for _ in range(times):
                start = time.perf_counter()
                part()
                seconds[name].append(time.perf_counter() - start)
        if peak:
            grown[name] = max(peak[0] - before[0], 1.0)  # at least 1 MB: less is not told from the allocator's own
    return {"seconds": seconds, "mb": grown}


def _merged(a: dict, b: dict) -> dict:
    return {key: a[key] | b[key] for key in a}


# --- the figure -----------------------------------------------------------------------------------


@style.styled
def plot(rows: list[Row]) -> str:
    """Time, and below it memory, of each curve against its size, on logarithmic axes."""
    fig, fitted = style.figure(11, 5.4), slopes(rows)
    axes = fig.subplots(2, len(SIZES), sharex="col")
    colours = (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE, style.ORANGE)
    for column, curve in zip(axes.T, SIZES, strict=True):
        paths = [p for p in fitted if curve_of(p) == curve]
        for colour, path in zip(colours, paths, strict=False):
            own, part = [r for r in rows if r.path == path], path.partition(": ")[2]
            points = {"time": [(size_of(r), r.ours.median) for r in own]}
            points["memory"] = [(size_of(r), r.peak_mb) for r in own if r.peak_mb]
            for axis, name in zip(column, ("time", "memory"), strict=True):
                if name in fitted[path]:
                    label = f"{part}: {fitted[path][name]:.2f}"
                    axis.plot(*zip(*points[name], strict=True), "o-", color=colour, label=label, markersize=4)
        for axis in column:
            axis.set(xscale="log", yscale="log")
            if axis.lines:
                axis.legend(loc="upper left", fontsize=7, title="slope", title_fontsize=7)
        column[0].set_title(curve)
        column[1].set_xlabel(curve)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("MB")
    return style.svg(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="the SVG file to write")
    parser.add_argument("--curve", choices=SIZES, help="measure one size of this alone, and print it")
    parser.add_argument("--size", type=int, help="which")
    args = parser.parse_args()
    if args.curve:
        machine.set_up()
        print(json.dumps(CURVES[args.curve](args.size)))
        return
    rows = measure()
    if args.plot:
        files.write_atomic(args.plot, plot(rows).encode())
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
