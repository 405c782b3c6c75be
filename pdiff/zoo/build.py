"""Builds a family's zoo: pretrain a base, fine-tune every (task, seed), chunk by chunk, and align them if asked to.

All processes train each chunk together, each on its own devices, and each keeps the networks of these in a file
(`parts`) until the whole zoo is written. So networks never move between processes, no process ever holds the zoo, and
an interrupted build continues where it stopped.
"""

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from pdiff import config as config_lib
from pdiff.system import claim, dist, processes
from pdiff.system.stopping import StopSignal
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.tasks.base import FITTED_SPLITS
from pdiff.weights import codec, matching
from pdiff.weights.permutations import PermutationSpec
from pdiff.weights.spec import make_spec
from pdiff.zoo import finetune, parts, score, store
from pdiff.zoo.networks import Networks, StoredNetworks, tree_bytes

TASKS_A_STEP = 16  # seen tasks that the minibatch of a task-blind network comes from
NETWORKS_A_CORE, NETWORKS_AN_ACCELERATOR = 16, 128  # trained together on a device; 16 fit into a core's cache


def directory(config: ConfigDict, workdir: Path) -> Path:
    """Where the zoo of a run lives."""
    return Path(config.zoo.dir).expanduser() if config.zoo.dir else Path(workdir) / "zoo"


def build(
    family: Family, target: Target, config: ConfigDict, where: Path, mesh: Mesh, stop: StopSignal
) -> dict[str, Networks | StoredNetworks]:
    """The zoo of `config`, read if it is finished, else built or continued. All processes call it together.

    Of a finished one, only damaged or missing files are made again.

    Raises:
      PdiffError: `zoo.memory_mb` is too small for it, it is of another format, or another run is building it.
      Interrupted: a signal came; finished chunks are kept.
    """
    name, outline = config_lib.zoo_fingerprint(config), _outline(family, target, config)
    store.check_memory(config.zoo.memory_mb, len(family.split("seen")), tree_bytes(outline.shapes))
    folder = Path(where) / f"{name}.parts"
    if not processes.all_hold(not processes.is_first() or store.is_whole(where, name)):
        with claim.claimed(folder, f"the zoo in {where}"):
            processes.on_first(partial(store.remove_damaged, where, name), "sure of what the zoo lacks")
            missing = store.missing(where, name, outline)
            if missing:  # else another run has just finished it
                base = None if store.BASE in missing else store.base(where, name)
                shards = [s for s in outline.shards(folder) if s.path.name in missing]
                networks = _networks(family, target, config, folder, mesh, stop, outline, shards, base)
                store.write(where, name, networks, outline, missing)
    processes.on_first(partial(_remove, folder), "done with the parts of the zoo")
    return store.read_verified(where, name, config.zoo.memory_mb)


def _remove(folder: Path) -> None:
    """Removes the parts of a finished zoo, also those that a killed run has left."""
    if folder.exists() and claim.holder(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)


def _outline(family: Family, target: Target, config: ConfigDict) -> store.Outline:
    """What the zoo will hold."""
    jobs = _jobs(family, config.zoo)
    counts = {s: n * config.zoo.keep_last for s in FITTED_SPLITS if (n := int((jobs.split == s).sum()))}
    spec = make_spec(target.abstract(), generate=target.generate)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), codec.take(spec, target.abstract()))
    return store.Outline({"task_blind": config.zoo.reference_seeds, **counts}, shapes)


@dataclasses.dataclass(frozen=True)
class _Jobs:
    """What to fine-tune, a row each."""

    split: np.ndarray
    task: np.ndarray
    seed: np.ndarray


def _jobs(family: Family, config: ConfigDict) -> _Jobs:
    rows = [
        (split, task.id, seed)
        for split in FITTED_SPLITS
        for task in family.split(split)
        for seed in range(config.seeds_per_task if split == "seen" else config.reference_seeds)
    ]
    split, task, seed = (np.array(column) for column in zip(*rows, strict=True))
    return _Jobs(split, task.astype(np.int32), seed.astype(np.int32))


def _networks(
    family: Family,
    target: Target,
    config: ConfigDict,
    folder: Path,
    mesh: Mesh,
    stop: StopSignal,
    outline: store.Outline,
    shards: list[store.Shard],
    base: Networks | None,
) -> dict[str, store.Slices]:
    """At least the networks of `shards`, some of those of `outline`, by split; those of tasks are read from `folder`.

    They are fine-tuned from `base`, which is trained first if it is None. Alignment needs all networks, and makes them.
    """
    jobs, keep = _jobs(family, config.zoo), config.zoo.keep_last
    base = base or _of_first(folder, "base", lambda: _base(family, target, config))
    base_params, networks = jax.tree.map(lambda a: a[0], base.params), {"base": base}
    if any(s.split == "task_blind" for s in shards):
        blind = _of_first(folder, "task_blind", lambda: task_blind(family, target, config, base_params))
        networks["task_blind"] = blind
    counts = {split: outline.counts.get(split, 0) for split in FITTED_SPLITS}
    first = dict(zip(FITTED_SPLITS, np.cumsum([0, *counts.values()]).tolist(), strict=False))  # first row of each split
    due = np.full(len(jobs.task), config.zoo.align != "none")
    for shard in (s for s in shards if s.split in FITTED_SPLITS):
        due[np.arange(first[shard.split] + shard.rows.start, first[shard.split] + shard.rows.stop) // keep] = True
    if due.any():
        step = chunk_step(family, target, config, mesh)
        constants = dist.replicate(chunk_constants(family, base_params), mesh)
        _finetune_jobs(jobs, due, lambda job: step(job, constants), config, folder, mesh, stop)
    processes.barrier("done with the networks of the zoo")
    finished = parts.Parts(folder)
    by_split = {s: parts.Rows(finished, first[s], first[s] + n) for s, n in counts.items() if n}
    if config.zoo.align != "none":
        in_memory = {split: rows[:] for split, rows in by_split.items()}
        by_split = aligned(in_memory, target.generated_permutations("zoo.align"))
    return networks | by_split


def _finetune_jobs(
    jobs: _Jobs, due: np.ndarray, step: Callable, config: ConfigDict, folder: Path, mesh: Mesh, stop: StopSignal
) -> None:
    """Fine-tunes the jobs that are due, in the chunks of all, into `folder`.

    A chunk is finished when every process has its own rows.
    """
    count, chunk, keep = len(jobs.task), chunk_size(config, mesh), config.zoo.keep_last
    local, finished = _ranges(dist.local_rows(chunk, mesh, dist.SHARDED)), parts.Parts(folder)
    starts = [start for start in range(0, count, chunk) if due[start : start + chunk].any()]
    quiet = not processes.is_first()
    for start in tqdm(starts, desc="zoo", unit="chunk", unit_scale=False, disable=quiet):
        stop.check(f"with {start} of {count} networks of the zoo kept")
        ranges = [(start + a, min(start + b, count)) for a, b in local if start + a < count]
        if processes.all_hold(all(finished.hold(a * keep, b * keep) for a, b in ranges)):
            continue
        rows = np.minimum(np.arange(start, start + chunk), count - 1)
        networks = jax.tree.map(_local_rows, step(dist.shard((jobs.task[rows], jobs.seed[rows]), mesh)))
        first = 0
        for (a, b), (low, high) in zip(ranges, local, strict=False):
            parts.keep_rows(folder, a * keep, networks[first * keep : (first + b - a) * keep])
            first += high - low


def _ranges(rows: np.ndarray) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, (first, last + 1)."""
    pieces = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [(int(p[0]), int(p[-1]) + 1) for p in pieces]


def _local_rows(x: jax.Array) -> np.ndarray:
    """Those rows of an array, split over devices by them, that this process has, in their order."""
    shards = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _of_first(folder: Path, name: str, make: Callable[[], Networks]) -> Networks:
    """Networks that process 0 reads or makes while the others wait, which then read them."""
    processes.on_first(lambda: parts.read_or_make(folder, name, make), f"given the networks '{name}'")
    return parts.read_or_make(folder, name, make)


def aligned(networks: dict[str, Networks], symmetry: PermutationSpec) -> dict[str, Networks]:
    """The seen networks in one order of hidden units, and those of other splits matched to the mean of these."""
    seen, mean = matching.align_to_mean(symmetry, networks["seen"].params)
    aligned = {s: seen if s == "seen" else matching.align(symmetry, n.params, mean) for s, n in networks.items()}
    return {s: dataclasses.replace(n, params=aligned[s]) for s, n in networks.items()}


def chunk_constants(family: Family, base: PyTree) -> dict:
    """The arrays that every chunk's step reads, replicated once: images, task variables, and the base's whole tree."""
    data = {part: (images.x, images.y) for part, images in family.data.items()}
    return {"variables": family.variables, "data": data, "base": base}


def chunk_step(family: Family, target: Target, config: ConfigDict, mesh: Mesh):
    """((task ids, seeds), constants) -> Networks, jitted and sharded over devices.

    Rows are consecutive ones of a zoo's jobs, which go through the seeds of one task after the other. So networks
    share the images of their task, which are rendered once. The kept checkpoints of a network are consecutive rows.
    """
    zoo = config.zoo
    spec = make_spec(target.abstract(), generate=target.generate)

    def step(job, constants):
        (task, seed), base = job, constants["base"]
        variables = jax.tree.map(lambda v: v[task], constants["variables"])
        x, y = constants["data"]["train"]
        distinct = _most_tasks(zoo, len(task))
        if family.fit_rendered(distinct, len(y)):
            tasks, drawn_from = jnp.unique(task, size=distinct, return_inverse=True)
            rendered = _rendered(family, jax.tree.map(lambda v: v[tasks], constants["variables"]), x, y)

            def take(which, rows):
                at = which * len(y) + rows
                return jax.tree.map(lambda a: a.at[at].get(mode="promise_in_bounds"), rendered)

        else:
            drawn_from = variables

            def take(variables, rows):
                return family.of_task(variables, x, y, rows)

        draw = finetune.minibatches(x, y, zoo.batch_size).rows
        params = finetune.finetune(target, base, draw, take, drawn_from, seed, zoo, config.seed, task)

        def accuracy(part):
            def of(network, variables):
                whole = codec.complete(spec, network, base)
                images = family.shared(variables, *constants["data"][part])
                return score.right(target.apply, family.labelled, whole, variables, *images).mean()

            return jax.vmap(jax.vmap(of, (0, None)))(params, variables).reshape(-1)

        steps = zoo.steps - zoo.keep_every * jnp.arange(zoo.keep_last - 1, -1, -1, dtype=jnp.int32)
        return Networks(
            params=jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), params),
            task=jnp.repeat(task, zoo.keep_last),
            seed=jnp.repeat(seed, zoo.keep_last),
            step=jnp.tile(steps, len(task)),
            validation_accuracy=accuracy("validation"),
            test_accuracy=accuracy("test"),
        )

    return dist.data_parallel(step, mesh, (dist.SHARDED, dist.REPLICATED), dist.SHARDED)


def chunk_size(config: ConfigDict, mesh: Mesh) -> int:
    """How many networks are trained together: `zoo.chunk_size` of a run's config, or where that is 0 what is fast.

    Raises:
      PdiffError: they do not divide over the devices.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    size = config.zoo.chunk_size or mesh.devices.size * (NETWORKS_A_CORE if on_cpu else NETWORKS_AN_ACCELERATOR)
    dist.check_divides(size, mesh.devices.size, "zoo.chunk_size")
    return size


def _most_tasks(config: ConfigDict, rows: int) -> int:
    """The most tasks that as many consecutive rows of `_jobs` can have: all but the first and last with all seeds."""
    return min(rows, (rows - 2) // min(config.seeds_per_task, config.reference_seeds) + 2)


def _rendered(family: Family, variables: PyTree, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The images and labels of all of these tasks, one task after the other."""
    labelled = jax.vmap(family.all_of_task, (0, None, None))(variables, x, y)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), labelled)


def _base(family: Family, target: Target, config: ConfigDict) -> Networks:
    """The pretrained base, a whole tree, with its accuracy on images like those it was trained on."""
    params = finetune.pretrain(target, *family.pretraining_images("train"), config.zoo, config.seed)
    stacked = jax.tree.map(lambda p: p[None], params)
    return without_task(family, target, stacked, np.zeros(1, np.int32), config.zoo.pretrain_steps)


def task_blind(family: Family, target: Target, config: ConfigDict, base: PyTree) -> Networks:
    """Networks fine-tuned on the images of all seen tasks together: what one network for everything can do."""
    zoo, images = config.zoo, family.data["train"]
    seen = jnp.array([t.id for t in family.split("seen")])
    seeds = np.arange(zoo.reference_seeds, dtype=np.int32)
    groups = min(TASKS_A_STEP, zoo.batch_size)

    @jax.jit
    def fit(base, variables, x, y, seeds):
        shared = finetune.minibatches(x, y, -(-zoo.batch_size // groups) * groups)

        def draw(key):
            return shared.rows(key), jax.random.choice(jax.random.fold_in(key, 1), seen, (groups,))

        def take(_, drawn):
            rows, chosen = drawn
            of_tasks = jax.vmap(family.of_task, (0, None, None, 0))
            labelled = of_tasks(jax.tree.map(lambda v: v[chosen], variables), x, y, rows.reshape(groups, -1))
            return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), labelled)

        return finetune.finetune(target, base, draw, take, seeds, seeds, zoo, config.seed)

    params = fit(base, jax.tree.map(jnp.asarray, family.variables), images.x, images.y, seeds)
    spec = make_spec(base, generate=target.generate)
    stacked = jax.tree.map(lambda p: p[:, -1], params)
    return without_task(family, target, stacked, seeds, zoo.steps, lambda p: codec.complete(spec, p, base))


def without_task(
    family: Family,
    target: Target,
    params: PyTree,
    seeds: np.ndarray,
    step: int,
    whole: Callable[[PyTree], PyTree] = lambda p: p,
) -> Networks:
    """Networks that belong to no task; their accuracies are on the images that the base was pretrained on.

    `whole` makes a tree that the target takes of one of the stacked `params`.
    """

    @jax.jit
    def accuracy(params, images):
        def of(network):
            tree = whole(network)
            return score.in_blocks(lambda rows: target.apply(tree, rows[0]).argmax(-1) == rows[1], images).mean()

        return jax.lax.map(of, params)

    return Networks(
        params=jax.tree.map(np.asarray, params),
        task=np.full(len(seeds), -1, np.int32),
        seed=seeds,
        step=np.full(len(seeds), step, np.int32),
        validation_accuracy=np.asarray(accuracy(params, family.pretraining_images("validation"))),
        test_accuracy=np.asarray(accuracy(params, family.pretraining_images("test"))),
    )
