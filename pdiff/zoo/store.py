"""The zoo on disk: a TFDS dataset of networks, one example each, in array_record files.

Any TFDS reader can use it: `ZooBuilder(data_dir=…, config=…).as_data_source('seen')`. Its builder
config is named after the fingerprint of everything that shaped the networks, so one directory can
hold many zoos, and a run finds exactly its own or none. Records hold what is generated of a network; the base,
a whole tree, is kept once beside them, in `base.safetensors`.
"""

import contextlib
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import grain
import jax
import numpy as np
import safetensors.numpy
import tensorflow_datasets as tfds
from flax import traverse_util
from jaxtyping import Float, Int, PyTree

from pdiff import files
from pdiff.errors import PdiffError

NETWORK_SPLITS = ("task_blind", "seen", "validation", "interp", "unseen")
BASE = "base.safetensors"


@dataclasses.dataclass(frozen=True)
class Networks:
    """Fine-tuned networks of one split, stacked.

    Attributes:
      params: the generated part of the tree, or (the base's) the whole of it, with a leading axis.
      task: task ids; -1 for the base and for task-blind networks.
      seed: fine-tuning seed.
      step: updates done when the network was kept.
      validation_accuracy, test_accuracy: on the task's own images.
    """

    params: PyTree[Float[np.ndarray, "nets ..."]]
    task: Int[np.ndarray, " nets"]
    seed: Int[np.ndarray, " nets"]
    step: Int[np.ndarray, " nets"]
    validation_accuracy: Float[np.ndarray, " nets"]
    test_accuracy: Float[np.ndarray, " nets"]

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, rows) -> "Networks":
        return jax.tree.map(lambda a: a[rows], self)

    @staticmethod
    def concatenate(parts: list["Networks"]) -> "Networks":
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)


jax.tree_util.register_dataclass(Networks)


class ZooBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes and reads networks. `networks` is needed only to write."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Networks with task, seed, step and accuracies."}
    name = "pdiff_zoo"
    pkg_dir_path = Path(__file__).parent

    def __init__(self, *, directory: Path, fingerprint: str, networks: Mapping[str, Networks] | None = None):
        self._networks = networks
        super().__init__(
            data_dir=str(directory),
            config=tfds.core.BuilderConfig(name=fingerprint, version=self.VERSION),
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        if self._networks is None:  # read back from features.json
            return tfds.core.DatasetInfo(builder=self)
        example = next(iter(self._networks.values())).params
        return tfds.core.DatasetInfo(
            builder=self,
            description="Fine-tuned networks of a pdiff family.",
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "params": jax.tree.map(
                        lambda a: tfds.features.Tensor(shape=a.shape[1:], dtype=a.dtype.type), example
                    ),
                    "task": np.int32,
                    "seed": np.int32,
                    "step": np.int32,
                    "validation_accuracy": np.float32,
                    "test_accuracy": np.float32,
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(nets) for split, nets in self._networks.items() if len(nets)}

    def _generate_examples(self, networks: Networks):
        for i in range(len(networks)):
            yield i, jax.tree.map(lambda a, i=i: a[i], dataclasses.asdict(networks))


def write(directory: Path, fingerprint: str, networks: Mapping[str, Networks]) -> None:
    """Writes a zoo; it appears under its final name only when it is whole.

    Raises:
      PdiffError: the disk has no room for it.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(networks))
    files.require_space(directory, 2 * size, "the zoo")  # TFDS writes its shards twice
    records = {split: n for split, n in networks.items() if split != "base"}
    builder = ZooBuilder(directory=directory, fingerprint=fingerprint, networks=records)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what the progress bar already says
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    files.write_atomic(Path(builder.data_dir) / BASE, to_bytes(networks["base"]))
    files.write_manifest(Path(builder.data_dir))


def to_bytes(networks: Networks) -> bytes:
    """Networks as safetensors, named by path."""
    flat = traverse_util.flatten_dict(dataclasses.asdict(networks), sep="/")
    return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in flat.items()})


def from_bytes(data: bytes) -> Networks:
    """What `to_bytes` wrote."""
    return Networks(**traverse_util.unflatten_dict(safetensors.numpy.load(data), sep="/"))


def location(directory: Path, fingerprint: str) -> Path:
    """Where the files of a zoo lie."""
    return Path(directory) / ZooBuilder.name / fingerprint / str(ZooBuilder.VERSION)


def exists(directory: Path, fingerprint: str) -> bool:
    """Whether a finished zoo is there. Its contents are checked by `read`."""
    return (location(directory, fingerprint) / files.MANIFEST).exists()


def read(directory: Path, fingerprint: str) -> dict[str, Networks]:
    """Reads a finished zoo into memory, after checking every file against the manifest.

    Raises:
      PdiffError: a file is missing or damaged.
    """
    where = location(directory, fingerprint)
    files.verify_manifest(where, f"delete {where} and run again to rebuild it")
    builder = tfds.builder_from_directory(str(where))
    networks = {"base": from_bytes((where / BASE).read_bytes())}
    for split in NETWORK_SPLITS:
        if split in builder.info.splits:
            source = grain.MapDataset.source(builder.as_data_source(split=split))
            batches = source.batch(len(source))
            networks[split] = Networks(**batches[0])
    if "seen" not in networks:
        raise PdiffError(f"{where}: the zoo has no networks of the split 'seen'; delete it and run again")
    return networks
