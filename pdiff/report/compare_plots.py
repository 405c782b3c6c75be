"""Draws the figures of several runs, each given as (name, contents of results.json)."""

from matplotlib.figure import Figure

from pdiff.report import plots
from pdiff.report.style import BLUE, GREEN, MUTED, ORANGE, PURPLE, SKY, VERMILLION, figure, styled

COLORS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE)
MARKS = ("o", "D", "s", "^", "v", "P")  # with the colours: a run is told by both


def share_a_factor(*results: dict) -> bool:
    """Whether all runs' tasks lie on one and the same single factor."""
    about = [(r["config"]["tasks"]["family"], str(r.get("factors", {}).get("names"))) for r in results]
    return len(set(about)) == 1 and all(plots.by_factor(r) for r in results)


@styled
def by_split(runs: list[tuple[str, dict]]) -> Figure:
    """A panel for each split: every run's generated and fine-tuned networks, and its best control."""
    splits = list(dict.fromkeys(s for _, r in runs for s, _ in plots.ordered_splits(r)))
    fig = figure(9, 1.2 + 0.42 * len(runs))
    columns = fig.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(columns, splits, strict=True):
        for y, (_, results) in enumerate(runs):
            entry = results["splits"].get(split)
            if entry is None:
                continue
            color, mark = COLORS[y % len(COLORS)], MARKS[y % len(MARKS)]
            generated, tuned = entry["generated"][results["selection"]["sampler"]], entry["finetuned"]
            axes.plot([tuned["mean"]] * 2, [y - 0.3, y + 0.3], color=MUTED, lw=2, label=None if y else "fine-tuned")
            if entry["controls"]:
                best = max(c["mean"] for c in entry["controls"].values())
                axes.plot(best, y, "^", color=ORANGE, ms=6, alpha=0.9, label=None if y else "best control")
            bars = axes.errorbar(
                generated["mean"], y, xerr=2 * generated["sem"], fmt=mark, color=color, ms=7, lw=1.6, capsize=3
            )
            bars.lines[0].set_gid(f"generated-{split}-{y}")
        axes.set(title=split, xlabel="accuracy")
        axes.margins(x=0.12)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
    columns[0].set_yticks(range(len(runs)), [name for name, _ in runs])
    columns[0].set_ylim(len(runs) - 0.5, -0.5)
    fig.legend(*columns[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return fig


@styled
def against_factor(runs: list[tuple[str, dict]]) -> Figure:
    """Every run's accuracy against the one factor; held-out arcs are shaded if all runs have the same."""
    fig = figure(9, 4.8)
    axes = fig.subplots()
    arcs = runs[0][1].get("arcs", {})
    if all(r.get("arcs", {}) == arcs for _, r in runs):
        plots.shade(axes, arcs)
    lowest = 1.0
    for i, (name, results) in enumerate(runs):
        color, curves, chosen = COLORS[i % len(COLORS)], plots.by_factor(results), results["selection"]["sampler"]
        plots.line(axes, curves, lambda t: t["finetuned"], color=color, lw=1, ls=(0, (3, 2)), alpha=0.8)
        plots.line(
            axes, curves, lambda t, n=chosen: t["generated"].get(n),
            color=color, lw=1.7, marker=MARKS[i % len(MARKS)], ms=3.5, label=name,
        )  # fmt: skip
        lowest = min(lowest, *(t["generated"][chosen] for _, _, t in curves))
    plots.angle_axes(axes, runs[0][1])
    axes.set_ylim(max(0.0, lowest - 0.05), 1.01)
    fig.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    return fig
