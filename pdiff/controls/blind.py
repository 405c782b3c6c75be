"""Controls that ignore the task: the accuracy of what is conditioned on nothing."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdiff.controls import SeenZoo
from pdiff.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Soup:
    """The mean of the whole zoo (Wortsman et al. 2022)."""

    mean: Float[np.ndarray, "tokens dim"]

    @classmethod
    def fit(cls, zoo: SeenZoo) -> "Soup":
        return cls(zoo.tokens.mean(0))

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        return np.broadcast_to(self.mean, (len(tasks), count, *self.mean.shape))


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """An independent Gaussian for every parameter, fitted to the whole zoo."""

    mean: Float[np.ndarray, "tokens dim"]
    std: Float[np.ndarray, "tokens dim"]

    @classmethod
    def fit(cls, zoo: SeenZoo) -> "Gaussian":
        return cls(zoo.tokens.mean(0), zoo.tokens.std(0))

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        noise = random.standard_normal((len(tasks), count, *self.mean.shape), np.float32)
        return self.mean + self.std * noise
