"""Draws the figures of a report, each from the contents of results.json or metrics.jsonl."""

import math
from collections.abc import Callable, Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdiff.report.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    figure,
    legend_above,
    png,
    styled,
)
from pdiff.results import CONTROLS, MERGED

MAX_VECTOR_POINTS = 2000  # scatters of more are drawn as pixels, so that the page stays small
MARKERS = {"seen": ("o", 2.5), "interp": ("D", 4.5), "unseen": ("s", 4.5), "unheard": ("^", 4.5)}
CONTROL_LINES = {
    "linear_interpolation": (GREEN, (0, (4, 1.5))),
    "nearest_seen": (ORANGE, (0, (1, 1))),
    "ridge": (VERMILLION, (0, (5, 1, 1, 1))),
}
MERGES = {  # of seen networks; the SVD is of their mean
    "merged_mean": "merge: mean", "merged": "merge: mean", "merged_ties": "merge: TIES", "merged_dare": "merge: DARE",
    "merged_lerp": "merge: line between two", "merged_slerp": "merge: arc between two",
}  # fmt: skip
KINDS = {  # of novelty points: colour, marker, what they are
    "zoo": (MUTED, "o", "zoo networks among themselves"),
    "generated": (BLUE, "D", "generated"),
    "noise": (ORANGE, "^", "zoo networks with noise added"),
}


def label(name: str) -> str:
    """A sampler's or control's name as prose."""
    if name in MERGED:
        return f"{MERGES[name.removesuffix('_svd')]}{', cut to rank' if name.endswith('_svd') else ''}"
    return name.replace("_", " ")


def sampler_order(results: dict, names: Iterable[str]) -> list[str]:
    """The chosen sampler first, then the others as the config lists them."""
    chosen = results["selection"]["sampler"]
    listed = list(results["config"].get("sample", {}).get("samplers", ()))
    return sorted(names, key=lambda n: (n != chosen, listed.index(n) if n in listed else len(listed), n))


def control_order(names: Iterable[str]) -> list[str]:
    """Controls in the order of `results.CONTROLS`, unknown ones last."""
    return ordered(names, CONTROLS)


def ordered(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Each of the names once, in an order, those that it lacks last."""
    place = {n: i for i, n in enumerate(order)}
    return sorted(set(names), key=lambda n: (place.get(n, len(place)), n))


def is_rotation(results: dict) -> bool:
    """Are the factors degrees on a circle?"""
    return results["config"].get("tasks", {}).get("family") == "rotation"


def by_factor(results: dict) -> list[tuple[float, str, dict]]:
    """(factor, split, per-task entry) ordered by factor; empty unless every task has exactly one factor."""
    rows = [(t["factors"], s, t) for s, entry in results["splits"].items() for t in entry["per_task"]]
    if any(len(factors) != 1 for factors, _, _ in rows):
        return []
    return sorted(((factors[0], s, t) for factors, s, t in rows), key=lambda row: row[0])


def by_indicator(results: dict) -> dict[str, list[tuple[float, str, dict]]]:
    """For each indicator among the factors: (first factor, split, per-task entry) of its tasks, ordered by factor."""
    about = results.get("factors", {})
    place = {n: i for i, n in enumerate(about.get("names", ())) if n in about["indicators"]}
    rows = [(t["factors"], s, t) for s, entry in results["splits"].items() for t in entry["per_task"]]
    curves = {n: [(f[0], s, t) for f, s, t in rows if f[i] == 1] for n, i in place.items() if i > 0}
    return {n: sorted(curve, key=lambda row: row[0]) for n, curve in curves.items() if curve}


@styled
def accuracy_by_indicator(results: dict) -> Figure:
    """A panel for each indicator: accuracy of its tasks against the first factor, held-out regions shaded."""
    panels, chosen = by_indicator(results), results["selection"]["sampler"]
    columns = min(4, len(panels))
    fig = figure(9, 1 + 2.2 * math.ceil(len(panels) / columns))
    every = fig.subplots(math.ceil(len(panels) / columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    series = (
        ("base", MUTED, 1, lambda t: t.get("base")),
        *((label(n), color, 1, lambda t, n=n: t["controls"].get(n)) for n, (color, _) in CONTROL_LINES.items()),
        ("fine-tuned", INK, 1.3, lambda t: t["finetuned"]),
        (f"generated ({label(chosen)})", BLUE, 1.6, lambda t: t["generated"].get(chosen)),
    )
    for axes, (name, rows) in zip(every, panels.items(), strict=False):
        shade(axes, results.get("arcs", {}), legend=False)
        for title, color, width, get in series:
            line(axes, rows, get, color=color, lw=width, label=title)
        axes.set(title=name, ylim=(0, 1.02), xlabel=results["factors"]["names"][0])
        axes.grid(False, axis="x")
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    fig.legend(*every[0].get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
    return fig


@styled
def accuracy_by_angle(results: dict) -> Figure:
    """Accuracy of every task against its one factor, held-out arcs shaded."""
    fig = figure(9, 4.8)
    axes = fig.subplots()
    rows, chosen = by_factor(results), results["selection"]["sampler"]
    shade(axes, results.get("arcs", {}))
    line(axes, rows, lambda t: t.get("base"), color=MUTED, lw=1.2, label="base")
    for name, (color, dashes) in CONTROL_LINES.items():
        line(
            axes,
            rows,
            lambda t, n=name: t["controls"].get(n),
            color=color,
            ls=dashes,
            lw=1.3,
            label=label(name),
        )
    samplers = sampler_order(results, {n for _, _, t in rows for n in t["generated"]})
    for name in (n for n in samplers if n != chosen):
        line(axes, rows, lambda t, n=name: t["generated"].get(n), color=SKY, lw=0.8, alpha=0.55)
    line(axes, rows, lambda t: t["finetuned"], color=INK, lw=1.5, label="fine-tuned")
    line(
        axes,
        rows,
        lambda t: t["generated"].get(chosen),
        color=BLUE,
        lw=2,
        label=f"generated ({label(chosen)})",
    )
    for split, (marker, size) in MARKERS.items():
        of_split = [r for r in rows if r[1] == split]
        line(axes, of_split, lambda t: t["generated"].get(chosen), color=BLUE, ls="", marker=marker, ms=size)
    angle_axes(axes, results)
    legend_above(axes, 4)
    return fig


@styled
def split_bars(results: dict) -> Figure:
    """One column of bars for each split, the same rows in each."""
    splits, chosen = results["splits"], results["selection"]["sampler"]
    samplers = sampler_order(results, {n for e in splits.values() for n in e["generated"]})
    controls = control_order({n for e in splits.values() for n in e["controls"]})
    rows = [("fine-tuned", INK, lambda e: e["finetuned"])]
    rows += [(label(n), BLUE if n == chosen else SKY, lambda e, n=n: e["generated"].get(n)) for n in samplers]
    rows += [(label(n), ORANGE, lambda e, n=n: e["controls"].get(n)) for n in controls]
    rows += [("base", MUTED, lambda e: e["base"])]
    fig = figure(9, 1.0 + 0.27 * len(rows))
    columns = fig.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, (split, entry) in zip(columns, ordered_splits(results), strict=True):
        for y, (_, color, get) in enumerate(rows):
            s = get(entry)
            if s is None:
                continue
            bars = axes.barh(y, s["mean"], 0.72, color=color, xerr=s["sem"], ecolor=MUTED, error_kw={"lw": 1.2})
            bars[0].set_gid(f"bar-{split}-{y}")
            text = f"{s['mean']:.3f}"
            axes.text(1.24, y, text, va="center", ha="right", fontsize=8.5, color=MUTED)
        axes.axvline(entry["finetuned"]["mean"], color=INK, lw=0.8, ls=(0, (4, 3)))
        axes.set(title=f"{split} ({entry['num_tasks']} tasks)", xlim=(0, 1.24), xticks=(0, 0.5, 1))
        axes.set_xlabel("accuracy")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    columns[0].set_yticks(range(len(rows)), [name for name, _, _ in rows], color=INK)
    columns[0].invert_yaxis()
    return fig


@styled
def novelty(points: list[dict], noise_curve: list[dict] = ()) -> Figure:
    """Accuracy against overlap of wrong predictions, and distances to the nearest zoo network.

    `noise_curve` is drawn as a line: the overlap that zoo networks keep at what more and more noise leaves of accuracy.
    """
    fig = figure(9, 4)
    left, right = fig.subplots(1, 2, width_ratios=(1.3, 1))
    farthest = max(p["nearest_l2"] for p in points) or 1.0
    edges = [farthest * i / 40 for i in range(41)]
    for kind, (color, marker, meaning) in KINDS.items():
        of_kind = [p for p in points if p["kind"] == kind]
        if not of_kind:
            continue
        left.scatter(
            [p["max_iou"] for p in of_kind], [p["accuracy"] for p in of_kind], 16, color, marker, alpha=0.6, lw=0,
            label=f"{meaning} ({len(of_kind)})", rasterized=len(points) > MAX_VECTOR_POINTS,
        )  # fmt: skip
        distances = [p["nearest_l2"] for p in of_kind]
        right.hist(distances, edges, color=color, alpha=0.18)
        right.hist(distances, edges, color=color, histtype="step", lw=1.6)
    if noise_curve:
        x, y = ([p[k]["mean"] for p in noise_curve] for k in ("max_iou", "accuracy"))
        scales = f"{noise_curve[0]['scale']:g} to {noise_curve[-1]['scale']:g}"
        left.plot(x, y, color=KINDS["noise"][0], lw=1.5, marker="o", ms=3, label=f"means with noise of {scales} x rms")
    left.set(xlabel="highest overlap (IoU) of wrong predictions with a zoo network", ylabel="accuracy")
    left.set_xlim(-0.02, 1.02)
    right.set(xlabel="L2 distance to the nearest zoo network", ylabel="networks", xlim=(0, None))
    fig.legend(loc="outside upper left", ncols=3, frameon=False)
    return fig


@styled
def mixing(rows: list[dict]) -> Figure:
    """Accuracy on the task between two mixed ones, against how far apart these are."""
    fig = figure(9, 4.2)
    axes = fig.subplots()
    styles = {
        "description": (INK, "--"), "condition_lerp": (BLUE, "-"), "condition_slerp": (SKY, "-"),
        "weights_lerp": (ORANGE, "-"), "weights_slerp": (VERMILLION, "-"),
    }  # fmt: skip
    for name, (color, line) in styles.items():
        points = [(r["separation"], r["accuracy"][name]) for r in rows if name in r["accuracy"]]
        axes.errorbar(
            [x for x, _ in points], [s["mean"] for _, s in points], [s["sem"] for _, s in points],
            color=color, ls=line, marker="o", ms=4, lw=1.5, capsize=2, label=label(name),
        )  # fmt: skip
    axes.set(xlabel="between the two tasks that are mixed", ylabel="accuracy on the task between", ylim=(0, 1))
    fig.legend(loc="outside upper left", ncols=5, frameon=False)
    return fig


@styled
def transfer(study: dict) -> Figure:
    """Accuracy of seen tasks' networks on other tasks, and of generated ones, against how unlike the tasks are."""
    measures = {"factors": "distance of the factors", "background": "rms difference of the backgrounds"}
    measures = {k: words for k, words in measures.items() if k in study["rank_correlation"]}
    fig = figure(9, 4.2)
    for axes, (name, words) in zip(fig.subplots(1, len(measures), squeeze=False)[0], measures.items(), strict=True):
        pairs = study["pairs"]
        axes.scatter(
            [p[name] for p in pairs], [p["accuracy"] for p in pairs], 10, MUTED, alpha=0.5, lw=0,
            label="network of another location" if "background" in measures else "network of another task",
        )  # fmt: skip
        for split, color in (("seen", SKY), ("interp", GREEN), ("unseen", BLUE)):
            of_split = [g for g in study["generated"] if g["split"] == split]
            if of_split:
                x, y = [g[f"nearest_{name}"] for g in of_split], [g["accuracy"] for g in of_split]
                axes.scatter(x, y, 18, color, MARKERS[split][0], lw=0, label=f"generated, {split}: to the nearest seen")
        axes.set(xlabel=words, ylabel="test accuracy", xlim=(0, None), ylim=(0, 1.02))
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    return fig


@styled
def training(metrics: list[dict]) -> Figure:
    """Losses, validation accuracy, learning rate and gradient norm against steps."""
    fig = figure(9, 5.6)
    (losses, accuracy), (rate, gradient) = fig.subplots(2, 2, sharex=True, height_ratios=(1.7, 1))
    for name, color in (("loss", INK), ("denoising_loss", BLUE), ("functional_loss", VERMILLION)):
        _curve(losses, metrics, name, label(name), color=color, lw=1.5)
    colors = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
    names = sorted({k for e in metrics for k in e if k.startswith("validation/")})
    for i, name in enumerate(names):
        _curve(
            accuracy,
            metrics,
            name,
            label(name.split("/", 1)[1]),
            color=colors[i % 6],
            marker="o",
            ms=3,
            lw=1.5,
        )
    _curve(rate, metrics, "learning_rate", "learning rate", color=MUTED, lw=1.5)
    _curve(gradient, metrics, "grad_norm", "gradient norm", color=MUTED, lw=1.0)
    for axes, title in ((losses, "loss"), (accuracy, "accuracy on validation tasks")):
        axes.set_title(title)
        if axes.lines:
            axes.legend()
    rate.set(title="learning rate", xlabel="step", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    gradient.set(title="gradient norm", xlabel="step")
    for axes in (losses, gradient):
        if axes.lines:
            axes.set_yscale("log")
    return fig


@styled
def hero(results: dict) -> bytes:
    """A README's picture, a PNG of 1600 × 700 pixels on white: accuracy against angle."""
    fig = figure(16, 7)
    fig.set_facecolor("white")
    fig.get_layout_engine().set(w_pad=0.25, h_pad=0.1)
    axes = fig.subplots()
    rows, chosen = by_factor(results), results["selection"]["sampler"]
    shade(axes, results.get("arcs", {}), legend=False)
    series = (
        ("base network", MUTED, 2, lambda t: t.get("base")),
        ("ridge on the angle", VERMILLION, 2, lambda t: t["controls"].get("ridge")),
        ("nearest seen task", ORANGE, 2, lambda t: t["controls"].get("nearest_seen")),
        ("fine-tuned on the task", INK, 2.4, lambda t: t["finetuned"]),
        ("generated", BLUE, 4, lambda t: t["generated"].get(chosen)),
    )
    for name, color, width, get in series:
        line(axes, rows, get, color=color, lw=width, label=name, solid_capstyle="round")
    for start, end in results.get("arcs", {}).get("unseen", ()):
        axes.text((start + end) / 2 % 360, 1.035, "held out", ha="center", va="bottom", fontsize=15, color=MUTED)
    angle_axes(axes, results)
    axes.xaxis.label.set_fontsize(16)
    axes.yaxis.label.set_fontsize(16)
    axes.tick_params(labelsize=14)
    means = (f"{s} {e['generated'][chosen]['mean']:.3f}" for s, e in ordered_splits(results))
    fig.suptitle(
        f"Networks generated for each angle: {', '.join(means)}",
        x=0.02, ha="left", fontsize=21, fontweight="bold",
    )  # fmt: skip
    fig.legend(loc="outside lower center", ncols=5, fontsize=15, frameon=False)
    return png(fig)


def ordered_splits(results: dict) -> list[tuple[str, dict]]:
    """(name, entry) of the splits in their natural order."""
    return in_order(results["splits"])


def in_order(by_split: dict[str, dict | list]) -> list[tuple[str, dict | list]]:
    """The items of what has splits as keys, in these' natural order."""
    order = list(MARKERS)
    return sorted(by_split.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def line(axes: Axes, rows: list[tuple[float, str, dict]], get: Callable[[dict], float | None], **style) -> None:
    """One line through the tasks that `get` has a value for."""
    points = [(x, get(task)) for x, _, task in rows]
    points = [(x, y) for x, y in points if y is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _curve(axes: Axes, metrics: list[dict], name: str, title: str, **style) -> None:
    """One metric against steps, without the values that are not finite."""
    points = [(e["step"], e[name]) for e in metrics if math.isfinite(e.get(name, math.nan))]
    if points:
        axes.plot(*zip(*points, strict=True), label=title, **style)


def shade(axes: Axes, arcs: dict[str, list], legend: bool = True) -> None:
    """Shades the held-out arcs. One that passes 360 degrees is drawn in two parts."""
    styles = {
        "unseen": dict(facecolor=PURPLE, alpha=0.32, lw=0),
        "interp": dict(facecolor=SKY, alpha=0.22, lw=0),
        "validation": dict(facecolor="none", edgecolor=MUTED, hatch="////", alpha=0.6, lw=0),
    }
    for split, style in styles.items():
        parts = [p for a, b in arcs.get(split, ()) for p in ([(a, min(b, 360)), (0, b - 360)] if b > 360 else [(a, b)])]
        for i, (start, end) in enumerate(parts):
            span = axes.axvspan(start, end, zorder=0, label=f"{split} arc" if legend and not i else None, **style)
            span.set_gid(f"arc-{split}-{i}")


def angle_axes(axes: Axes, results: dict) -> None:
    axes.set(ylabel="test accuracy", ylim=(0, 1.02))
    if is_rotation(results):
        axes.set(xlabel="rotation of the digits (degrees)", xlim=(0, 360), xticks=range(0, 361, 45))
    else:
        axes.set_xlabel("factor")
    axes.grid(False, axis="x")
    axes.spines["bottom"].set_color(FAINT)
