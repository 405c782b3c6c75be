"""The zoo on disk: a TFDS dataset of networks, one example each, in array_record files.

Any TFDS reader can use it: `tfds.builder_from_directory(location(…)).as_data_source('seen')`. Its folder is named after
the fingerprint of everything that shaped the networks, so one directory can hold many zoos, and a run finds exactly
its own or none. Records hold what is generated of a network; the base, a whole tree, is kept once beside them, in
`base.safetensors`.

A zoo may be larger than memory. It is written shard by shard, and of its seen networks, by far the most, only the
tasks, seeds and accuracies are read where their parameters are too large (`read`).
"""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import PyTree
from tqdm import tqdm

from pdiff.errors import RERUN, PdiffError
from pdiff.system import files, processes, tfds_folder
from pdiff.system.evenly import evenly
from pdiff.system.logs import BAR_AFTER_S, log
from pdiff.tasks.base import FITTED_SPLITS
from pdiff.zoo import parts
from pdiff.zoo.networks import COLUMNS, Networks, StoredNetworks, tree_bytes

NETWORK_SPLITS = ("task_blind", *FITTED_SPLITS)
BASE = "base.safetensors"
NAME, VERSION, KIND = "pdiff_zoo", "1.0.0", "zoo"
REMEDY = f"{RERUN}: it makes that file alone again"
SHARD_BYTES, SHARD_NETWORKS = 1 << 26, 4096  # at most, of a shard


@runtime_checkable
class Slices(Protocol):
    """Networks of which slices can be brought into memory, such as `Networks` or `parts.Rows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Networks: ...


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of networks: which `rows` of a split it holds."""

    path: Path
    split: str
    rows: slice


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a zoo holds, known before any of it is there.

    Attributes:
      counts: networks of each split, in the order of NETWORK_SPLITS; none is 0.
      shapes: of what is generated of a network.
    """

    counts: dict[str, int]
    shapes: PyTree[jax.ShapeDtypeStruct]

    @staticmethod
    def of(networks: Mapping[str, Slices]) -> "Outline":
        """Of networks that are all there."""
        counts = {s: len(networks[s]) for s in NETWORK_SPLITS if s in networks and len(networks[s])}
        one = networks[next(iter(counts))][:1]
        return Outline(counts, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), one.params))

    def shards(self, where: Path) -> list[Shard]:
        """All files of networks that the zoo in `where` has."""
        size = tree_bytes(self.shapes)
        return [shard for split, count in self.counts.items() for shard in _plan(where, split, count, size)]


def write(
    directory: Path,
    fingerprint: str,
    networks: Mapping[str, Slices],
    outline: Outline | None = None,
    missing: Collection[str] | None = None,
) -> None:
    """Writes a zoo, by all processes together; its manifest comes last, so that its presence means finished.

    At most one shard of each process is in memory. What a shard holds depends on the zoo alone.

    Args:
      outline: of the whole zoo; by default of `networks`.
      missing: names of the files to write, from the `networks` that they hold; the others stay as they are. By default
        all of them, in the place of whatever is there.

    Raises:
      PdiffError: the disk has no room for it.
    """
    where, outline = location(directory, fingerprint), outline or Outline.of(networks)
    shards, features = outline.shards(where), _features(outline.shapes)
    due = [s for s in shards if missing is None or s.path.name in missing]
    size = sum(s.rows.stop - s.rows.start for s in due) * tree_bytes(outline.shapes)

    def prepare():
        if missing is None:
            shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True, exist_ok=True)
        files.require_space(where, size, "the zoo")

    processes.on_first(prepare, "about to write the zoo")
    mine = due[processes.index() :: processes.count()]
    for shard in tqdm(mine, desc="write", unit="shard", delay=BAR_AFTER_S, disable=not processes.is_first()):
        _write_shard(shard, networks[shard.split][shard.rows], features)
    processes.barrier("done with the shards of the zoo")

    def finish():
        if missing is None or set(missing) - {s.path.name for s in due} - {BASE}:
            _write_metadata(where, fingerprint, features, shards)
        if missing is None or BASE in missing:
            files.write_atomic(where / BASE, parts.to_bytes(networks["base"][:]))
        if exists(directory, fingerprint) and (changed := ", ".join(files.faults(where, _digests(where)))):
            consequence = "what was trained on the zoo is not repeated bit for bit"
            log.warning("warning: %s: made again with other bits, as on other devices; %s", changed, consequence)
        files.write_manifest(where, KIND)

    processes.on_first(finish, "done with the zoo")


def is_whole(directory: Path, fingerprint: str) -> bool:
    """Whether a finished zoo is there with each of its files as it was written.

    Raises:
      PdiffError: it is of another format.
    """
    return not files.fault(location(directory, fingerprint), KIND)


def remove_damaged(directory: Path, fingerprint: str) -> None:
    """Removes the damaged files of a zoo, or all of it if its manifest is damaged, with warnings that name them."""
    where = location(directory, fingerprint)
    if not where.exists():
        return
    try:
        digests = _digests(where)
    except PdiffError as e:
        if (where / files.MANIFEST).exists():
            log.warning("warning: %sit is built again", e)
        shutil.rmtree(where)
        return
    for name, fault in files.faults(where, digests).items():
        log.warning("warning: %s; it alone is made again", fault)
        (where / name).unlink(missing_ok=True)
    for path in where.iterdir():
        if path.name not in digests and path.name != files.MANIFEST:
            log.warning("warning: %s: not in the manifest; removed", path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def missing(directory: Path, fingerprint: str, outline: Outline) -> list[str]:
    """The names of the files that a zoo lacks: all of them where there is none."""
    where = location(directory, fingerprint)
    if not exists(directory, fingerprint):
        return [BASE, tfds_folder.INFO, tfds_folder.FEATURES, *(s.path.name for s in outline.shards(where))]
    return [name for name in _digests(where) if not (where / name).exists()]


def _digests(where: Path) -> dict[str, str]:
    return files.read_manifest(where, KIND, "")


def location(directory: Path, fingerprint: str) -> Path:
    """Where the files of a zoo lie."""
    return Path(directory) / NAME / fingerprint / VERSION


def exists(directory: Path, fingerprint: str) -> bool:
    """Whether a finished zoo is there. Its contents are checked by `read`."""
    return (location(directory, fingerprint) / files.MANIFEST).exists()


def read(
    directory: Path, fingerprint: str, memory_mb: float = float("inf"), remedy: str = REMEDY
) -> dict[str, Networks | StoredNetworks]:
    """A finished zoo, in memory, after process 0 has checked every file against the manifest.

    The parameters of the seen networks stay on disk if they take more than `memory_mb` MB (of 10^6 bytes).

    Raises:
      PdiffError: a file is missing or damaged; the message ends with `remedy`.
    """
    where = location(directory, fingerprint)
    processes.on_first(lambda: files.verify_manifest(where, KIND, remedy), "sure of the zoo")
    return read_verified(directory, fingerprint, memory_mb)


def read_verified(directory: Path, fingerprint: str, memory_mb: float) -> dict[str, Networks | StoredNetworks]:
    """As `read`, of a zoo whose files were checked a moment ago."""
    where = location(directory, fingerprint)
    builder = tfds_folder.open_folder(where)
    networks = {"base": base(directory, fingerprint)}
    for split in (s for s in NETWORK_SPLITS if s in builder.info.splits):
        stored = _stored(builder, split, memory_mb * 1e6)
        networks[split] = stored if split == "seen" and stored.params_bytes > stored.memory else stored[:]
    if "seen" not in networks:
        raise PdiffError(f"{where}: the zoo has no networks of the split 'seen'; delete it and run again")
    return networks


def base(directory: Path, fingerprint: str) -> Networks:
    """The base of a zoo, a whole tree."""
    return parts.from_bytes((location(directory, fingerprint) / BASE).read_bytes())


def in_memory(networks: Mapping[str, Networks | StoredNetworks]) -> dict[str, Networks]:
    """The same zoo for what needs all networks at once: of a split on disk a sample, which the log reports.

    A sample has as many networks of each task as fit into the memory that the zoo was read with, evenly chosen.

    Raises:
      PdiffError: not even one of each fits.
    """
    return {split: n if isinstance(n, Networks) else _sampled(split, n) for split, n in networks.items()}


def holds_one_of_each(networks: Networks | StoredNetworks) -> bool:
    """Whether `in_memory` can hold one network of each task of a split."""
    if isinstance(networks, Networks):
        return True
    return len(np.unique(networks.task)) * tree_bytes(networks.shapes) <= networks.memory


def check_memory(memory_mb: float, tasks: int, network_bytes: int) -> None:
    """Raises PdiffError unless one network of each of `tasks` seen tasks, which `in_memory` needs, fits."""
    if tasks * network_bytes > memory_mb * 1e6:
        raise PdiffError(
            f"zoo.memory_mb: got {memory_mb:g}; allowed: at least {np.ceil(tasks * network_bytes / 1e6):.0f}, "
            f"which one network of each of the {tasks} seen tasks takes"
        )


def _sampled(split: str, networks: StoredNetworks) -> Networks:
    by_task = [np.flatnonzero(networks.task == t) for t in np.unique(networks.task)]
    check_memory(networks.memory / 1e6, len(by_task), tree_bytes(networks.shapes))
    per_task = max(1, int(networks.memory // tree_bytes(networks.shapes)) // len(by_task))
    chosen = np.sort(np.concatenate([rows[evenly(len(rows), per_task)] for rows in by_task]))
    sample = f"{len(chosen)} of the {len(networks)} {split} networks, {per_task} of each task"
    megabytes = networks.memory / 1e6
    log.info("zoo: %s, are in memory for what needs all at once (zoo.memory_mb = %g)", sample, megabytes)
    return networks[chosen]


def _stored(builder: tfds.core.DatasetBuilder, split: str, memory: float) -> StoredNetworks:
    shapes = jax.tree.map(lambda f: jax.ShapeDtypeStruct(f.shape, f.np_dtype), _plain(builder.info.features["params"]))
    few = tfds.features.FeaturesDict({name: builder.info.features[name] for name in COLUMNS})
    raw = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    rows = [few.deserialize_example_np(record) for record in raw]
    columns = {name: np.stack([row[name] for row in rows]) for name in COLUMNS}
    return StoredNetworks(source=builder.as_data_source(split=split), shapes=shapes, memory=memory, **columns)


def _plain(features: tfds.features.FeatureConnector) -> dict | tfds.features.FeatureConnector:
    """Nested dicts of the features of single arrays."""
    inner = isinstance(features, tfds.features.FeaturesDict)
    return {k: _plain(v) for k, v in features.items()} if inner else features


def _features(shapes: PyTree[jax.ShapeDtypeStruct]) -> tfds.features.FeaturesDict:
    # As bytes: lists of numbers take four times as long to write.
    tensor = partial(tfds.features.Tensor, encoding=tfds.features.Encoding.BYTES)
    params = jax.tree.map(lambda s: tensor(shape=s.shape, dtype=np.dtype(s.dtype).type), shapes)
    scalars = {"task": np.int32, "seed": np.int32, "step": np.int32}
    accuracies = {"validation_accuracy": np.float32, "test_accuracy": np.float32}
    return tfds.features.FeaturesDict({"params": params, **scalars, **accuracies})


def _template(where: Path, split: str) -> tfds.core.ShardedFileTemplate:
    suffix = tfds_folder.FORMAT
    return tfds.core.ShardedFileTemplate(data_dir=where, dataset_name=NAME, split=split, filetype_suffix=suffix)


def _plan(where: Path, split: str, count: int, network_bytes: int) -> list[Shard]:
    """Networks in order, as many a shard as it takes; never by how many processes there are."""
    size = max(1, min(SHARD_NETWORKS, SHARD_BYTES // network_bytes))
    rows = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    paths = _template(where, split).sharded_filepaths(len(rows))
    return [Shard(Path(path), split, r) for path, r in zip(paths, rows, strict=True)]


def _write_shard(shard: Shard, networks: Networks, features: tfds.features.FeaturesDict) -> None:
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    fields = {f.name: getattr(networks, f.name) for f in dataclasses.fields(networks)}
    # A record can be read without its neighbours. To compress weights, which are noise, takes as long as all the rest.
    writer = ArrayRecordWriter(str(shard.path), "group_size:1,uncompressed")
    for i in range(len(networks)):
        example = features.encode_example(jax.tree.map(lambda a, i=i: a[i], fields))
        # Protocol buffers are free to order fields otherwise in each process.
        writer.write(serializer.get_tf_example(example).SerializeToString(deterministic=True))
    writer.close()


def _write_metadata(where: Path, fingerprint: str, features: tfds.features.FeaturesDict, shards: list[Shard]) -> None:
    version = tfds.core.Version(VERSION)
    identity = tfds.core.DatasetIdentity(
        name=NAME, version=version, data_dir=str(where), module_name=__name__, config_name=fingerprint
    )
    text = "Fine-tuned networks of a pdiff family."
    info = tfds.core.DatasetInfo(builder=identity, description=text, features=features, disable_shuffling=True)
    info.set_file_format(tfds_folder.FORMAT)
    splits = []
    for split in dict.fromkeys(s.split for s in shards):
        in_split = [s for s in shards if s.split == split]
        lengths = [s.rows.stop - s.rows.start for s in in_split]
        size, template = sum(s.path.stat().st_size for s in in_split), _template(where, split)
        splits.append(tfds.core.SplitInfo(split, lengths, size, template))
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(where)
