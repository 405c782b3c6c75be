"""Builds a family's zoo: pretrain a base, then fine-tune every (task, seed), chunk by chunk.

Each finished chunk is kept as one file until the whole zoo is written, so an interrupted build
goes on where it stopped.
"""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from pdiff import config as config_lib
from pdiff import dist, files, rng
from pdiff.stopping import StopSignal
from pdiff.targets import Target
from pdiff.tasks import Family
from pdiff.tasks.base import SPLITS
from pdiff.zoo import finetune, store
from pdiff.zoo.store import Networks

TASK_BLIND_COPIES = 8  # rotations, say, that a task-blind network sees of each training image


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
    dist.check_divides(chunk, mesh, "zoo.chunk_size")
    base = _kept(parts, "base", lambda: _base(family, target, config))
    base_params = jax.tree.map(lambda a: a[0], base.params)
    networks = {
        "base": base,
        "task_blind": _kept(parts, "task_blind", lambda: _task_blind(family, target, config, base_params)),
    }
    step = _chunk_step(family, target, config, base_params, mesh)
    starts = range(0, len(jobs.task), chunk)
    chunks = []
    for start in tqdm(starts, desc="zoo", unit="chunk", unit_scale=False):
        stop.check(f"with {start} of {len(jobs.task)} networks of the zoo kept")
        rows = np.minimum(np.arange(start, start + chunk), len(jobs.task) - 1)
        keep = min(chunk, len(jobs.task) - start) * zoo.keep_last

        def make(rows=rows, keep=keep) -> Networks:
            made = step(dist.shard((jobs.task[rows], jobs.seed[rows]), mesh))
            return jax.tree.map(lambda a: np.asarray(a)[:keep], made)

        chunks.append(_kept(parts, f"chunk_{start:07d}", make))
    everything = Networks.concatenate(chunks)
    split = np.repeat(jobs.split, zoo.keep_last)
    return networks | {s: everything[split == s] for s in SPLITS if (split == s).any()}


def _chunk_step(family: Family, target: Target, config: ConfigDict, base: PyTree, mesh: Mesh):
    """(task ids, seeds) -> Networks, sharded over devices; kept checkpoints of a network are consecutive rows."""
    data, zoo = family.data, config.zoo
    variables = jax.tree.map(jnp.asarray, family.variables)
    labelled = jax.vmap(family.labelled, (0, None, None))

    def step(job):
        task, seed = job
        own = jax.tree.map(lambda v: v[task], variables)
        x, y = labelled(own, data["train"].x, jnp.asarray(data["train"].y))
        params = finetune.finetune(target, base, x, y, seed, zoo, config.seed)

        def score(part):
            per_kept = jax.vmap(finetune.accuracy, (0, None, None, None))
            x, y = labelled(own, data[part].x, jnp.asarray(data[part].y))
            return jax.vmap(per_kept, (0, None, 0, 0))(params, target, x, y).reshape(-1)

        steps = zoo.steps - zoo.keep_every * jnp.arange(zoo.keep_last - 1, -1, -1, dtype=jnp.int32)
        return Networks(
            params=jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), params),
            task=jnp.repeat(task, zoo.keep_last),
            seed=jnp.repeat(seed, zoo.keep_last),
            step=jnp.tile(steps, len(task)),
            validation_accuracy=score("validation"),
            test_accuracy=score("test"),
        )

    return dist.data_parallel(step, mesh, (dist.SHARDED,), dist.SHARDED)


def _base(family: Family, target: Target, config: ConfigDict) -> Networks:
    """The pretrained base, with its accuracy on images like those it was trained on."""
    params = finetune.pretrain(target, *family.pretraining_images("train"), config.zoo, config.seed)
    stacked = jax.tree.map(lambda p: p[None], params)
    return _without_task(family, target, stacked, np.zeros(1, np.int32), config.zoo.pretrain_steps)


def _task_blind(family: Family, target: Target, config: ConfigDict, base: PyTree) -> Networks:
    """Networks fine-tuned on the images of all seen tasks together: what one network for everything can do."""
    images, seen = family.data["train"], np.array([t.id for t in family.split("seen")])
    seeds = np.arange(config.zoo.reference_seeds, dtype=np.int32)
    shape = (len(seeds), TASK_BLIND_COPIES, len(images.y))
    tasks = jax.random.choice(rng.stream(config.seed, "zoo/task_blind"), seen, shape)
    rows = np.broadcast_to(np.arange(len(images.y)), shape).reshape(-1)
    mixed = family.mixed(family.variables, "train", rows, np.asarray(tasks).reshape(-1))
    x, y = (a.reshape(len(seeds), -1, *a.shape[1:]) for a in mixed)
    params = jax.jit(lambda x, y: finetune.finetune(target, base, x, y, seeds, config.zoo, config.seed))(x, y)
    return _without_task(family, target, jax.tree.map(lambda p: p[:, -1], params), seeds, config.zoo.steps)


def _without_task(family: Family, target: Target, params: PyTree, seeds: np.ndarray, step: int) -> Networks:
    """Networks that belong to no task; their accuracies are on the images that the base was pretrained on."""

    def score(part):
        accuracy = jax.vmap(finetune.accuracy, (0, None, None, None))
        return np.asarray(accuracy(params, target, *family.pretraining_images(part)))

    return Networks(
        params=jax.tree.map(np.asarray, params),
        task=np.full(len(seeds), -1, np.int32),
        seed=seeds,
        step=np.full(len(seeds), step, np.int32),
        validation_accuracy=score("validation"),
        test_accuracy=score("test"),
    )


def _kept(parts: Path, name: str, make) -> Networks:
    """Reads the part `name`, or makes and keeps it. Its digest is in its file's name; a damaged one is made again."""
    for path in parts.glob(f"{name}-*.safetensors"):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] == path.stem.rsplit("-", 1)[1]:
            flat = safetensors.numpy.load(data)
            return Networks(**traverse_util.unflatten_dict(flat, sep="/"))
        path.unlink()
    made = jax.tree.map(np.asarray, make())
    flat = traverse_util.flatten_dict(dataclasses.asdict(made), sep="/")
    data = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in flat.items()})
    files.write_atomic(parts / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors", data)
    return made
