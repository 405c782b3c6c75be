"""Arrays from files of each format, and what is no such file."""

import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pdiff.errors import PdiffError
from pdiff.imports import arrays
from tests.imports import zoos


@pytest.fixture
def budget():
    return arrays.Budget(1.0)


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".msgpack", ""])
def test_each_format_is_read_bit_for_bit(tmp_path, ending, budget):
    made = zoos.network(0)
    if ending != ".npz":  # which knows no bfloat16
        made["params/Dense_0/bias"] = made["params/Dense_0/bias"].astype(ml_dtypes.bfloat16)
    zoos.save(tmp_path / f"network{ending}", made)
    found = arrays.read(tmp_path / f"network{ending}", budget)
    assert list(found) == sorted(made)
    for path, value in made.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value)


def test_fortran_order_is_kept(tmp_path, budget):
    made = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez_compressed(tmp_path / "a.npz", a=made)
    np.testing.assert_array_equal(arrays.read(tmp_path / "a.npz", budget)["a"], made)


def refused(path, data, *words, megabytes=1.0):
    path.write_bytes(data)
    with pytest.raises(PdiffError) as e:
        arrays.read(path, arrays.Budget(megabytes))
    for word in words:
        assert word in str(e.value), str(e.value)


def test_what_is_something_else_is_named(tmp_path):
    pickled = pickle.dumps({"a": np.ones(40)})
    refused(tmp_path / "a.pt", pickled, "is a pickle", "save it as safetensors")
    refused(tmp_path / "a.safetensors", pickled, "is a pickle")
    with zipfile.ZipFile(tmp_path / "torch.zip", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    torch = (tmp_path / "torch.zip").read_bytes()
    refused(tmp_path / "b.safetensors", torch, "is a zip archive, as torch.save writes")
    refused(tmp_path / "b.npz", torch, "data.pkl", "is no array")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    refused(tmp_path / "c.npz", (tmp_path / "objects.npz").read_bytes(), "Python objects")


def test_headers_that_lie_are_not_believed(tmp_path):
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry}).encode()
    refused(tmp_path / "a.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 8, "is damaged")
    refused(tmp_path / "b.safetensors", struct.pack("<Q", 1 << 50) + b"{}", "truncated or no safetensors")
    refused(tmp_path / "c.safetensors", struct.pack("<Q", 50_000) + b"[" * 50_000, "nested too deeply")
    with zipfile.ZipFile(tmp_path / "lying.zip", "w") as archive:
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}\n"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 8)
    refused(tmp_path / "d.npz", (tmp_path / "lying.zip").read_bytes(), "header says shape (1099511627776,)", "8 follow")


def test_a_zip_bomb_is_refused_by_what_it_says_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 5_000_000)
    data = (tmp_path / "bomb.zip").read_bytes()
    assert len(data) < 10_000
    refused(tmp_path / "a.npz", data, "says that it holds 5,000,000 bytes", "zoo.import_mb")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"a": np.ones(2)}, ["'a' is 'F64'", "F32, F16, BF16"]),
        ({"a": np.array([1, np.nan], np.float32)}, ["not finite"]),
        ({"a": np.zeros((0, 3), np.float32)}, ["no elements"]),
        ({}, ["holds no arrays"]),
        ({"../../x": np.ones(2, np.float32)}, ["'../../x'"]),
        ({"a\nb": np.ones(2, np.float32)}, ["printable"]),
        ({"a": np.ones(2, np.float32), "a/b": np.ones(2, np.float32)}, ["'a' is an array and also the beginning"]),
    ],
)
def test_arrays_that_are_no_weights_are_refused(tmp_path, made, words):
    refused(tmp_path / "a.safetensors", safetensors.numpy.save(made), *words)


def test_a_pipe_is_not_waited_for(tmp_path, budget):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(PdiffError, match="no regular file"):
        arrays.read(tmp_path / "a.safetensors", budget)


def test_orbax_checkpoints_with_a_link_or_a_hole_are_refused(tmp_path, budget):
    zoos.save(tmp_path / "network", zoos.network(0))
    data = sorted((tmp_path / "network").rglob("d/*"))[0]
    kept = data.read_bytes()
    data.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(PdiffError, match="is damaged or no Orbax checkpoint"):
        arrays.read(tmp_path / "network", budget)
    data.unlink()
    data.symlink_to("/etc/passwd")
    with pytest.raises(PdiffError, match="is a link"):
        arrays.read(tmp_path / "network", budget)


def test_json_without_tricks():
    for text, words in (
        ('{"a": 1, "a": 2}', "comes twice"),
        ("[NaN]", "NaN"),
        ("[" * 10**5, "nested"),
        ("{", "no JSON"),
    ):
        with pytest.raises(PdiffError, match=words):
            arrays.parse_json(text)
