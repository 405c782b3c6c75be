"""Draws the figures of single tasks and networks: against fine-tuning, weights on a plane, what is mistaken."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from pdiff.report import plots
from pdiff.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, figure, styled

SPLIT_STYLES = {
    "seen": (SKY, "o", 18),
    "interp": (GREEN, "D", 26),
    "unseen": (BLUE, "s", 26),
    "unheard": (PURPLE, "^", 26),
}
MOST_NUMBERED = 12  # classes of a confusion matrix whose cells have numbers
SHOWN_SHARE = 0.005  # least share of a label's images that a cell has a number for


@styled
def against_finetuned(results: dict) -> Figure:
    """Each task's generated networks against its fine-tuned ones, and by how much they differ, split by split."""
    chosen = results["selection"]["sampler"]
    fig = figure(9, 4)
    pairs, gaps = fig.subplots(1, 2, width_ratios=(1.15, 1))
    points = {
        s: np.array([(t["finetuned"], t["generated"][chosen]) for t in e["per_task"]])
        for s, e in plots.ordered_splits(results)
    }
    pairs.axline((0, 0), slope=1, color=INK, lw=0.8, ls=(0, (4, 3)))
    gaps.axvline(0, color=INK, lw=0.8, ls=(0, (4, 3)))
    for row, (split, pairs_of) in enumerate(points.items()):
        color, marker, size = SPLIT_STYLES[split]
        pairs.scatter(*pairs_of.T, size, color, marker, alpha=0.75, lw=0, label=f"{split} ({len(pairs_of)})")
        gap = pairs_of[:, 1] - pairs_of[:, 0]
        heights = row + 0.5 * (np.arange(len(gap)) * 0.618 % 1 - 0.5)  # apart, so that equal gaps are all seen
        gaps.scatter(gap, heights, size, color, marker, alpha=0.6, lw=0)
        gaps.plot([gap.mean()] * 2, [row - 0.36, row + 0.36], color=INK, lw=2)
    every = np.concatenate(list(points.values()))
    low, high = every.min(), every.max()
    margin = max(0.01, 0.06 * (high - low))
    span = (low - margin, high + margin)
    pairs.set(xlabel="fine-tuned on the task", ylabel=f"generated ({plots.label(chosen)})", xlim=span, ylim=span)
    gaps.set(xlabel="generated less fine-tuned (line: mean)", ylim=(len(points) - 0.4, -0.6))
    gaps.set_yticks(range(len(points)), list(points), color=INK)
    gaps.tick_params(axis="y", length=0)
    gaps.grid(False, axis="y")
    fig.legend(*pairs.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return fig


@styled
def plane(seen: dict, results: dict) -> Figure:
    """The zoo by factor, and beside it generated and held-out networks with ways from noise, on its two main axes.

    `seen` is `plane` of closeup.json. Without a single factor there is only the second panel.
    """
    zoo = [p for p in seen["points"] if p["kind"] == "zoo"]
    by_factor = all(len(p["factors"]) == 1 for p in zoo)
    fig = figure(9 if by_factor else 6, 4.7)
    panels = fig.subplots(1, 2 if by_factor else 1, sharex=True, sharey=True, squeeze=False)[0]
    raster = len(seen["points"]) > plots.MAX_VECTOR_POINTS
    if by_factor:
        factors = np.array([p["factors"][0] for p in zoo])
        turn = plots.is_rotation(results)
        scale = Normalize(0, 360) if turn else Normalize(factors.min(), factors.max())
        drawn = panels[0].scatter(
            *_places(zoo).T, 16, factors, "o", cmap=colormaps["twilight" if turn else "viridis"], norm=scale,
            edgecolors=MUTED, linewidths=0.4, rasterized=raster,
        )  # fmt: skip
        name = (results.get("factors", {}).get("names") or ["factor"])[0]
        how = {"location": "top", "shrink": 0.9, "aspect": 45, "ticks": range(0, 361, 90) if turn else None}
        bar = fig.colorbar(drawn, ax=panels[0], label=f"zoo, {name}", **how)
        bar.outline.set_visible(False)
    axes = panels[-1]
    _kind(axes, zoo, MUTED, "o", 9, "zoo", 0.35, raster)
    _kind(axes, [p for p in seen["points"] if p["kind"] == "finetuned"], ORANGE, "s", 16, "fine-tuned, held out", 0.8)
    colors = (BLUE, SKY)
    generated = [p for p in seen["points"] if p["kind"] == "generated"]
    for name, color in zip(dict.fromkeys(p["sampler"] for p in generated), colors, strict=False):
        of_sampler = [p for p in generated if p["sampler"] == name]
        _kind(axes, of_sampler, color, "D", 12, f"generated, {plots.label(name)}", 0.75, raster)
    for i, path in enumerate(seen["paths"]):
        x, y = np.array(path["at"]).T
        axes.plot(x, y, color=PURPLE, lw=1.3, marker=".", ms=3, label=None if i else "from noise (ddim)")
    shares = seen["explained"]
    for place in panels:
        place.set_xlabel(f"first axis ({shares[0]:.0%} of the variance)")
    panels[0].set_ylabel(f"second axis ({shares[1]:.0%})")
    fig.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    return fig


def _places(points: list[dict]) -> np.ndarray:
    return np.array([p["at"] for p in points])


def _kind(axes: Axes, points: list[dict], color: str, marker: str, size: int, title: str, alpha: float, raster=False):
    if points:
        axes.scatter(*_places(points).T, size, color, marker, lw=0, alpha=alpha, label=title, rasterized=raster)


@styled
def confusion(counts: dict[str, list[list[int]]]) -> Figure:
    """What fine-tuned and generated networks answer for each label, and the difference."""
    shares = {k: shares_of(v) for k, v in counts.items()}
    classes = len(shares["generated"])
    panels = (
        ("fine-tuned", shares["finetuned"], BLUE, BLUE),
        ("generated", shares["generated"], BLUE, BLUE),
        ("generated less fine-tuned", shares["generated"] - shares["finetuned"], BLUE, VERMILLION),
    )
    fig = figure(9, 3.5)
    for axes, (title, share, above, below) in zip(fig.subplots(1, 3, sharey=True), panels, strict=True):
        top = np.abs(share).max() or 1.0
        color = np.where((share > 0)[..., None], to_rgb(above), to_rgb(below))
        # Opacity is the scale, so that the picture is right on a light page and on a dark one.
        opacity = 0.6 * np.sqrt(np.abs(share) / top)
        axes.imshow(np.concatenate([color, opacity[..., None]], -1), interpolation="nearest")
        axes.set(title=title, xlabel="answer", xticks=range(classes) if classes <= MOST_NUMBERED else [])
        axes.grid(False)
        if classes <= MOST_NUMBERED:
            for i, j in np.argwhere(np.abs(share) >= SHOWN_SHARE):
                text = f"{100 * share[i, j]:.0f}" if abs(share[i, j]) >= 0.0095 else f"{100 * share[i, j]:.1f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=INK)
    first = fig.axes[0]
    first.set(ylabel="label", yticks=range(classes) if classes <= MOST_NUMBERED else [])
    return fig


def shares_of(counts: list[list[int]]) -> np.ndarray:
    """Rows of counts as shares of their sums; those of labels that no image has are 0."""
    counts = np.asarray(counts, float)
    return counts / counts.sum(1, keepdims=True).clip(1)
