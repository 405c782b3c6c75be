"""Draws the figures of an audit, each from the contents of audit.json."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdiff.report.plots import MAX_VECTOR_POINTS
from pdiff.report.style import BLUE, GREEN, MUTED, ORANGE, VERMILLION, figure, legend_above, styled

KINDS = {"zoo": (MUTED, "o", "zoo networks, each against the others"), "generated": (BLUE, "D", "generated")}
EVIDENCE = {  # of a point: what it is, and the threshold that it is judged by
    "relative_weights": ("nearest zoo network, L2 of weights", "copy"),
    "relative_matched": ("the same modulo permutations", "copy"),
    "relative_function": ("nearest zoo network, predictions", "copy"),
    "inherited": ("inherited of the nearest zoo network", "noised"),
    "relative_average": ("nearest average of zoo networks", "average"),
}
MOST_LEAVES = 12


@styled
def evidence(audit: dict) -> Figure:
    """A histogram for each number that the verdict looks at, with its threshold."""
    shown = {n: e for n, e in EVIDENCE.items() if n in audit["points"][0]}
    rows = math.ceil(len(shown) / 2)
    fig = figure(9, 0.6 + 2.4 * rows)
    every = fig.subplots(rows, 2, squeeze=False).ravel()
    for axes, (name, (title, kind)) in zip(every, shown.items(), strict=False):
        threshold = audit["verdict"]["thresholds"][kind]
        values = {k: [p[name] for p in audit["points"] if p["kind"] == k] for k in KINDS}
        low = min(0.0, *(min(v) for v in values.values()))
        high = max(1.1 * threshold, *(max(v) for v in values.values()))
        edges = [low + (high - low) * i / 50 for i in range(51)]
        for k, (color, _, meaning) in KINDS.items():
            weights = [1 / len(values[k])] * len(values[k])
            axes.hist(values[k], edges, weights=weights, color=color, alpha=0.2)
            axes.hist(values[k], edges, weights=weights, color=color, histtype="step", lw=1.6, label=meaning)
        axes.axvline(threshold, color=VERMILLION, lw=1.3, ls=(0, (4, 2)), label="threshold")
        unit = "share" if name == "inherited" else "in units of the zoo's median"
        axes.set(title=title, xlabel=unit, ylabel="share of networks")
    for axes in every[len(shown) :]:
        axes.set_axis_off()
    fig.legend(*every[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return fig


@styled
def accuracy_against_overlap(audit: dict) -> Figure:
    """Every network, and what noise and averaging make of zoo networks."""
    fig = figure(9, 4.6)
    axes = fig.subplots()
    for kind, (color, marker, meaning) in KINDS.items():
        points = [p for p in audit["points"] if p["kind"] == kind]
        axes.scatter(
            [p["max_iou"] for p in points], [p["accuracy"] for p in points], 16, color, marker, alpha=0.6, lw=0,
            label=f"{meaning} ({len(points)})", rasterized=len(audit["points"]) > MAX_VECTOR_POINTS,
        )  # fmt: skip
    _curve(axes, audit["noise_curve"], "scale", "zoo networks with noise of so many rms", ORANGE)
    _curve(axes, audit["averaging_curve"], "networks", "means of so many zoo networks", GREEN)
    axes.set(xlabel="highest overlap (IoU) of wrong predictions with a zoo network", ylabel="test accuracy")
    axes.set_xlim(-0.02, 1.03)
    legend_above(axes, 2)
    return fig


def _curve(axes: Axes, points: list[dict], key: str, title: str, color: str) -> None:
    if not points:
        return
    x, y = ([p[k]["mean"] for p in points] for k in ("max_iou", "accuracy"))
    axes.plot(x, y, color=color, lw=1.5, marker="o", ms=4, label=title)
    above, size = (0, 6), {"textcoords": "offset points", "ha": "center", "size": 8, "color": color}
    for i in sorted({0, len(points) - 1}):
        axes.annotate(f"{points[i][key]:g}", (x[i], y[i]), above, **size)


@styled
def leaves(audit: dict) -> Figure:
    """A panel for each leaf (the first few): densities of its weights."""
    shown = audit["leaves"][:MOST_LEAVES]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    fig = figure(9, 0.5 + 2.1 * rows)
    every = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, leaf in zip(every, shown, strict=False):
        for kind, (color, _, _) in KINDS.items():
            axes.stairs(leaf[kind], leaf["edges"], color=color, lw=1.6, label=kind)
            axes.stairs(leaf[kind], leaf["edges"], color=color, alpha=0.18, fill=True)
        axes.set_title(leaf["path"].removeprefix("params/"), fontsize=9)
        axes.set_yticks([])
    for axes in every[len(shown) :]:
        axes.set_axis_off()
    fig.legend(*every[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return fig


@styled
def kernels(audit: dict) -> Figure:
    """Rows of heat maps: a generated kernel, that of the nearest zoo network, their difference, and beside it the
    difference of the zoo network from the one that is nearest to it."""
    examples = audit["examples"]
    tall = len(examples[0]["generated"]) / len(examples[0]["generated"][0])
    fig = figure(9, 0.5 + len(examples) * min(max(1.9 * tall, 1.4), 3))
    grid = fig.subplots(len(examples), 4, squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        generated, near = example["generated"], example["nearest"]
        differ, zoo_differ = _difference(generated, near), _difference(near, example["next"])
        most = max(abs(v) for table in (generated, near) for r in table for v in r) or 1.0
        titles = (f"generated, task {example['task']}", "nearest zoo network", "difference", "zoo's own difference")
        for axes, table, title in zip(row, (generated, near, differ, zoo_differ), titles, strict=True):
            image = axes.imshow(table, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
            axes.set_title(title, fontsize=9)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        fig.colorbar(image, ax=row, shrink=0.8).outline.set_visible(False)
    return fig


def _difference(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    return [[x - y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]
