"""Safetensors: every dtype, metadata, headers that lie, shards, and what Git LFS leaves in their place."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pdiff.errors import PdiffError
from pdiff.imports import arrays

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0f" * 32 + "\nsize 12\n"


def read(path, megabytes=1.0):
    return arrays.read(path, arrays.Budget(megabytes))


def raw(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int64", [3, -1]), ("uint8", [255]), ("bool", [True, False]), ("uint32", [1 << 31]), ("int16", [[-5]]),
        ("float16", [0.5]), ("bfloat16", [1.5, -2]), ("float8_e4m3fn", [0.5]), ("complex64", [1 + 2j]),
    ],
)  # fmt: skip
def test_every_dtype_is_read_and_only_floats_are_weights(tmp_path, dtype, values):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    made = {
        "w": np.ones((2, 1), np.float32),
        "x": np.array(values).astype(dtype),
        "s": np.array(values).astype(dtype).reshape(-1)[:1].reshape(()),
    }
    safetensors.numpy.save_file(made, tmp_path / "a.safetensors", {"format": "pt", "alpha": "8.0"})
    file = read(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt", "alpha": "8.0"} and file.notes == ()
    for name, value in made.items():
        assert file.arrays[name].dtype == value.dtype and file.arrays[name].shape == value.shape
        assert file.arrays[name].tobytes() == value.tobytes()
    arrays.check_floats({"w": file.arrays["w"]})
    if str(dtype) in arrays.ALLOWED:
        arrays.check_floats(file.arrays)
    else:
        with pytest.raises(PdiffError, match=f"is {dtype}; allowed: float32"):
            arrays.check_floats(file.arrays)


def test_float64_becomes_float32_and_says_so(tmp_path):
    made = {"a": np.array([0.1, -2]), "b": np.array(3.0), "c": np.ones(1, np.float32)}
    safetensors.numpy.save_file(made, tmp_path / "a.safetensors")
    file = read(tmp_path / "a.safetensors")
    assert file.notes == ("float64 is taken as float32 (2 arrays)",)
    assert all(a.dtype == np.float32 for a in file.arrays.values()) and file.arrays["b"].shape == ()
    np.testing.assert_array_equal(file.arrays["a"], made["a"].astype(np.float32))
    safetensors.numpy.save_file({"a": np.array([1e300])}, tmp_path / "b.safetensors")
    with pytest.raises(PdiffError, match="not finite, as float32"):
        arrays.check_floats(read(tmp_path / "b.safetensors").arrays)


def test_a_dtype_of_tomorrow_is_refused_only_where_it_is_used(tmp_path):
    header = {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F4", "shape": [3, 2], "data_offsets": [4, 7]},
    }
    file = read(raw(tmp_path / "a.safetensors", header, np.float32(2).tobytes() + b"123"))
    arrays.check_floats({"a": file.arrays["a"]})
    with pytest.raises(PdiffError, match="'b' is 'F4' of safetensors, which is not read; save it as F32"):
        arrays.check_floats(file.arrays)


@pytest.mark.parametrize(
    ("offsets", "size", "words"),
    [
        ([(0, 4), (8, 12)], 12, "begins at byte"),  # a hole
        ([(0, 4), (0, 4)], 4, "begins at byte"),  # two in one place
        ([(0, 4), (4, 12)], 12, "8 are its own"),  # too long
        ([(0, 4), (4, 8)], 12, "speaks of"),  # bytes at the end
        ([(0, 4), (4, 8)], 6, "speaks of"),  # cut off
        ([(0, 4), (8, 4)], 8, "is damaged"),
        ([(0, 4), (-4, 0)], 8, "no shape"),
        ([(0, 4), (4, 8.0)], 8, "no shape"),
    ],
)
def test_offsets_have_to_fit(tmp_path, offsets, size, words):
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": list(o)} for n, o in zip("ab", offsets, strict=True)}
    with pytest.raises(PdiffError, match=words):
        read(raw(tmp_path / "a.safetensors", header, b"\0" * size))


@pytest.mark.parametrize("metadata", [[1], {"a": 1}, "x"])
def test_metadata_is_texts(tmp_path, metadata):
    header = {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    with pytest.raises(PdiffError, match="an object of texts"):
        read(raw(tmp_path / "a.safetensors", header, b"\0" * 4))


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.msgpack", "a.npy", "a.weights.h5", "a.keras", "a.bin"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    (tmp_path / name).write_text(LFS)
    with pytest.raises(PdiffError, match="is a Git LFS pointer; git lfs pull fetches the file"):
        read(tmp_path / name)


# --- shards ---------------------------------------------------------------------------------------------


def sharded(folder, parts, stem="model", metadata=None):
    """A folder of shards, each the arrays of one of `parts`."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for i, part in enumerate(parts, 1):
        file = f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors"
        safetensors.numpy.save_file(part, folder / file, (metadata or [{"format": "pt"}] * 9)[i - 1])
        places |= dict.fromkeys(part, file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 12}, "weight_map": places}))
    return index


PARTS = ({"a.w": np.ones((2, 2), np.float32), "z": np.arange(3)}, {"b": np.full(2, 2, np.float16)})


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_shards_are_one_network(tmp_path, stem):
    index = sharded(tmp_path / "net", PARTS, stem)
    assert arrays.kind_of(tmp_path / "net") == arrays.kind_of(index) == "sharded"
    for path in (tmp_path / "net", index):
        file = read(path)
        assert list(file.arrays) == ["a.w", "b", "z"] and file.metadata == {"format": "pt"}
        assert file.arrays["b"].dtype == np.float16 and file.arrays["z"].dtype == np.int64
    assert arrays.stem_of(index.name) == stem


def test_shards_share_one_limit(tmp_path):
    index = sharded(tmp_path / "net", ({"a": np.ones(600, np.float32)}, {"b": np.ones(600, np.float32)}))
    read(index, 0.005)
    with pytest.raises(PdiffError, match="-00002-of-00002.safetensors says that it holds 2,400 bytes.*zoo.import_mb"):
        read(index, 0.004)


def test_metadata_of_shards_that_disagree_is_left_out_and_said(tmp_path):
    index = sharded(tmp_path, PARTS, metadata=[{"format": "pt", "x": "1"}, {"format": "pt", "x": "2"}])
    file = read(index)
    assert file.metadata == {"format": "pt"} and file.notes == ("shards disagree about 'x' of their metadata",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update({"new": "model-00001-of-00002.safetensors"}), "lacks 'new', unlike what"),
        (lambda m: m.pop("z"), "also holds 'z', unlike what"),
        (lambda m: m.update({"b": "../out.safetensors"}), "has 'b' in '../out.safetensors'; allowed: the name"),
        (lambda m: m.update({"b": "/etc/passwd"}), "has 'b' in '/etc/passwd'"),
        (lambda m: m.update({"b": 3}), "has 'b' in 3"),
        (lambda m: m.update({"b": "pytorch_model.bin"}), "the name of a .safetensors file"),
        (lambda m: m.update({"b": "lost.safetensors"}), r"lacks lost.safetensors, which .* names \(1 of 2 shards\)"),
        (lambda m: m.clear(), "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, change, words):
    index = sharded(tmp_path / "net", PARTS)
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises(PdiffError, match=words):
        read(index)


def test_two_indices_in_a_folder_are_two_networks(tmp_path):
    sharded(tmp_path, PARTS, "one")
    sharded(tmp_path, PARTS, "two")
    with pytest.raises(PdiffError, match="several sharded networks .one.safetensors.index.json, two"):
        arrays.kind_of(tmp_path)
    assert set(read(tmp_path / "two.safetensors.index.json").arrays) == {"a.w", "b", "z"}
