"""Finished runs side by side: compare.html, and a Markdown table of the same numbers.

python -m pdiff.main --mode=compare --workdirs=runs/a,runs/b,runs/c --out=compare.html
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pdiff import results as results_lib
from pdiff.errors import PdiffError
from pdiff.report import compare_plots, html, plots, rows, tables
from pdiff.report.figures import Figure
from pdiff.report.style import svg
from pdiff.system import files

BEST_CONTROLS = 2  # of each split that are shown
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
    return markdown(runs)


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
    found = []
    for where, workdir in places.items():
        if not where.is_dir():
            raise PdiffError(f"--workdirs: {workdir} does not exist; allowed: workdirs of finished runs")
        if not (where / "results.json").exists():
            raise PdiffError(
                f"--workdirs: {workdir} is not finished, it has no results.json; run its command again to finish it"
            )
        results = results_lib.read(where / "results.json")
        missing = [k for k in ("config", "target", "selection", "splits", "timing") if k not in results]
        results = tables.with_accuracies(results)
        if missing or not results["splits"]:
            lacking = ", ".join(missing) or "splits whose networks were compared by accuracy"
            raise PdiffError(f"--workdirs: the results.json of {workdir} has no {lacking}; nothing to compare")
        alike = sum(p.name == where.name for p in places) > 1
        found.append(Run(workdir if alike else where.name, workdir, results))
    return found


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
    made = []
    for what, get in (
        ("families of tasks", lambda r: r["config"]["tasks"]["family"]),
        ("target networks", lambda r: f"{r['target']['name']} of {r['target']['num_params']:,} parameters"),
    ):
        found = {run.name: get(run.results) for run in runs}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name} {value}" for name, value in found.items())
            made.append(f"These runs have different {what}, so equal accuracies do not mean the same: {said}.")
    if not made and len({tuple(map(str, _tasks(run))) for run in runs}) > 1:
        made.append("These runs were not scored on the same tasks: means compare them only roughly.")
    return made


def _tasks(run: Run) -> list[tuple]:
    return sorted((s, t["task"]) for s, e in run.results["splits"].items() for t in e["per_task"])


def accuracy(runs: list[Run]) -> list[dict]:
    """For each split rows of the things compared, with a cell for each run: a summary and a name, or None.

    A generated cell is `best` if it is clearly above those of all other runs.
    """
    order = list(dict.fromkeys(s for run in runs for s, _ in plots.ordered_splits(run.results)))
    order.sort(key=list(plots.MARKERS).index)
    return [{"split": s, "rows": _rows([(r, r.results["splits"].get(s)) for r in runs])} for s in order]


def _rows(entries: list[tuple[Run, dict | None]]) -> list[dict]:
    def cells(get) -> list[dict | None]:
        return [get(run, e) if e else None for run, e in entries]

    def generated(run: Run, e: dict) -> dict:
        chosen = run.results["selection"]["sampler"]
        return {"s": e["generated"][chosen], "name": plots.label(chosen)}

    made = [
        {"title": "generated", "cells": cells(generated)},
        {"title": "fine-tuned on the task", "cells": cells(lambda run, e: {"s": e["finetuned"], "name": ""})},
    ]
    ours = made[0]["cells"]
    for i, cell in enumerate(ours):
        others = [c for j, c in enumerate(ours) if j != i and c]
        if cell:
            cell["best"] = bool(others) and all(rows.clearly_above(cell["s"], c["s"]) for c in others)
    for rank, title in enumerate(("best control", "second-best control")[:BEST_CONTROLS]):
        made.append({"title": title, "cells": cells(lambda run, e, rank=rank: best_control(e, rank))})
    return made + [{"title": "base, not fine-tuned", "cells": cells(lambda run, e: {"s": e["base"], "name": ""})}]


def best_control(entry: dict, rank: int = 0) -> dict | None:
    """The control of a split that has the highest mean but `rank`, or None if there are fewer."""
    ranked = sorted(entry["controls"].items(), key=lambda item: -item[1]["mean"])
    return {"s": ranked[rank][1], "name": plots.label(ranked[rank][0])} if rank < len(ranked) else None


def config_differences(runs: list[Run]) -> list[dict]:
    """The fields that are not the same in all runs, with each run's value or None where it has no such field."""
    flat = [tables.flat_config(run.results["config"]) for run in runs]
    names = sorted({name for f in flat for name in f})
    return [{"field": n, "values": [f.get(n) for f in flat]} for n in names if len({f.get(n) for f in flat}) > 1]


def _phases(runs: list[Run]) -> list[dict]:
    """Each run's parts in time; `length` is its share of the longest run."""
    parts = [tables.phases(run.results["timing"]) for run in runs]
    total = [sum(p["seconds"] for p in own) for own in parts]
    longest = max(total) or 1.0
    return [
        {"name": run.name, "phases": own, "length": t / longest} for run, own, t in zip(runs, parts, total, strict=True)
    ]


def _timings(runs: list[Run]) -> list[dict]:
    measured = {
        **{k: (words, html.duration) for k, words in tables.PHASES},
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
    by_run = [dict(tables.facts(run.results, html.score)) for run in runs]
    family = [run.results["config"]["tasks"]["family"] for run in runs]
    lines = [("workdir", [run.workdir for run in runs]), ("family", family)]
    names = list(dict.fromkeys(name for facts in by_run for name in facts))
    lines += [(name, [facts.get(name) for facts in by_run]) for name in names]
    lines.append(("command", [run.results.get("command") for run in runs]))
    return [{"title": title, "cells": cells} for title, cells in lines]


def figures(runs: list[Run]) -> list[Figure]:
    """The figures that these runs have data for, with their words."""
    named = [(run.name, run.results) for run in runs]
    spoken = "; ".join(
        f"{run.name} " + ", ".join(
            f"{e['generated'][run.results['selection']['sampler']]['mean']:.3f} on {s}"
            for s, e in plots.ordered_splits(run.results)
        )
        for run in runs
    )  # fmt: skip
    made = [
        Figure(
            "compare_splits",
            "Each run by split",
            f"Dot plot of mean test accuracy by split and run. Generated: {spoken}.",
            "Mean test accuracy with two standard errors over tasks. Grey ticks are fine-tuned networks, orange "
            "triangles the best control of each run.",
            svg(compare_plots.by_split(named)),
        )
    ]
    if compare_plots.share_a_factor(runs[0].results, *(r.results for r in runs[1:])):
        made.append(
            Figure(
                "compare_factor",
                "Accuracy against the factor",
                f"Line chart of generated networks' test accuracy against the tasks' factor, a line for each run. "
                f"Means: {spoken}.",
                "Solid: generated, dashed: fine-tuned on the task. Regions that no training task came from are shaded "
                "where all runs hold out the same ones.",
                svg(compare_plots.against_factor(named)),
            )
        )
    return made


def markdown(runs: list[Run]) -> str:
    """The accuracies as a table, a column for each run; below it what differs in the configs, and the notes."""
    lines = [f"| test accuracy | {' | '.join(_cell(r.name) for r in runs)} |", "| --- |" + " ---: |" * len(runs)]
    for part in accuracy(runs):
        for row in part["rows"]:
            cells = [_written(c) for c in row["cells"]]
            lines.append(f"| {part['split']}, {row['title']} | {' | '.join(cells)} |")
    for row in _timings(runs):
        lines.append(f"| {row['title']} | {' | '.join(c or '' for c in row['cells'])} |")
    differences = config_differences(runs)
    lines += ["", f"| config | {' | '.join(_cell(r.name) for r in runs)} |", "| --- |" + " ---: |" * len(runs)]
    for d in differences:
        lines.append(f"| {d['field']} | {' | '.join(_cell(v) if v is not None else '' for v in d['values'])} |")
    if not differences:
        lines[-3:] = ["", "The configs are the same."]
    return "\n".join([*lines, *(f"\n{note}" for note in notes(runs))]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _written(cell: dict | None) -> str:
    if cell is None:
        return ""
    text = f"{cell['s']['mean']:.4f} ± {cell['s']['sem']:.4f}"
    text = f"**{text}**" if cell.get("best") else text
    return f"{text} ({cell['name']})" if cell["name"] else text
