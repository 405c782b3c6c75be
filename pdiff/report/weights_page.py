"""report.html of a run whose networks are known by their weights alone, and its table.md and plot."""

from collections.abc import Iterable
from pathlib import Path

from pdiff import results as results_lib
from pdiff.errors import some
from pdiff.report import contents, html, markdown, plots, style
from pdiff.report.figures import Figure
from pdiff.report.rows import Row
from pdiff.system import files

TITLES = {"distance": "distance, in the zoo's units", "relative_error": "relative error", "cosine": "cosine"}
SIMPLE = ("nearest_seen", "ridge", "linear_interpolation", *results_lib.MERGED)  # what needs no generator
SPACES = {"updates": "updates B·A", "weights": "weights"}


def write_report(workdir: Path) -> None:
    """Writes report.html, table.md and plots/ from results.json.

    Raises:
      PdiffError: results.json is missing or damaged.
    """
    workdir = Path(workdir)
    results = results_lib.read(workdir / "results.json")
    figure = per_task(results)
    (workdir / "plots").mkdir(exist_ok=True)
    files.write_atomic(workdir / "plots" / f"{figure.name}.svg", figure.svg.encode())
    files.write_atomic(workdir / "table.md", tables(results).encode())
    files.write_atomic(workdir / "report.html", render(results, [figure]).encode())


def render(results: dict, drawn: list[Figure]) -> str:
    """The page for the contents of results.json."""
    space_results = results["weight_space"]
    timing = {k: v for k, v in results["timing"].items() if k != "zoo_s"}  # nothing was fine-tuned
    return (
        html.environment()
        .get_template("weights.html")
        .render(
            results=results,
            chosen=results["selection"]["sampler"],
            spaces=[(space, SPACES[space], rows(results, space, TITLES)) for space in space_results["spaces"]],
            splits=_ordered(results),
            titles=TITLES,
            standing=standing(results),
            merging=merging(results),
            novelty=[(SPACES[s], n) for s, n in space_results["novelty"].items()],
            figures=html.embedded(drawn),
            facts=contents.facts(results, html.score),
            phases=contents.phases(timing),
            timings=contents.timings(timing, list(results["selection"]["validation"]), html.duration),
            config=[(c["field"], c["here"]) for c in contents.changed(results["config"])],
        )
    )


def rows(results: dict, space: str, measures: Iterable[str]) -> list[Row]:
    """What is compared in a space, with a column for each measure on each split."""
    chosen, splits = results["selection"]["sampler"], [e for _, e in _ordered(results)]
    names = dict.fromkeys(n for e in splits for n in e["generated"])
    controls = [c for c in results_lib.CONTROLS if any(c in e["controls"] for e in splits)]
    compared = [("own", "another of the task's own networks", [e.get("own") for e in splits])]
    for n in names:
        kind = "chosen" if n == chosen else "generated"
        compared.append((kind, f"generated, {plots.label(n)}", [e["generated"].get(n) for e in splits]))
    compared += [("control", plots.label(c), [e["controls"].get(c) for e in splits]) for c in controls]
    return [
        Row(kind, title, [e[space][m] if e and space in e else None for e in entries for m in measures])
        for kind, title, entries in compared
        if any(e and space in e for e in entries)
    ]


def standing(results: dict) -> list[str]:
    """For each split of held-out tasks with merges of seen networks, how near what is generated comes beside them."""
    space, chosen = results["weight_space"]["spaces"][0], results["selection"]["sampler"]
    lines = []
    for split, entry in _ordered(results):
        distance = {n: e[space]["distance"]["mean"] for n, e in entry["controls"].items() if n in SIMPLE}
        merges = {n: d for n, d in distance.items() if n in results_lib.MERGED}
        if split == "seen" or not merges:
            continue
        ours, nearest = entry["generated"][chosen][space]["distance"]["mean"], min(merges, key=merges.__getitem__)
        tasks = "the one task" if entry["num_tasks"] == 1 else f"the {entry['num_tasks']} tasks"
        best = f"the nearest of them is at {merges[nearest]:.3f} ({plots.label(nearest)})"
        beside = f"nearer than every merge of seen networks: {best}" if ours < merges[nearest] else (
            f"and merges of seen networks come as near or nearer: {best}"
        )  # fmt: skip
        nearer = [f"{plots.label(n)} {d:.3f}" for n, d in sorted(distance.items(), key=lambda x: x[1]) if d <= ours]
        others = [text for text in nearer if not text.startswith("merge")]
        lines.append(
            f"On {tasks} of the split {split}, what is generated is at distance {ours:.3f}, {beside}."
            + (f" As near or nearer is also: {', '.join(others)}." if others else "")
        )
    return lines


def merging(results: dict) -> str:
    """What the controls that merge have chosen, in a sentence or two; "" where there are none."""
    chosen = results["weight_space"].get("merging")
    if chosen is None:
        return ""
    kept = [f"{plots.MERGES[n]} keeps {d:.0%} of the numbers" for n, d in chosen["densities"].items()]
    places = [f"for {n} from {' to '.join(p['tasks'])}, at {p['t']:.2f}" for n, p in chosen["between"].items()]
    lines = f"Lines and arcs go {some(places, 6, '; ')}."
    return f"{' and '.join(kept)}, as validation chose. {lines}" if kept else lines


def tables(results: dict) -> str:
    """The mean distance and its standard error by row and split in Markdown, a table for each space."""
    lines = []
    for space in results["weight_space"]["spaces"]:
        headings = (f"distance of {SPACES[space]}", *(s for s, _ in _ordered(results)))
        compared = rows(results, space, ("distance",))
        titles = [f"**{r.title} (chosen on validation)**" if r.kind == "chosen" else r.title for r in compared]
        body = [(title, *map(markdown.mean, r.cells)) for title, r in zip(titles, compared, strict=True)]
        lines += [*markdown.table(headings, body), ""]
    return "\n".join(lines)


@style.styled
def per_task(results: dict) -> Figure:
    """Distance of each task's networks: generated, of the nearest seen task, and the mean of the zoo."""
    space_results = results["weight_space"]
    space, chosen = space_results["spaces"][0], results["selection"]["sampler"]
    tasks = [(split, t) for split, e in _ordered(results) for t in e["per_task"]]
    figure = style.figure(max(5.0, min(12.0, 1.5 + 0.35 * len(tasks))), 3.6)
    axes = figure.add_subplot()
    drawn = [("generated", style.BLUE, "o", lambda t: t["generated"][chosen]),
             ("nearest seen", style.ORANGE, "s", lambda t: t["controls"].get("nearest_seen")),
             ("mean of the zoo", style.MUTED, "_", lambda t: t["controls"]["soup"])]  # fmt: skip
    for label, colour, marker, of in drawn:
        points = [(i, of(t)[space]["distance"]) for i, (_, t) in enumerate(tasks) if of(t)]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, label=label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("distance to its own network")
    axes.set_xlabel(f"task (splits: {', '.join(s for s, _ in _ordered(results))})")
    axes.set_xticks(
        range(len(tasks)),
        [t["task"] for _, t in tasks] if len(tasks) <= 24 else [""] * len(tasks),
        rotation=60,
        ha="right",
    )
    style.legend_above(axes, 3)
    best = ", ".join(f"{s} {e['generated'][chosen][space]['distance']['mean']:.2f}" for s, e in _ordered(results))
    return Figure(
        "distance_per_task", "Task by task",
        f"Distance of generated networks to the task's own, task by task, beside two controls. Means: {best}.",
        "0 is the task's own network, and 1 about as far as the mean of the zoo is from the seen ones. Held-out tasks "
        "stand at the right.",
        style.svg(figure),
    )  # fmt: skip


def _ordered(results: dict) -> list[tuple[str, dict]]:
    splits = results["weight_space"]["splits"]
    return [(s, splits[s]) for s in results_lib.SPLITS if s in splits]
