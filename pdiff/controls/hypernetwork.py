"""The hypernetwork: the mean alone, one network for each condition (Ha et al. 2017).

What a diffusion model is worth is what it does better than this.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from pdiff.controls import raw_by_task
from pdiff.generator import conditioning
from pdiff.generator.generator import Generator
from pdiff.generator.refined import mean_tokens
from pdiff.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Hypernetwork:
    """The mean of a trained generator."""

    generator: Generator
    mesh: Mesh

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        """As many copies of its network for each wording; raw tokens."""
        tokens = mean_tokens(self.generator, conditioning.sample_condition(self.generator, tasks, count), self.mesh)
        return raw_by_task(self.generator, tokens, len(tasks))
