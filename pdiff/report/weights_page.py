"""report.html of a run whose networks are known by their weights alone, and its table.md and plot."""

import functools
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
            spaces=[
                (space, SPACES[space], _unmerged(rows(results, space, TITLES))) for space in space_results["spaces"]
            ],
            splits=_ordered(results),
            titles=TITLES,
            standing=standing(results),
            beside=beside(results),
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
    known = (*results_lib.CONTROLS, *results_lib.MERGED)
    controls = [c for c in known if any(c in e["controls"] for e in splits)]
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
    chosen, lines = results["selection"]["sampler"], []
    space = results["weight_space"]["spaces"][0]
    for split, entry in _with_merges(results):
        distance = {n: e[space]["distance"]["mean"] for n, e in entry["controls"].items() if n in SIMPLE}
        ours, merges = entry["generated"][chosen][space]["distance"]["mean"], results_lib.MERGED
        nearest = min((n for n in distance if n in merges), key=distance.__getitem__)
        best = f"{distance[nearest]:.3f} ({plots.label(nearest).removeprefix('merge: ')})"
        tasks = f"the {split} task" if entry["num_tasks"] == 1 else f"the {entry['num_tasks']} {split} tasks"
        line = f"On {tasks}, what is generated is at distance {ours:.3f} from the task’s own. "
        if ours < distance[nearest]:
            line += f"No merge of seen networks comes as near: the nearest is at {best}."
        else:
            line += f"Merging seen networks comes as near or nearer: {best}."
        others = sorted((d, plots.label(n)) for n, d in distance.items() if d <= ours and n not in merges)
        lines.append(line + "".join(f" So does {label}: {d:.3f}." for d, label in others))
    return lines


def beside(results: dict) -> dict:
    """What is generated for held-out tasks, what is near, and merges of seen networks: `headings`, and `rows` of a
    title, whether it is the chosen sampler's, and for each split the distance, and that of the network of the adapters'
    rank. There is none where nothing was merged."""
    splits, space = _with_merges(results), results["weight_space"]["spaces"][0]
    chosen, controls = results["selection"]["sampler"], [n for n in SIMPLE if not n.endswith("svd")]
    adapters = space == "updates"

    def cells(of) -> list[dict | None]:
        return [e and e[space]["distance"] for _, entry in splits for e in of(entry)]

    def control(name: str, entry: dict) -> list[dict | None]:
        found = entry["controls"]
        cut = {"merged_mean": "merged_svd"}.get(name, f"{name}_svd" if name in results_lib.MERGED else name)
        return [found.get(name), *([found.get(cut)] if adapters else [])]

    rows = [(f"generated, {plots.label(chosen)}", True, cells(lambda e: [e["generated"][chosen]] * (1 + adapters)))]
    rows += [(plots.label(n), False, cells(functools.partial(control, n))) for n in controls]
    cut = ("{}: cut to the adapters’ rank",) if adapters else ()
    headings = [h.format(split) for split, _ in splits for h in ("{}: distance", *cut)]
    return {"headings": headings, "rows": [r for r in rows if any(r[2])]} if splits else {}


def merging(results: dict) -> str:
    """What the controls that merge have chosen, in a sentence or two; "" where there are none."""
    chosen = results["weight_space"].get("merging")
    if chosen is None:
        return ""
    kept = " and ".join(f"{d:.0%} ({n.upper()})" for n, d in sorted(chosen["densities"].items()))
    places = [f"{n} is {p['t']:.2f} of the way from {' to '.join(p['tasks'])}" for n, p in chosen["between"].items()]
    lines = f"Lines and arcs go between two seen tasks: {some(places, 6, '; ')}."
    return f"Of the numbers, {kept} are kept, as validation chose. {lines}" if kept else lines


def _unmerged(compared: list[Row]) -> list[Row]:
    """The rows without merges, which have a table of their own."""
    return [r for r in compared if r.title not in {plots.label(n) for n in results_lib.MERGED}]


def _with_merges(results: dict) -> list[tuple[str, dict]]:
    """Splits, with their entries, that have merges of seen networks among their controls."""
    return [(s, e) for s, e in _ordered(results) if not set(results_lib.MERGED).isdisjoint(e["controls"])]


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
