"""Training metrics: one JSON object a line, and the same for TensorBoard."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from pdiff import files, processes


def read(workdir: Path) -> list[dict]:
    """All entries of `<workdir>/metrics.jsonl`, oldest first; a line cut short by a crash is dropped."""
    path = Path(workdir) / "metrics.jsonl"
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


class MetricsWriter:
    """Appends to the metrics of a run that goes on from `step`, forgetting what a crash left beyond it.

    Of many processes, only the first writes.
    """

    def __init__(self, workdir: Path, step: int):
        self._writes = processes.is_first()
        if not self._writes:
            return
        kept = [e for e in read(workdir) if e["step"] <= step]
        path = Path(workdir) / "metrics.jsonl"
        files.write_atomic(path, "".join(json.dumps(e) + "\n" for e in kept).encode())
        self._file = open(path, "a")  # noqa: SIM115  closed by close()
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one entry. `step` is the number of updates completed."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._board.close()
