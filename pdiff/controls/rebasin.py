"""Git Re-Basin (Ainsworth et al. 2023): the mean of two networks whose hidden units were put into one order."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdiff.controls import SeenZoo
from pdiff.controls.neighbours import other_seen
from pdiff.tasks.base import Task
from pdiff.weights import codec, matching
from pdiff.weights.permutations import PermutationSpec, apply_permutation
from pdiff.weights.spec import Spec


@dataclasses.dataclass(frozen=True)
class RebasinMerge:
    """Networks of the two nearest other seen tasks, matched and averaged; of two seeds where there is one seen task."""

    zoo: SeenZoo
    spec: Spec
    symmetry: PermutationSpec

    @classmethod
    def fit(cls, zoo: SeenZoo, spec: Spec, symmetry: PermutationSpec) -> "RebasinMerge":
        return cls(zoo, spec, symmetry)

    def sample(
        self, tasks: Sequence[Task], count: int, random: np.random.Generator
    ) -> Float[np.ndarray, "tasks count tokens dim"]:
        return np.stack([[self._merged(*rows) for rows in self._pairs(task, count)] for task in tasks])

    def _pairs(self, task: Task, count: int) -> list[tuple[int, int]]:
        """Rows of the networks to merge."""
        if len(set(self.zoo.task.tolist())) == 1:
            rows = (np.arange(count + 1) % len(self.zoo.task)).tolist()
            return list(zip(rows[:-1], rows[1:], strict=True))
        a, b = (self.zoo.rows_of(t).tolist() for t in other_seen(self.zoo.family, [task])[0, :2].tolist())
        return [(a[i % len(a)], b[i % len(b)]) for i in range(count)]

    def _merged(self, i: int, j: int) -> Float[np.ndarray, "tokens dim"]:
        a, b = (codec.decode_part(self.spec, self.zoo.tokens[k]) for k in (i, j))
        order = matching.weight_matching(self.symmetry, a, b).permutations
        matched = codec.encode_part(self.spec, apply_permutation(self.symmetry, order, b))
        return (self.zoo.tokens[i] + np.asarray(matched)) / 2
