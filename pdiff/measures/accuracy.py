"""How often is a network right on its task's images, and what does it answer?"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from pdiff.errors import PdiffError
from pdiff.generator.generator import Generator
from pdiff.system import dist
from pdiff.system.evenly import evenly
from pdiff.tasks.base import Family, Task
from pdiff.zoo import score

AT_ONCE_ON_CPU = 4  # networks that a CPU's device answers for together; one where `score` takes images block by block
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
    """Accuracy of many networks, each on one task's images, in chunks over all devices.

    Args:
      part: `validation` or `test` images.
    """

    def __init__(self, generator: Generator, part: str, mesh: Mesh):
        family = generator.family
        if part not in family.data:
            raise PdiffError(f"the family {family.name} has no images, so no accuracy can be measured")
        images = family.data[part]
        self._mesh = mesh
        self._chunk = dist.round_up(generator.config.eval.chunk_size, mesh)
        variables, x, y = jax.tree.map(jnp.asarray, family.variables), jnp.asarray(images.x), jnp.asarray(images.y)
        ahead = family.fit_rendered(len(family.tasks), len(y))
        if ahead:
            variables, x, y = jax.jit(jax.vmap(family.all_of_task, (0, None, None)))(variables, x, y), None, None
        constants = dist.replicate({"own": variables, "x": x, "y": y, "generator": generator.arrays()}, mesh)
        some = evenly(len(images.y), MOST_PROBABILITIES)
        at_once = AT_ONCE_ON_CPU if len(images.y) <= score.block_size(images.x) else 1

        def each(constants, networks, task, answer):
            """`answer(apply, network, own, x, y)` of each network, on the images that it has or renders."""
            apply = generator.bind(constants["generator"]).apply

            def one(pair):
                network, task = pair
                variables = jax.tree.map(lambda v: v[task], constants["own"])
                x, y = variables if ahead else family.shared(variables, constants["x"], constants["y"])
                return answer(apply, network, variables, x, y)

            on_cpu = mesh.devices.flat[0].platform == "cpu"
            return jax.lax.map(one, (networks, task), batch_size=at_once if on_cpu else len(task))

        def labelled(variables, x, y):
            return (x, y) if ahead else family.labelled(variables, x, y)

        def right(constants, networks, task):
            def answer(apply, network, variables, x, y):
                return score.right(apply, labelled, network, variables, x, y)

            return each(constants, networks, task, answer)

        def answers(constants, networks, task):
            def answer(apply, network, variables, x, y):
                predicted, labels = score.answers(apply, labelled, network, variables, x, y)
                logits = apply(network, labelled(variables, x[some], y[some])[0])
                return {"predicted": predicted, "right": predicted == labels, "probabilities": jax.nn.softmax(logits)}

            return each(constants, networks, task, answer)

        specs = (dist.REPLICATED, dist.SHARDED, dist.SHARDED)
        step, answering = (dist.data_parallel(f, mesh, specs, dist.SHARDED) for f in (right, answers))
        self._step = lambda args: step(constants, *dist.shard(args, mesh))
        self._answers = lambda args: answering(constants, *dist.shard(args, mesh))

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

    def batch(self, networks: PyTree[Float[Array, "batch ..."]], task: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """The same of one batch that lies on the devices, all at once; the result stays there."""
        return self._step((networks, task)).mean(-1)


def majority(family: Family, tasks: Sequence[Task], part: str = "test") -> Float[np.ndarray, " tasks"]:
    """The share of the most frequent label among each task's images: the best that a constant answer can be."""
    return np.array([np.bincount(y).max() / len(y) for y in family.labels(tasks, part)])


def repeat(network: PyTree, count: int) -> PyTree:
    """`count` copies of one network, without using their memory."""
    return jax.tree.map(lambda a: np.broadcast_to(np.asarray(a), (count, *jnp.shape(a))), network)
