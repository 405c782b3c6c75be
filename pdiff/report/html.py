"""report.html: one file that shows everything in results.json and asks the network for nothing."""

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from pdiff import files, metrics
from pdiff.report import figures, plots, rows, table
from pdiff.report import results as results_lib


def write_report(workdir: Path) -> None:
    """Writes report.html, table.md and plots/ from the results.json and metrics.jsonl in `workdir`.

    Raises:
      PdiffError: results.json is missing or damaged.
    """
    workdir = Path(workdir)
    results, entries = results_lib.read(workdir / "results.json"), metrics.read(workdir)
    made = figures.figures(results, entries)
    (workdir / "plots").mkdir(exist_ok=True)
    for figure in made:
        files.write_atomic(workdir / "plots" / f"{figure.name}.svg", figure.svg.encode())
    if plots.by_factor(results):
        files.write_atomic(workdir / "plots" / "hero.png", plots.hero(results))
    files.write_atomic(workdir / "table.md", table.markdown(results).encode())
    files.write_atomic(workdir / "report.html", _page(results, made).encode())


def render(results: dict, entries: list[dict]) -> str:
    """The page for the contents of results.json and of metrics.jsonl."""
    return _page(results, figures.figures(results, entries))


def environment() -> jinja2.Environment:
    """The templates beside this file, with the filters that they use."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"score": score, "percent": percent, "label": plots.label, "duration": duration}
    return made


def embedded(made: list[figures.Figure]) -> list[tuple[figures.Figure, str]]:
    """Each figure with its SVG in base64, as an image of a page that asks the network for nothing."""
    return [(f, base64.b64encode(f.svg.encode()).decode()) for f in made]


def _page(results: dict, made: list[figures.Figure]) -> str:
    samplers = plots.sampler_order(results, {n for e in results["splits"].values() for n in e["generated"]})
    return environment().get_template("template.html").render(
        results=results,
        chosen=results["selection"]["sampler"],
        samplers=samplers,
        splits=[rows.of_split(name, entry, results) for name, entry in plots.ordered_splits(results)],
        figures=embedded(made),
        per_task=_per_task(results),
        controls=plots.control_order({n for e in results["splits"].values() for n in e["controls"]}),
        novelty=_novelty(results["novelty"]),
        timings=timings(results["timing"], samplers),
        facts=facts(results),
        config=flat(results["config"]),
    )


def score(value: float | None) -> str:
    """Three decimals; a dash for what was not measured."""
    return "–" if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _per_task(results: dict) -> list[dict]:
    return [{"split": name, **task} for name, e in plots.ordered_splits(results) for task in e["per_task"]]


def _novelty(novelty: dict) -> list[dict]:
    """Rows of the novelty table: a distance, for generated networks and for the zoo's own."""
    rows = [
        ("highest overlap (IoU) of wrong predictions with a zoo network", "max_iou_to_zoo", "zoo_to_zoo_iou"),
        ("L2 distance to the nearest zoo network", "nearest_l2", "zoo_nearest_l2"),
    ]
    table = [{"title": title, "generated": novelty[a], "zoo": novelty[b]} for title, a, b in rows]
    spread = novelty.get("spread", {})
    for name in (n for n in spread if n != "zoo"):
        title = f"L2 distance between two networks of one task, {plots.label(name)}"
        table.append({"title": title, "generated": spread[name], "zoo": spread.get("zoo")})
    return table


def timings(timing: dict, samplers: list[str]) -> list[tuple[str, str]]:
    rows = [
        ("zoo: pretraining and fine-tuning", duration(timing["zoo_s"])),
        ("training the generator", duration(timing["train_s"])),
        *([("training the rivals", duration(timing["rivals_s"]))] if timing.get("rivals_s", 0) > 1 else []),
        ("evaluation", duration(timing["evaluate_s"])),
        ("all of these", duration(timing["total_s"])),
    ]
    by_sampler = timing.get("sample_s_per_100_by_sampler", {})
    ordered = [n for n in samplers if n in by_sampler]
    rows += [(f"sampling 100 networks, {plots.label(n)}", duration(by_sampler[n])) for n in ordered]
    if not ordered:
        rows.append(("sampling 100 networks", duration(timing["sample_s_per_100"])))
    return [*rows, ("peak memory", f"{timing['peak_rss_mb']:,.0f} MB")]


def facts(results: dict) -> list[tuple[str, str]]:
    """What was run, in a few lines; the optional ones only where they were recorded."""
    target = results["target"]
    facts = [("target network", f"{target['name']}, {target['num_params']:,} parameters")]
    if "model" in results:
        facts.append(("generator", f"{results['model']['num_params']:,} parameters"))
    if "zoo" in results:
        facts.append(
            ("networks in the zoo", ", ".join(f"{plots.label(k)} {n:,}" for k, n in results["zoo"].items()))
        )
    if "base_accuracy_upright" in results:
        facts.append(("base on its own task", score(results["base_accuracy_upright"]["mean"])))
    elif "base_accuracy" in results:
        facts.append(("base on its own task", score(results["base_accuracy"])))
    return [
        *facts,
        ("seed", str(results["seed"])),
        ("made", results["created"]),
        ("commit", results["commit"]),
    ]


def flat(config: Any, where: str = "") -> list[tuple[str, str]]:
    """(field, value) of a nested config, as the command line would name them."""
    if isinstance(config, dict):
        return [row for k in sorted(config) for row in flat(config[k], f"{where}.{k}" if where else k)]
    return [(where, json.dumps(config, ensure_ascii=False))]
