"""What accuracy to expect of a network that was asked for, from what its run measured. Nothing is measured anew.

The numbers are those of results.json: mean accuracies of networks for one task, on the run's test images, by sampler
and condition. An expectation is a mean and an interval that is to hold 90% of the tasks that are asked for like this,
on these images. In a region of the factors (a held-out one, or what is left of the seen ones) `nearby` tells them from
the measured tasks of its split; elsewhere they are those of the tasks that stand for it. `benchmarks.expectations` says
how many the intervals hold.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdiff.ask.nearby import FEWEST, HELD, Nearby, flips, student
from pdiff.generator.adapt import row_for
from pdiff.tasks.base import Family, Task
from pdiff.tasks.grammar import CLOSE
from pdiff.tasks.language import TaskSet

PLACES = 120  # of a set, at most, evenly chosen
GRID = 2400  # places of all that can be described, of which a set has some


@dataclasses.dataclass(frozen=True)
class Expectation:
    """Accuracy to expect, in [0, 1].

    Attributes:
      mean: over the tasks that are asked for like this, and networks for them.
      low, high: between these lie 90% of such networks.
      tasks: how many measured ones it is based on.
      basis: which they are.
      finetuned: mean accuracy of networks fine-tuned on these tasks, where there are such.
    """

    mean: float
    low: float
    high: float
    tasks: int
    basis: str
    finetuned: float | None = None

    def __str__(self) -> str:
        which = "of such tasks" if self.tasks > 1 else "of its networks"
        tuned = f"; fine-tuned {self.finetuned:.3f}" if self.finetuned is not None else ""
        between = f"{HELD:.0%} {which} between {self.low:.3f} and {self.high:.3f}"
        return f"expect {self.mean:.3f}, {between} ({self.basis}{tuned})"


class Expectations:
    """Answers from one run's results for its family.

    Args:
      results: the contents of results.json; an empty one knows nothing.
    """

    def __init__(self, results: dict, family: Family):
        self._results, self._family = results, family
        self._images = len(family.data["test"].y) if family.data else 0
        splits = results.get("splits", {}) if family.data else {}
        self._rows = [(split, row) for split, entry in splits.items() for row in entry["per_task"]]
        self._nearby = functools.cache(self._fitted)

    def for_task(self, task: Task, sampler: str, given: Sequence[str]) -> Expectation | None:
        """A task of the family, asked for by the conditions `given`; None if nothing is known."""
        for split, row in self._measured(sampler, given, unheard=True):
            if row["id"] == task.id:
                return self._itself(split, row, sampler, given)
        if task.split == "validation" and self._is_usual(given):
            return self._on_validation(sampler)
        if not task.factors:
            return self._like_split(task.split, sampler, given)
        return self.for_factors(task.factors, sampler, given)

    def for_factors(self, factors: Sequence[float], sampler: str, given: Sequence[str]) -> Expectation | None:
        """A task with these factors, in the family or not; None if nothing is known."""
        rows = self._measured(sampler, given)
        if not rows or not rows[0][1]["factors"]:
            return None
        distance = self._distance(factors, [row for _, row in rows])
        if distance.min() == 0:
            return self._itself(*rows[int(distance.argmin())], sampler, given)
        if self._family.is_singular(factors):
            return self._on_singular(factors, sampler, given)
        ways = [self._in_region(split, factors, sampler, given) for split in self._splits(factors)]
        known = [way for way in ways if way is not None]
        return _either(known) if known else None

    def for_set(self, tasks: TaskSet, sampler: str, given: Sequence[str]) -> Expectation | None:
        """A task that is drawn evenly from a set of them; None if nothing is known."""
        rows = [row for _, row in self._measured(sampler, given) if row["factors"]]
        if not rows:
            return None
        measured = np.array([row["factors"] for row in rows], np.float64)
        grid = self._family.grammar.grid(GRID) if self._family.grammar is not None else measured
        inside = next((f[held] for f in (grid, measured) if (held := tasks.contains(f)).any()), measured[:0])
        chosen = inside[np.linspace(0, len(inside) - 1, min(PLACES, len(inside))).round().astype(int)]
        places = [self.for_factors(tuple(map(float, f)), sampler, given) for f in chosen]
        return _mixture([p for p in places if p is not None], tasks.said)

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
            held_out.append(self._of_summary(one, one["n"], basis))
        return min((e for e in held_out if e is not None), key=lambda e: e.mean, default=None)

    def between(self, a: Task, b: Task, weight: float, sampler: str, given: Sequence[str]) -> Expectation | None:
        """A mixture of the conditions of two tasks, `weight` of the way from a to b; None if nothing is known."""
        if weight in (0, 1):
            return self.for_task(b if weight else a, sampler, given)
        mixed = self._results.get("mixing") or []
        if not mixed or sampler != self._chosen() or not self._is_usual(given):
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
        return self._of_summary(mixtures, mixtures["n"], basis)

    def _splits(self, factors: Sequence[float]) -> list[str]:
        """The splits whose regions the first factor lies in: those on both sides, where it is an end of one.

        It is "" alone, which stands for all splits, if the family has no regions.
        """
        arcs, period, first = self._family.arcs, self._family.factor_periods[0], float(factors[0])
        if not any(arcs.values()):
            return [""]
        step = 2 * CLOSE * self._family.units[0]  # the last digit of a description
        ends = [end for regions in arcs.values() for region in regions for end in region]
        known = [*ends, *(t.factors[0] for t in self._family.tasks)]
        sides = [side for side in (first - step, first + step) if period or min(known) <= side <= max(known)]
        return list(dict.fromkeys(map(self.split_at, sides or [first])))

    def split_at(self, value: float) -> str:
        """The split whose region a value of the first factor lies in: seen outside all."""
        return self.region_at(value)[0]

    def region_at(self, value: float) -> tuple[str, tuple[float, float] | None]:
        """The split and the held-out region that a value of the first factor lies in: seen and None outside all."""
        period = self._family.factor_periods[0]
        for split, regions in self._family.arcs.items():
            for start, end in regions:
                offset = (value - start) % period if period else value - start
                if 0 <= offset < end - start:
                    return split, (start, end)
        return "seen", None

    def _in_region(
        self, split: str, factors: Sequence[float], sampler: str, given: Sequence[str]
    ) -> Expectation | None:
        """A place in the region of a split, or in a family without regions."""
        if split == "validation":
            return self._on_validation(sampler) if self._is_usual(given) else None
        near, rows = self._nearby(split, sampler, tuple(given))
        if near is None:
            return self._like_split(split, sampler, given)
        distance = self._distance(factors, rows)
        place, nearest = near.at(distance), rows[int(distance.argmin())]["task"]
        tuned = float(np.clip(place.weights @ [r["finetuned"] for r in rows], 0, 1))
        basis = f"from {len(rows)} {split or 'measured'} tasks, the nearest {nearest}"
        return self._bounded(place.mean, place.margin, len(rows), basis, tuned)

    def _fitted(self, split: str, sampler: str, given: tuple[str, ...]) -> tuple[Nearby | None, list[dict]]:
        """What predicts from the measured tasks of a split, or of all for "", and their rows; None with too few."""
        rows = [row for s, row in self._measured(sampler, given) if s == split or not split]
        if len(rows) < FEWEST:
            return None, rows
        factors = np.array([row["factors"] for row in rows], np.float32)
        values = np.array([self._value(row, sampler, given) for row in rows])
        return Nearby(self._family.distance(factors, factors), values), rows

    def _on_singular(self, factors: Sequence[float], sampler: str, given: Sequence[str]) -> Expectation | None:
        """A place whose images are unlike those of its neighbours: measured there, or a stranger to all tasks."""
        for row in self._results.get("singular", []):
            value = self._value(row, sampler, given)
            if value is not None and self._distance(factors, [row]).item() == 0:
                return self._bounded(value, 0.0, 1, f"measured there, on {self._images} test images")
        why = "images there are unlike those just beside, and {} tasks stand for it"
        ways = [self._like_split(split, sampler, given, why) for split in ("unseen", "interp", "seen")]
        return next((way for way in ways if way is not None), None)

    def _itself(self, split: str, row: dict, sampler: str, given: Sequence[str]) -> Expectation:
        """A task that was measured: other networks for it may still differ on a few images."""
        basis = f"{split} task {row['task']} itself, on {self._images} test images"
        return self._bounded(self._value(row, sampler, given), 0.0, 1, basis, row["finetuned"])

    def _like_split(
        self, split: str, sampler: str, given: Sequence[str], basis: str = "{} tasks"
    ) -> Expectation | None:
        """Of tasks that are as good as drawn at random from a split."""
        rows = [row for s, row in self._measured(sampler, given) if s == split]
        values = np.array([self._value(row, sampler, given) for row in rows])
        if len(values) < 2:
            return None
        summary = {"mean": float(values.mean()), "sem": float(values.std(ddof=1)) / math.sqrt(len(values))}
        found = self._of_summary(summary, len(values), basis.format(f"{len(rows)} {split}"))
        return dataclasses.replace(found, finetuned=float(np.mean([row["finetuned"] for row in rows])))

    def _on_validation(self, sampler: str) -> Expectation | None:
        """What chose the sampler: validation tasks, on validation images."""
        scores = self._results.get("selection", {}).get("validation", {}).get(sampler)
        if scores is None:
            return None
        count = max(1, round(scores["n"] / self._results["config"]["eval"]["samples_per_task"]))
        return self._of_summary(scores, count, f"{count} validation tasks, on validation images")

    def _of_summary(self, summary: dict, count: int, basis: str) -> Expectation | None:
        """Of the mean and standard error of `count` independent values; None of a single one, which has no spread."""
        if count < 2:
            return None
        margin = student(count) * summary["sem"] * math.sqrt(count + 1)  # of one more value, not of the mean
        return self._bounded(summary["mean"], margin, count, basis)

    def _bounded(self, mean: float, margin: float, tasks: int, basis: str, tuned: float | None = None) -> Expectation:
        """Within [0, 1], and never surer than so many test images allow."""
        mean, margin = min(1.0, max(0.0, mean)), max(margin, flips(self._images))
        return Expectation(mean, max(0.0, mean - margin), min(1.0, mean + margin), tasks, basis, tuned)

    def _measured(self, sampler: str, given: Sequence[str], unheard: bool = False) -> list[tuple[str, dict]]:
        """What was measured; `unheard` tasks too, which have no place among the factors of the others."""
        rows = [(s, row) for s, row in self._rows if unheard or s != "unheard"]
        return [(s, row) for s, row in rows if self._value(row, sampler, given) is not None]

    def _distance(self, factors: Sequence[float], rows: Sequence[dict]) -> Float[np.ndarray, " rows"]:
        return self._family.distance(_row(factors), np.array([r["factors"] for r in rows], np.float32))[0]

    def _is_usual(self, given: Sequence[str]) -> bool:
        return set(given) == set(self._results["config"]["sample"]["condition"])

    def _chosen(self) -> str | None:
        return self._results.get("selection", {}).get("sampler")

    def _value(self, row: dict, sampler: str, given: Sequence[str]) -> float | None:
        """A task's accuracy when asked for by `given`, or None if that was not measured."""
        if self._is_usual(given):
            return row["generated"].get(sampler)
        if len(given) == 1 and sampler == self._chosen():
            return row["by_condition"].get(given[0])
        return None


def _either(ways: Sequence[Expectation]) -> Expectation:
    """One of several, nobody knows which."""
    if len(ways) == 1:
        return ways[0]
    tuned = [way.finetuned for way in ways if way.finetuned is not None]
    return Expectation(
        float(np.mean([way.mean for way in ways])),
        min(way.low for way in ways),
        max(way.high for way in ways),
        sum(way.tasks for way in ways),
        "an end of a region: " + " or ".join(way.basis for way in ways),
        float(np.mean(tuned)) if tuned else None,
    )


def _mixture(places: Sequence[Expectation], said: str) -> Expectation | None:
    """One of many places, each as likely; what lies between a place's ends is taken for a normal's share of HELD."""
    from scipy import special  # slow to import

    if not places:
        return None
    steps = special.ndtri((np.arange(20) + 0.5) / 20) / special.ndtri((1 + HELD) / 2)
    spread = [p.mean + np.where(steps < 0, p.mean - p.low, p.high - p.mean) * steps for p in places]
    low, high = np.quantile(spread, ((1 - HELD) / 2, (1 + HELD) / 2))
    tuned = [p.finetuned for p in places if p.finetuned is not None]
    return Expectation(
        float(np.mean([p.mean for p in places])),
        max(0.0, float(low)),
        min(1.0, float(high)),
        len(places),
        f"{len(places)} tasks of {said}",
        float(np.mean(tuned)) if tuned else None,
    )


def _row(factors: Sequence[float]) -> np.ndarray:
    return np.array([factors], np.float32)
