"""The roofline of the benchmarks."""

import numpy as np

from benchmarks.timing import Row
from pdiff.report import style


@style.styled
def roofline(found: dict, rows: list[Row]) -> str:
    """FLOP/s of each path over its FLOPs per byte, under what the machine can do (Williams et al. 2009), as SVG.

    `found` has the machine's `peak_flops` and `copy_bandwidth`. A path's bytes are those that its program's operations
    read and write; what stays in a cache is fast, so that a point may lie above the slope.
    """
    placed = [r for r in rows if r.flops and r.moved]
    fig = style.figure(6.4, 4)
    axes = fig.subplots()
    intensities = [r.flops / r.moved for r in placed] or [1.0]
    x = np.geomspace(min(*intensities, 0.1) / 2, max(*intensities, 100) * 2, 100)
    reachable = np.minimum(found["peak_flops"], found["copy_bandwidth"] * x)
    axes.plot(x, reachable / 1e9, color=style.MUTED, label="the machine: memory, then matrix products")
    for row in placed:
        place, speed = row.flops / row.moved, row.flops / row.ours.median / 1e9
        axes.plot(place, speed, "o", color=style.BLUE)
        for ratio in row.ratios.values():
            axes.plot(place, speed / ratio.median, "x", color=style.VERMILLION)
        axes.annotate(f"{row.path}: {row.what}", (place, speed), (5, -9), textcoords="offset points", fontsize=7)
    axes.plot([], [], "o", color=style.BLUE, label="pdiff")
    axes.plot([], [], "x", color=style.VERMILLION, label="rivals, for the same work")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s")
    axes.legend(loc="upper left")
    return style.svg(fig)
