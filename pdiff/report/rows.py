"""What a run compares on one split, as the rows of a table."""

from pdiff.report import plots

LEAST_GAIN = 0.005  # of fine-tuning over the base, below which a share of it says nothing


def of_split(name: str, entry: dict, results: dict) -> dict:
    """A split's headline and its rows, the things compared."""
    chosen = results["selection"]["sampler"]

    def row(kind: str, title: str, s: dict) -> dict:
        return {"kind": kind, "title": title, "s": s, "share": share_of_gain(s["mean"], entry)}

    rows = [row("finetuned", "fine-tuned on the task", entry["finetuned"])]
    for n in plots.sampler_order(results, entry["generated"]):
        rows.append(row("chosen" if n == chosen else "generated", plots.label(n), entry["generated"][n]))
        if n in entry.get("held_out_wording", {}):
            rows.append(row("generated", f"{plots.label(n)}, wordings never trained on", entry["held_out_wording"][n]))
    for n, summary in entry.get("by_condition", {}).items():
        rows.append(row("generated", f"{plots.label(chosen)}, given {plots.label(n)}", summary))
    rows += [row("control", plots.label(n), entry["controls"][n]) for n in plots.control_order(entry["controls"])]
    rows.append(row("base", "base, not fine-tuned", entry["base"]))
    best = entry["generated"][chosen]
    return {
        "name": name,
        "entry": entry,
        "rows": rows,
        "best": best,
        "share": share_of_gain(best["mean"], entry),
        "rivals": [r["title"] for r in rows if r["kind"] == "control" and not clearly_above(best, r["s"])],
    }


def share_of_gain(mean: float, entry: dict) -> float | None:
    """How much of what fine-tuning gains over the base `mean` gains; None where that is next to nothing."""
    base, finetuned = entry["base"]["mean"], entry["finetuned"]["mean"]
    return (mean - base) / (finetuned - base) if finetuned - base >= LEAST_GAIN else None


def pm(s: dict | None, sign: str = "") -> str:
    """Mean and standard error of a summary as text; a dash for what was not measured. A `sign` of "+" is shown."""
    return f"{s['mean']:{sign}.3f} ± {s['sem']:.3f}" if s else "–"


def clearly_above(a: dict, b: dict) -> bool:
    """Whether the mean of `a` is above that of `b` by more than two standard errors of their difference."""
    return a["mean"] - b["mean"] > 2 * (a["sem"] ** 2 + b["sem"] ** 2) ** 0.5
