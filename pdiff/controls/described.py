"""Controls for tasks that have words and no factors: the nearest description's networks, and a ridge from words.

A description counts by its letters in ones, twos and threes (tf-idf), and by its numbers and their squares, where all
tasks have as many.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer

from pdiff.controls import SeenZoo
from pdiff.controls.ridge import PENALTIES
from pdiff.models.text import NUMBER
from pdiff.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Described:
    """Features of descriptions, fitted to those of the seen tasks."""

    words: TfidfVectorizer
    mean: Float[np.ndarray, " numbers"]
    std: Float[np.ndarray, " numbers"]

    @classmethod
    def fit(cls, tasks: Sequence[Task]) -> "Described":
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit([_said(t) for t in tasks])
        counts = {len(_numbers(t)) for t in tasks}
        numbers = np.array([_numbers(t) for t in tasks]) if len(counts) == 1 else np.zeros((len(tasks), 0))
        return cls(words, numbers.mean(0), np.maximum(numbers.std(0), 1e-9))

    def __call__(self, tasks: Sequence[Task]) -> Float[np.ndarray, "tasks features"]:
        words = self.words.transform([_said(t) for t in tasks]).toarray()
        if not len(self.mean):
            return words
        # A task with more or fewer numbers than the seen ones is described by its words alone.
        numbers = [n if len(n) == len(self.mean) else self.mean for n in map(_numbers, tasks)]
        z = (np.array(numbers) - self.mean) / self.std
        return np.concatenate([words, z, z**2], 1)


@dataclasses.dataclass(frozen=True)
class NearestDescribed:
    """Networks of the other seen task whose description is nearest."""

    zoo: SeenZoo
    features: Described

    @classmethod
    def fit(cls, zoo: SeenZoo) -> "NearestDescribed":
        return cls(zoo, Described.fit(zoo.family.split("seen")))

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        seen = self.zoo.family.split("seen")
        gap = np.linalg.norm(self.features(tasks)[:, None] - self.features(seen)[None], axis=-1)
        gap[np.array([t.id for t in tasks])[:, None] == np.array([t.id for t in seen])[None]] = np.inf
        rows = [self.zoo.rows_of(seen[i].id) for i in gap.argmin(1)]
        return np.stack([self.zoo.tokens[r[np.arange(count) % len(r)]] for r in rows])


@dataclasses.dataclass(frozen=True)
class RidgeDescribed:
    """weights = mean of the zoo + (features - their mean) @ coefficients, by the kernel of the seen networks."""

    zoo: SeenZoo
    features: Described
    center: Float[np.ndarray, " features"]
    known: Float[np.ndarray, "nets features"]
    weights: Float[np.ndarray, "nets nets"]

    @classmethod
    def fit(cls, zoo: SeenZoo, penalty: float) -> "RidgeDescribed":
        features = Described.fit(zoo.family.split("seen"))
        x = features([zoo.family.tasks[i] for i in zoo.task])
        center = x.mean(0)
        known = x - center
        return cls(zoo, features, center, known, np.linalg.inv(known @ known.T + penalty * np.eye(len(known))))

    @classmethod
    def select(cls, zoo: SeenZoo, validation_score: Callable[["RidgeDescribed"], float]) -> "RidgeDescribed":
        """The best of the penalties, as judged on validation tasks."""
        return max((cls.fit(zoo, p) for p in PENALTIES), key=validation_score)

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        share = (self.features(tasks) - self.center) @ self.known.T @ self.weights
        share += (1 - share.sum(1, keepdims=True)) / len(self.known)  # of the mean
        tokens = (share @ self.zoo.tokens.reshape(len(self.known), -1)).astype(np.float32)
        return np.repeat(tokens.reshape(len(tasks), 1, *self.zoo.base.shape), count, 1)


def _said(task: Task) -> str:
    return " ".join(task.descriptions).lower()


def _numbers(task: Task) -> list[float]:
    return [float(n) for n in NUMBER.findall(task.descriptions[0])]
