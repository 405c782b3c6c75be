"""Builds a family's zoo: pretrain a base, fine-tune every (task, seed), chunk by chunk, and align them if asked to.

Each finished chunk is kept as one file until the whole zoo is written, so an interrupted build
goes on where it stopped.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from pdiff import config as config_lib
from pdiff import dist, files
from pdiff.stopping import StopSignal
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.tasks.base import SPLITS
from pdiff.weights import codec, matching
from pdiff.weights.permutations import PermutationSpec
from pdiff.weights.spec import make_spec
from pdiff.zoo import finetune, score, store
from pdiff.zoo.store import Networks

TASKS_A_STEP = 16  # seen tasks that the minibatch of a task-blind network comes from
RENDER_BYTES = 1 << 28  # a chunk's training images are rendered once, ahead of its steps, if they fit into this


def fingerprint(config: ConfigDict) -> str:
    """Hash of everything in a run's config that shapes its zoo."""
    zoo = {k: v for k, v in config.zoo.items() if k != "dir"}
    return config_lib.fingerprint(config.tasks.to_dict(), config.target.to_dict(), zoo, config.seed)


def directory(config: ConfigDict, workdir: Path) -> Path:
    """Where the zoo of a run lives."""
    return Path(config.zoo.dir).expanduser() if config.zoo.dir else Path(workdir) / "zoo"


def build(
    family: Family, target: Target, config: ConfigDict, where: Path, mesh: Mesh, stop: StopSignal
) -> dict[str, Networks]:
    """The zoo of `config`, read if it is finished, else built or continued.

    Raises:
      PdiffError: a finished zoo is damaged.
      Interrupted: a signal came; finished chunks are kept.
    """
    name = fingerprint(config)
    if not store.exists(where, name):
        parts = Path(where) / f"{name}.parts"
        parts.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(store.location(where, name), ignore_errors=True)  # written without its manifest
        store.write(where, name, _finetune_all(family, target, config, parts, mesh, stop))
        shutil.rmtree(parts)
    return store.read(where, name)


@dataclasses.dataclass(frozen=True)
class _Jobs:
    """What to fine-tune, a row each."""

    split: np.ndarray
    task: np.ndarray
    seed: np.ndarray


def _jobs(family: Family, config: ConfigDict) -> _Jobs:
    rows = [
        (split, task.id, seed)
        for split in SPLITS
        for task in family.split(split)
        for seed in range(config.seeds_per_task if split == "seen" else config.reference_seeds)
    ]
    split, task, seed = (np.array(column) for column in zip(*rows, strict=True))
    return _Jobs(split, task.astype(np.int32), seed.astype(np.int32))


def _finetune_all(
    family: Family, target: Target, config: ConfigDict, parts: Path, mesh: Mesh, stop: StopSignal
) -> dict[str, Networks]:
    """Networks of every split, each chunk from its file if it is there."""
    zoo = config.zoo
    jobs = _jobs(family, zoo)
    chunk = zoo.chunk_size
    dist.check_divides(chunk, mesh.devices.size, "zoo.chunk_size")
    base = _kept(parts, "base", lambda: _base(family, target, config))
    base_params = jax.tree.map(lambda a: a[0], base.params)
    networks = {
        "base": base,
        "task_blind": _kept(parts, "task_blind", lambda: _task_blind(family, target, config, base_params)),
    }
    step = chunk_step(family, target, config, mesh)
    constants = dist.replicate(chunk_constants(family, base_params), mesh)
    starts = range(0, len(jobs.task), chunk)
    chunks = []
    for start in tqdm(starts, desc="zoo", unit="chunk", unit_scale=False):
        stop.check(f"with {start} of {len(jobs.task)} networks of the zoo kept")
        rows = np.minimum(np.arange(start, start + chunk), len(jobs.task) - 1)
        keep = min(chunk, len(jobs.task) - start) * zoo.keep_last

        def make(rows=rows, keep=keep) -> Networks:
            made = step(dist.shard((jobs.task[rows], jobs.seed[rows]), mesh), constants)
            return jax.tree.map(lambda a: np.asarray(a)[:keep], made)

        chunks.append(_kept(parts, f"chunk_{start:07d}", make))
    everything = Networks.concatenate(chunks)
    split = np.repeat(jobs.split, zoo.keep_last)
    by_split = {s: everything[split == s] for s in SPLITS if (split == s).any()}
    if zoo.align != "none":
        by_split = _aligned(by_split, target.generated_permutations("zoo.align"))
    return networks | by_split


def _aligned(networks: dict[str, Networks], symmetry: PermutationSpec) -> dict[str, Networks]:
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

    The kept checkpoints of a network are consecutive rows.
    """
    zoo = config.zoo
    spec = make_spec(target.abstract(), generate=target.generate)

    def step(job, constants):
        (task, seed), base = job, constants["base"]
        own = jax.tree.map(lambda v: v[task], constants["variables"])
        x, y = constants["data"]["train"]
        if len(task) * len(y) * family.features * 4 <= RENDER_BYTES:
            drawn_from = jax.vmap(family.labelled, (0, None, None))(own, x, y)

            def draw(rendered, key):
                return finetune.minibatches(*rendered, zoo.batch_size)(key)

        else:
            drawn_from = own

            def draw(own, key):
                return family.labelled(own, *finetune.minibatches(x, y, zoo.batch_size)(key))

        parts = finetune.finetune(target, base, draw, drawn_from, seed, zoo, config.seed, task)

        def accuracy(part):
            def of(network, own):
                whole = codec.complete(spec, network, base)
                return score.right(target.apply, family, whole, own, *constants["data"][part]).mean()

            return jax.vmap(jax.vmap(of, (0, None)))(parts, own).reshape(-1)

        steps = zoo.steps - zoo.keep_every * jnp.arange(zoo.keep_last - 1, -1, -1, dtype=jnp.int32)
        return Networks(
            params=jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), parts),
            task=jnp.repeat(task, zoo.keep_last),
            seed=jnp.repeat(seed, zoo.keep_last),
            step=jnp.tile(steps, len(task)),
            validation_accuracy=accuracy("validation"),
            test_accuracy=accuracy("test"),
        )

    return dist.data_parallel(step, mesh, (dist.SHARDED, dist.REPLICATED), dist.SHARDED)


def _base(family: Family, target: Target, config: ConfigDict) -> Networks:
    """The pretrained base, a whole tree, with its accuracy on images like those it was trained on."""
    params = finetune.pretrain(target, *family.pretraining_images("train"), config.zoo, config.seed)
    stacked = jax.tree.map(lambda p: p[None], params)
    return _without_task(family, target, lambda p: p, stacked, np.zeros(1, np.int32), config.zoo.pretrain_steps)


def _task_blind(family: Family, target: Target, config: ConfigDict, base: PyTree) -> Networks:
    """Networks fine-tuned on the images of all seen tasks together: what one network for everything can do."""
    zoo, images = config.zoo, family.data["train"]
    seen = jnp.array([t.id for t in family.split("seen")])
    seeds = np.arange(zoo.reference_seeds, dtype=np.int32)

    groups = min(TASKS_A_STEP, zoo.batch_size)

    @jax.jit
    def fit(variables, x, y, seeds):
        shared = finetune.minibatches(x, y, -(-zoo.batch_size // groups) * groups)

        def draw(_, key):
            chosen = jax.random.choice(jax.random.fold_in(key, 1), seen, (groups,))
            grouped = (a.reshape(groups, -1, *a.shape[1:]) for a in shared(key))
            made = jax.vmap(family.labelled)(jax.tree.map(lambda v: v[chosen], variables), *grouped)
            return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), made)

        return finetune.finetune(target, base, draw, seeds, seeds, zoo, config.seed)

    params = fit(jax.tree.map(jnp.asarray, family.variables), images.x, images.y, seeds)
    spec = make_spec(base, generate=target.generate)
    stacked = jax.tree.map(lambda p: p[:, -1], params)
    return _without_task(family, target, lambda p: codec.complete(spec, p, base), stacked, seeds, zoo.steps)


def _without_task(
    family: Family, target: Target, whole: Callable[[PyTree], PyTree], params: PyTree, seeds: np.ndarray, step: int
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


def _kept(parts: Path, name: str, make) -> Networks:
    """Reads the part `name`, or makes and keeps it. Its digest is in its file's name; a damaged one is made again."""
    for path in parts.glob(f"{name}-*.safetensors"):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] == path.stem.rsplit("-", 1)[1]:
            return store.from_bytes(data)
        path.unlink()
    made = jax.tree.map(np.asarray, make())
    data = store.to_bytes(made)
    files.write_atomic(parts / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors", data)
    return made
