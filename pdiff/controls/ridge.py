"""Closed-form ridge regression from Fourier features of a task's factors to weights.

The plainest map from a description to a network. A generator that does not beat it has shown nothing.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from pdiff.controls import SeenZoo
from pdiff.tasks.base import Task

HARMONICS = (1, 2, 3, 4, 6, 8, 12)
PENALTIES = (1e-4, 1e-2, 1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Ridge:
    """weights = base + features @ coefficients."""

    zoo: SeenZoo
    harmonics: int
    penalty: float
    coefficients: Float[np.ndarray, "features params"]

    @classmethod
    def fit(cls, zoo: SeenZoo, harmonics: int, penalty: float) -> "Ridge":
        """The minimiser of ||base + F C - W||^2 + penalty ||C||^2 over the seen networks."""
        tasks = [zoo.family.tasks[i] for i in zoo.task]
        x = _features(zoo, tasks, harmonics)
        y = (zoo.tokens - zoo.base).reshape(len(tasks), -1).astype(np.float64)
        gram = x.T @ x + penalty * np.eye(x.shape[1])
        return cls(zoo, harmonics, penalty, np.linalg.solve(gram, x.T @ y))

    @classmethod
    def select(cls, zoo: SeenZoo, validation_accuracy: Callable[["Ridge"], float]) -> "Ridge":
        """The best of a grid of harmonics and penalties, as judged on validation tasks."""
        harmonics = HARMONICS if any(zoo.family.units) else HARMONICS[:1]  # indicators have none
        fits = (cls.fit(zoo, h, p) for h, p in itertools.product(harmonics, PENALTIES))
        return max(fits, key=validation_accuracy)

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        change = _features(self.zoo, tasks, self.harmonics) @ self.coefficients
        tokens = (self.zoo.base + change.reshape(-1, *self.zoo.base.shape)).astype(np.float32)
        return np.repeat(tokens[:, None], count, 1)


def _features(zoo: SeenZoo, tasks: Sequence[Task], harmonics: int) -> Float[np.ndarray, "tasks features"]:
    """1, sin and cos of each factor's harmonics; besides these common ones, a set of them for each indicator.

    A factor that does not wrap is taken over twice its range.
    """
    family = zoo.family
    indicator = np.asarray(family.units) == 0
    factors = family.factors(tasks).astype(np.float64)
    seen = family.factors(family.split("seen")).astype(np.float64)[:, ~indicator]
    span = 2 * np.maximum(seen.max(0) - seen.min(0), 1e-9)
    periods = np.asarray(family.factor_periods)[~indicator]
    angles = 2 * np.pi * (factors[:, ~indicator] / np.where(periods > 0, periods, span))[:, :, None]
    angles = (angles * np.arange(1, harmonics + 1)).reshape(len(tasks), -1)
    common = np.concatenate([np.ones((len(tasks), 1)), np.sin(angles), np.cos(angles)], 1)
    by_indicator = factors[:, indicator, None] * common[:, None]
    return np.concatenate([common, by_indicator.reshape(len(tasks), -1)], 1)
