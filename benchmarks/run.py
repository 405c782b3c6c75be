"""Measures every hot path against a rival and its physical limit, and prints a table.

    pip install -e '.[bench]'                       # PyTorch, for the rivals; without it they are left out
    python -m benchmarks.run                        # everything, 13 minutes on 2 cores
    python -m benchmarks.run --only=codec,zoo --effort=0.3
    python -m benchmarks.run --out=docs/performance.json --plots=docs

Each path is measured in a process of its own, so that its peak memory is its own, and pdiff and its rival take turns in
it. Ratios are medians of the turns' ratios with their quartiles; single times depend on the machine and the minute.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from benchmarks import growth, plots, timing
from benchmarks.timing import Row, Spread
from pdiff.system import files, machine

PATHS = (
    "codec", "first_step", "growth", "main_job", "many", "sampling", "scoring", "train_step", "zoo",
)  # fmt: skip


def measure(path: str, effort: float) -> list[Row]:
    """The rows of one path, in this process."""
    machine.set_up()
    return importlib.import_module(f"benchmarks.{path}").measure(effort)


def measure_apart(path: str, effort: float) -> list[Row]:
    """`measure` in a process of its own.

    Raises:
      subprocess.CalledProcessError: it failed; what it said is on standard error.
    """
    command = [sys.executable, "-m", "benchmarks.run", f"--path={path}", f"--effort={effort}"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [row_of(fields) for fields in json.loads(made.splitlines()[-1])]


def row_of(fields: dict) -> Row:
    """A row from the JSON of `dataclasses.asdict`."""
    spread = lambda s: None if s is None else Spread(**s)  # noqa: E731
    several = {n: {k: spread(v) for k, v in fields[n].items()} for n in ("rivals", "ratios")}
    return Row(**fields | several | {"ours": spread(fields["ours"]), "share": spread(fields["share"])})


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| path | work | pdiff takes | rivals take | of the limit | goals | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        rivals = "; ".join(f"{n}: {_times(row.ratios[n])}" for n in row.rivals)
        share = f"{_percent(row.share)} of {row.limit}" if row.share else ""
        goals = "; ".join(f"{g}: {'met' if met else '**missed**'}" for g, met in row.goals.items())
        memory = f"{row.peak_mb:,.0f} MB" if row.peak_mb else ""
        memory += f", bounded by {row.bounded_by}" if row.bounded_by else ""
        ours = f"{_seconds(row.ours)} for {row.unit}"
        lines.append("| " + " | ".join((row.path, row.what, ours, rivals, share, goals, memory)) + " |")
    return "\n".join(lines)


def growth_table(rows: list[Row]) -> str:
    """The exponents of the rows of `benchmarks.growth`, as a Markdown table."""
    lines = ["| what grows | sizes | time grows as size to the | memory | |", "| --- | --- | --- | --- | --- |"]
    for path, fitted in growth.slopes(rows).items():
        own = [r for r in rows if r.path == path]
        sizes = ", ".join(r.what.split()[0] for r in own)
        numbers = [f"{fitted[name]:.2f}" if name in fitted else "" for name in ("time", "memory")]
        why = own[-1].notes.partition(": ")[2]
        lines.append(f"| {path.removeprefix(growth.PREFIX)} | {sizes} | {numbers[0]} | {numbers[1]} | {why} |")
    return "\n".join(lines)


def machine_facts() -> dict:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    versions = {}
    for name in ("jax", "jaxlib", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "versions": versions,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _seconds(s: Spread) -> str:
    unit, factor = next(((u, f) for u, f in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if s.median * f >= 1), ("ns", 1e9))
    return f"{Spread(s.median * factor, s.low * factor, s.high * factor, s.n)} {unit}"


def _times(s: Spread) -> str:
    return f"{s} ×"


def _percent(s: Spread) -> str:
    return f"{100 * s.median:.0f}% ({100 * s.low:.0f} .. {100 * s.high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PATHS), help="paths, separated by commas")
    parser.add_argument("--effort", type=float, default=1.0, help="turns and sizes, as a share of the usual")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--plots", type=Path, help="the folder for plots")
    parser.add_argument("--path", choices=PATHS, help="measure this one in this process, and print it as JSON")
    args = parser.parse_args()
    if args.path:
        print(json.dumps([dataclasses.asdict(row) for row in measure(args.path, args.effort)]))
        return
    chosen = [name.strip() for name in args.only.split(",")]
    if unknown := sorted(set(chosen) - set(PATHS)):
        parser.error(f"--only: got {', '.join(unknown)}; allowed: {', '.join(PATHS)}")
    if args.effort <= 0:
        parser.error(f"--effort: got {args.effort}; allowed: a number above 0")
    start, rows, seconds = time.perf_counter(), [], {}
    limits = {"peak_flops": timing.peak_flops(), "copy_bandwidth": timing.copy_bandwidth()}
    found = machine_facts() | limits
    for path in chosen:
        began = time.perf_counter()
        rows += measure_apart(path, args.effort)
        seconds[path] = time.perf_counter() - began
        print(f"{path}: measured in {seconds[path]:.0f} s", file=sys.stderr, flush=True)
        measured = [dataclasses.asdict(row) for row in rows]
        found |= {"total_s": time.perf_counter() - start, "seconds": seconds, "rows": measured}
        if args.out:  # after each path: what was measured is kept, whatever comes
            files.write_atomic(args.out, json.dumps(found, indent=1).encode())
    grown = [row for row in rows if row.path.startswith(growth.PREFIX)]
    others = [row for row in rows if row not in grown]
    print(table(others))
    if grown:
        print(f"\n{growth_table(grown)}")
    for notes in dict.fromkeys(row.notes for row in others if row.notes):
        paths = dict.fromkeys(row.path for row in others if row.notes == notes)
        print(f"\n{', '.join(paths)}: {notes}")
    print(
        f"\n{found['cpu']}, {found['cores']} cores, at most {limits['peak_flops'] / 1e9:.0f} GFLOP/s in float32 and "
        f"{limits['copy_bandwidth'] / 1e9:.1f} GB/s to and from memory; {found['total_s']:.0f} s in all"
    )
    if args.plots:
        files.write_atomic(args.plots / "roofline.svg", plots.roofline(found, others).encode())
        if grown:
            files.write_atomic(args.plots / "growth.svg", growth.plot(grown).encode())


if __name__ == "__main__":
    main()
