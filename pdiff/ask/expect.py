"""What accuracy to expect of a network that was asked for, from what its run measured. Nothing is measured anew.

The numbers are those of results.json for the tasks that are most like the request: the very task, or those of the same
held-out region, or the nearest ones by their factors. Each is a mean over networks of one task on its test images;
the uncertainty is the standard deviation between the tasks.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pdiff.generator.adapt import row_for
from pdiff.tasks.base import Family, Task
from pdiff.tasks.language import TaskSet

NEAREST = 8  # measured tasks that stand for one that lies in no region
FEWEST = 3  # measured tasks of a region; with fewer, its whole split stands for it


@dataclasses.dataclass(frozen=True)
class Expectation:
    """Accuracy to expect, in [0, 1].

    Attributes:
      mean: over the tasks that it is based on.
      spread: the standard deviation between these tasks; for a single one, the standard error that its number of test
        images leaves.
      tasks: how many they are.
      basis: which they are.
      finetuned: mean accuracy of networks fine-tuned on these tasks, where there are such.
    """

    mean: float
    spread: float
    tasks: int
    basis: str
    finetuned: float | None = None

    def __str__(self) -> str:
        tuned = f"; fine-tuned {self.finetuned:.3f}" if self.finetuned is not None else ""
        return f"expect {self.mean:.3f} ± {self.spread:.3f} ({self.basis}{tuned})"


class Expectations:
    """Answers from one run's results for its family.

    Args:
      results: the contents of results.json; an empty one knows nothing.
    """

    def __init__(self, results: dict, family: Family):
        self._results, self._family = results, family
        self._rows = [(s, row) for s, entry in results.get("splits", {}).items() for row in entry["per_task"]]

    def for_task(self, task: Task, sampler: str, given: Sequence[str]) -> Expectation | None:
        """A task of the family, asked for by the conditions `given`; None if nothing is known."""
        for split, row in self._rows:
            value = self._value(row, sampler, given)
            if row["id"] == task.id and value is not None:
                images = len(self._family.data["test"].y)
                error = math.sqrt(value * (1 - value) / images)
                basis = f"{split} task {task.name} itself; ± is what {images} test images leave open"
                return Expectation(value, error, 1, basis, row["finetuned"])
        if task.split == "validation" and set(given) == set(self._usual()):
            return self._on_validation(sampler)
        if not task.factors:
            return self._split(task.split, sampler, given)
        return self.for_factors(task.factors, sampler, given)

    def for_factors(self, factors: Sequence[float], sampler: str, given: Sequence[str]) -> Expectation | None:
        """A task with these factors, in the family or not; None if nothing is known."""
        family = self._family
        same = {t.id: t for t in family.tasks if family.distance(_row(t.factors), _row(factors)).item() == 0}
        for _, row in self._rows:
            if row["id"] in same and self._value(row, sampler, given) is not None:
                return self.for_task(same[row["id"]], sampler, given)
        split, arc = self.region(factors)
        if split == "validation":
            return self._on_validation(sampler) if set(given) == set(self._usual()) else None
        rows = [(s, row) for s, row in self._rows if self._value(row, sampler, given) is not None]
        if arc is not None:
            inside = [(s, r) for s, r in rows if self._inside(r["factors"][0], arc)]
            if len(inside) >= FEWEST:
                where = f"{family.factor_names[0]} from {arc[0]:g} to {arc[1]:g}"
                return self._of(inside, sampler, given, f"{len(inside)} {split} tasks, {where}")
            return self._split(split, sampler, given)
        if split == "seen":
            rows = [(s, r) for s, r in rows if s == "seen"]
        if not rows:
            return None
        distance = family.distance(_row(factors), np.array([r["factors"] for _, r in rows], np.float32))[0]
        near = [rows[i] for i in np.argsort(distance, kind="stable")[:NEAREST]]
        kinds = ", ".join(f"{n} {s}" for s in ("seen", "interp", "unseen") if (n := sum(k == s for k, _ in near)))
        return self._of(near, sampler, given, f"the {len(near)} nearest measured tasks: {kinds}")

    def for_set(self, tasks: TaskSet, sampler: str, given: Sequence[str]) -> Expectation | None:
        """A set of tasks: what was measured for its tasks one by one; of held-out regions in it as little is known as
        was measured there. None if nothing is known."""
        rows = [(s, r) for s, r in self._rows if self._value(r, sampler, given) is not None and r["factors"]]
        if not rows:
            return None
        held = tasks.contains(np.array([r["factors"] for _, r in rows], np.float64))
        inside = [row for row, holds in zip(rows, held, strict=True) if holds]
        return self._of(inside, sampler, given, f"{len(inside)} tasks of {tasks.said}") if inside else None

    def adapted(self, per_class: int, described: bool) -> Expectation | None:
        """What a few labelled images of each class lead to, in the held-out split that did worst."""
        measured, held_out = self._results.get("adaptation", {}), []
        for split, rows in measured.get("splits", {}).items():
            enough = [r for r in rows if r["shots"] and r["shots"] <= max(per_class, 1)]
            if not per_class or not enough:
                continue
            row = max(enough, key=lambda r: r["shots"])
            one = row["accuracy"][row_for(measured["recipes"][str(row["shots"])], described)]
            basis = f"{one['n']} {split} tasks from {row['shots']} labelled images of each class"
            held_out.append(Expectation(one["mean"], one["sem"] * math.sqrt(one["n"]), one["n"], basis))
        return min(held_out, key=lambda e: e.mean, default=None)

    def between(self, a: Task, b: Task, weight: float, sampler: str, given: Sequence[str]) -> Expectation | None:
        """A mixture of the conditions of two tasks, `weight` of the way from a to b; None if nothing is known."""
        if weight in (0, 1):
            return self.for_task(b if weight else a, sampler, given)
        mixed = self._results.get("mixing") or []
        if not mixed or sampler != self._chosen() or set(given) != set(self._usual()):
            return None
        apart = self._family.distance(_row(a.factors), _row(b.factors)).item()
        wide = [m for m in mixed if m["separation"] >= apart * 0.99]
        if not wide:
            return None
        row = min(wide, key=lambda m: m["separation"])
        mixtures, unit = row["accuracy"]["condition_lerp"], "".join(f" {n}" for n in self._family.factor_names[:1])
        basis = (
            f"{mixtures['n']} even mixtures of two tasks {row['separation']:g}{unit} apart, on the task between them"
        )
        return Expectation(mixtures["mean"], mixtures["sem"] * math.sqrt(mixtures["n"]), mixtures["n"], basis)

    def region(self, factors: Sequence[float]) -> tuple[str | None, tuple[float, float] | None]:
        """The split whose region the first factor lies in, and that region: seen outside all, None without any."""
        arcs = self._family.arcs
        for split, regions in arcs.items():
            for arc in regions:
                if self._inside(factors[0], arc):
                    return split, arc
        return ("seen" if arcs else None), None

    def _inside(self, value: float, arc: tuple[float, float]) -> bool:
        period = self._family.factor_periods[0]
        offset = (value - arc[0]) % period if period else value - arc[0]
        return 0 <= offset < arc[1] - arc[0]

    def _usual(self) -> Sequence[str]:
        return self._results["config"]["sample"]["condition"]

    def _chosen(self) -> str | None:
        return self._results.get("selection", {}).get("sampler")

    def _value(self, row: dict, sampler: str, given: Sequence[str]) -> float | None:
        """A task's accuracy when asked for by `given`, or None if that was not measured."""
        if set(given) == set(self._usual()):
            return row["generated"].get(sampler)
        if len(given) == 1 and sampler == self._chosen():
            return row["by_condition"].get(given[0])
        return None

    def _split(self, split: str, sampler: str, given: Sequence[str]) -> Expectation | None:
        rows = [(s, r) for s, r in self._rows if s == split and self._value(r, sampler, given) is not None]
        return self._of(rows, sampler, given, f"{len(rows)} {split} tasks") if rows else None

    def _on_validation(self, sampler: str) -> Expectation | None:
        """What chose the sampler: validation tasks, on validation images."""
        scores = self._results.get("selection", {}).get("validation", {}).get(sampler)
        if scores is None:
            return None
        count = max(1, round(scores["n"] / self._results["config"]["eval"]["samples_per_task"]))
        basis = f"{count} validation tasks, on validation images"
        return Expectation(scores["mean"], scores["sem"] * math.sqrt(count), count, basis)

    def _of(self, rows: Sequence[tuple[str, dict]], sampler: str, given: Sequence[str], basis: str) -> Expectation:
        values = np.array([self._value(r, sampler, given) for _, r in rows])
        tuned = float(np.mean([r["finetuned"] for _, r in rows]))
        return Expectation(float(values.mean()), float(values.std(ddof=min(1, len(rows) - 1))), len(rows), basis, tuned)


def _row(factors: Sequence[float]) -> np.ndarray:
    return np.array([factors], np.float32)
