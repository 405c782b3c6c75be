"""What a trained generator is asked for, as the command line, Python and the page hand it on."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from pdiff.config.fields import SAMPLERS
from pdiff.errors import PdiffError, shortened

Between = tuple[int | str, int | str, float]
MOST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Request:
    """Networks of one of `prompt`, `task` and `between`, which `LoadedGenerator.sample` explains as the rest, or of
    `anything`: all kinds of tasks.

    Raises:
      PdiffError: not exactly one is given, or a field is of another type or out of range.
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
            one_of(ways, "got {given}; give one of prompt, task_id, between; generator.describe() says what there is")
        if self.prompt is not None:
            _check_prompt(self.prompt)
        if self.task is not None:
            check_task("task_id", self.task)
        if self.between is not None:
            _check_between(self.between)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise PdiffError(f"sampler: got {self.sampler!r}; allowed: {', '.join(SAMPLERS)}")
        whole("num_samples", self.num_samples, 1)
        whole("seed", self.seed, 0, MOST_SEED)
        if not isinstance(self.force, bool):
            raise PdiffError(f"force: got {self.force!r}; allowed: True or False")


def one_of(ways: Mapping[str, Any], refusal: str, nothing: str = "nothing") -> None:
    """Raises PdiffError unless exactly one of the ways to ask is not None; '{given}' in `refusal` stands for those."""
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise PdiffError(refusal.format(given=", ".join(given) or nothing))


def whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises PdiffError unless the argument of that name is a whole number from `low` to `high`."""
    right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not right or value < low or (high is not None and value > high):
        most = f"at least {low}" if high is None else f"from {low} to {high}"
        raise PdiffError(f"{name}: got {value!r}; allowed: a whole number, {most}")


def check_task(argument: str, task: Any) -> None:
    """Raises PdiffError unless the argument of that name could be a task's name or its id."""
    if not isinstance(task, (str, numbers.Integral)) or isinstance(task, bool):
        raise PdiffError(f"{argument}: got {task!r}; allowed: the name of a task, or its id, a whole number")


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str):
        raise PdiffError(f"prompt: got {prompt!r}; allowed: a description in words, as a str")
    if not any(c.isalnum() for c in prompt):
        raise PdiffError(f"prompt: got {shortened(prompt)}, which has no word in it; allowed: a description of a task")


def _check_between(between: Any) -> None:
    refusal = f"between: got {between!r}; allowed: two tasks and a number from 0 to 1, as in (a, b, 0.5)"
    if not isinstance(between, (tuple, list)) or len(between) != 3:
        raise PdiffError(refusal)
    *ends, weight = between
    for end in ends:
        check_task("between", end)
    if not isinstance(weight, numbers.Real) or isinstance(weight, bool):
        raise PdiffError(refusal)
    if not 0 <= weight <= 1:
        raise PdiffError(f"between: got the weight {weight!r}; allowed: a number from 0 to 1")
