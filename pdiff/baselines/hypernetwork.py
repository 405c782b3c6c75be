"""A hypernetwork: the same encoders, transformer, losses, data and steps, and no diffusion (Ha et al. 2017).

It is the generator itself with its noisy input taken away, always at sigma_max, so that it can only learn
one network for each condition. What a diffusion model is worth is what it does better than this.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from pdiff import conditioning
from pdiff.baselines.learned import raw_by_task
from pdiff.generator import Generator
from pdiff.sample import Samplers
from pdiff.tasks.base import Task

SAMPLER = "posterior_mean"  # the only one that means anything here


def rival(generator: Generator) -> Generator:
    """The deterministic generator to train beside `generator`."""
    config = generator.config.copy_and_resolve_references()
    with config.unlocked():
        config.diffusion.at_sigma_max = 1.0
        config.sample.samplers = (SAMPLER,)
    return dataclasses.replace(generator, config=config, deterministic=True)


@dataclasses.dataclass(frozen=True)
class Hypernetwork:
    """A trained one; `generator` is what `rival` made."""

    generator: Generator
    mesh: Mesh
    params: PyTree[np.ndarray]

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        """As many copies of its network for each wording; raw tokens."""
        condition = conditioning.asked(self.generator, tasks, count)
        key = jax.random.key(int(random.integers(2**31)))
        made = self._samplers.tokens(self.params, SAMPLER, condition, key)
        return raw_by_task(self.generator, made, len(tasks))

    @functools.cached_property
    def _samplers(self) -> Samplers:
        return Samplers(self.generator, self.mesh)  # compiled once for all splits
