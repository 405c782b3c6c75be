"""TFDS data sets that lie on disk, opened only after their own description has been looked through.

`tfds.builder_from_directory` believes what it reads: `features.json` names Python classes, whose modules it imports,
and `dataset_info.json` says by what pattern the names of files are made. A folder that somebody else made could so run
a module of theirs, or point at files elsewhere.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf import json_format
from PIL import EpsImagePlugin
from tensorflow_datasets.core.proto import dataset_info_generated_pb2 as info_pb2
from tensorflow_datasets.core.proto import feature_pb2

from pdiff.errors import PdiffError

FORMAT = "array_record"  # which can be read without TensorFlow
INFO, FEATURES = "dataset_info.json", "features.json"
MOST_BYTES = 64 << 20  # of each of them
MOST_CLASSES = 1_000_000
# What pdiff writes, and what data sets of labelled images are made of; each is how the message says what it holds.
KINDS = {"FeaturesDict": "features_dict", "Tensor": "tensor", "Scalar": "tensor", "Image": "image", "Text": "text",
         "ClassLabel": "class_label", "BBoxFeature": "bounding_box", "Sequence": "sequence"}  # fmt: skip
_CLASSES = {f"{c.__module__}.{c.__name__}": n for n in KINDS for c in [getattr(tfds.features, n)]}
_NAME = re.compile(r"\w[\w.+-]*")
_TEMPLATE = re.compile(r"([\w.+-]|\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})*")


def open_folder(where: Path) -> tfds.core.DatasetBuilder:
    """The builder of the data set in the folder of one version. Nothing that its files name is imported.

    Raises:
      PdiffError: a file that describes it is missing or damaged, or says what a data set of array_record files that
        pdiff can use does not say; names the file, what it says, and what is allowed.
    """
    where = Path(where)
    info = _parsed(where / INFO, info_pb2.DatasetInfo())
    if info.file_format != FORMAT:
        raise PdiffError(
            f"{where / INFO}: files of the format {info.file_format[:40]!r}; allowed: {FORMAT}, the one that can be "
            f"read without TensorFlow; prepare it again with --file_format={FORMAT}"
        )
    for what, name in [("name", info.name), *(("split", s.name) for s in info.splits)]:
        if not _NAME.fullmatch(name):
            raise PdiffError(f"{where / INFO}: {what} {name[:80]!r}; allowed: letters, digits, '_', '.', '+' and '-'")
    for split in info.splits:
        if not _TEMPLATE.fullmatch(split.filepath_template):
            raise PdiffError(
                f"{where / INFO}: filepathTemplate {split.filepath_template[:80]!r}; allowed: names of files in this "
                "folder, made of the variables that TFDS has"
            )
    _check_feature(_parsed(where / FEATURES, feature_pb2.Feature()), where / FEATURES)
    for entry in os.scandir(where):
        if entry.is_symlink():
            raise PdiffError(f"{entry.path}: a link; allowed in a data set: files; copy it with cp -L")
    EpsImagePlugin.gs_binary = False  # an image may be PostScript, a program, which Pillow would have Ghostscript run
    return tfds.builder_from_directory(str(where))


def _parsed(path: Path, message: Any) -> Any:
    """The message whose JSON is in the file."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PdiffError(f"{path}: larger than {MOST_BYTES:,} bytes, which is allowed")
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("no object")
        return json_format.ParseDict(document, message)
    except OSError as e:
        raise PdiffError(f"{path}: unreadable or damaged: {e.strerror}") from e
    except (ValueError, RecursionError, json_format.Error) as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise PdiffError(f"{path}: unreadable or damaged: {reason}") from e


def _check_feature(feature: Any, path: Path) -> None:
    kind, class_name = feature.WhichOneof("content"), _CLASSES.get(feature.python_class_name)
    if class_name is None or KINDS[class_name] != kind:
        raise PdiffError(
            f"{path}: pythonClassName {feature.python_class_name[:120]!r} with {kind}; allowed: {', '.join(KINDS)} of "
            "tfds.features, each with what TFDS writes of it"
        )
    if kind == "class_label" and feature.class_label.num_classes > MOST_CLASSES:
        raise PdiffError(f"{path}: {feature.class_label.num_classes} classes; allowed: at most {MOST_CLASSES}")
    for name, inner in feature.features_dict.features.items():
        if not name.strip(". ") or "/" in name or not name.isprintable():  # TFDS makes names of files of them
            raise PdiffError(f"{path}: the feature {name[:80]!r}; allowed: printable names without '/'")
        _check_feature(inner, path)
    if kind == "sequence":
        _check_feature(feature.sequence.feature, path)
