"""From a request to a plan: how its prompt is read, for which tasks networks are drawn, and by which sampler.

Whatever is asked of a generator goes through `Planner.plan`, so that what cannot be drawn cannot be expected either.
"""

import contextlib
import dataclasses
import difflib

import numpy as np

from pdiff import rng
from pdiff.ask import prompts
from pdiff.ask.expect import Expectation, Expectations
from pdiff.ask.prompts import Descriptions
from pdiff.ask.request import Request, check_task
from pdiff.config.fields import DESCRIBING
from pdiff.errors import PdiffError, shortened
from pdiff.generator import conditioning
from pdiff.generator.generator import Generator
from pdiff.models.conditions import Mixture
from pdiff.system.logs import log
from pdiff.tasks.base import Task
from pdiff.tasks.language import Reading, Unreadable


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one generator does for a request.

    Attributes:
      reading: what the prompt was read as, if there is one.
      tasks: the family's task that is named or described, or the two ends of `between`; none of any other prompt.
      where: the split of a described task, and the held-out region that it lies in; '' if that is not known.
      sampler: the one that draws.
      condition: of one network, as `Generator.condition`'s, or of two tasks mixed.
    """

    request: Request
    reading: Reading | None
    tasks: tuple[Task, ...]
    where: str
    sampler: str
    condition: dict | Mixture

    @property
    def vague(self) -> bool:
        """Whether the prompt names a set of tasks."""
        return self.reading is not None and self.reading.tasks is not None

    @property
    def doubt(self) -> str:
        """What speaks against how the prompt was read, such as that it was taken by force alone; '' if nothing does."""
        return "" if self.reading is None else self.reading.doubt

    @property
    def named_one(self) -> bool:
        """Whether it is one task that is asked for, by a description or by name."""
        return not (self.vague or self.request.anything or self.doubt)

    @property
    def said(self) -> str:
        """What the prompt was read as, and where that lies; '' without a prompt."""
        parts = [] if self.reading is None else [self.reading.said, self.where]
        return "; ".join(part for part in parts if part)

    @property
    def facts(self) -> dict[str, str]:
        """What a file of its networks says of where they come from."""
        request, reading, ends = self.request, self.reading, [t.name for t in self.tasks]
        return {
            "prompt": request.prompt or "",
            "understood": "" if reading is None else reading.said,
            "where": self.where,
            "ignored": "" if reading is None else ", ".join(reading.ignored),
            "doubt": self.doubt,
            "forced": "true" if request.force and self.doubt else "false",
            "task": "".join(ends) if request.between is None else "",
            "between": "" if request.between is None else ",".join((*ends, f"{request.between[2]:g}")),
            "sampler": self.sampler,
            "seed": str(request.seed),
        }


class Planner:
    """Plans for one generator, whose run has these results.

    Attributes:
      default_sampler: the one that validation chose.
      reads_prompts: whether the generator was trained on any condition that a prompt is read by.
      expectations: what the results lead to expect.
    """

    def __init__(self, static: Generator, results: dict):
        self._static, self._results, self._family, self._config = static, results, static.family, static.config
        self.default_sampler: str = results.get("selection", {}).get("sampler", static.config.sample.samplers[0])
        self.reads_prompts = not set(DESCRIBING).isdisjoint(static.config.condition.use)
        self.expectations = Expectations(results, static.family)
        self._descriptions = Descriptions(static.family) if static.family.grammar is None else None
        self._described_by = {t.descriptions[0]: t for t in reversed(static.family.tasks)}
        self._ids_explained = False

    def plan(self, request: Request) -> Plan:
        """What is done for a request: how it is read, for which tasks, by which sampler.

        Raises:
          PdiffError: a task is not the family's, the prompt cannot be read, or the generator was not trained on it.
        """
        ends = (request.task,) if request.between is None else request.between[:2]
        tasks = tuple(self.task(t, "task_id" if request.between is None else "between") for t in ends if t is not None)
        reading = self._read(request)
        if reading is not None and reading.text in self._described_by:
            tasks = (self._described_by[reading.text],)
        vague = reading is not None and reading.tasks is not None
        sampler = request.sampler or (self.differing_sampler if vague else self.default_sampler)
        condition = self._condition(request, reading, tasks)
        plan = Plan(request, reading, tasks, self._where(reading, tasks), sampler, condition)
        if plan.doubt:
            log.warning("warning: prompt %s: %s", shortened(request.prompt), plan.doubt)
        return plan

    def understood(self, prompt: str | None, force: bool = False) -> Reading | None:
        """What a prompt is read as: one task, a set of tasks, or a text that the model reads; None for none.

        Args:
          force: take a prompt that cannot be read as it is.

        Raises:
          PdiffError: it cannot be read, names an empty set, or is too long.
        """
        if prompt is None:
            return None
        reading = prompts.read(self._family, self._descriptions, prompt, force)
        if reading.tasks is not None and not len(self._static.refined.rows_of(reading.tasks)):
            raise PdiffError(f"prompt: {shortened(prompt)} names {reading.said}, where there is no task")
        return reading

    def expected(self, plan: Plan) -> Expectation | None:
        """The test accuracy to expect of what is planned; None if nothing is known."""
        request, reading, name, given = plan.request, plan.reading, plan.sampler, self._config.sample.condition
        if not self._results:
            return None
        if reading is not None:
            if reading.tasks is not None:
                return self.expectations.for_set(reading.tasks, name, given)
            if reading.factors is not None:
                return self.expectations.for_factors(reading.factors, name, self._described())
            return self.expectations.for_task(plan.tasks[0], name, self._described()) if plan.tasks else None
        if request.between is not None:
            return self.expectations.between(*plan.tasks, request.between[2], name, given)
        return self.expectations.for_task(plan.tasks[0], name, given)

    def examples(self, count: int = 6) -> list[str]:
        """At most `count` prompts that work, precise and vague; none where no prompt is read."""
        if not self.reads_prompts:
            return []
        grammar, seen = self._family.grammar, self._family.split("seen")[:count]
        some = [t.descriptions[0] for t in seen] if grammar is None else [grammar.example, *grammar.examples(count)]
        working = []
        for prompt in dict.fromkeys(some):
            with contextlib.suppress(PdiffError):  # a set of which this generator has no network
                if self.understood(prompt).tasks is None or self._config.refined.vague:
                    working.append(prompt)
        return working[:count]

    def task(self, name: int | str, argument: str = "task") -> Task:
        """A task by its name or its id; the first id warns that it is one. `argument` is for messages.

        Raises:
          PdiffError: there is no such task.
        """
        check_task(argument, name)
        tasks, names = self._family.tasks, {t.name: t for t in self._family.tasks}
        if name in names:
            return names[name]
        if str(name).isdecimal() and int(name) < len(tasks):
            task = tasks[int(name)]
            if not self._ids_explained:
                message = "warning: %s: %s counts the tasks from 0 and is no number of a description; it is %s"
                log.warning(message, argument, name, said_of(task))
                self._ids_explained = True
            return task
        near = difflib.get_close_matches(str(name), names, 3, 0.5) or [tasks[0].name]
        raise PdiffError(
            f"{argument}: got {name!r}; allowed: an id from 0 to {len(tasks) - 1}, or a name such as {', '.join(near)}"
        )

    @property
    def differing_sampler(self) -> str:
        """The default for networks that are to differ: one call (`posterior_mean`) draws the mean of all there are."""
        if self.default_sampler != "posterior_mean":
            return self.default_sampler
        return self._results.get("selection", {}).get("many_steps", "heun")

    def _read(self, request: Request) -> Reading | None:
        try:
            return self.understood(request.prompt, request.force)
        except Unreadable:
            self._described()  # which a generator that reads no words at all refuses in its own way
            raise

    def _where(self, reading: Reading | None, tasks: tuple[Task, ...]) -> str:
        """The split, and of a prompt the held-out region, of the one task that is meant; '' if that is not known."""
        if reading is None or reading.factors is None or not any(self._family.arcs.values()):
            return tasks[0].split if len(tasks) == 1 else ""
        split, region = self.expectations.region_at(reading.factors[0])
        return (
            split if region is None else f"{split}, {self._family.factor_names[0]} from {region[0]:g} to {region[1]:g}"
        )

    def _condition(self, request: Request, reading: Reading | None, tasks: tuple[Task, ...]) -> dict | Mixture:
        """The condition of one of a request's networks."""
        if request.anything:
            return self._static.condition([self._family.tasks[0]], given=())
        if reading is None:
            first, *second = (self._static.condition([task], None, self._config.sample.condition) for task in tasks)
            return Mixture(first, *second, np.array([request.between[2]], np.float32)) if second else first
        if reading.tasks is not None:
            return conditioning.set_condition(self._static, reading.tasks, 1, rng.on_host(request.seed, "sample/set"))
        return self._static.condition([self._family.tasks[0]], [reading.text], self._described())

    def _described(self) -> tuple[str, ...]:
        """The conditions that a prompt is read by."""
        if not self.reads_prompts:
            use, wanted = ", ".join(self._config.condition.use), " or ".join(DESCRIBING)
            raise PdiffError(f"prompt: this generator was trained on {use} and reads no {wanted}; give a task")
        read = tuple(n for n in DESCRIBING if n in self._config.condition.use)
        return tuple(n for n in read if n in self._config.sample.condition) or read


def said_of(task: Task) -> str:
    """A task in a line: its name, number, description and split."""
    return f"{task.name} (id {task.id}, {task.split}): '{task.descriptions[0]}'"
