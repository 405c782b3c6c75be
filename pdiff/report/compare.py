"""Finished runs side by side: compare.html, and a Markdown table of the same numbers.

python -m pdiff.main --mode=compare --workdirs=runs/a,runs/b,runs/c --out=compare.html
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pdiff import results as results_lib
from pdiff.errors import PdiffError
from pdiff.report import compare_plots, contents, html, markdown, plots, rows
from pdiff.report.figures import Figure
from pdiff.report.style import svg
from pdiff.system import files

SHOWN = (  # of each split: title, the kind of the rows that it is one of, and its place among them
    ("generated", "chosen", 0),
    ("fine-tuned on the task", "finetuned", 0),
    ("best control", "control", 0),
    ("second-best control", "control", 1),
    ("base, not fine-tuned", "base", 0),
)
SECTIONS = {
    "accuracy": "Accuracy",
    "config": "What differs in the configs",
    "timing": "Time and memory",
    "runs": "The runs",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its short name on the page, its workdir as it was given, and its results.json."""

    name: str
    workdir: str
    results: dict


def compare(workdirs: Sequence[str], out: str) -> str:
    """Writes the page `out` and returns the Markdown table.

    Raises:
      PdiffError: fewer than two workdirs, one twice, one that is missing or unfinished, or `out` cannot be written.
    """
    if not out.endswith(".html"):
        raise PdiffError(f"--out: got {out}; allowed: the .html file to write")
    if not Path(out).absolute().parent.is_dir():
        raise PdiffError(f"--out: {out} is in no existing folder")
    runs = read(workdirs)
    files.write_atomic(Path(out), render(runs).encode())
    return table(runs)


def read(workdirs: Sequence[str]) -> list[Run]:
    """The finished runs in `workdirs`; see `compare` for what is refused."""
    given = [w.strip() for w in workdirs if w.strip()]
    if len(given) < 2:
        raise PdiffError(f"--workdirs: got {','.join(given) or 'nothing'}; allowed: two or more, separated by commas")
    places: dict[Path, str] = {}
    for workdir in given:
        where = Path(workdir).resolve()
        if where in places:
            raise PdiffError(f"--workdirs: {workdir} and {places[where]} are the same; allowed: each run once")
        places[where] = workdir
    runs = []
    for where, workdir in places.items():
        if not where.is_dir():
            raise PdiffError(f"--workdirs: {workdir} does not exist; allowed: workdirs of finished runs")
        if not (where / "results.json").exists():
            raise PdiffError(
                f"--workdirs: {workdir} is not finished, it has no results.json; run its command again to finish it"
            )
        results = results_lib.read(where / "results.json")
        missing = [k for k in ("config", "target", "selection", "splits", "timing") if k not in results]
        results = contents.with_accuracies(results)
        if missing or not results["splits"]:
            lacking = ", ".join(missing) or "splits whose networks were compared by accuracy"
            raise PdiffError(f"--workdirs: the results.json of {workdir} has no {lacking}; nothing to compare")
        alike = sum(p.name == where.name for p in places) > 1
        runs.append(Run(workdir if alike else where.name, workdir, results))
    return runs


def render(runs: list[Run]) -> str:
    """The page."""
    return (
        html.environment()
        .get_template("compare.html")
        .render(
            runs=runs,
            sections=SECTIONS,
            notes=notes(runs),
            figures=html.embedded(figures(runs)),
            accuracy=accuracy(runs),
            config=config_differences(runs),
            phases=_phases(runs),
            timings=_timings(runs),
            facts=_facts(runs),
        )
    )


def notes(runs: list[Run]) -> list[str]:
    """What makes the runs' numbers not quite comparable, as sentences."""
    lines = []
    for what, get in (
        ("families of tasks", lambda r: r["config"]["tasks"]["family"]),
        ("target networks", lambda r: f"{r['target']['name']} of {r['target']['num_params']:,} parameters"),
    ):
        values = {run.name: get(run.results) for run in runs}
        if len(set(values.values())) > 1:
            said = ", ".join(f"{name} {value}" for name, value in values.items())
            lines.append(f"These runs have different {what}, so equal accuracies do not mean the same: {said}.")
    if not lines and len({tuple(map(str, _tasks(run))) for run in runs}) > 1:
        lines.append("These runs were not scored on the same tasks: means compare them only roughly.")
    return lines


def _tasks(run: Run) -> list[tuple]:
    return sorted((s, t["task"]) for s, e in run.results["splits"].items() for t in e["per_task"])


def accuracy(runs: list[Run]) -> list[dict]:
    """For each split `rows` of SHOWN, with a column for each run; a cell's `name` says which network it is of several.

    A generated cell is `best` if it is clearly above those of all other runs.
    """
    order = list(dict.fromkeys(s for run in runs for s, _ in plots.ordered_splits(run.results)))
    order.sort(key=list(plots.MARKERS).index)
    parts = [{"split": s, "rows": rows.side_by_side(_column(run, s) for run in runs)} for s in order]
    for part in parts:
        generated = [c for c in part["rows"][0].cells if c]
        for cell in generated:
            others = [c for c in generated if c is not cell]
            cell["best"] = bool(others) and all(rows.clearly_above(cell, c) for c in others)
    return parts


def _column(run: Run, split: str) -> list[rows.Row]:
    """The rows of SHOWN of one run; controls are ranked by their means."""
    entry = run.results["splits"].get(split)
    ranked = sorted(rows.of_split(entry, run.results) if entry else [], key=lambda r: (-r.cells[0]["mean"], r.title))
    column = []
    for title, kind, place in SHOWN:
        best = [r for r in ranked if r.kind == kind][place : place + 1]
        name = best[0].title if best and kind in ("chosen", "control") else ""
        column.append(rows.Row(kind, title, [best[0].cells[0] | {"name": name, "best": False} if best else None]))
    return column


def config_differences(runs: list[Run]) -> list[dict]:
    """The fields that are not the same in all runs, with each run's value or None where it has no such field."""
    flat = [contents.flat_config(run.results["config"]) for run in runs]
    names = sorted({name for f in flat for name in f})
    return [{"field": n, "values": [f.get(n) for f in flat]} for n in names if len({f.get(n) for f in flat}) > 1]


def _phases(runs: list[Run]) -> list[dict]:
    """Each run's parts in time; `length` is its share of the longest run."""
    parts = [contents.phases(run.results["timing"]) for run in runs]
    total = [sum(p["seconds"] for p in phases) for phases in parts]
    longest = max(total) or 1.0
    return [
        {"name": run.name, "phases": phases, "length": t / longest}
        for run, phases, t in zip(runs, parts, total, strict=True)
    ]


def _timings(runs: list[Run]) -> list[dict]:
    measured = {
        **{k: (words, html.duration) for k, words in contents.PHASES},
        "total_s": ("all of these", html.duration),
        "sample_s_per_100": ("sampling 100 networks", html.duration),
        "peak_rss_mb": ("peak memory", lambda mb: f"{mb:,.0f} MB"),
    }
    return [
        {"title": words, "cells": [write(r.results["timing"][k]) if k in r.results["timing"] else None for r in runs]}
        for k, (words, write) in measured.items()
        if any(k in r.results["timing"] for r in runs)
    ]


def _facts(runs: list[Run]) -> list[dict]:
    by_run = [dict(contents.facts(run.results, html.score)) for run in runs]
    family = [run.results["config"]["tasks"]["family"] for run in runs]
    lines = [("workdir", [run.workdir for run in runs]), ("family", family)]
    names = list(dict.fromkeys(name for facts in by_run for name in facts))
    lines += [(name, [facts.get(name) for facts in by_run]) for name in names]
    lines.append(("command", [run.results.get("command") for run in runs]))
    return [{"title": title, "cells": cells} for title, cells in lines]


def figures(runs: list[Run]) -> list[Figure]:
    """The figures that these runs have data for, with their words."""
    by_name = [(run.name, run.results) for run in runs]
    spoken = "; ".join(
        f"{run.name} " + ", ".join(
            f"{e['generated'][run.results['selection']['sampler']]['mean']:.3f} on {s}"
            for s, e in plots.ordered_splits(run.results)
        )
        for run in runs
    )  # fmt: skip
    drawn = [
        Figure(
            "compare_splits",
            "Each run by split",
            f"Dot plot of mean test accuracy by split and run. Generated: {spoken}.",
            "Mean test accuracy with two standard errors over tasks. Grey ticks are fine-tuned networks, orange "
            "triangles the best control of each run.",
            svg(compare_plots.by_split(by_name)),
        )
    ]
    if compare_plots.share_a_factor(runs[0].results, *(r.results for r in runs[1:])):
        drawn.append(
            Figure(
                "compare_factor",
                "Accuracy against the factor",
                f"Line chart of generated networks' test accuracy against the tasks' factor, a line for each run. "
                f"Means: {spoken}.",
                "Solid: generated, dashed: fine-tuned on the task. Regions that no training task came from are shaded "
                "where all runs hold out the same ones.",
                svg(compare_plots.against_factor(by_name)),
            )
        )
    return drawn


def table(runs: list[Run]) -> str:
    """The accuracies in Markdown, a column for each run; below them what differs in the configs, and the notes."""
    names, differences = [r.name for r in runs], config_differences(runs)
    lines = [(f"{p['split']}, {row.title}", *map(_written, row.cells)) for p in accuracy(runs) for row in p["rows"]]
    lines += [(row["title"], *(c or "" for c in row["cells"])) for row in _timings(runs)]
    config = [(d["field"], *("" if v is None else v for v in d["values"])) for d in differences]
    below = markdown.table(("config", *names), config) if config else ["The configs are the same."]
    accuracies = markdown.table(("test accuracy", *names), lines)
    return "\n".join([*accuracies, "", *below, *(f"\n{note}" for note in notes(runs))]) + "\n"


def _written(cell: dict | None) -> str:
    if cell is None:
        return ""
    text = f"**{markdown.mean(cell)}**" if cell["best"] else markdown.mean(cell)
    return f"{text} ({cell['name']})" if cell["name"] else text
