"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017) as a TFDS data set, from its four IDX files.

    python -m pdiff.tasks.data.fashion_mnist --source=/usr/share/datasets/fashion-mnist --data_dir=DIR

writes DIR/fashion_mnist/1.0.0 in half a minute, for `--config.tasks.data=fashion_mnist --config.tasks.data_dir=DIR`.
Debian's package `dataset-fashion-mnist` puts the files where this command reads them. The original 60,000 training
images are 55,000 for training and 5,000 for validation, by a fixed permutation; its 10,000 test images are the test's.
"""

import contextlib
import gzip
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from jaxtyping import UInt8

from pdiff.errors import PdiffError
from pdiff.system import files, logs
from pdiff.system.logs import log

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
VALIDATION = 5000


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # TFDS has another of this name
    """Writes the data set. `splits` maps a split to its images (n, height, width) and labels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "55,000 / 5,000 / 10,000 images."}
    name = "fashion_mnist"
    pkg_dir_path = Path(__file__).parent

    def __init__(self, data_dir: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]]):
        self._arrays = splits
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        # An Image would have to be decoded from PNG, three times as slowly.
        image = tfds.features.Tensor(shape=(*self._arrays["train"][0].shape[1:], 1), dtype=np.uint8)
        features = {"image": image, "label": tfds.features.ClassLabel(names=NAMES)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Articles of clothing of Zalando's, in shades of grey.",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*arrays) for split, arrays in self._arrays.items()}

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image[..., None], "label": int(label)}


def prepare(source: Path, data_dir: Path, validation: int = VALIDATION) -> Path:
    """Writes the data set, unless it is there, and returns its folder.

    Raises:
      PdiffError: an IDX file is missing, damaged, or not what it should be; the disk is full.
    """
    x, y = _labelled(Path(source), "train")
    if len(y) <= validation:
        raise PdiffError(f"--source: {source} has {len(y)} training images; allowed: more than {validation}")
    order = np.random.RandomState(0).permutation(len(y))
    train, held_out = order[:-validation], order[-validation:]
    splits = {"train": (x[train], y[train]), "validation": (x[held_out], y[held_out])}
    splits["test"] = _labelled(Path(source), "t10k")
    if splits["test"][0].shape[1:] != x.shape[1:]:
        raise PdiffError(f"--source: images of {x.shape[1:]} and of {splits['test'][0].shape[1:]}; allowed: one size")
    data_dir = Path(data_dir).expanduser()
    data_dir.mkdir(parents=True, exist_ok=True)
    files.require_space(data_dir, 2 * sum(x.nbytes for x, _ in splits.values()), "the data set")  # shards twice
    builder = FashionMnist(data_dir, splits)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints progress
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    return Path(builder.data_dir)


def read_idx(path: Path) -> UInt8[np.ndarray, "*shape"]:
    """The array of bytes in an IDX file (http://yann.lecun.com/exdb/mnist), or in `path` with .gz after its name.

    Raises:
      PdiffError: it is missing, damaged, truncated, or holds something else.
    """
    path, packed = Path(path), Path(f"{path}.gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError as e:
        raise PdiffError(f"{packed}: no such file; allowed for --source: a folder with it, or without the .gz") from e
    except (OSError, EOFError, zlib.error) as e:
        raise PdiffError(f"{packed}: damaged or unreadable: {e}") from e
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise PdiffError(f"{path}: starts with {data[:4].hex()}; allowed: an IDX file of bytes, 000008 and its rank")
    header = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:header]) if len(data) >= header else ()
    if len(data) != header + int(np.prod(shape, dtype=np.int64)):
        raise PdiffError(f"{path}: {len(data)} bytes do not fit its shape {shape}; it is truncated or damaged")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _labelled(source: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The images (n, height, width) and labels of `train` or `t10k`."""
    x, y = read_idx(source / f"{part}-images-idx3-ubyte"), read_idx(source / f"{part}-labels-idx1-ubyte")
    if x.ndim != 3 or y.shape != x.shape[:1] or not len(y):
        raise PdiffError(f"{source}: {part} has images of shape {x.shape}, labels of {y.shape}; allowed: one for each")
    if y.max() >= len(NAMES):
        raise PdiffError(f"{source}: {part} has the label {y.max()}; allowed: 0 to {len(NAMES) - 1}")
    return x, y


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logs.set_up()
    try:
        for name in ("source", "data_dir"):
            if not flags.FLAGS[name].value:
                raise PdiffError(f"--{name}: missing; allowed: a folder")
        log.info("fashion_mnist: %s", prepare(Path(flags.FLAGS.source), Path(flags.FLAGS.data_dir)))
    except PdiffError as e:
        print(f"pdiff: error: {e}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":  # not at import: other programs have flags of these names
    flags.DEFINE_string("source", None, "The folder of the four IDX files, compressed (.gz) or not.")
    flags.DEFINE_string("data_dir", None, "The folder of TFDS data sets to write into.")
    app.run(main)
