"""Where the time of a whole run goes, and how much of it is none of zoo, training, sampling, scoring and adaptation.

    python -m benchmarks.main_job --steps=375           # this process alone, as JSON

The functions that do the work are wrapped from outside; what they call counts for the outermost of them. The whole is
the life of the process, with imports, compilation, checkpoints and the report.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import Row, Spread

GOAL = 0.05
WORK = ("zoo", "training", "sampling", "scoring", "adaptation")
COMPILING = "compilation"  # seconds of it lie within the other parts
STEPS = 375  # a quarter of the main job's: what is fixed weighs more than in the whole


class Stopwatch:
    """Adds up the seconds of wrapped functions by part; only the outermost of nested calls counts."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._running = False

    def wrap(self, owner: object, name: str, part: str) -> None:
        """Replaces `owner.name` by itself with a stopwatch around."""
        inner: Callable = getattr(owner, name)

        def timed(*args, **kwargs):
            if self._running:
                return inner(*args, **kwargs)
            self._running, start = True, time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._running = False
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)


def run(steps: int, workdir: Path) -> dict[str, float]:
    """Runs the main job with fewer training steps; returns seconds by part, and of compilation within them."""
    import jax

    from pdiff.system import machine

    machine.set_up()
    from configs import interp
    from pdiff import run as run_lib
    from pdiff.evaluation import adaptation, evaluate, vague
    from pdiff.evaluation.vague import Grid
    from pdiff.generator import refined
    from pdiff.generator.adapt import Adapter
    from pdiff.generator.sample import Samplers
    from pdiff.measures.accuracy import Scorer
    from pdiff.rivals.learned import Learned
    from pdiff.training import train
    from pdiff.zoo import build

    watch = Stopwatch()
    for owner, name, part in (
        (build, "build", "zoo"),
        (train, "train", "training"),
        (refined, "refine", "training"),
        (rivals, "fit_all", "training"),
        (Samplers, "networks", "sampling"),
        (Samplers, "scores", "sampling"),
        (Learned, "sample", "sampling"),
        (Scorer, "right", "scoring"),
        (Scorer, "answers", "scoring"),
        (Grid, "tables", "scoring"),
        (Adapter, "choose", "scoring"),
        (Adapter, "finetune", "adaptation"),
        (adaptation, "reptile", "adaptation"),
        (vague, "_finetuned", "adaptation"),
        (run_lib.generator, "check", "start"),
        (run_lib.generator, "make_generator", "statistics"),
        (evaluate, "fit_controls", "baselines"),
        (run_lib, "report", "report"),
    ):
        watch.wrap(owner, name, part)
    compiling: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiling.append(seconds) if name.startswith("/jax/core/compile/") else None
    )
    config = interp.get_config()
    with config.unlocked():
        config.mean.steps = config.train.steps = steps
    run_lib.run(config, workdir)
    return watch.seconds | {COMPILING: sum(compiling)}


def measure(effort: float = 1.0) -> list[Row]:
    """One run: its whole time against the sum of its parts."""
    steps = max(1, round(STEPS * effort))
    with tempfile.TemporaryDirectory() as where:
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.main_job", f"--steps={steps}", f"--workdir={where}"]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        total = time.perf_counter() - start
        seconds = json.loads(made.splitlines()[-1])
        peak = json.loads((Path(where) / "results.json").read_text())["timing"]["peak_rss_mb"]
    work = sum(seconds[part] for part in WORK)
    outside = 1 - work / total
    compiling = seconds.pop(COMPILING)
    rest = total - sum(seconds.values())
    parts = ", ".join(f"{n} {s:.1f} s" for n, s in sorted(seconds.items(), key=lambda x: -x[1]))
    return [
        Row(
            "whole main job", f"{steps} steps of each model", "one run", Spread.of([total]),
            limit=f"{', '.join(WORK)} alone", share=Spread.of([1 - outside]),
            goals={f"< {GOAL:.0%} outside them": outside < GOAL}, peak_mb=peak * 1.048576,
            bounded_by="zoo.memory_mb, zoo.chunk_size, sample.batch_size, eval.chunk_size, train.microbatches",
            notes=f"{parts}, imports and all else {rest:.1f} s; {compiling:.1f} s of it compilation",
        )
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each model")
    parser.add_argument("--workdir", type=Path, required=True, help="an empty folder")
    args = parser.parse_args()
    print(json.dumps(run(args.steps, args.workdir)))
