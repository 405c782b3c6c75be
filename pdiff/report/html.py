"""report.html: one file that shows everything in results.json and asks the network for nothing."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from pdiff import results as results_lib
from pdiff.report import adaptation, contents, figures, markdown, plots, rows, vague
from pdiff.system import files
from pdiff.training import metrics

CLOSEUP = "closeup.json"  # see pdiff/evaluation/closeup.py
SECTIONS = {  # of the page, in order
    "accuracy": "How good are they?",
    "vague": "Vague descriptions",
    "adaptation": "A few labelled images in place of a description",
    "answers": "What do they answer?",
    "novelty": "Copies or new networks?",
    "rivals": "Rivals on the same zoo",
    "training": "Training",
    "studies": "Studies",
    "tasks": "Every task",
    "timing": "Time and memory",
    "run": "What was run",
    "next": "Where to look next",
}
PLACES = {  # the figures of a section
    "accuracy": ("accuracy_by_angle", "accuracy_by_indicator", "against_finetuned", "splits"),
    "vague": ("vague",),
    "adaptation": ("adaptation",),
    "answers": ("confusion",),
    "novelty": ("novelty", "plane"),
    "training": ("training",),
    "studies": ("mixing", "transfer"),
}
OPEN_TASKS = 12  # a table of more tasks is folded up


def write_report(workdir: Path) -> None:
    """Writes report.html, table.md and plots/ from results.json, metrics.jsonl and closeup.json in `workdir`.

    The last may be missing, as in the workdir of an older run.

    Raises:
      PdiffError: results.json is missing, or one of them is damaged.
    """
    where = Path(workdir)
    results, entries = contents.with_accuracies(results_lib.read(where / "results.json")), metrics.read(where)
    closeup = results_lib.read(where / CLOSEUP) if (where / CLOSEUP).exists() else {}
    drawn = figures.figures(results, entries, closeup)
    text = page(results, drawn, closeup, str(workdir), audited=(where / "audit.html").exists())
    (where / "plots").mkdir(exist_ok=True)
    for figure in drawn:
        files.write_atomic(where / "plots" / f"{figure.name}.svg", figure.svg.encode())
    if plots.by_factor(results):
        files.write_atomic(where / "plots" / "hero.png", plots.hero(results))
    if results["splits"]:
        files.write_atomic(where / "table.md", markdown.report(results).encode())
    files.write_atomic(where / "report.html", text.encode())


def environment() -> jinja2.Environment:
    """The templates beside this file, with the filters that they use."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"score": score, "percent": percent, "label": plots.label, "duration": duration}
    return templates


def embedded(drawn: Sequence[figures.Figure]) -> list[tuple[figures.Figure, str]]:
    """Each figure with its SVG in base64, as an image of a page that asks the network for nothing."""
    return [(f, base64.b64encode(f.svg.encode()).decode()) for f in drawn]


def script(name: str) -> dict[str, Markup]:
    """A script beside this file as `text`, and `hash`, by which a page's security policy lets it and no other run."""
    text = (Path(__file__).parent / name).read_text()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "hash": Markup(f"sha256-{digest}")}


def page(
    results: dict, made: Sequence[figures.Figure] = (), closeup: dict | None = None, workdir: str = "WORKDIR",
    audited: bool = False,
) -> str:  # fmt: skip
    """The page for the contents of results.json and of closeup.json.

    Args:
      made: its figures.
      workdir: as it is typed in commands.
      audited: whether there is an audit.html.
    """
    results, closeup = contents.with_accuracies(results), closeup or {}
    samplers = plots.sampler_order(results, {n for e in results["splits"].values() for n in e["generated"]})
    splits = rows.splits(results)
    drawn = {f.name: (f, data) for f, data in embedded(made)}
    shown = {
        "results": results,
        "script": script("page.js"),
        "chosen": results["selection"]["sampler"],
        "samplers": samplers,
        "splits": splits,
        "figures": {section: [drawn[n] for n in names if n in drawn] for section, names in PLACES.items()},
        "compared": contents.compared(splits),
        "strips": closeup.get("images", []),
        "confusions": contents.confusions(closeup.get("confusion", {})),
        "per_task": contents.per_task(results),
        "lagging": contents.lagging(results),
        "controls": plots.control_order({n for e in results["splits"].values() for n in e["controls"]}),
        "novelty": contents.novelty(results.get("novelty", {})),
        "spread": contents.spread(results.get("spread", {})),
        "calibration": contents.calibration(results.get("calibration", {})),
        "vague": vague.table(results.get("vague", [])),
        "vague_columns": vague.COLUMNS,
        "adaptation": adaptation.table(results.get("adaptation", {})),
        "recipes": adaptation.recipes(results.get("adaptation", {})),
        "rivals": contents.rivals(results, splits),
        "averaging": contents.averaging(closeup.get("averaging", {})),
        "phases": contents.phases(results["timing"]),
        "timings": contents.timings(results["timing"], samplers, duration),
        "commands": contents.commands(results, closeup, workdir),
        "facts": contents.facts(results, score),
        "changed": contents.changed(results["config"]),
        "config": contents.flat_config(results["config"]),
        "hints": contents.hints(results, splits, closeup, audited),
        "open_tasks": OPEN_TASKS,
    }
    shown["sections"] = _sections(shown)
    return environment().get_template("template.html").render(shown)


def _sections(shown: dict) -> dict[str, str]:
    """Those of SECTIONS that there is something to show in."""
    has = {section: bool(shown_figures) for section, shown_figures in shown["figures"].items()}
    has["accuracy"] |= bool(shown["splits"])
    has["answers"] |= bool(shown["strips"])
    has["novelty"] |= bool(shown["novelty"])
    has["studies"] |= bool(shown["spread"] or shown["calibration"])
    has["training"] |= bool(shown["averaging"]) or "validation" in shown["results"]["selection"]
    has |= {name: bool(shown[name]) for name in ("vague", "adaptation")}
    has |= {"rivals": bool(shown["rivals"]), "tasks": bool(shown["per_task"])}
    return {name: title for name, title in SECTIONS.items() if has.get(name, True)}


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
