"""Many runs of one scenario, and one table of what they say.

    python -m launch.sweep --sweep=unseen --workdir=runs/sweep        # configs/unseen.py as it is, three seeds
    python -m launch.sweep --sweep=ablation --workdir=runs/sweep      # one option changed at a time, three seeds
    python -m launch.sweep --sweep=tasks --workdir=runs/sweep         # 8 … 2,048 seen tasks
    python -m launch.sweep --sweep=gap --workdir=runs/sweep           # held-out arcs of 10° … 120°
    python -m launch.sweep --sweep=examples --workdir=runs/sweep      # 16 … 448 seen tasks, then four images a class
    python -m launch.sweep --sweep=examples_camera_trap --workdir=runs/sweep

Runs go one after another into <workdir>/<sweep>/<variant>-seed<n>; finished ones are skipped, so the same command
resumes a sweep. All share the zoos in <workdir>/zoo. The table (Markdown), its numbers (JSON) and its plot (SVG) are
written into <workdir>/<sweep>. Means are over seeds of the run, with the standard error over seeds.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from configs import camera_trap, interp, unseen
from pdiff import run
from pdiff.report.style import figure, styled, svg
from pdiff.results import summary
from pdiff.system import files

Variants = dict[str, dict[str, Any]]

# A few minutes on 2 cores instead of half an hour. What is compared with it must be run with it too.
FAST = {
    "mean.steps": 800,
    "train.steps": 500,
    "train.validate_every": 500,
    "train.checkpoint_every": 500,
    "condition.use": ("text",),
    "condition.drop_text": 0.0,
    "sample.samplers": ("posterior_mean", "ddim"),
    "eval.samples_per_task": 1,
    "eval.mixing_separations": (),
    "eval.vague_samples": 0,
    "eval.calibration_samples": 0,
    "eval.adapt_tasks": 0,
}

ABLATION: Variants = {
    "as it is": {},
    "mean of the zoo's weights": {"mean.functional_weight": 0.0, "mean.zoo_weight": 1.0},
    "mean of both": {"mean.zoo_weight": 1.0},
    "functional_images 32": {"mean.functional_images": 32},
    "no base_penalty": {"mean.base_penalty": 0.0},
    "no number_noise": {"condition.number_noise": 0.0},
    "no number_noise, 2 harmonics": {"condition.number_noise": 0.0, "condition.num_harmonics": 2},
    "prior of the zoo": {"refined.of": "zoo"},
    "prior of 288 networks": {"refined.networks": 288},
    "prior of one task at a time": {"refined.vague": 0.0},
    "8 components": {"subspace.components": 8},
    "factors in place of text": {"condition.use": ("factors",), "sample.condition": ("factors",),
                                 "condition.drop_factors": 0.0},
    "at_sigma_max 0": {"diffusion.at_sigma_max": 0.0},
    "at_sigma_max 0.5": {"diffusion.at_sigma_max": 0.5},
    "rectified flow": {"diffusion.path": "rectified_flow", "diffusion.sigma_max": 80.0},
    "scale per parameter": {"weights.scale": "param"},
    "centred on the base": {"weights.center": "base"},
    "guidance 1.5": {"sample.guidance": 1.5},
    "EMA off": {"train.ema_decay": 0.0},
    "wide and shallow": {"model.width": 224, "model.depth": 1},
    "narrow and deep": {"model.width": 80, "model.depth": 8},
    "1536 tasks, 1 seed each": {"tasks.num_seen": 1536, "zoo.seeds_per_task": 1},
    "64 tasks, 24 seeds each": {"tasks.num_seen": 64, "zoo.seeds_per_task": 24},
}  # fmt: skip
# What is made of four labelled images of a class, against how many tasks the generator has seen.
EXAMPLES = {
    "zoo.seeds_per_task": 2,
    "mean.steps": 1000,
    "train.steps": 800,
    "train.validate_every": 400,
    "train.checkpoint_every": 400,
    "sample.samplers": ("posterior_mean", "ddim"),
    "eval.samples_per_task": 1,
    "eval.mixing_separations": (),
    "eval.vague_samples": 0,
    "eval.calibration_samples": 0,
    "eval.closeup_tasks": 0,
    "eval.transfer_pairs": 0,
    "eval.adapt_shots": (4,),
}
SEEN_TASKS: Variants = {str(n): {"tasks.num_seen": n} for n in (16, 32, 64, 128, 256, 448)}
ROWS = ("finetuned", "posterior_mean", "ddim", "hypernetwork", "ridge", "nearest_seen", "linear_interpolation", "base")
ADAPTED = ("prior", "refined_zoo", "refined_all", "zoo", "reptile", "base")


class Sweep(NamedTuple):
    """Variants of a scenario; `curves` are the rows that are drawn against their numbers, if those are numbers."""

    scenario: Callable[[], ConfigDict]
    common: dict[str, Any]
    variants: Variants
    xlabel: str = ""
    curves: tuple[str, ...] = ROWS


SWEEPS: dict[str, Sweep] = {
    "unseen": Sweep(unseen.get_config, {}, {"as it is": {}}),
    "ablation": Sweep(unseen.get_config, FAST, ABLATION),
    "tasks": Sweep(
        unseen.get_config,
        FAST | {"zoo.seeds_per_task": 2},
        {str(2**i): {"tasks.num_seen": 2**i} for i in range(3, 12)},
        "seen tasks",
    ),
    "gap": Sweep(
        unseen.get_config,
        FAST | {"zoo.seeds_per_task": 2},
        {str(w): {"tasks.unseen": f"{75 - w / 2:g}:{75 + w / 2:g}"} for w in (10, 20, 30, 45, 60, 90, 120)},
        "degrees held out",
    ),
} | {
    name: Sweep(
        scenario.get_config,
        EXAMPLES,
        SEEN_TASKS,
        "seen tasks",
        ("finetuned", "hypernetwork", "base", *(f"4 images/{row}" for row in ADAPTED)),
    )
    for name, scenario in (("examples", interp), ("examples_camera_trap", camera_trap))
}

_SWEEP = flags.DEFINE_enum("sweep", None, sorted(SWEEPS), "Which sweep.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Where the runs, the zoos and the table go.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each variant.")
_ONLY = flags.DEFINE_list("only", [], "Variants to run, by name; all by default.")


def make_config(sweep: Sweep, variant: str, seed: int, zoo: Path) -> ConfigDict:
    """The sweep's scenario with the overrides of one of its variants."""
    config = sweep.scenario()
    with config.unlocked():
        config.seed = seed
        config.zoo.dir = str(zoo)
        for name, value in (sweep.common | sweep.variants[variant]).items():
            part, field = name.split(".")
            config[part][field] = value
    return config


def rows(results: dict, split: str) -> dict[str, float]:
    """Every mean of one split of one run, by row."""
    entry = results["splits"][split]
    found = {"finetuned": entry["finetuned"], "base": entry["base"]} | entry["generated"] | entry["controls"]
    for chosen in entry.get("held_out_wording", {}).values():  # of one sampler, which seeds may choose differently
        found["held_out_wording"] = chosen
    found |= {f"by_condition/{n}": s for n, s in entry["by_condition"].items()}
    for row in results.get("adaptation", {}).get("splits", {}).get(split, []):
        found |= {f"{row['shots']} images/{n}": s for n, s in row["accuracy"].items()}
    return {name: s["mean"] for name, s in found.items()}


def collect(runs: dict[str, list[dict]]) -> dict:
    """{variant: {split: {row: summary}}} over the seeds of each variant, validation included."""
    table: dict = {}
    for variant, results in runs.items():
        splits = {s: [rows(r, s) for r in results] for s in results[0]["splits"]}
        splits["validation"] = [{n: s["mean"] for n, s in r["selection"]["validation"].items()} for r in results]
        table[variant] = {
            split: {name: summary(np.array([v[name] for v in values])) for name in values[0]}
            for split, values in splits.items()
        }
    return table


def markdown(table: dict, columns: tuple[tuple[str, str], ...]) -> str:
    """A row for each variant; columns are (split, row) pairs, and those that no variant has are left out."""
    columns = tuple((s, n) for s, n in columns if any(n in t.get(s, {}) for t in table.values()))
    lines = ["| | " + " | ".join(f"{s}: {n}" for s, n in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for variant, splits in table.items():
        cells = [splits.get(s, {}).get(n) for s, n in columns]
        shown = ["–" if c is None else f"{c['mean']:.3f} ± {c['sem']:.3f}" for c in cells]
        lines.append(f"| {variant} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


@styled
def plot(table: dict, sweep: Sweep, path: Path) -> None:
    """Unseen accuracy of the sweep's rows against the variants' numbers."""
    x = np.array([float(v) for v in table])
    drawn = figure(7, 4.5)
    axes = drawn.subplots()
    for name in sweep.curves:
        points = [t["unseen"].get(name) for t in table.values()]
        if None not in points:
            mean, sem = (np.array([p[k] for p in points]) for k in ("mean", "sem"))
            line = {"linestyle": "--"} if name in ("finetuned", "base") else {"marker": "o"}
            axes.errorbar(x, mean, sem, label=name.replace("_", " "), capsize=2, **line)
    axes.set(xlabel=sweep.xlabel, ylabel="test accuracy on unseen tasks")
    if sweep.xlabel == "seen tasks":
        axes.set_xscale("log", base=2)
    axes.legend(fontsize=8)
    files.write_atomic(path, svg(drawn).encode())


def main(argv: list[str]) -> None:
    name, workdir = _SWEEP.value, Path(_WORKDIR.value)
    sweep, where = SWEEPS[name], workdir / name
    columns = [("validation", n) for n in ("posterior_mean", "ddim", "heun")]
    columns += [(s, n) for s in ("seen", "interp", "unseen") for n in sweep.curves]
    runs: dict[str, list[dict]] = {}
    for seed in map(int, _SEEDS.value):
        for variant in sweep.variants:
            if _ONLY.value and variant not in _ONLY.value:
                continue
            folder = where / f"{variant.replace(' ', '_').replace(',', '')}-seed{seed}"
            logging.getLogger("pdiff").info("sweep: %s", folder)
            config = make_config(sweep, variant, seed, workdir / "zoo")
            runs.setdefault(variant, []).append(run.run(config, folder, f"python -m launch.sweep --sweep={name}"))
            table = collect(runs)  # after each run, so that an unfinished sweep has its table too
            files.write_atomic(where / "table.md", markdown(table, tuple(columns)).encode())
            files.write_atomic(where / "table.json", json.dumps(table, indent=1, sort_keys=True).encode())
    if sweep.xlabel:
        plot(table, sweep, where / "plot.svg")


if __name__ == "__main__":
    app.run(main)
