"""Draws the figures of what density a generator has learned: tasks told by likelihood, and likeness of score."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdiff.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILLION, figure, legend_above, styled

ESTIMATES = {  # colour, marker, what they are
    "likelihood": (BLUE, "o", "log-likelihood"),
    "elbo": (VERMILLION, "s", "evidence bound"),
    "weighted": (GREEN, "^", "training loss"),
    "direction": (PURPLE, "D", "direction of the mean"),
}
SPLIT_COLORS = {"validation": MUTED, "interp": GREEN, "unseen": BLUE}
CASES = {"seen": (BLUE, "zoo networks"), "held_out": (ORANGE, "held-out networks")}
GOAL = 0.95  # of networks, for which the right task is to be the likelier one


@styled
def identification(study: dict) -> Figure:
    """How often, and by how much, the right task's condition is above a seen one's, by the distance of the two."""
    fig = figure(9, 4.2)
    shares, gaps = fig.subplots(1, 2)
    rows, where = study["by_rank"], "distance" if "distance" in study["by_rank"][0] else "rank"
    for name, (color, marker, words) in ESTIMATES.items():
        x, found = [r[where] for r in rows], [r["share"][name] for r in rows]
        means, errors = [s["mean"] for s in found], [s["sem"] for s in found]
        shares.errorbar(x, means, errors, color=color, marker=marker, ms=4, lw=1.5, label=words)
    shares.axhline(GOAL, color=INK, lw=0.8, ls=(0, (4, 3)))
    shares.set(ylabel="share of networks", ylim=(0, 1.03))
    for split, color in SPLIT_COLORS.items():
        own = [p for p in study["pairs"] if p["split"] == split and where in p]
        if own:
            x, ahead = [p[where] for p in own], [p["likelihood"] for p in own]
            gaps.scatter(x, ahead, 9, color, lw=0, alpha=0.7, label=split)
    gaps.axhline(0, color=INK, lw=0.8)
    gaps.set_yscale("symlog", linthresh=0.01)
    gaps.margins(y=0.05)
    gaps.set_ylabel("difference (nats per parameter)")
    for axes in (shares, gaps):
        axes.set_xlabel("distance of the wrong task's factors" if where == "distance" else "place of the wrong task")
        if where == "distance" and min(r[where] for r in rows) > 0:
            axes.set_xscale("log")
        legend_above(axes, 2)
    return fig


@styled
def score_likeness(rows: list[dict]) -> Figure:
    """Relative error and cosine of the score to the zoo's own and to a Gaussian's, against noise."""
    cases = {c for r in rows for c in r["cases"]}
    columns = [(s, t) for s, t in (("", "told the task"), ("_unconditional", "told nothing")) if f"seen{s}" in cases]
    fig = figure(9 if len(columns) > 1 else 5, 6)
    panels = fig.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for (suffix, title), (errors, cosines) in zip(columns, panels.T, strict=True):
        for case, (color, words) in CASES.items():
            if f"{case}{suffix}" in cases:
                _case(errors, rows, f"{case}{suffix}", "relative_error", color, words)
                _case(cosines, rows, f"{case}{suffix}", "cosine", color, words)
        weights = [r["cases"][f"seen{suffix}"]["largest_weight"]["mean"] for r in rows]
        label = "largest weight of one zoo network"
        cosines.plot([r["sigma"] for r in rows], weights, color=PURPLE, lw=1, ls=(0, (1, 1)), label=label)
        errors.axhline(1, color=INK, lw=0.8)  # what a score of 0 has
        errors.set(title=title, yscale="log", xscale="log")
        cosines.set(xlabel="noise level", ylim=(None, 1.03))
    panels[0, 0].set_ylabel("relative error of the score")
    panels[1, 0].set_ylabel("cosine")
    handles, labels = panels[1, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=2 if len(columns) > 1 else 1, frameon=False)
    return fig


def _case(axes: Axes, rows: list[dict], case: str, measure: str, color: str, words: str) -> None:
    """Solid to the zoo's own score, dashed to the Gaussian's."""
    for reference, style, to in (("empirical", "-", "the zoo's own score"), ("gaussian", "--", "a Gaussian's")):
        sigma, found = [r["sigma"] for r in rows], [r["cases"][case][reference][measure]["mean"] for r in rows]
        axes.plot(sigma, found, color=color, ls=style, marker="o", ms=3, lw=1.5, label=f"{words}, to {to}")
