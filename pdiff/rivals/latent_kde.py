"""A kernel density over latent codes, after SANE (Schürholt et al. 2024): codes of the zoo, noised and decoded.

The codes are of the task's own networks where it is a seen one, else of the nearest seen task's; the width of
the kernel is chosen on validation tasks. All of the training time is the auto-encoder's.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from pdiff.controls.neighbours import own_or_nearest
from pdiff.rivals.autoencoder import Autoencoder
from pdiff.rivals.learned import Learned, TrainingZoo, normal
from pdiff.tasks.base import Task

BANDWIDTHS = (0.0, 0.05, 0.1, 0.2, 0.5)  # in standard deviations of the zoo's codes


@dataclasses.dataclass(frozen=True)
class LatentKDE(Learned):
    """See above. `params` are the auto-encoder's, and the zoo's `latents` with their `task`."""

    name = "latent_kde"
    bandwidth: float = BANDWIDTHS[0]

    @classmethod
    def fit(cls, zoo: TrainingZoo) -> "LatentKDE":
        ae, latents = Autoencoder(zoo.generator).fit(zoo, cls.name, 1.0)
        return cls(zoo.generator, zoo.mesh, {"autoencoder": ae, "latents": latents, "task": zoo.task})

    def tuned(self, validation_accuracy: Callable[[Learned], float]) -> "LatentKDE":
        """With the bandwidth whose networks do best on what chooses among options."""
        return max((dataclasses.replace(self, bandwidth=b) for b in BANDWIDTHS), key=validation_accuracy)

    def given(self, tasks: Sequence[Task], count: int) -> tuple[Float[np.ndarray, "samples ..."], ...]:
        """The codes to start from, in task order, and the bandwidth of each: one program serves all bandwidths."""
        task, codes = self.params["task"], []
        for t in tasks:
            anchor = own_or_nearest(self.generator.family, t)
            rows = np.arange(len(task)) if anchor is None else np.flatnonzero(task == anchor)
            codes.append(self.params["latents"][rows[np.arange(count) % len(rows)]])
        codes = np.concatenate(codes)
        return codes, np.full((len(codes), 1), self.bandwidth, np.float32)

    def draw(
        self, params: PyTree, given: tuple[Float[Array, "batch ..."], ...], keys: Key[Array, " batch"]
    ) -> Float[Array, "batch tokens dim"]:
        codes, bandwidth = given
        z = codes + bandwidth * normal(keys, codes.shape[1:])
        return Autoencoder(self.generator).decode_standardised(params["autoencoder"], z)
