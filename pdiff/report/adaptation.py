"""Networks from a few labelled images of a task, see pdiff/evaluation/adaptation.py: tables, and a figure."""

from matplotlib.figure import Figure

from pdiff.report import plots, rows
from pdiff.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, figure, styled

NAMES = {  # of rows, in order
    "prior": "prior without a description, the likeliest drawn",
    "prior_chosen": "prior without a description, the likeliest drawn, not fine-tuned",
    "prior_guided": "prior without a description, drawn for the images' likelihood",
    "prior_described": "prior with the description, the likeliest drawn",
    "described": "prior with the description, one drawn",
    "refined_zoo": "the mean's networks for seen tasks, the likeliest",
    "refined_all": "all that the prior learned from, the likeliest",
    "zoo": "zoo networks, the likeliest",
    "reptile": "Reptile's initialisation",
    "base": "base",
    "base_head": "base, the last layer alone",
    "unlabelled": "prior without a description, the surest drawn, no labels, not fine-tuned",
}
LINES = {
    "prior": (BLUE, "-"), "prior_guided": (BLUE, ":"), "prior_described": (SKY, "-"), "described": (PURPLE, "-"),
    "refined_zoo": (GREEN, "-"),
    "refined_all": (GREEN, ":"), "zoo": (ORANGE, "-"), "reptile": (VERMILLION, "-"), "base": (MUTED, "--"),
    "base_head": (MUTED, ":"),
}  # fmt: skip


def table(study: dict) -> list[dict]:
    """For each held-out split `headings` and `rows`: a title, and cells of (text, whether it is bold).

    After each accuracy comes how far `prior` is ahead, task by task; bold if by more than two standard errors.
    """
    tables = []
    for split, entries in plots.in_order(study.get("splits", {})):
        headings = [h for e in entries for h in (_shots(e), "the prior's lead")[: 1 + ("ahead" in e)]]
        names = plots.ordered((n for e in entries for n in e["accuracy"]), NAMES)
        lines = [(NAMES.get(n, plots.label(n)), [c for e in entries for c in _cells(e, n)]) for n in names]
        tables.append({"split": split, "headings": headings, "rows": lines})
    return tables


def recipes(study: dict) -> dict:
    """The table of what was chosen: `headings`, and `rows` of a title and texts."""
    by_shots = sorted(study.get("recipes", {}).items(), key=lambda item: int(item[0]))
    names = plots.ordered((n for _, chosen in by_shots for n in chosen), NAMES)
    lines = [(NAMES.get(n, plots.label(n)), [_recipe(chosen.get(n)) for _, chosen in by_shots]) for n in names]
    return {"headings": [f"{shots} of a class" for shots, _ in by_shots], "rows": lines}


@styled
def lines(study: dict) -> Figure:
    """A panel for each held-out split: accuracy against the number of labelled images of a class."""
    splits = plots.in_order(study["splits"])
    shots = sorted({e["shots"] for _, entries in splits for e in entries})
    fig = figure(9, 5)
    for axes, (split, entries) in zip(fig.subplots(1, len(splits), sharey=True, squeeze=False)[0], splits, strict=True):
        for name, (color, style) in LINES.items():
            points = [(shots.index(e["shots"]), e["accuracy"][name]) for e in entries if name in e["accuracy"]]
            if not points:
                continue
            x, mean, sem = zip(*((x, e["mean"], e["sem"]) for x, e in points), strict=True)
            width = 2.2 if name == "prior" else 1.3
            style_of = dict(color=color, ls=style, marker="o", ms=4, lw=width, capsize=2)
            axes.errorbar(x, mean, sem, label=NAMES[name], **style_of)
        axes.set(title=f"{split} tasks", xlabel="labelled images of each class", xticks=range(len(shots)))
        axes.set_xticklabels([str(n) for n in shots], color=INK)
        axes.grid(False, axis="x")
    fig.axes[0].set_ylabel("test accuracy")
    fig.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return fig


def _shots(entry: dict) -> str:
    return f"{entry['shots']} of a class ({round(entry['images'], 1):g} images)" if entry["shots"] else "no image"


def _cells(entry: dict, name: str) -> list[tuple[str, bool]]:
    cells = [(rows.pm(entry["accuracy"].get(name)), False)]
    if "ahead" not in entry:
        return cells
    lead = entry["ahead"].get(name)
    return [*cells, (rows.pm(lead, "+"), lead is not None and lead["n"] > 1 and lead["mean"] > 2 * lead["sem"])]


def _recipe(chosen: dict | None) -> str:
    if chosen is None:
        return "–"
    how = f"{chosen['space']}, rate {chosen['learning_rate']:g}, {chosen['steps']} steps"
    return f"{how} ({chosen['validation']:.3f})"
