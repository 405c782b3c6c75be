"""TFDS image-classification data sets that lie prepared on disk, read without TensorFlow and without the network.

A data set is found by its files alone, `data_dir/NAME[/CONFIG]/VERSION/features.json`: no code that made it is
imported, so nothing can start a download. Only files of the array_record format can be read without TensorFlow.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pdiff.errors import PdiffError
from pdiff.system import tfds_folder
from pdiff.system.tfds_folder import FORMAT
from pdiff.tasks.base import Images
from pdiff.tasks.data.dataset import DataSet, labels, pixels

MOST_VALIDATION = 5000
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def read(name: str, data_dir: str) -> DataSet:
    """The data set `name` ('NAME', 'NAME/CONFIG', 'NAME:VERSION' or 'NAME/CONFIG:VERSION') in `data_dir`.

    Its splits `train` and `test` are used, and `validation` if there is one. If there is none, a tenth of `train`, at
    most 5,000 images, is it: the last of a fixed permutation. Without a version it is the highest that is there.

    Raises:
      PdiffError: it is missing, damaged, of another format, or does not hold labelled images of one size.
    """
    where = _location(name, data_dir)
    try:
        return _data_set(where)
    except (RuntimeError, OSError, ValueError, KeyError) as e:  # what TFDS, array_record and Pillow raise
        reason = " ".join(str(e).split()) or type(e).__name__
        raise PdiffError(f"{where}: unreadable or damaged ({reason}); delete it and {_command(name, data_dir)}") from e


def _location(name: str, data_dir: str) -> Path:
    """The folder of a version of a data set."""
    parts = _NAME.fullmatch(name)
    if not parts:
        raise PdiffError(f"tasks.data: got 'tfds:{name}'; allowed: tfds:NAME, tfds:NAME/CONFIG, and :VERSION after it")
    if not data_dir:
        raise PdiffError(f"tasks.data_dir: got ''; allowed for {name}: the folder that it is in")
    folder = Path(data_dir).expanduser() / parts["name"] / (parts["config"] or "")
    versions = [p.parent for p in folder.glob("*/features.json") if _VERSION.fullmatch(p.parent.name)]
    wanted = [p for p in versions if parts["version"] in (None, p.name)]
    if wanted:
        return max(wanted, key=lambda p: [int(n) for n in p.name.split(".")])
    configs = sorted(p.parent.parent.name for p in folder.glob("*/*/features.json"))
    if configs and not versions:
        example = f"tfds:{parts['name']}/{configs[0]}"
        raise PdiffError(f"tasks.data: got 'tfds:{name}'; allowed: one of its configs, as in {example}")
    raise PdiffError(f"tasks.data: no data set {name} in {data_dir}; {_command(name, data_dir)}")


def _command(name: str, data_dir: str) -> str:
    if name.partition(":")[0] == "fashion_mnist":
        return f"prepare it with `python -m pdiff.tasks.data.fashion_mnist --source=DIR --data_dir={data_dir}`"
    return f"prepare it with `tfds build {name} --file_format={FORMAT} --data_dir={data_dir}`"


def _data_set(where: Path) -> DataSet:
    builder = tfds_folder.open_folder(where)
    image, label = _keys(builder, where)
    class_names = tuple(n.replace("_", " ").lower() for n in builder.info.features[label].names)
    for split in ("train", "test"):
        if split not in builder.info.splits:
            raise PdiffError(f"{where}: no split {split}; it has {', '.join(builder.info.splits)}")
    parts, shape, rows = {}, None, 0
    for split in ("train", "validation", "test"):
        if split not in builder.info.splits:
            continue
        source = f"{where}: split {split}"
        x, y = _read(builder, split, image, label, source)
        if shape not in (None, x.shape[1:]):
            raise PdiffError(f"{where}: images of {shape} and, in {split}, of {x.shape[1:]}; allowed: one size")
        shape = x.shape[1:]
        parts[split] = Images(pixels(x, source), labels(y, len(class_names), source), np.arange(rows, rows + len(y)))
        rows += len(y)
    if len(set(parts["train"].y.tolist())) < 2:
        raise PdiffError(f"{where}: training images of one class; allowed: at least two classes")
    if "validation" not in parts:
        parts = _with_validation(parts)
    if shape[-1] == 1 and len(shape) == 3:
        shape = shape[:2]
    return DataSet(parts, shape, class_names)


def _keys(builder: tfds.core.DatasetBuilder, where: Path) -> tuple[str, str]:
    """The names of the features that hold the image and its class."""
    features = builder.info.features
    keys = builder.info.supervised_keys or ("image", "label")
    known = isinstance(features, tfds.features.FeaturesDict) and len(keys) == 2 and set(map(str, keys)) <= set(features)
    if not known or not isinstance(features[keys[1]], tfds.features.ClassLabel):
        raise PdiffError(f"{where}: its features are {_one_line(features)}; allowed: an image and a ClassLabel")
    image = features[keys[0]]
    if not (isinstance(image, (tfds.features.Image, tfds.features.Tensor)) and np.dtype(image.np_dtype).kind in "uifb"):
        raise PdiffError(f"{where}: {keys[0]} is {_one_line(image)}; allowed: an Image, or a Tensor of numbers")
    return keys


def _read(builder: tfds.core.DatasetBuilder, split: str, image: str, label: str, where: str):
    """All images of a split (n, height, width, …) in their own dtype, and its labels."""
    source = builder.as_data_source(split)
    images, classes, shape = [], [], None
    for start in range(0, len(source), 1000):
        for example in source.__getitems__(range(start, min(start + 1000, len(source)))):
            x = np.asarray(example[image])
            shape = x.shape if shape is None else shape
            if x.shape != shape:
                raise PdiffError(f"{where}: images of {shape} and of {x.shape}; allowed: one size")
            images.append(x)
            classes.append(example[label])
    if not images:
        raise PdiffError(f"{where}: no images")
    return np.stack(images), np.array(classes)


def _with_validation(parts: dict[str, Images]) -> dict[str, Images]:
    """The parts with some of the training images as validation images."""
    train = parts["train"]
    order = np.random.RandomState(0).permutation(len(train.y))
    cut = len(order) - min(MOST_VALIDATION, max(1, len(order) // 10))
    rest, held_out = (Images(train.x[r], train.y[r], train.index[r]) for r in (order[:cut], order[cut:]))
    return {"train": rest, "validation": held_out, "test": parts["test"]}


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())
