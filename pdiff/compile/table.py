"""What compiled steps would take of a TPU, as Markdown tables; `aot` computes the numbers."""

from pdiff.compile import roofline
from pdiff.zoo import build

COLUMNS = (
    "topology | step | mesh | TFLOP a chip | to DiT's own | arguments | temporaries | needs | of HBM | HBM traffic | "
    "sent over ICI | compute ms | HBM ms | ICI ms | **predicted ms** | bound by"
)


def markdown(compiled: dict) -> str:
    """The table of compile.json, and below it the collectives of each step. Memory in GiB, traffic in GB."""
    rows, config = compiled["rows"], compiled["config"]
    first = rows[0]
    chips = dict.fromkeys(roofline.chip_of(r["topology"]) for r in rows)
    together = config["zoo"]["chunk_size"] or f"{build.NETWORKS_AN_ACCELERATOR} on each chip"
    lines = [
        f"Predicted, not measured: a model of {first['model_params']:,} parameters that generates "
        f"{first['generated_params']:,} of a {config['target']['name']}; global batch {config['train']['batch_size']}, "
        f"{together} networks of the zoo together. "
        "FLOPs, memory and traffic are of one chip and one step, a time the largest of compute, HBM and ICI.",
        "",
        f"| {COLUMNS} |",
        "| --- | --- | --- |" + " ---: |" * (COLUMNS.count("|") - 3) + " --- |",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
        "",
        "| topology | step | collectives: how many in a step, and what a chip sends for them, MB |",
        "| --- | --- | --- |",
        *(f"| {r['topology']} | {r['step']} | {_collectives(r)} |" for r in rows if "collectives" in r),
        "",
        *(
            f"- {c.name}: {c.bf16 / 1e12:.0f} TFLOP/s in bfloat16, {c.memory / 2**30:.0f} GiB at "
            f"{c.bandwidth / 1e9:,.0f} GB/s, ICI {c.link / 1e9:,.0f} GB/s both ways on a {c.axes}-D torus ({c.source})"
            for c in chips
        ),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict) -> list[str]:
    mesh = " x ".join(f"{n} {axis}" for axis, n in row["mesh"].items())
    head = [row["topology"], row["step"], mesh]
    spare = row["hbm"] - row["needs"]
    room = f"{row['needs'] / row['hbm']:.0%}, {'spare' if spare >= 0 else '**too much by**'} {abs(spare) / 2**30:.2f}"
    needs = [f"{row['needs'] / 2**30:.2f}", room]
    if "flops" not in row:  # it does not fit
        return [*head, *[""] * 4, *needs, *[""] * 7]
    return [
        *head,
        f"{row['flops'] / 1e12:.3g}",
        f"{row['matmuls_to_dit']:.3f}" if row["matmuls_to_dit"] else "",
        *(f"{row[k] / 2**30:.2f}" for k in ("arguments", "temporaries")),
        *needs,
        f"{row['hbm_bytes'] / 1e9:.3g}",
        f"{sum(c['sent'] for c in row['collectives'].values()) / 1e9:.3g}",
        *(f"{1e3 * row['times'][k]:.3g}" for k in ("compute", "memory", "links")),
        f"**{1e3 * row['step_s']:.3g}**",
        {"compute": "compute", "memory": "HBM", "links": "ICI"}[row["bound"]],
    ]


def _collectives(row: dict) -> str:
    collectives = sorted(row["collectives"].items(), key=lambda item: -item[1]["sent"])
    return ", ".join(f"{c['count']} {kind}: {c['sent'] / 1e6:.3g}" for kind, c in collectives) or "none"
