"""Scaling on paper, from a compiled training step to thousands of chips: a table and a plot. Nothing here is measured.

    python -m pdiff.compile.scaling --compiled=DIR/compile.json --topology=v5e:4x4 --out=docs/scaling.svg

The step of n chips and global batch B takes the largest of four times (`bounds`), as if all four overlapped perfectly.
From the compiled step come FLOPs, memory traffic and bytes over ICI; the rest are assumptions, written out there.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from pdiff.compile import roofline
from pdiff.errors import PdiffError
from pdiff.report import style
from pdiff.system import files

SLICES = {"v4": 4096, "v5e": 256, "v5p": 4096, "v6e": 256}  # most chips of one slice here; beyond, slices over DCN
CHIPS = tuple(2**k for k in range(13))
BOUNDS = ("compute", "HBM", "ICI", "DCN")


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled training step, and what scaling needs to know of its model. Bytes and FLOPs of one chip."""

    chips: int
    batch: int
    params: int
    depth: int
    activations: int  # bytes of one example between two layers, bfloat16
    flops: float
    moved: float
    sent: float


def step_of(compiled: dict, topology: str | None) -> Step:
    """The training step of `topology` in the contents of compile.json.

    Raises:
      PdiffError: there is none that fits.
    """
    rows = [r for r in compiled["rows"] if r["step"] == "train" and "flops" in r and r["mesh"]["model"] == 1]
    chosen = next((r for r in rows if topology in (None, r["topology"])), None)
    if chosen is None:
        listed = ", ".join(r["topology"] for r in rows) or "none"
        raise PdiffError(f"--topology: got {topology}; allowed, with a compiled step and mesh.model = 1: {listed}")
    config = compiled["config"]
    tokens = -(-chosen["generated_params"] // config["weights"]["token_dim"]) + len(config["condition"]["use"])
    return Step(
        chips=chosen["chips"],
        batch=config["train"]["batch_size"],
        params=chosen["model_params"],
        depth=config["model"]["depth"],
        activations=2 * tokens * config["model"]["width"],
        flops=chosen["flops"],
        moved=chosen["hbm_bytes"],
        sent=sum(c["sent"] for c in chosen["collectives"].values()),
    )


def bounds(step: Step, chip: roofline.Chip, chips: int, batch: int) -> dict[str, float]:
    """Seconds of each of BOUNDS.

    - With more chips than examples, k = chips / batch of them share an example (`mesh.model` = k).
    - FLOPs are of the examples alone, and split evenly: FLOP x (batch / chips) / (compiled batch / compiled chips).
    - Memory traffic likewise, but for the weights, read in bfloat16 forward, again for rematerialisation, and backward:
      6 bytes a parameter, over k, that do not shrink with the batch.
    - Over ICI each chip sends what the compiled step does, with (n - 1) / n of the n = chips / k, at most a slice's,
      that split the state, over k; and with k > 1 for each block 6 sums of activations: two forward, two again, two
      backward. Rings run on one axis of the torus, both ways.
    - Between slices, gradients in float32 are summed: each chip holds a part of them, 1 / (chips of a slice), and sends
      2 (s - 1) / s of it for s slices.
    """
    k = max(1, chips // batch)
    share = (batch / chips) / (step.batch / step.chips)
    weights = min(6.0 * step.params, step.moved)
    inside = min(chips, SLICES[chip.name])
    slices, over_data = chips // inside, max(1, inside // k)
    ring = step.sent * ((over_data - 1) / over_data) / ((step.chips - 1) / step.chips) / k
    sums = 6 * step.depth * 2 * (k - 1) / k * step.activations
    between = 2 * (slices - 1) / slices * 4 * step.params / inside
    return {
        "compute": step.flops * share / chip.bf16,
        "HBM": ((step.moved - weights) * share + weights / k) / chip.bandwidth,
        "ICI": (ring + sums) / roofline.ring_bandwidth(chip),
        "DCN": between / chip.dcn,
    }


def scaled(step: Step, chip: roofline.Chip, weak: bool, each: int) -> list[dict]:
    """A row for each of CHIPS: `each` examples a chip (weak), or the compiled batch on all of them (strong)."""
    rows = []
    for chips in CHIPS:
        batch = each * chips if weak else step.batch
        seconds = bounds(step, chip, chips, batch)
        bound = max(seconds, key=seconds.get)
        rows.append({"chips": chips, "batch": batch, "step_s": seconds[bound], "bound": bound} | seconds)
    first = rows[0]["step_s"] / rows[0]["batch"]
    return [r | {"efficiency": first / (r["step_s"] / r["batch"] * r["chips"])} for r in rows]


def markdown(step: Step, names: Sequence[str], weak: bool, each: int) -> str:
    """One table of all chips in `names`: milliseconds, what binds, and the efficiency against one chip."""
    sizes = ["chips", "batch"] if weak else ["chips"]
    lines = [["chips", "global batch"][: len(sizes)] + list(names), ["---:"] * len(sizes) + ["---"] * len(names)]
    columns = [scaled(step, roofline.CHIPS[n], weak, each) for n in names]
    for rows in zip(*columns, strict=True):
        cells = [f"{1e3 * r['step_s']:.3g} ms, {r['bound']}, {r['efficiency']:.0%}" for r in rows]
        lines.append([f"{rows[0][size]:,}" for size in sizes] + cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@style.styled
def plot(step: Step, names: Sequence[str], each: int) -> str:
    """Step time over chips, weak scaling left and strong right, as SVG."""
    fig = style.figure(9.0, 3.6)
    colours = (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE)
    for axes, weak in zip(fig.subplots(1, 2), (True, False), strict=True):
        for name, colour in zip(names, colours, strict=False):
            rows = scaled(step, roofline.CHIPS[name], weak, each)
            axes.loglog(CHIPS, [1e3 * r["step_s"] for r in rows], color=colour, marker="o", ms=3, label=name)
            axes.loglog(CHIPS, [1e3 * r["compute"] for r in rows], color=colour, ls=":", lw=1)
        axes.set_title(f"weak: {each} examples a chip" if weak else f"strong: {step.batch} examples in all", pad=22)
        axes.set_xlabel("chips")
        axes.set_ylabel("predicted ms a step (dotted: compute alone)")
        axes.set_xscale("log", base=2)
        style.legend_above(axes, len(names))
    return style.svg(fig)


def main(argv: list[str]) -> None:
    if flags.FLAGS.compiled is None:
        raise app.UsageError("--compiled is missing: the compile.json of --mode=compile")
    try:
        step = step_of(json.loads(Path(flags.FLAGS.compiled).read_text()), flags.FLAGS.topology)
    except PdiffError as e:
        raise app.UsageError(str(e)) from e
    each = max(1, step.batch // step.chips)
    for weak in (True, False):
        print(markdown(step, list(roofline.CHIPS), weak, each))
    if flags.FLAGS.out:
        files.write_atomic(Path(flags.FLAGS.out), plot(step, list(roofline.CHIPS), each).encode())


if __name__ == "__main__":  # not at import: other programs have flags of these names
    flags.DEFINE_string("compiled", None, "The compile.json of --mode=compile.")
    flags.DEFINE_string("topology", None, "Whose training step in it is scaled; by default the first.")
    flags.DEFINE_string("out", None, "The SVG file to write.")
    app.run(main)
