"""What is drawn for vague descriptions, see pdiff/evaluation/vague.py: its table, and its figure."""

import math
import textwrap

from matplotlib.figure import Figure

from pdiff.report import plots, rows
from pdiff.report.style import BLUE, INK, ORANGE, figure, styled

NAMES = {  # of networks, in order
    "generated": "generated",
    "task_of_set": "a task of the set, then the hypernetwork",
    "hypernetwork": "hypernetwork, the same words",
    "zoo": "zoo networks of tasks in the set",
}
COLUMNS = ("accuracy", "above .95", "inside", "precision", "coverage", "bins hit", "total variation")
MOST_COLUMNS, WIDTH = 3, 29  # panels beside one another, letters of their titles in a line


def table(study: list[dict]) -> list[dict]:
    """For each prompt what it was taken for, and for each kind of network a title and a cell for each of COLUMNS."""
    tables = []
    for entry in study:
        networks = entry["networks"]
        lines = [(NAMES.get(n, plots.label(n)), _cells(networks[n])) for n in plots.ordered(networks, NAMES)]
        tables.append({k: entry[k] for k in ("prompt", "said", "samples")} | {"rows": lines})
    return tables


def _cells(fit: dict) -> list[str]:
    shares = [f"{100 * fit[k]:.1f}%" for k in ("high", "inside", "precision", "coverage")]
    return [rows.pm(fit["best"]), *shares, f"{fit['bins_hit']} of {fit['bins']}", f"{fit['total_variation']:.3f}"]


@styled
def shares(study: list[dict]) -> Figure:
    """A panel for each prompt: the share of networks whose task is in each bin of the set."""
    columns = min(MOST_COLUMNS, len(study))
    lines = math.ceil(len(study) / columns)
    fig = figure(9, 0.5 + 2.3 * lines)
    every = fig.subplots(lines, columns, squeeze=False).ravel()
    for axes, entry in zip(every, study, strict=False):
        generated, drawn = (entry["networks"][n]["share"] for n in ("generated", "task_of_set"))
        axes.bar(range(len(generated)), generated, 0.9, color=BLUE, label=NAMES["generated"])
        edges = [b - 0.5 for b in range(len(drawn) + 1)]
        axes.stairs(drawn, edges, color=ORANGE, lw=1.3, label=NAMES["task_of_set"])
        even = entry["networks"]["generated"]["even"]
        axes.stairs(even, edges, color=INK, lw=1, ls=(0, (4, 3)), label="even")
        axes.set(title=textwrap.fill(entry["prompt"], WIDTH), xlabel="bin of the set", xticks=(), ylim=(0, None))
        axes.grid(False, axis="x")
    for axes in every[len(study) :]:
        axes.set_axis_off()
    for axes in every[::columns]:
        axes.set_ylabel("share of networks")
    fig.legend(*every[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return fig
