"""What networks are asked for, as the command line, Python and the page hand it on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pdiff.errors import PdiffError

Between = tuple[int | str, int | str, float]


@dataclasses.dataclass(frozen=True)
class Request:
    """Networks of one of `prompt`, `task` and `between`, which `LoadedGenerator.sample` explains as the rest, or of
    `anything`: all kinds of tasks.

    Raises:
      PdiffError: not exactly one is given, `between` is not two tasks and a weight, or there are no samples.
    """

    prompt: str | None = None
    task: int | str | None = None
    between: Between | None = None
    num_samples: int = 1
    sampler: str | None = None
    seed: int = 0
    force: bool = False
    anything: bool = False

    def __post_init__(self):
        if not self.anything:
            ways = {"prompt": self.prompt, "task_id": self.task, "between": self.between}
            one_of(ways, "sample: got {given}; give one of prompt, task_id, between")
        if self.between is not None:
            try:
                _, _, weight = self.between
                inside = 0 <= weight <= 1
            except (TypeError, ValueError) as e:
                raise PdiffError(f"between: got {self.between!r}; allowed: two tasks and a number from 0 to 1") from e
            if not inside:
                raise PdiffError(f"between: got the weight {weight!r}; allowed: a number from 0 to 1")
        if self.num_samples < 1:
            raise PdiffError(f"num_samples: got {self.num_samples}; allowed: at least 1")


def one_of(ways: Mapping[str, Any], refusal: str, nothing: str = "nothing") -> None:
    """Raises PdiffError unless exactly one of the ways to ask is not None; '{given}' in `refusal` stands for those."""
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise PdiffError(refusal.format(given=", ".join(given) or nothing))
