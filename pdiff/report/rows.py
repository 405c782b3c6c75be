"""What runs compare, as rows: the page, its Markdown and the comparison of runs all make their tables from these."""

import dataclasses
from collections.abc import Iterable, Sequence

from pdiff.report import plots

LEAST_GAIN = 0.005  # of fine-tuning over the base, below which a share of it says nothing


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing compared.

    Attributes:
      kind: "finetuned", "chosen" (the networks of the chosen sampler), "generated", "control", "base" or "own".
      title: as it is shown.
      cells: for each column, such as a split or a run, a summary as of `results.summary`, and beside its numbers what
        else a table shows of it; None where nothing was measured.
    """

    kind: str
    title: str
    cells: list[dict | None]


def of_split(entry: dict, results: dict) -> list[Row]:
    """The rows of one split, with one column.

    A cell's `share` is its share of the gain from fine-tuning, see `share_of_gain`. A control's `below` says whether it
    is clearly below the chosen sampler.
    """
    chosen = results["selection"]["sampler"]
    rows = [("finetuned", "fine-tuned on the task", entry["finetuned"])]
    for n in plots.sampler_order(results, entry["generated"]):
        rows.append(("chosen" if n == chosen else "generated", plots.label(n), entry["generated"][n]))
        if n in entry.get("held_out_wording", {}):
            rows.append(("generated", f"{plots.label(n)}, wordings never trained on", entry["held_out_wording"][n]))
    for n, summary in entry.get("by_condition", {}).items():
        rows.append(("generated", f"{plots.label(chosen)}, given {plots.label(n)}", summary))
    rows += [("control", plots.label(n), entry["controls"][n]) for n in plots.control_order(entry["controls"])]
    rows.append(("base", "base, not fine-tuned", entry["base"]))
    best = entry["generated"][chosen]

    def cell(kind: str, summary: dict) -> dict:
        below = clearly_above(best, summary) if kind == "control" else None
        return summary | {"share": share_of_gain(summary["mean"], entry), "below": below}

    return [Row(kind, title, [cell(kind, summary)]) for kind, title, summary in rows]


def side_by_side(columns: Iterable[Sequence[Row]]) -> list[Row]:
    """Rows of one column each as rows of all the columns, in the order of their first appearance."""
    columns = list(columns)
    kinds = {r.title: r.kind for column in columns for r in column}
    cells = [{r.title: r.cells[0] for r in column} for column in columns]
    return [Row(kind, title, [by_title.get(title) for by_title in cells]) for title, kind in kinds.items()]


def splits(results: dict) -> list[dict]:
    """For each split its name, entry and rows, the cell of the chosen sampler (`best`), and the titles of the controls
    that it is not clearly above (`rivals`)."""
    shown = []
    for name, entry in plots.ordered_splits(results):
        rows = of_split(entry, results)
        best = next(r.cells[0] for r in rows if r.kind == "chosen")
        rivals = [r.title for r in rows if r.kind == "control" and not r.cells[0]["below"]]
        shown.append({"name": name, "entry": entry, "rows": rows, "best": best, "rivals": rivals})
    return shown


def costs(results: dict) -> dict[str, dict]:
    """Parameters and seconds of training of trained generators by title, None where they were not recorded."""
    model = results.get("model", {})
    rivals = results.get("rivals") or {}
    trained = {plots.label(n): {k: f.get(k) for k in ("num_params", "seconds")} for n, f in rivals.items()}
    if "mean_params" in model:
        trained["hypernetwork"] = {"num_params": model["mean_params"], "seconds": None}
    prior = {"num_params": num_params(results), "seconds": results["timing"].get("train_s")}
    return trained | {plots.label(results["selection"]["sampler"]): prior}


def num_params(results: dict) -> int | None:
    """Parameters of the generator: of its prior and of its mean."""
    model = results.get("model", {})
    return model["num_params"] + model.get("mean_params", 0) if model else None


def share_of_gain(mean: float, entry: dict) -> float | None:
    """How much of what fine-tuning gains over the base `mean` gains; None where that is next to nothing."""
    base, finetuned = entry["base"]["mean"], entry["finetuned"]["mean"]
    return (mean - base) / (finetuned - base) if finetuned - base >= LEAST_GAIN else None


def clearly_above(a: dict, b: dict) -> bool:
    """Whether the mean of `a` is above that of `b` by more than two standard errors of their difference."""
    return a["mean"] - b["mean"] > 2 * (a["sem"] ** 2 + b["sem"] ** 2) ** 0.5


def pm(s: dict | None, sign: str = "") -> str:
    """Mean and standard error of a summary as text; a dash for what was not measured. A `sign` of "+" is shown."""
    return f"{s['mean']:{sign}.3f} ± {s['sem']:.3f}" if s else "–"
