"""audit.html and its plots: one file that shows everything in audit.json and asks the network for nothing."""

from pathlib import Path

from pdiff.report import audit_plots, html
from pdiff.report.figures import Figure
from pdiff.report.style import svg
from pdiff.system import files

MEASURES = {  # of audit.json: what each is
    "accuracy": "test accuracy",
    "max_iou": "highest overlap (IoU) of wrong predictions with a zoo network",
    "nearest_l2": "L2 distance to the nearest zoo network",
    "nearest_cosine": "cosine distance to the nearest zoo network",
    "nearest_l2_matched": "L2 distance to the nearest zoo network, hidden units matched",
    "nearest_cosine_matched": "cosine distance to the nearest zoo network, hidden units matched",
    "nearest_function": "distance of predictions (Hellinger) to the nearest zoo network",
    "average_distance": "L2 distance to the nearest weighted average of zoo networks",
    "inherited": "share that is inherited of the nearest zoo network",
    "spread": "L2 distance between two networks of one task",
    "disagreement": "share of test images that two networks of one task answer differently",
}
RULES = {  # kind: what is measured, by its name in verdict.medians; its threshold; how it is compared
    "copies": (("weights", "matched", "function"), "copy", "below"),
    "noised copies": (("inherited",), "noised", "at least"),
    "averages": (("average",), "average", "below"),
}
NAMES = {
    "weights": "nearest zoo network, L2 of weights, in units of the zoo's median",
    "matched": "the same modulo permutations of hidden units",
    "function": "nearest zoo network, Hellinger distance of predictions, in units of the zoo's median",
    "inherited": "share that is inherited of the nearest zoo network",
    "average": "nearest weighted average of zoo networks, L2, in units of the zoo's median",
}


def write_page(workdir: Path, audit: dict) -> None:
    """Writes audit.html, and the plots as files plots/audit_*.svg, for the contents of audit.json."""
    drawn = figures(audit)
    (workdir / "plots").mkdir(exist_ok=True)
    for figure in drawn:
        files.write_atomic(workdir / "plots" / f"{figure.name}.svg", figure.svg.encode())
    files.write_atomic(workdir / "audit.html", render(audit, drawn).encode())


def render(audit: dict, drawn: list[Figure]) -> str:
    """The page."""
    return (
        html.environment()
        .get_template("audit.html")
        .render(
            audit=audit,
            verdict=audit["verdict"],
            figures=html.embedded(drawn),
            rules=_rules(audit["verdict"]),
            measures=[(title, audit[n]) for n, title in MEASURES.items() if audit.get(n)],
        )
    )


def _rules(verdict: dict) -> list[dict]:
    """A row for each number that the rule looks at."""
    return [
        {"kind": kind, "title": NAMES[n], "limit": f"{how} {verdict['thresholds'][limit]:g}", **verdict["medians"][n]}
        for kind, (names, limit, how) in RULES.items()
        for n in names
        if n in verdict["medians"]
    ]


def figures(audit: dict) -> list[Figure]:
    """The figures with their words."""
    shares = ", ".join(f"{k} {v:.0%}" for k, v in audit["verdict"]["shares"]["generated"].items())
    iou = audit["max_iou"]
    drawn = [
        Figure(
            "audit_evidence",
            "What the verdict looks at",
            f"Histograms of the numbers that the verdict looks at, with thresholds. Generated networks: {shares}.",
            "Left of the dashed line a network is a copy (the nearest zoo network) or an average (the last panel), "
            "right of it a noised copy (what it inherits). Grey: zoo networks judged by the same rule, each against "
            "those of other seeds. Noise can carry a network far from its source, but not change what it inherits.",
            svg(audit_plots.evidence(audit)),
        ),
        Figure(
            "audit_overlap",
            "Accuracy against novelty",
            "Scatter of accuracy against the highest overlap of wrong predictions with a zoo network: generated mean "
            f"{iou['generated']['mean']:.3f}, zoo networks among themselves {iou['zoo']['mean']:.3f}; with the curves "
            "of noise and of averaging.",
            "Copies sit at overlap 1, an honest new training run among the grey points. The curves are what can be had "
            "without learning anything: zoo networks with noise, and means of zoo networks of the task (with those of "
            "neighbouring tasks where it has too few).",
            svg(audit_plots.accuracy_against_overlap(audit)),
        ),
        Figure(
            "audit_leaves",
            "Weights, leaf by leaf",
            "Histograms of the weights of each leaf, of generated and of zoo networks.",
            "Densities of the weights over all networks that are compared, 99.6% of them in each panel's range.",
            svg(audit_plots.leaves(audit)),
        ),
        Figure(
            "audit_kernels",
            "Beside the nearest zoo network",
            "Heat maps of the first kernel of generated networks, of the nearest zoo networks, and of differences.",
            "The first kernel (at most 64 inputs down, 64 outputs across) of generated networks, of the zoo network "
            "nearest in L2 of all weights, and the difference; last, how that zoo network differs from the one nearest "
            "to it, of another seed. One colour scale for each row.",
            svg(audit_plots.kernels(audit)),
        ),
    ]
    return drawn
