"""How often is a network right on its task's images, and what does it answer?"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from pdiff import dist
from pdiff.generator import Generator
from pdiff.tasks.base import Family, Task
from pdiff.zoo import score

MOST_PROBABILITIES = 256  # images for which class probabilities are kept


@dataclasses.dataclass(frozen=True)
class Answers:
    """What networks answer on one task's images.

    Attributes:
      predicted: the class with the highest logit.
      right: whether that is the label.
      probabilities: of the classes, on at most MOST_PROBABILITIES of the images, evenly chosen.
    """

    predicted: Int[np.ndarray, "nets images"]
    right: Bool[np.ndarray, "nets images"]
    probabilities: Float[np.ndarray, "nets some classes"]

    def __len__(self) -> int:
        return len(self.right)

    def __getitem__(self, rows) -> "Answers":
        return Answers(self.predicted[rows], self.right[rows], self.probabilities[rows])


class Scorer:
    """Accuracy of many networks, each on one task's images, under `vmap` in chunks over all devices.

    Args:
      part: `validation` or `test` images.
    """

    def __init__(self, generator: Generator, part: str, mesh: Mesh):
        family, images = generator.family, generator.family.data[part]
        self._mesh = mesh
        self._chunk = dist.round_up(generator.config.eval.chunk_size, mesh)
        shared = {"variables": family.variables, "x": images.x, "y": images.y, "generator": generator.arrays()}
        constants = dist.replicate(shared, mesh)

        def right(constants, networks, task):
            variables = jax.tree.map(lambda v: v[task], constants["variables"])
            apply = generator.bind(constants["generator"]).apply

            def one(network, own):
                return score.right(apply, family, network, own, constants["x"], constants["y"])

            return jax.vmap(one)(networks, variables)

        some = np.linspace(0, len(images.y) - 1, min(MOST_PROBABILITIES, len(images.y))).round().astype(int)

        def answers(constants, networks, task):
            variables = jax.tree.map(lambda v: v[task], constants["variables"])
            x, y = constants["x"], constants["y"]
            apply = generator.bind(constants["generator"]).apply

            def one(network, own):
                predicted, labels = score.answers(apply, family, network, own, x, y)
                logits = apply(network, family.render(own, x[some]))
                return {"predicted": predicted, "right": predicted == labels, "probabilities": jax.nn.softmax(logits)}

            return jax.vmap(one)(networks, variables)

        specs = (dist.REPLICATED, dist.SHARDED, dist.SHARDED)
        step, asked = (dist.data_parallel(f, mesh, specs, dist.SHARDED) for f in (right, answers))
        self._step = lambda args: step(constants, *dist.shard(args, mesh))
        self._answers = lambda args: asked(constants, *dist.shard(args, mesh))

    def right(
        self, networks: PyTree[Float[np.ndarray, "nets ..."]], task: Int[np.ndarray, " nets"]
    ) -> Bool[np.ndarray, "nets images"]:
        """Which images network i, given as its generated part, gets right on task `task[i]`."""
        return dist.map_chunks(self._step, (networks, np.asarray(task, np.int32)), len(task), self._chunk)

    def answers(self, networks: PyTree[Float[np.ndarray, "nets ..."]], task: Int[np.ndarray, " nets"]) -> Answers:
        """What network i, given as its generated part, answers on task `task[i]`."""
        ids = np.asarray(task, np.int32)
        return Answers(**dist.map_chunks(self._answers, (networks, ids), len(ids), self._chunk))

    def __call__(
        self, networks: PyTree[Float[np.ndarray, "nets ..."]], task: Int[np.ndarray, " nets"]
    ) -> Float[np.ndarray, " nets"]:
        """Accuracy of network i on task `task[i]`, in [0, 1]."""
        return self.right(networks, task).mean(-1)

    def batch(
        self, networks: PyTree[Float[Array, "batch ..."]], task: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """The same of one batch that lies on the devices, all at once; the result stays there."""
        return self._step((networks, task)).mean(-1)


def majority(family: Family, tasks: Sequence[Task], part: str = "test") -> Float[np.ndarray, " tasks"]:
    """The share of the most frequent label among each task's images: the best that a constant answer can be."""
    images = family.data[part]
    own = jax.tree.map(lambda v: jnp.asarray(v)[np.array([t.id for t in tasks])], family.variables)
    labels = np.asarray(jax.jit(jax.vmap(family.relabel, (0, None, None)))(own, images.x, images.y))
    return np.array([np.bincount(y).max() / len(y) for y in labels])


def repeat(network: PyTree, count: int) -> PyTree:
    """`count` copies of one network, without using their memory."""
    return jax.tree.map(lambda a: np.broadcast_to(np.asarray(a), (count, *jnp.shape(a))), network)
