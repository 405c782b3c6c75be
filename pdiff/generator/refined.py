"""The refined zoo: the mean's networks for many more conditions than there are tasks, which the prior learns from.

Networks of a zoo carry the noise of their seeds, most of which has nothing to do with the task, and exist for its tasks
only. The mean's networks (`models.mean`) carry no such noise, and there is one for whatever can be described,
held-out regions included, since that needs no data of these tasks. Where no tasks lie between the zoo's, or it has only
one (`refined.of` = "zoo"), the refined zoo is the zoo itself.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from pdiff import rng
from pdiff.generator import conditioning
from pdiff.generator.generator import MEMBERS, Generator, RefinedZoo
from pdiff.system import dist
from pdiff.system.evenly import evenly
from pdiff.tasks.base import Task
from pdiff.weights import stats, subspace
from pdiff.zoo.networks import Networks, StoredNetworks

FEWEST_HELD_OUT = 64  # networks of which an eighth chooses the number of components; of fewer, all do
GROUP = 8


def refine(generator: Generator, mean_params: PyTree, networks: Networks | StoredNetworks, mesh: Mesh) -> Generator:
    """The generator with its trained mean, the subspace and the refined zoo; `networks` are the seen ones.

    Raises:
      PdiffError: all networks of the refined zoo are the same.
    """
    generator = generator.bind(generator.arrays() | {"mean_params": mean_params})
    of_zoo, config = generator.config.refined.of == "zoo", generator.config.subspace
    condition, factors = _conditions(generator, networks if of_zoo else None)
    count, together = len(factors), max(1, stats.BLOCK_ELEMENTS // math.prod(generator.mean.shape))
    run_mean, normalize = _mean_blocks(generator, mesh), jax.jit(generator.normalize)
    stored = generator.stored

    def of_mean(rows):
        return run_mean(jax.tree.map(lambda x: x[rows], condition))

    def read(rows):
        if not of_zoo:
            return of_mean(rows)
        return np.asarray(normalize(networks[rows].params)) if stored is None else stored.seen[rows][:, None]

    def blocks(rows: Int[np.ndarray, " some"], read=read) -> Iterator[Float[np.ndarray, "some tokens dim"]]:
        for start in range(0, len(rows), together):
            yield read(rows[start : start + together])

    every = np.arange(count)
    held_out = every[GROUP - 1 :: GROUP] if count >= FEWEST_HELD_OUT else every
    fitted = np.setdiff1d(every, held_out) if count >= FEWEST_HELD_OUT else every
    fitted = fitted[evenly(len(fitted), config.networks)]
    sizes = {"most": config.components, "explained": config.explained, "multiple": config.token_dim}
    space = subspace.fit(functools.partial(blocks, fitted), functools.partial(blocks, held_out), **sizes)
    project = jax.jit(space.project)
    coefficients = np.concatenate([project(x) for x in blocks(every)])
    means = np.concatenate([project(x) for x in blocks(every, of_mean)]) if of_zoo else coefficients
    refined = RefinedZoo(coefficients, means, np.asarray(factors, np.float32))
    return generator.bind(generator.arrays() | {"subspace": space, "refined": refined})


def training_sets(generator: Generator) -> Int[np.ndarray, "sentences rows"]:
    """Rows of the refined zoo in the set of each of `refined.sentences` vague descriptions; 2 MEMBERS of each."""
    grammar, config = generator.family.grammar, generator.config.refined
    sentences = config.sentences if grammar and config.vague else 0
    random = rng.on_host(generator.config.seed, "refined/sentences")
    sets = (generator.refined.draw(grammar.sentence(random)[1], 2 * MEMBERS, random) for _ in range(sentences))
    return np.array([rows for rows in sets if len(rows)], np.int32).reshape(-1, 2 * MEMBERS)


def _conditions(
    generator: Generator, networks: Networks | StoredNetworks | None
) -> tuple[dict, Float[np.ndarray, "rows factors"]]:
    """The condition of each row, as the run samples, and its factors.

    With `networks`, those of their tasks. Else those of a grid over all that can be described; or where tasks are
    conditioned on in another way, such as by an image, of the seen tasks in turn, as in the mean's training.
    """
    family, config, given = generator.family, generator.config, generator.config.sample.condition
    random, count = rng.on_host(config.seed, "refined/wordings"), config.refined.networks
    if networks is not None:
        tasks = [family.tasks[t] for t in networks.task]
        factors = family.factors(tasks)
    elif family.vary is not None and family.grammar and set(given) <= conditioning.DESCRIBED:
        factors = family.grammar.grid(count)
        tasks = [Task("", 0, "seen", f, *family.describe(f)) for f in map(tuple, factors.tolist())]
    else:
        seen = family.split("seen")
        tasks = [seen[i % len(seen)] for i in range(max(count // len(seen), 1) * len(seen))]
        factors = family.factors(tasks)
        ids = np.array([t.id for t in tasks], np.int32)
        return conditioning.as_trained(generator, ids, given), factors
    texts = [t.descriptions[random.integers(len(t.descriptions))] for t in tasks]
    return generator.condition(tasks, texts, given), factors


def _mean_blocks(generator: Generator, mesh: Mesh) -> Callable[[dict], Float[np.ndarray, "some tokens dim"]]:
    """Conditions of any number of rows -> the mean's networks, `sample.batch_size` at a time."""
    arrays = generator.arrays()
    arrays = dist.replicate({n: arrays[n] for n in ("stats", "mean_params") if n in arrays}, mesh)
    batch = dist.round_up(generator.config.sample.batch_size, mesh)
    specs = (dist.REPLICATED, dist.SHARDED)
    step = dist.data_parallel(lambda a, c: generator.bind(a).mean_tokens(c), mesh, specs, dist.SHARDED)

    def run(condition: dict) -> Float[np.ndarray, "some tokens dim"]:
        count = len(jax.tree.leaves(condition)[0])
        return dist.map_chunks(lambda c: step(arrays, dist.shard(c, mesh)), condition, count, batch)

    return run


def mean_tokens(generator: Generator, condition: dict, mesh: Mesh) -> Float[np.ndarray, "rows tokens dim"]:
    """The mean's network for each row of a condition, in normal form."""
    return _mean_blocks(generator, mesh)(condition)


def mean_networks(generator: Generator, condition: dict, mesh: Mesh) -> PyTree[Float[np.ndarray, "rows ..."]]:
    """The same as generated parts of trees."""
    denormalize = generator.denormalize if generator.streams else jax.jit(generator.denormalize)
    return jax.tree.map(np.asarray, denormalize(mean_tokens(generator, condition, mesh)))
