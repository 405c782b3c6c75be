"""What a trained generator can be asked for, and how images have to look, as `LoadedGenerator.describe` says it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pdiff.config.fields import SAMPLERS
from pdiff.generator.generator import Generator
from pdiff.tasks.base import EVERY_SPLIT, Family, Task

NAMED = 3  # tasks of a split that are named
TURNING = {"degrees": "counter-clockwise"}  # factors by name that go round one way


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The tasks of a split: how many there are, some names, and the held-out ranges of the first factor, if any."""

    count: int
    names: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Overview:
    """What a generator can be asked for; `str` says it in lines.

    Attributes:
      family: its name.
      target: the name of the network that is generated.
      weights: how many of its numbers are generated, and how many it has.
      tasks: by split.
      prompts: examples that work, precise and vague; none where only tasks can be asked for.
      factors: the least and the largest number for each factor, as descriptions write it.
      indicators: factors that are there or not, such as a class, and are written in words.
      turning: which way each factor that is an angle turns.
      texts: whether the inputs are texts, and no images.
      image_shape: of one image; images are (images, *image_shape), or flat, with pixels from 0 to 1.
      classes: what the labels 0, 1, … are called.
      samplers: those that may be chosen, the default first.
      conditions: what it was trained to be asked by.
    """

    family: str
    target: str
    weights: tuple[int, int]
    tasks: dict[str, Tasks]
    prompts: tuple[str, ...]
    factors: dict[str, tuple[float, float]]
    indicators: tuple[str, ...]
    turning: dict[str, str]
    texts: bool
    image_shape: tuple[int, ...]
    classes: tuple[str, ...]
    samplers: tuple[str, ...]
    conditions: tuple[str, ...]

    def __str__(self) -> str:
        generated, all_weights = self.weights
        of = "" if generated == all_weights else f" of {all_weights:,}"
        lines = [f"networks: {self.target}, {generated:,}{of} weights; tasks: the family {self.family}"]
        for split, tasks in self.tasks.items():
            where = ", ".join(f"{low:g} to {high:g}" for low, high in tasks.ranges)
            held_out = f", held out: {where} {next(iter(self.factors))}" if where else ""
            lines.append(f"  {split}: {tasks.count} tasks, such as {', '.join(tasks.names)}{held_out}")
        if self.prompts:
            lines += ["prompts, such as", *(f"  {prompt}" for prompt in self.prompts)]
        else:
            lines.append("prompts: none are read; ask for a task by its name")
        for name, (low, high) in self.factors.items():
            turning = f", {self.turning[name]}" if name in self.turning else ""
            lines.append(f"  {name}: {low:g} to {high:g}{turning}")
        if self.indicators:
            lines.append(f"  there or not: {_listed(self.indicators)}")
        if self.texts:
            lines.append(f"inputs: lists of texts in English; classes: {_listed(self.classes)}")
        elif self.classes:
            shape, features = ", ".join(map(str, self.image_shape)), math.prod(self.image_shape)
            flat = f" or (images, {features})" if len(self.image_shape) > 1 else ""
            lines.append(f"images: (images, {shape}){flat}, pixels from 0 to 1; classes: {_listed(self.classes)}")
        else:
            lines.append("images: none; networks were imported without any")
        lines.append(f"samplers: {self.samplers[0]} by default; {', '.join(self.samplers[1:])}")
        lines.append(f"conditions: {', '.join(self.conditions)}")
        return "\n".join(lines)


def overview(static: Generator, prompts: Sequence[str], sampler: str) -> Overview:
    """The overview of a generator that reads these prompts and by default draws with this sampler."""
    family, spec = static.family, static.spec
    numbered = list(zip(family.factor_names, family.units, ranges(family), indicators(family), strict=True))
    return Overview(
        family=family.name,
        target=static.target.name,
        weights=(spec.num_params, sum(leaf.size for leaf in spec.all_leaves)),
        tasks={s: _tasks(family.split(s), family.arcs.get(s, ())) for s in EVERY_SPLIT if family.split(s)},
        prompts=tuple(prompts),
        factors={name: (low / unit, high / unit) for name, unit, (low, high), there in numbered if not there},
        indicators=tuple(name for name, *_, there in numbered if there),
        turning=turning(family),
        texts=family.reads is not None,
        image_shape=family.image_shape,
        classes=family.classes,
        samplers=(sampler, *(s for s in SAMPLERS if s != sampler)),
        conditions=tuple(static.config.condition.use),
    )


def ranges(family: Family) -> list[tuple[float, float]]:
    """The least and the largest value of each factor."""
    columns = zip(family.factors().T, family.factor_periods, strict=True)
    return [(0.0, period) if period else (float(column.min()), float(column.max())) for column, period in columns]


def indicators(family: Family) -> list[bool]:
    """Whether each factor is 0 or 1: something is there or not."""
    columns = zip(family.factors().T, family.units, strict=True)
    return [not unit or set(np.unique(column)) <= {0.0, 1.0} for column, unit in columns]


def turning(family: Family) -> dict[str, str]:
    """By name of a factor that is an angle, which way it turns."""
    return {
        n: TURNING[n] for n, p in zip(family.factor_names, family.factor_periods, strict=True) if p and n in TURNING
    }


def _tasks(tasks: Sequence[Task], arcs: Sequence[tuple[float, float]]) -> Tasks:
    return Tasks(len(tasks), tuple(t.name for t in tasks[:NAMED]), tuple((float(a), float(b)) for a, b in arcs))


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")
