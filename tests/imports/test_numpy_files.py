"""Arrays of NumPy: its default dtype, bfloat16, single arrays, and a row for each network."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pdiff.errors import PdiffError
from pdiff.imports import arrays, links

SHAPES = {"params/a": [2, 3], "params/b": [4], "scale": [1]}


def read(path, megabytes=1.0):
    return arrays.read(path, arrays.Budget(megabytes))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_float64_is_float32_with_a_line(tmp_path, save):
    made = np.random.default_rng(0).standard_normal((3, 2))
    save(tmp_path / "a.npz", w=made, step=np.array(3), big=made.astype(">f8"))
    file = read(tmp_path / "a.npz")
    assert file.notes == ("float64 is taken as float32 (2 arrays)",)
    np.testing.assert_array_equal(file.arrays["w"], made.astype(np.float32))
    np.testing.assert_array_equal(file.arrays["big"], file.arrays["w"])
    assert file.arrays["step"].dtype == np.int64 and file.arrays["step"].shape == ()


@pytest.mark.parametrize("shape", [(4,), (2, 1, 3)])
def test_npz_of_bfloat16_is_bfloat16_with_a_line(tmp_path, shape):
    made = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.bfloat16)
    jnp.savez(tmp_path / "a.npz", w=made, v=np.ones(2, np.float16))
    file = read(tmp_path / "a.npz")
    assert file.notes == ("'|V2' is taken as bfloat16 (1 arrays)",)
    assert file.arrays["w"].dtype == ml_dtypes.bfloat16 and file.arrays["w"].tobytes() == np.asarray(made).tobytes()
    arrays.check_floats(file.arrays)


def test_what_is_no_number_is_refused_only_where_it_is_used(tmp_path):
    fields = np.zeros(2, [("x", "f4"), ("y", "f4")])
    np.savez(tmp_path / "a.npz", w=np.ones(2, np.float32), o=np.array([{}], object), s=np.array(["x"]), f=fields)
    found = read(tmp_path / "a.npz").arrays
    arrays.check_floats({"w": found["w"]})
    for name, words in (("o", "Python objects, which are pickles"), ("s", "is <U1"), ("f", "array of records")):
        with pytest.raises(PdiffError, match=words):
            arrays.check_floats({name: found[name]})


@pytest.mark.parametrize("made", [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2.5, np.float16)])
def test_npy_is_a_network_of_one_array(tmp_path, made):
    for order in "CF":
        np.save(tmp_path / "a.npy", np.asarray(made, order=order))
        file = read(tmp_path / "a.npy")
        assert list(file.arrays) == ["array"] and file.arrays["array"].dtype == made.dtype
        np.testing.assert_array_equal(file.arrays["array"], made)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(PdiffError, match="its header says shape"):
        read(tmp_path / "a.npy")


def test_npy_of_bfloat16(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1.5, 2], ml_dtypes.bfloat16))
    file = read(tmp_path / "a.npy")
    assert file.arrays["array"].dtype == ml_dtypes.bfloat16 and "bfloat16" in file.notes[0]


# --- a row for each network -----------------------------------------------------------------------------


def rows(folder, made, ending=".npy", shapes=SHAPES):
    (folder / "shapes.json").write_text(json.dumps(shapes))
    path = folder / f"weights{ending}"
    np.save(path, made) if ending == ".npy" else safetensors.numpy.save_file({"anything": made}, path)
    return path


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_row_is_a_network_with_the_shapes_beside(tmp_path, ending, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    made = np.random.default_rng(2).standard_normal((5, 11)).astype(dtype)
    path = rows(tmp_path, made, ending)
    assert arrays.rows_of(path, tmp_path / "shapes.json") == 5
    for i in (0, 4):
        row = path.with_name(f"{path.name}#{i}")
        assert arrays.kind_of(row) == "row" and arrays.split_row(row) == (path, i)
        file = read(row)
        assert list(file.arrays) == sorted(SHAPES)
        wanted = made[i].astype(np.float32) if dtype == np.float64 else made[i]
        np.testing.assert_array_equal(file.arrays["params/a"], wanted[:6].reshape(2, 3))
        np.testing.assert_array_equal(file.arrays["params/b"], wanted[6:10])
        np.testing.assert_array_equal(file.arrays["scale"], wanted[10:])
        assert ("float64" in "".join(file.notes)) == (dtype == np.float64)
    with pytest.raises(PdiffError, match="has no row 5; allowed: 0 to 4"):
        read(path.with_name(f"{path.name}#5"))


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_only_that_row_is_read(tmp_path, ending):
    """The limit is less than the array."""
    made = np.zeros((60_000, 11), np.float32)
    made[59_999] = np.arange(11)
    path = rows(tmp_path, made, ending)
    assert path.stat().st_size > 2_000_000
    found = read(path.with_name(f"{path.name}#59999"), 0.001).arrays
    np.testing.assert_array_equal(found["params/b"], [6, 7, 8, 9])
    with pytest.raises(PdiffError, match="zoo.import_mb"):
        read(path.with_name(f"{path.name}#1"), 0.00001)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (SHAPES | {"more": [2]}, "has 11 columns, and the shapes of shapes.json want 13"),
        ({"a": [-1]}, "shapes.json .* no shape"),
        ({"a": [True]}, "no shape"),
        ({"a": [11, 0]}, "no elements"),
        ({"a": 11}, "no shape"),
        ([11], "no object"),
        ({}, "no object"),
        ({"a": [1 << 62, 1 << 62]}, "want"),
    ],
)
def test_shapes_have_to_fit_the_columns(tmp_path, shapes, words):
    path = rows(tmp_path, np.ones((2, 11), np.float32), shapes=shapes)
    for look in (lambda: arrays.rows_of(path, tmp_path / "shapes.json"), lambda: read(tmp_path / "weights.npy#1")):
        with pytest.raises(PdiffError, match=words):
            look()


def test_what_is_no_array_of_rows(tmp_path):
    (tmp_path / "shapes.json").write_text(json.dumps(SHAPES))
    np.save(tmp_path / "a.npy", np.ones(11, np.float32))
    safetensors.numpy.save_file({"a": np.ones((2, 11)), "b": np.ones(1)}, tmp_path / "b.safetensors")
    assert arrays.rows_of(tmp_path / "shapes.json", tmp_path / "shapes.json") is None
    for name in ("a.npy", "b.safetensors"):
        assert arrays.rows_of(tmp_path / name, tmp_path / "shapes.json") is None
        with pytest.raises(PdiffError, match="does not hold one 2-d array"):
            read(tmp_path / f"{name}#0")
    np.save(tmp_path / "f.npy", np.asfortranarray(np.ones((3, 11))))
    with pytest.raises(PdiffError, match="Fortran order.*ascontiguousarray"):
        read(tmp_path / "f.npy#0")


@pytest.mark.parametrize("name", ["w.npy#", "w.npy#01", "w.npy#-1", "w.npz#1", "w#1", "w.npy#x"])
def test_other_names_name_no_row(tmp_path, name):
    assert arrays.split_row(tmp_path / name) == (tmp_path / name, None)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("weights.npy#12", "weights_12"), ("a.weights.h5", "a"), ("b.keras", "b"), ("x_0.5", "x_0.5"), (".npy", ".npy")],
)
def test_stems(name, stem):
    assert arrays.stem_of(name) == stem


def test_shapes_that_are_a_link_elsewhere_are_refused(tmp_path):
    (tmp_path / "source").mkdir()
    path = rows(tmp_path / "source", np.ones((2, 11), np.float32))
    assert links.inside(tmp_path / "source", "weights.npy#1") == path
    (tmp_path / "source" / "shapes.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "source" / "shapes.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(PdiffError, match="leads out of"):
        links.inside(tmp_path / "source", "weights.npy#1")


@pytest.mark.parametrize("header", [b"{'shape': (", b"{'descr': '<f4',\n (\n", b"[" * 900, b"\xff\xfe"])
def test_headers_that_python_stumbles_over(tmp_path, header):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(PdiffError, match="'a.npy': its header cannot be read: "):
        read(tmp_path / "a.npy")
