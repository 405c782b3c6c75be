"""From the prior and a few labelled images of a new task to one network.

Networks are drawn from the prior, or, where a few hundred draws do not cover the tasks, from its posterior given the
images' labels (`draw_guided`). The one under which the labels are likeliest is fine-tuned for a few steps of AdamW:
all weights, or the coefficients in the subspace alone, as validation tasks choose (`evaluation.adaptation`).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from ml_collections import ConfigDict

from pdiff.diffusion import samplers
from pdiff.diffusion.guidance import by_likelihood
from pdiff.errors import PdiffError
from pdiff.generator.generator import Generator
from pdiff.system import dist
from pdiff.system.logs import log
from pdiff.tasks.support import UNKNOWN, Support

WEIGHTS, SUBSPACE = SPACES = ("weights", "subspace")
HEAD = "head"  # the target's last layer, a space for what knows the task no better than the base
WEIGHT_DECAY = 1e-2
IN_SUBSPACE = 10.0  # times the learning rate there: coefficients are that much larger than weights
TOGETHER = 256  # networks scored at a time
TASKS = 4  # tasks at a time; one program serves any number of them
MOST_STEPS = 30  # of fine-tuning for each labelled image, beyond which there is a warning

PerTask = PyTree[Float[np.ndarray, "tasks ..."]]  # one network for each task
Images = Float[Array, "images features"]
Chosen = Bool[Array, " images"] | bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Fine-tunes the chosen network, or the likeliest of `guided` ones if that is above 0.

    `space` is in SPACES, or HEAD.
    """

    space: str = WEIGHTS
    learning_rate: float = 1e-3
    steps: int = 60
    guided: int = 0


def row_for(recipes: dict[str, dict], described: bool) -> str:
    """The row of `adaptation` that a user gets: without a description, the one that did best on validation tasks."""
    if described:
        return "prior_described"
    return max((n for n in ("prior", "prior_guided") if n in recipes), key=lambda n: recipes[n]["validation"])


def recipe_for(support: Support, results: dict, config: ConfigDict, classes: int, described: bool) -> Recipe:
    """The recipe for these images: what a run's validation tasks chose for the nearest number of images per class.

    Without such results it has the lowest of the learning rates in `config`, the `adapt` part of the run's config.
    """
    per_class = max(1, int((support.y != UNKNOWN).sum()) // classes)
    recipes = results.get("adaptation", {}).get("recipes", {})
    if not recipes:
        return Recipe(learning_rate=min(config.learning_rates), steps=config.steps)
    nearest = min(recipes, key=lambda shots: abs(np.log(int(shots) / per_class)))
    chosen = recipes[nearest][row_for(recipes[nearest], described)]
    return Recipe(**{f.name: chosen.get(f.name, f.default) for f in dataclasses.fields(Recipe)})


def check_examples(support: Support, classes: Sequence[str], recipe: Recipe) -> bool:
    """Whether any of a user's images has a label. Warns where they say little, or the recipe is too long for them.

    Raises:
      PdiffError: only one image has a label.
    """
    labels = support.y[support.real & (support.y != UNKNOWN)]
    count, most = len(labels), MOST_STEPS * len(labels)
    if not count:
        log.warning(
            "warning: no image has a label: the network that is surest of its answers is taken, which on a task "
            "unlike the seen ones may be a wrong one"
        )
        return False
    if count < 2:
        raise PdiffError(
            f"labels: got 1 labelled image; allowed: at least 2, and one of each class is better: {', '.join(classes)}"
        )
    if missing := [name for label, name in enumerate(classes) if label not in labels]:
        log.warning("warning: no labelled image of %s: what is chosen was not asked about it", ", ".join(missing))
    if recipe.steps > most:
        message = "warning: steps: %d on %d labelled images fits these by heart; up to %d make sense"
        log.warning(message, recipe.steps, count, most)
    return True


class Adapter:
    """Chooses among networks and fine-tunes them, for several tasks at once; each program is compiled once."""

    def __init__(self, generator: Generator, mesh: Mesh):
        self._generator, self._mesh = generator, mesh
        self._arrays = dist.replicate(generator.arrays(), mesh)
        # One program for each function and its first, static arguments.
        self._program = functools.cache(lambda one, *static: self._mapped(functools.partial(one, *static)))

    def choose(self, networks: PyTree[Float[np.ndarray, "nets ..."]], support: Support) -> PerTask:
        """For each task of `support` the network, of a pool that all share, under which its labels are likeliest.

        Where no image has a label, it is the one that is surest of its answers: a network may be sure and wrong.
        """
        scores, count = [], len(jax.tree.leaves(networks)[0])
        for start in range(0, count, TOGETHER):
            # The last block repeats the last network: one program serves all blocks, and argmax finds the first.
            rows = np.minimum(np.arange(start, start + TOGETHER), count - 1)
            pool = dist.replicate(jax.tree.map(lambda w, rows=rows: w[rows], networks), self._mesh)
            scores.append(self._over(self._program(self._score), pool, support.tree))
        chosen = np.minimum(np.concatenate(scores, 1).argmax(1), count - 1)
        return jax.tree.map(lambda w: np.asarray(w)[chosen], networks)

    def finetune(self, networks: PerTask, support: Support, recipe: Recipe) -> PerTask:
        """One network for each task after `recipe.steps` of AdamW on all its labelled images, the rate on a cosine."""
        if not recipe.steps:
            return networks
        rates = np.full(len(support.y), recipe.learning_rate, np.float32)
        step = self._program(self._finetune, recipe.space, recipe.steps)
        return self._over(step, (), (networks, support.tree, rates))

    def draw_guided(self, params: PyTree, support: Support, count: int, key: PRNGKeyArray) -> PerTask:
        """For each task of `support` the likeliest of `count` networks that are drawn for its labelled images alone.

        DDIM draws them from the prior, whose parameters are `params`, without a description, guided by the labels'
        likelihood.
        """
        whole = dist.replicate((params, key), self._mesh)
        rows = (support.tree, np.arange(len(support.y), dtype=np.int32))
        return self._over(self._program(self._draw_guided, count), whole, rows)

    def _mapped(self, one: Callable) -> Callable:
        """`one(generator, whole, row)` over rows, split over the devices."""

        def step(arrays, whole, rows):
            bound = self._generator.bind(arrays)
            return jax.lax.map(lambda row: one(bound, whole, row), rows)

        specs = (dist.REPLICATED, dist.REPLICATED, dist.SHARDED)
        return dist.data_parallel(step, self._mesh, specs, dist.SHARDED)

    def _over(self, step: Callable, whole: PyTree, rows: PyTree[np.ndarray]) -> PyTree[np.ndarray]:
        def chunk(part):
            return step(self._arrays, whole, dist.shard(part, self._mesh))

        return dist.map_chunks(chunk, rows, len(jax.tree.leaves(rows)[0]), dist.round_up(TASKS, self._mesh))

    @staticmethod
    def _score(generator: Generator, networks: PyTree, support: dict) -> Float[Array, " nets"]:
        likelihood, labelled = _likelihood(generator.differentiated, support)

        def one(network):
            sure = negative_entropy(generator.differentiated, network, support["x"], support["real"])
            return jnp.where(labelled.any(), likelihood(network), sure)

        return jax.vmap(one)(networks)

    @staticmethod
    def _draw_guided(count: int, generator: Generator, whole: tuple, row: tuple) -> PyTree:
        (params, key), (support, number) = whole, row
        each, labelled = _likelihood(generator.differentiated, support)
        config = generator.config.sample

        def likelihood(x0):
            return labelled.sum(dtype=x0.dtype) * jax.vmap(each)(generator.decode(x0))

        everything = generator.refined.everything
        denoise = generator.denoiser(params, jnp.broadcast_to(everything, (count, *everything.shape)))
        noise = jax.random.normal(jax.random.fold_in(key, number), (count, *generator.shape))
        levels = samplers.noise_levels(generator.path, config.num_steps, config.rho)
        keys = jax.random.split(key, count)  # DDIM does not use them
        x0 = samplers.ddim(by_likelihood(denoise, likelihood), generator.path, noise, levels, keys)
        best = likelihood(x0).argmax()
        return jax.tree.map(lambda w: w[0], generator.decode(x0[best][None]))

    @staticmethod
    def _finetune(space: str, steps: int, generator: Generator, whole: tuple, row: tuple) -> PyTree:
        network, support, rate = row
        inside = space == SUBSPACE
        # With the rate at 1 here, so that one program serves all rates.
        schedule = optax.cosine_decay_schedule(1.0, steps)
        adam = optax.adamw(schedule, weight_decay=0.0 if inside else WEIGHT_DECAY)
        rate = rate * (IN_SUBSPACE if inside else 1.0)
        likelihood, _ = _likelihood(generator.differentiated, support)
        start = generator.encode(jax.tree.map(lambda w: w[None], network)) if inside else network

        def read(parameters):
            return jax.tree.map(lambda w: w[0], generator.decode(parameters)) if inside else parameters

        def step(carry, _):
            parameters, state = carry
            gradients = jax.grad(lambda p: -likelihood(read(p)))(parameters)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
                updates, state = adam.update(gradients, state, parameters)
            moves = _in_head(generator, parameters) if space == HEAD else jax.tree.map(lambda _: True, parameters)
            return (jax.tree.map(lambda p, u, m: p + rate * u if m else p, parameters, updates, moves), state), None

        return read(jax.lax.scan(step, (start, adam.init(start)), length=steps)[0][0])


def _in_head(generator: Generator, network: PyTree) -> PyTree[bool]:
    """Which leaves are the target's last layer."""
    leaves = traverse_util.flatten_dict(network, sep="/")
    head = {path: bool(re.fullmatch(generator.target.head, path)) for path in leaves}
    return traverse_util.unflatten_dict(head, sep="/")


def _likelihood(apply: Callable, support: dict) -> tuple[Callable, Bool[Array, " images"]]:
    """The `log_likelihood` of a task's labelled images, as a function of one network, and which images these are."""
    labelled, y = (support["y"] != UNKNOWN) & support["real"], jnp.maximum(support["y"], 0)
    return lambda network: log_likelihood(apply, network, support["x"], y, labelled), labelled


def log_likelihood(
    apply: Callable, network: PyTree, x: Images, y: Int[Array, " images"], real: Chosen = True
) -> Float[Array, ""]:
    """Mean log-likelihood, in nats, of the labels of those support images that are `real`, under one network."""
    return _mean(jnp.take_along_axis(jax.nn.log_softmax(apply(network, x), -1), y[:, None], 1)[:, 0], real)


def negative_entropy(apply: Callable, network: PyTree, x: Images, real: Chosen = True) -> Float[Array, ""]:
    """Minus the mean entropy, in nats, of a network's answers on those support images that are `real`."""
    logp = jax.nn.log_softmax(apply(network, x), -1)
    return _mean((jnp.exp(logp) * logp).sum(-1), real)


def _mean(values: Float[Array, " images"], real: Chosen) -> Float[Array, ""]:
    """Of the values that are `real`; 0 if none is."""
    count = jnp.broadcast_to(real, values.shape).sum(dtype=values.dtype)
    return jnp.where(real, values, 0).sum() / jnp.maximum(count, 1)
