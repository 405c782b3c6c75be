"""What training shows while it goes on."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from pdiff.report.style import BLUE, ORANGE, figure, legend_above, styled
from pdiff.tasks.base import Task


@styled
def accuracy_by_task(
    tasks: Sequence[Task], factors: Sequence[str], scores: Mapping[str, Float[ndarray, " tasks"]]
) -> Figure:
    """Accuracy of each sampler on each task, against the only factor, or else by task, in order."""
    fig = figure(7, 3)
    axes = fig.subplots()
    fig.set_facecolor("white")  # the boards have no other
    places = [t.factors[0] if len(factors) == 1 else i for i, t in enumerate(tasks)]
    order = sorted(range(len(tasks)), key=places.__getitem__)
    for colour, (name, accuracy) in zip((BLUE, ORANGE), scores.items(), strict=False):
        axes.plot([places[i] for i in order], accuracy[order], "o-", color=colour, markersize=4, label=name)
    axes.set(xlabel=factors[0] if len(factors) == 1 else "task", ylabel="accuracy", ylim=(0, 1.02))
    legend_above(axes, 2)
    return fig
