"""Weights of Keras: HDF5 in a process of its own, which may crash, hang and allocate as it likes."""

import time
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.imports import arrays, keras_file

KERNEL = np.arange(6, dtype=np.float32).reshape(3, 2)


def read(path, megabytes=1.0):
    return arrays.read(path, arrays.Budget(megabytes))


def model(path, **more):
    """As Keras 3 lays out its weights."""
    with h5py.File(path, "w") as file:
        variables = file.create_group("layers/dense/vars")
        variables["0"] = KERNEL
        marked = variables.create_dataset("1", data=np.array([1.5, 2], ml_dtypes.bfloat16))
        marked.attrs["dtype"] = "bfloat16"
        file.create_group("layers/flatten")
        file["layers/dropout/seed_generator/vars/0"] = np.array([3, 4], np.uint32)
        file["optimizer/vars/0"] = np.int64(7)
        for name, value in more.items():
            file[name] = value
    return path


def zipped(path, weights, *others):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("metadata.json", "config.json", *others):
            archive.writestr(name, '{"module": "os", "class_name": "system"}')
        archive.writestr("model.weights.h5", weights)
    return path


@pytest.mark.parametrize("kept_as", ["a.weights.h5", "a.h5", "a.keras"])
def test_weights_of_keras_without_its_optimizer(tmp_path, kept_as):
    path = model(tmp_path / "made.h5")
    path = zipped(tmp_path / kept_as, path.read_bytes()) if kept_as == "a.keras" else path.rename(tmp_path / kept_as)
    file = read(path)
    assert list(file.arrays) == [
        f"layers/{n}" for n in ("dense/vars/0", "dense/vars/1", "dropout/seed_generator/vars/0")
    ]
    np.testing.assert_array_equal(file.arrays["layers/dense/vars/0"], KERNEL)
    bias = file.arrays["layers/dense/vars/1"]
    assert bias.dtype == ml_dtypes.bfloat16 and bias.tolist() == [1.5, 2]
    assert file.notes == ("what belongs to the optimizer is left out (1 arrays)",)


def test_dtypes_and_storage_of_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["double"] = np.float64(0.1)
        file["big"] = KERNEL.astype(">f4")
        file["flags"] = np.array([True, False])
        file["text"] = "x"
        file["none"] = h5py.Empty("f4")
        for how in ({"compression": "gzip", "shuffle": True}, {"fletcher32": True}, {"compression": "lzf"}):
            file.create_dataset(next(iter(how)) + str(how), data=KERNEL, chunks=(2, 1), **how)
    file = read(tmp_path / "a.h5")
    assert file.notes == ("float64 is taken as float32 (1 arrays)",) and file.arrays["double"].shape == ()
    assert file.arrays["flags"].dtype == bool
    same = [a for n, a in file.arrays.items() if n not in ("double", "flags", "text", "none")]
    assert len(same) == 4 and all(a.dtype == np.float32 and (a == KERNEL).all() for a in same)
    for name in ("text", "none"):
        with pytest.raises(PdiffError, match=f"'{name}' is "):
            arrays.check_floats({name: file.arrays[name]})


def linked(file):
    file["x"] = h5py.ExternalLink("/etc/passwd", "/")


def soft(file):
    file["x"] = h5py.SoftLink("/layers")


def virtual(file):
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (3, 2))
    file.create_virtual_dataset("x", layout)


def outside(file):
    file.create_dataset("x", (3, 2), "f4", external=[("/etc/passwd", 0, 24)])


def hollow(file):
    file.create_dataset("x", (3, 2), "f4", chunks=(1, 2))[0] = 1


def unwritten(file):
    file.create_dataset("x", (3, 2), "f4")


def ring(file):
    file["layers/again"] = file["layers"]


def huge(file):
    file.create_dataset("x", (1 << 40,), "f4", chunks=(1024,), compression="gzip")


def wide(file):
    file.create_dataset("x", (1,), "f4", maxshape=(None,), chunks=(1 << 24,), compression="gzip")[0] = 1


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (linked, "'x' is a link to another place"), (soft, "'x' is a link"), (virtual, "values in another file"),
        (outside, "values in another file"), (hollow, "1 of its 3 chunks"), (unwritten, "0 of its 24 bytes"),
        (ring, "more than 64 groups"), (huge, "chunks; the others are missing"), (wide, "much larger"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_file_is_refused(tmp_path, odd, words):
    path = model(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        odd(file)
    with pytest.raises(PdiffError, match=words):
        read(path)


def test_sizes_are_those_that_the_file_says(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.zeros(2_000_000, np.float32), chunks=(200_000,), compression="gzip")
    assert (tmp_path / "a.h5").stat().st_size < 100_000
    with pytest.raises(PdiffError, match="says that it holds .*zoo.import_mb"):
        read(tmp_path / "a.h5")
    zipped(tmp_path / "a.keras", b"\0" * 2_000_000)
    with pytest.raises(PdiffError, match="says that it holds 2,000,000 bytes.*zoo.import_mb"):
        read(tmp_path / "a.keras")


def test_archives_that_are_none_of_keras(tmp_path):
    model(tmp_path / "a.h5").rename(tmp_path / "a.keras")
    with pytest.raises(PdiffError, match="does not begin as a zip archive"):
        read(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("other.h5", b"")
    with pytest.raises(PdiffError, match="does not hold model.weights.h5 once"):
        read(tmp_path / "b.keras")


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "HDF5's library ended over it with code -11"),
        ("print(input)", "is no JSON"),
        ("import time; time.sleep(60)", "code -9"),
        ('print(\'{"arrays": [["a", "<f4", [3]]]}\', flush=True)', "is truncated: 12 bytes are missing"),
        ('print(\'{"arrays": [["a", "|O", [3]]]}\', flush=True)', "HDF5's library says"),
        ("while True: print('x' * 9999999, end='')", "code -9"),
    ],
)
def test_a_library_that_crashes_hangs_or_lies_is_only_a_damaged_file(tmp_path, monkeypatch, does, words):
    path = model(tmp_path / "a.h5")
    (tmp_path / "child.py").write_text(does)
    monkeypatch.setattr(keras_file, "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(keras_file, "SECONDS", 0.5)
    start = time.perf_counter()
    with pytest.raises(PdiffError, match=words):
        read(path)
    assert time.perf_counter() - start < 20


def test_damaged_files_by_the_dozen(tmp_path):
    """Each starts a process, a fifth of a second; `tests.fuzz_import` does more."""
    data, random = model(tmp_path / "a.h5").read_bytes(), np.random.default_rng(3)
    with h5py.File(tmp_path / "a.h5") as file:
        whole = file["layers/dense/vars/0"][()]
    for i in range(12):
        made = bytearray(data)
        for _ in range(4):
            made[random.integers(len(made) // 3)] = int(random.integers(256))
        path = tmp_path / f"b{i}.h5"
        path.write_bytes(bytes(made[: len(made) if i % 3 else random.integers(len(made))]))
        try:
            found = read(path).arrays
        except PdiffError as e:
            assert 10 < len(str(e)) < 600
        else:
            assert all(a.shape == whole.shape for n, a in found.items() if n == "layers/dense/vars/0")
