"""What became of a fault that was injected, and the table of all of them."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

FINE = ("identical", "detected", "refused", "healed", "harmless", "missed")  # missed: nothing was injected
BAD = ("different", "silent", "traceback", "unnamed", "lost", "stuck")


@dataclasses.dataclass
class Outcome:
    """One fault.

    Attributes:
      fault: kind, a row of the table.
      detail: where it was injected.
      seed: repeats it.
      verdict: of FINE or BAD.
      why: what was wrong.
      lost_steps: training steps that had to be done again.
      seconds: it took.
      kept: the workdir of one that went wrong.
    """

    fault: str
    detail: str
    seed: str
    verdict: str
    why: str = ""
    lost_steps: int = 0
    seconds: float = 0.0
    kept: str = ""

    def fail(self, verdict: str, ended, workdir: Path, why: str = "") -> "Outcome":
        """The same, gone wrong; `ended` is how the command ended."""
        last = " | ".join(ended.said.strip().splitlines()[-3:])[-400:]
        self.verdict, self.why, self.kept = verdict, why or f"exit {ended.code}: {last}", str(workdir)
        return self

    @property
    def bad(self) -> bool:
        return self.verdict not in FINE


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each kind of fault, as Markdown."""
    columns = (*FINE, *BAD)
    used = [c for c in columns if any(o.verdict == c for o in outcomes) or c in ("silent", "traceback")]
    head = ["fault", "injected", *used, "worst loss, steps", "seconds each"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for fault in dict.fromkeys(o.fault for o in outcomes):
        own = [o for o in outcomes if o.fault == fault]
        counts = Counter(o.verdict for o in own)
        cells = [fault, len(own), *(counts[c] for c in used), max(o.lost_steps for o in own)]
        cells.append(f"{sum(o.seconds for o in own) / len(own):.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def failures(outcomes: Sequence[Outcome]) -> str:
    """A line for each that went wrong, with what repeats it."""
    lines = [f"{o.verdict}: {o.fault} {o.detail} [{o.seed}]: {o.why}; kept: {Path(o.kept)}" for o in outcomes if o.bad]
    return "\n".join(lines)
