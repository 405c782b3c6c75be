"""Controls made of the networks of nearby seen tasks.

For a seen task its own networks are left out, so that the row says what the *other* tasks' networks
are worth there; only `Noise` starts from the task's own network when it has one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from pdiff.controls import SeenZoo
from pdiff.tasks.base import Family, Task


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Networks of the nearest other seen task."""

    zoo: SeenZoo

    @classmethod
    def fit(cls, zoo: SeenZoo) -> "Nearest":
        return cls(zoo)

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        nearest = [self.zoo.rows_of(int(near[0])) for near in other_seen(self.zoo.family, tasks)]
        return np.stack([self.zoo.tokens[_cycle(rows, count)] for rows in nearest])


@dataclasses.dataclass(frozen=True)
class Noise:
    """A network of the task itself, or of the nearest seen task, plus Gaussian noise of `scale` x the weights' rms."""

    zoo: SeenZoo
    scale: float
    rms: float

    @classmethod
    def fit(cls, zoo: SeenZoo, scale: float, num_params: int) -> "Noise":
        return cls(zoo, scale, float(np.sqrt((zoo.tokens**2).sum() / len(zoo.tokens) / num_params)))

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        rows = [self.zoo.rows_of(own_or_nearest(self.zoo.family, t)) for t in tasks]
        tokens = np.stack([self.zoo.tokens[_cycle(r, count)] for r in rows])
        return tokens + self.scale * self.rms * random.standard_normal(tokens.shape, np.float32)


@dataclasses.dataclass(frozen=True)
class LinearInterpolation:
    """The straight line between networks of one seed of the two seen neighbours, at the task's place between them.

    For families with one factor: the neighbours are the nearest other seen task on each side.
    """

    zoo: SeenZoo

    @classmethod
    def fit(cls, zoo: SeenZoo) -> "LinearInterpolation":
        return cls(zoo)

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        return np.stack([self._between(t, count) for t in tasks])

    def _between(self, task: Task, count: int) -> Float[np.ndarray, "count tokens dim"]:
        family = self.zoo.family
        period = family.factor_periods[0]
        others = [t for t in family.split("seen") if t.id != task.id]
        offsets = np.array([t.factors[0] - task.factors[0] for t in others])
        above, below = offsets, -offsets
        if period:
            above, below = above % period, below % period
        else:
            above, below = np.where(above > 0, above, np.inf), np.where(below > 0, below, np.inf)
        up, down = int(above.argmin()), int(below.argmin())
        if not (np.isfinite(above[up]) and np.isfinite(below[down])):  # nothing on one side: the nearest
            up = down = int(np.abs(offsets).argmin())
            weight = 0.0
        else:
            weight = below[down] / (above[up] + below[down])
        a = self.zoo.tokens[_cycle(self.zoo.rows_of(others[down].id), count)]
        b = self.zoo.tokens[_cycle(self.zoo.rows_of(others[up].id), count)]
        return ((1 - weight) * a + weight * b).astype(np.float32)


def own_or_nearest(family: Family, task: Task) -> int | None:
    """The id of a seen task itself, else that of the nearest seen one; None where there are no factors to tell."""
    if task.split == "seen":
        return task.id
    return int(other_seen(family, [task])[0, 0]) if family.factor_names else None


def other_seen(family: Family, tasks: Sequence[Task]) -> Int[np.ndarray, "tasks others"]:
    """Ids of the seen tasks by distance, each task itself left out."""
    seen = family.split("seen")
    distance = family.distance(family.factors(tasks), family.factors(seen))
    ids = np.array([t.id for t in seen])
    distance[np.array([t.id for t in tasks])[:, None] == ids[None]] = np.inf
    return ids[np.argsort(distance, 1, kind="stable")]


def _cycle(rows: Int[np.ndarray, " rows"], count: int) -> Int[np.ndarray, " count"]:
    return rows[np.arange(count) % len(rows)]
