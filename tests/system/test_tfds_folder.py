"""Folders of TFDS data sets that somebody else made: what they name is not imported, and nothing elsewhere is read."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pdiff.errors import PdiffError
from pdiff.system import tfds_folder

TENSOR = {
    "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "tensor": {"dtype": "float32", "encoding": "none", "shape": {"dimensions": ["2"]}},
}
EVIL = "shared.zoo.evil.Feature"


def features(**inner):
    return {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": inner},
    }


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that a shared folder brings along, below a folder that Python looks into."""
    (tmp_path / "shared" / "zoo").mkdir(parents=True)
    (tmp_path / "shared" / "zoo" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: (tmp_path / "ran").exists()
    for name in [n for n in sys.modules if n.split(".")[0] == "shared"]:
        del sys.modules[name]


def write(where, features):
    """The folder of a data set with one split of one shard."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="t", version=tfds.core.Version("1.0.0"), data_dir=str(where), module_name="nowhere.at_all"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    names = tfds.core.ShardedFileTemplate(
        data_dir=where, dataset_name="t", split="seen", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(name="seen", shard_lengths=[1], num_bytes=1, filename_template=names)
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(where)
    (where / "t-seen.array_record-00000-of-00001").write_bytes(b"a shard")


@pytest.fixture
def zoo(tmp_path):
    """A data set to spoil: its folder, and what changes a file in it."""
    where = tmp_path / "1.0.0"
    where.mkdir()
    write(where, tfds.features.FeaturesDict({"params": tfds.features.Tensor(shape=(2,), dtype=np.float32)}))
    tfds_folder.open_folder(where)

    def put(name, change):
        path = where / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return where, put


SPOILED = {
    "a class of a module of theirs": features(params=TENSOR | {"pythonClassName": EVIL}),
    "at the top": TENSOR | {"pythonClassName": EVIL},
    "in the words of protobuf": features(params={"python_class_name": EVIL, "tensor": TENSOR["tensor"]}),
    "in the old words of TFDS": {"type": EVIL, "content": {}},
    "in a sequence": features(
        params={
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": TENSOR | {"pythonClassName": EVIL}},
        }
    ),
    "in JSON within JSON": features(
        params={
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"x": {"type": EVIL, "content": {}}})},
        }
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_no_module_that_features_json_names_is_imported(name, zoo, evil):
    where, put = zoo
    put("features.json", lambda _: SPOILED[name])
    with pytest.raises(PdiffError, match="features.json") as error:
        tfds_folder.open_folder(where)
    assert "\n" not in str(error.value)
    assert not evil() and "shared.zoo.evil" not in sys.modules


def test_tfds_by_itself_would_run_it(zoo, evil):
    """Why the folder is looked through first."""
    where, put = zoo
    put("features.json", lambda _: SPOILED["a class of a module of theirs"])
    with pytest.raises(ValueError):
        tfds.builder_from_directory(str(where))
    assert evil()


ELSEWHERE = {
    "a pattern that leads upwards": lambda info: info["splits"][0] | {"filepathTemplate": "../../{SPLIT}"},
    "an absolute one": lambda info: info["splits"][0] | {"filepathTemplate": "/etc/passwd"},
    "attributes of a variable": lambda info: info["splits"][0] | {"filepathTemplate": "{SPLIT.__class__}"},
    "a split of such a name": lambda info: info["splits"][0] | {"name": "../seen"},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_no_file_elsewhere_is_read(name, zoo):
    where, put = zoo
    put("dataset_info.json", lambda info: info | {"splits": [ELSEWHERE[name](info), *info["splits"][1:]]})
    with pytest.raises(PdiffError, match="dataset_info.json: .*allowed: "):
        tfds_folder.open_folder(where)


def test_links_and_names_with_slashes_and_countless_classes_are_refused(zoo):
    where, put = zoo
    put("features.json", lambda _: features(**{"../../x": TENSOR}))
    with pytest.raises(PdiffError, match="the feature '../../x'"):
        tfds_folder.open_folder(where)
    label = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
    put("features.json", lambda _: features(y={"pythonClassName": label, "classLabel": {"numClasses": str(10**12)}}))
    with pytest.raises(PdiffError, match="1000000000000 classes"):
        tfds_folder.open_folder(where)
    put("features.json", lambda _: features(x=TENSOR))
    tfds_folder.open_folder(where)
    shard = next(where.glob("*array_record*"))
    shard.rename(where.parent / "elsewhere")
    shard.symlink_to(where.parent / "elsewhere")
    with pytest.raises(PdiffError, match="a link"):
        tfds_folder.open_folder(where)


def test_what_labelled_images_are_made_of_is_read_as_tfds_reads_it(tmp_path):
    made = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
            "id": tfds.features.Text(),
            "boxes": tfds.features.Sequence({"box": tfds.features.BBoxFeature(), "n": tfds.features.Scalar(np.int64)}),
        }
    )
    write(tmp_path, made)
    found = tfds_folder.open_folder(tmp_path).info.features
    assert repr(found) == repr(made)
    assert found["label"].names == ["a", "b"]
