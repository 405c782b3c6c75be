"""Data sets: pixels come back exactly, parts are fixed and disjoint, nothing else is accepted."""

import contextlib
import gzip
import io
import json
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pdiff.config.fields import defaults
from pdiff.errors import PdiffError
from pdiff.tasks import get_family
from pdiff.tasks.data import fashion_mnist, images

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (30, 4, 3, 1), np.uint8)
GREY[0, 0, 0], GREY[1, 0, 0] = 0, 255
LABELS = np.arange(30) % 3


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a data set asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(data, data_dir, **overrides):
    config = defaults().tasks
    config.update(dict(data=data, data_dir=str(data_dir), **overrides))
    return images.load(config)


# --- TFDS -----------------------------------------------------------------------------------


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    return file.getvalue()


def write_tfds(data_dir, splits, image, label=None, version="1.0.0", config=None, keys=("image", "label")):
    """Writes examples {split: [(image, label)]} as the data set `tiny`."""
    label = label or tfds.features.ClassLabel(names=["Red_fox", "hare", "owl"])

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        name = "tiny"
        pkg_dir_path = Path(__file__).parent

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(dict(zip(keys, (image, label), strict=True))),
                supervised_keys=keys,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            for i, example in enumerate(examples):
                yield i, dict(zip(keys, example, strict=True))

    with contextlib.redirect_stdout(io.StringIO()):
        tfds.disable_progress_bar()
        Tiny(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return Path(data_dir) / "tiny" / (config or "") / version


def tensor(shape=(4, 3, 1), dtype=np.uint8):
    return tfds.features.Tensor(shape=shape, dtype=dtype)


def examples(pictures=GREY, classes=LABELS):
    return [(x, int(y)) for x, y in zip(pictures, classes, strict=True)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Version 1.0.0: 30 training, 6 test images as a Tensor, no validation. Version 1.10.0: all three, coloured PNG."""
    where = tmp_path_factory.mktemp("tfds")
    write_tfds(where, {"train": examples(), "test": examples(255 - GREY[:6], LABELS[:6])}, tensor())
    colour = [(png(np.repeat(x, 3, -1)), y) for x, y in examples()]
    splits = {"train": colour[:20], "validation": colour[20:25], "test": colour[25:]}
    write_tfds(where, splits, tfds.features.Image(shape=(4, 3, 3)), version="1.10.0")
    few = {"train": examples()[:9], "test": examples()[9:12]}
    write_tfds(where, few, tensor(), version="1.9.0", config="some-Config")
    return where


def test_pixels_of_a_tensor_are_read_exactly_and_some_of_train_is_validation(tiny):
    data = load("tfds:tiny:1.0.0", tiny)
    assert data.image_shape == (4, 3) and data.class_names == ("red fox", "hare", "owl")
    assert {p: len(i.y) for p, i in data.parts.items()} == {"train": 27, "validation": 3, "test": 6}
    everything = np.concatenate([GREY, 255 - GREY[:6]]).reshape(36, 12)
    classes = np.concatenate([LABELS, LABELS[:6]])
    rows = np.concatenate([i.index for i in data.parts.values()])
    np.testing.assert_array_equal(np.sort(rows), np.arange(36))  # disjoint, and all there
    for part in data.parts.values():
        assert part.x.dtype == np.float32 and part.y.dtype == np.int32
        np.testing.assert_array_equal(part.x, everything[part.index].astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(part.y, classes[part.index])
    assert data.parts["train"].x.min() == 0 and data.parts["train"].x.max() == 1
    again = load("tfds:tiny:1.0.0", tiny)
    assert all((again.parts[p].index == i.index).all() for p, i in data.parts.items())


def test_the_newest_version_is_read_with_its_own_validation_and_encoded_images(tiny):
    data = load("tfds:tiny", tiny)  # 1.10.0 is newer than 1.9.0
    assert data.image_shape == (4, 3, 3)
    for part, rows in {"train": slice(0, 20), "validation": slice(20, 25), "test": slice(25, 30)}.items():
        expected = np.repeat(GREY[rows], 3, -1).reshape(-1, 36).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(data.parts[part].x, expected)


def test_a_config_is_read_by_its_name(tiny):
    assert len(load("tfds:tiny/some-Config", tiny).parts["test"].y) == 3
    assert len(load("tfds:tiny/some-Config:1.9.0", tiny).parts["test"].y) == 3


def test_at_most_eval_images_are_kept_of_what_is_not_for_training(tiny):
    data, few = load("tfds:tiny", tiny), load("tfds:tiny", tiny, eval_images=2)
    assert {p: len(i.y) for p, i in few.parts.items()} == {"train": 20, "validation": 2, "test": 2}
    for part, images_ in few.parts.items():
        rows = np.isin(data.parts[part].index, images_.index)
        np.testing.assert_array_equal(data.parts[part].x[rows], images_.x)
        np.testing.assert_array_equal(data.parts[part].y[rows], images_.y)
    digits = load("digits", "", eval_images=300)
    assert {p: len(i.y) for p, i in digits.parts.items()} == {"train": 1200, "validation": 200, "test": 300}
    assert set(digits.parts["test"].index) < set(load("digits", "").parts["test"].index)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.bool_])
def test_other_dtypes_are_scaled_to_0_to_1(dtype, tmp_path):
    scaled = (GREY > 127).astype(np.float32) if dtype == np.bool_ else GREY / np.float32(255)
    pictures = GREY.astype(np.uint16) * 257 if dtype == np.uint16 else scaled.astype(dtype)
    write_tfds(tmp_path, {"train": examples(pictures), "test": examples(pictures)}, tensor(dtype=dtype))
    np.testing.assert_array_equal(load("tfds:tiny", tmp_path).parts["test"].x, scaled.reshape(30, 12))


FLOATS, INTS = tensor(dtype=np.float32), tensor(dtype=np.int32)
NAN = np.where(GREY > 200, np.nan, 0.5).astype(np.float32)
UNKNOWN = np.where(LABELS == 1, -1, LABELS)
ENCODED = tfds.features.Image(shape=(4, 3, 1))
BAD = {
    "mixed sizes": (dict(image=tfds.features.Image(shape=(None, None, 1))), [(png(GREY[0]), 0), (png(GREY[1, :3]), 1)],
                    r"images of \(4, 3, 1\) and of \(3, 3, 1\); allowed: one size"),
    "not finite": (dict(image=FLOATS), examples(NAN), r"image \d+ holds values that are not finite"),
    "too bright": (dict(image=FLOATS), examples(GREY.astype(np.float32)), "pixels from 0 to 255"),
    "dtype": (dict(image=INTS), examples(GREY.astype(np.int32)), "images of dtype int32; allowed: uint8"),
    "rank": (dict(image=tensor(shape=(4,))), examples(GREY[:, :, 0, 0]), r"images of shape \(30, 4\); allowed"),
    "one class": (dict(image=tensor()), examples(classes=0 * LABELS), "training images of one class"),
    "no label": (dict(image=tensor(), label=tensor((), np.int64)), examples(), "allowed: an image and a ClassLabel"),
    "unlabelled": (dict(image=tensor()), examples(classes=UNKNOWN), "got the label -1; allowed: 0 to 2"),
    "no image": (dict(image=tfds.features.Text()), [("a", 0), ("b", 1)], "image is Text.*; allowed: an Image"),
    "not an image": (dict(image=ENCODED), [(b"no", 0), (b"png", 1)], "unreadable or damaged"),
    "cut image": (dict(image=ENCODED), [(png(GREY[0])[:-30], 0)], "unreadable or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_examples_that_are_not_labelled_images_are_refused(name, tmp_path):
    kwargs, bad, message = BAD[name]
    write_tfds(tmp_path, {"train": bad, "test": bad}, **kwargs)
    with pytest.raises(PdiffError, match=message) as error:
        load("tfds:tiny", tmp_path)
    assert "\n" not in str(error.value)


def test_a_data_set_without_a_test_split_is_refused(tmp_path):
    write_tfds(tmp_path, {"train": examples()}, tensor())
    with pytest.raises(PdiffError, match="no split test; it has train"):
        load("tfds:tiny", tmp_path)


def shard(where):
    return next(where.glob("tiny-train*"))


def as_tfrecord(where):
    info = json.loads((where / "dataset_info.json").read_text())
    (where / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 200] ^= 255
    path.write_bytes(bytes(data))


DAMAGE = {
    "tfrecord": (as_tfrecord, "format 'tfrecord'; allowed: array_record"),
    "truncated": (lambda where: shard(where).write_bytes(shard(where).read_bytes()[:5000]), "unreadable or damaged"),
    "missing": (lambda where: shard(where).unlink(), "damaged.*delete it and prepare it with `tfds build tiny"),
    "flipped": (lambda where: flip(shard(where)), "unreadable or damaged"),
    "features": (lambda where: (where / "features.json").write_text("{"), "unreadable or damaged"),
    "info": (lambda where: (where / "dataset_info.json").unlink(), "unreadable or damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_or_other_files_are_refused(name, tmp_path):
    damage, message = DAMAGE[name]
    damage(write_tfds(tmp_path, {"train": examples(), "test": examples()}, tensor()))
    with pytest.raises(PdiffError, match=message) as error:
        load("tfds:tiny", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, message",
    [
        ("tfds:mnist", "no data set mnist in .*`tfds build mnist --file_format=array_record --data_dir="),
        ("tfds:tiny:3.0.0", "no data set tiny:3.0.0"),
        ("tfds:tiny/other", "no data set tiny/other"),
        ("fashion_mnist", "no data set fashion_mnist:1.0.0 .*`python -m pdiff.tasks.data.fashion_mnist --source="),
        ("tfds:fashion_mnist", "no data set fashion_mnist .*`python -m pdiff.tasks.data.fashion_mnist --source="),
        ("tfds:", "allowed: tfds:NAME"),
        ("tfds:huggingface:mnist", "allowed: tfds:NAME"),
        ("tfds:../tiny", "allowed: tfds:NAME"),
        ("minst", "got 'minst'; allowed: digits, fashion_mnist, tfds:NAME"),
    ],
)
def test_a_data_set_that_is_missing_says_how_to_get_it(name, message, tiny):
    with pytest.raises(PdiffError, match=message):
        load(name, tiny)


def test_a_data_set_of_configs_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(PdiffError, match="tasks.data_dir: got ''"):
        load("tfds:tiny", "")
    write_tfds(tmp_path, {"train": examples(), "test": examples()}, tensor(), config="plain")
    with pytest.raises(PdiffError, match="allowed: one of its configs, as in tfds:tiny/plain"):
        load("tfds:tiny", tmp_path)


def test_a_family_of_another_size_of_images_refuses_them(tiny):
    config = defaults().tasks
    config.update(dict(data="tfds:tiny", data_dir=str(tiny)))
    with pytest.raises(PdiffError, match=r"tasks.data: got 'tfds:tiny', images of \(4, 3, 3\)"):
        get_family(config)


# --- Fashion-MNIST from IDX files -----------------------------------------------------------


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(where, packed=True, train=(GREY[..., 0], LABELS), test=(GREY[:6, ..., 0], LABELS[:6])):
    for part, (x, y) in {"train": train, "t10k": test}.items():
        for kind, array in {"images-idx3": x, "labels-idx1": y}.items():
            path = where / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return where


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_become_a_data_set(packed, tmp_path):
    where = fashion_mnist.prepare(write_idx(tmp_path, packed), tmp_path / "data", validation=5)
    assert where == tmp_path / "data" / "fashion_mnist" / "1.0.0"
    assert tfds.builder_from_directory(str(where)).info.file_format.value == "array_record"
    data = load("fashion_mnist", tmp_path / "data")
    order = np.random.RandomState(0).permutation(30)
    expected = {"train": GREY[order[:-5]], "validation": GREY[order[-5:]], "test": GREY[:6]}
    assert data.image_shape == (4, 3) and data.class_names == fashion_mnist.NAMES
    for part, x in expected.items():
        np.testing.assert_array_equal(data.parts[part].x, x.reshape(-1, 12).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.parts["train"].y, LABELS[order[:-5]])
    assert load("tfds:fashion_mnist", tmp_path / "data").class_names[:2] == ("t-shirt", "trouser")


def packed(where, change):
    path = where / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))


IDX_DAMAGE = {
    "missing": (lambda w: (w / "t10k-labels-idx1-ubyte.gz").unlink(), "t10k-labels-idx1-ubyte.gz: no such file"),
    "truncated gzip": (lambda w: packed(w, lambda b: b[:-20]), "train-images-idx3-ubyte.gz: damaged or unreadable"),
    "no gzip": (lambda w: packed(w, lambda b: b"idx" + b), "damaged or unreadable"),
    "flipped": (lambda w: packed(w, lambda b: b[:60] + bytes([b[60] ^ 255]) + b[61:]), "damaged or unreadable"),
    "no idx": (lambda w: packed(w, lambda b: gzip.compress(b"no idx file")), "starts with 6e6f2069; allowed: an IDX"),
    "dtype": (lambda w: packed(w, lambda b: gzip.compress(b"\0\0\x0d" + gzip.decompress(b)[3:])), "allowed: an IDX"),
    "truncated": (lambda w: packed(w, lambda b: gzip.compress(gzip.decompress(b)[:-1])), "do not fit its shape"),
    "header": (lambda w: packed(w, lambda b: gzip.compress(gzip.decompress(b)[:9])), "do not fit its shape"),
    "empty": (lambda w: packed(w, lambda b: gzip.compress(b"")), "allowed: an IDX"),
    "counts": (lambda w: write_idx(w, train=(GREY[..., 0], LABELS[1:])), r"labels of \(29,\); allowed: one for each"),
    "labels": (lambda w: write_idx(w, train=(GREY[..., 0], LABELS + 8)), "has the label 10; allowed: 0 to 9"),
    "sizes": (lambda w: write_idx(w, test=(GREY[:, :3, :, 0], LABELS)), r"images of \(4, 3\) and of \(3, 3\)"),
    "few": (lambda w: write_idx(w, train=(GREY[:5, ..., 0], LABELS[:5])), "5 training images; allowed: more"),
}  # fmt: skip


@pytest.mark.parametrize("name", IDX_DAMAGE)
def test_bad_idx_files_are_refused(name, tmp_path):
    damage, message = IDX_DAMAGE[name]
    damage(write_idx(tmp_path))
    with pytest.raises(PdiffError, match=message):
        fashion_mnist.prepare(tmp_path, tmp_path / "data", validation=5)
    assert not (tmp_path / "data").exists()
