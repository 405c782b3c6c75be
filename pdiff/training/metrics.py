"""Training metrics: one JSON object a line, and the same for TensorBoard and, if asked for, Weights & Biases."""

import hashlib
import json
import math
import os
from pathlib import Path

from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from pdiff.system import files, processes


def read(workdir: Path) -> list[dict]:
    """All entries of `<workdir>/metrics.jsonl`, by step; a line that was cut short or damaged is left out."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sorted((entry for entry in map(_entry, lines) if entry is not None), key=lambda entry: entry["step"])


def _entry(line: bytes) -> dict | None:
    """A line's numbers by name."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(found, dict) and all(isinstance(v, (int, float)) for v in found.values())
    return found if sound and isinstance(found.get("step"), int) else None


class MetricsWriter:
    """Appends to the metrics of a run that goes on from `step`, forgetting what a crash left beyond it.

    What is beyond `last` is kept: it is of a later training, where this one is repeated because its checkpoints were
    damaged. Of many processes, only the first writes. With the name of a `project`, Weights & Biases gets the same, and
    `config`; a run that goes on from a checkpoint is found there again by its workdir.
    """

    def __init__(self, workdir: Path, step: int, project: str = "", config: dict | None = None, last: float = math.inf):
        self._writes, self._wandb = processes.is_first(), None
        if not self._writes:
            return
        workdir = Path(workdir)
        kept = [e for e in read(workdir) if not step < e["step"] <= last]
        path = workdir / "metrics.jsonl"
        files.write_atomic(path, "".join(json.dumps(e) + "\n" for e in kept).encode())
        self._file = open(path, "a")  # noqa: SIM115  closed by close()
        repeated = any(e["step"] > last for e in kept)  # the board would purge these too
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=None if repeated else step + 1)
        if project:
            import wandb

            known = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
            self._wandb = wandb.init(
                project=project, dir=workdir, name=workdir.name, id=known, resume="allow", config=config,
                settings=wandb.Settings(silent=True),
            )  # fmt: skip

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one entry. `step` is the number of updates completed."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def sync(self) -> None:
        """Brings all entries to the disk, so that a power cut cannot take those before a checkpoint."""
        if self._writes:
            os.fsync(self._file.fileno())

    def draw(self, step: int, name: str, figure: Figure) -> None:
        """Adds an image, to the boards alone."""
        if not self._writes:
            return
        if self._wandb:
            import wandb

            self._wandb.log({name: wandb.Image(figure)}, step=step)
        self._board.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()
