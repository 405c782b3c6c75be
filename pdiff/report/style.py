"""How every figure looks: colours that colour-blind readers can tell apart, in light and in dark.

Figures have no background. The SVG carries a style sheet that exchanges its colours where the
reader's system is dark, so one file serves both.
"""

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#24292f", "#6e7781", "#d0d7de"
# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/).
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)
DARK = {
    INK: "#e6edf3",
    MUTED: "#9198a1",
    FAINT: "#3d444d",
    BLUE: "#4db2f5",
    SKY: "#3579a8",
    VERMILLION: "#f0883e",
    GREEN: "#2bc79a",
}

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # names of tasks and leaves may have two dollars
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "auto",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "pdiff",  # equal figures are equal bytes
}
styled = mpl.rc_context(RC)  # decorates the functions that draw


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches at 100 dots each, that no global state knows of."""
    canvas = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas


def legend_above(axes: Axes, columns: int) -> None:
    """A legend over the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, columnspacing=1.4, handlelength=1.8)


@styled
def svg(fig: Figure) -> str:
    """The figure as one SVG element that follows the reader's colour scheme."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    sheet = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    text = text[text.index("<svg") :]
    end = text.index(">") + 1
    return text[:end] + sheet + text[end:]


@styled
def png(fig: Figure) -> bytes:
    """The figure as a PNG, 100 dots an inch."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
