"""Training metrics: one JSON object a line, and the same for TensorBoard and, optionally, Weights & Biases."""

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
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(entry, dict) and all(isinstance(v, (int, float)) for v in entry.values())
    return entry if sound and isinstance(entry.get("step"), int) else None


class MetricsWriter:
    """Appends to the metrics of a run that resumes at `step`, removing what a crash left beyond it.

    Entries beyond `last` stay: they are of a later training, where this one is repeated because its checkpoints were
    damaged. Of many processes, only the first writes. With the name of a `project`, Weights & Biases gets the same and
    `config`; its workdir identifies a resumed run there.
    """

    def __init__(self, workdir: Path, step: int, project: str = "", config: dict | None = None, last: float = math.inf):
        self._writes, self._wandb = processes.is_first(), None
        if not self._writes:
            return
        workdir = Path(workdir)
        entries = [e for e in read(workdir) if not step < e["step"] <= last]
        path = workdir / "metrics.jsonl"
        files.write_atomic(path, "".join(json.dumps(e) + "\n" for e in entries).encode())
        self._file = open(path, "a")  # noqa: SIM115  closed by close()
        repeated = any(e["step"] > last for e in entries)  # the board would purge these too
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=None if repeated else step + 1)
        if project:
            import wandb

            identity = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
            names = {"project": project, "name": workdir.name, "id": identity}
            quiet = wandb.Settings(silent=True)
            self._wandb = wandb.init(**names, dir=workdir, resume="allow", config=config, settings=quiet)

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
