"""Arrays from files of each format, and what is no such file."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile

import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

from pdiff.errors import PdiffError
from pdiff.imports import arrays, lora, trees
from tests.fuzz_import import hostile
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
    found = arrays.read(tmp_path / f"network{ending}", budget).arrays
    assert list(found) == sorted(made)
    for path, value in made.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value)


def test_fortran_order_is_kept(tmp_path, budget):
    made = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez_compressed(tmp_path / "a.npz", a=made)
    np.testing.assert_array_equal(arrays.read(tmp_path / "a.npz", budget).arrays["a"], made)


def refused(path, data, *words, megabytes=1.0):
    path.write_bytes(data)
    with pytest.raises(PdiffError) as e:
        arrays.check_floats(arrays.read(path, arrays.Budget(megabytes)).arrays)
    for word in words:
        assert word in str(e.value), str(e.value)


def test_what_is_something_else_is_named(tmp_path):
    pickled = pickle.dumps({"a": np.ones(40)})
    refused(tmp_path / "a.pt", pickled, "is a pickle", "python -m pdiff.convert")
    refused(tmp_path / "a.safetensors", pickled, "is a pickle")
    with zipfile.ZipFile(tmp_path / "torch.zip", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    torch = (tmp_path / "torch.zip").read_bytes()
    refused(tmp_path / "b.safetensors", torch, "is a zip archive, as torch.save writes")
    refused(tmp_path / "b.npz", torch, "data.pkl", "is no array")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    refused(tmp_path / "c.npz", (tmp_path / "objects.npz").read_bytes(), "Python objects")
    np.savez(tmp_path / "whole.npz", a=np.ones(2, np.float32))
    refused(tmp_path / "d.npz", b"\0" + (tmp_path / "whole.npz").read_bytes(), "does not begin as a zip archive")


def test_msgpack_makes_arrays_and_nothing_else(tmp_path):
    for odd in (msgpack.ExtType(77, b"x"), msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), 3, b"x", [1]):
        refused(tmp_path / "a.msgpack", msgpack.packb({"a": odd}), "'a' is ")
    for dtype in (b"O", b"V8", b"object"):
        data = msgpack.ExtType(1, msgpack.packb(((1,), dtype, b"\0" * 8)))
        refused(tmp_path / "a.msgpack", msgpack.packb({"a": data}))


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
        ({"a": np.ones(2, np.int32)}, ["'a' is int32", "float32, float16, bfloat16", "ignore"]),
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


def test_orbax_arrays_that_unpack_to_anything_are_refused(tmp_path, budget):
    """Tensorstore makes room for what a blosc chunk says of itself: 1.3 MB took 1.6 GB."""
    zoos.save(tmp_path / "network", {"a": np.ones(4, np.float32)})
    shutil.rmtree(tmp_path / "network" / "d")
    (tmp_path / "network" / "manifest.ocdbt").unlink()
    index = json.loads((tmp_path / "network" / trees.INDEX).read_text())
    (tmp_path / "network" / trees.INDEX).write_text(json.dumps(index | {"use_ocdbt": False}))
    for made, refused in (({"id": "zstd", "level": 1}, False), ({"id": "blosc"}, True)):
        shape = {"shape": [4], "chunks": [4], "dtype": "<f4", "compressor": made}
        store = {"driver": "file", "path": f"{tmp_path}/network/a/"}
        spec = {"driver": "zarr", "kvstore": store, "metadata": shape, "create": True, "delete_existing": True}
        tensorstore.open(spec).result().write(np.ones(4, np.float32)).result()
        if refused:
            with pytest.raises(PdiffError, match="'a' is compressed by blosc"):
                arrays.read(tmp_path / "network", budget)
        else:
            np.testing.assert_array_equal(arrays.read(tmp_path / "network", budget).arrays["a"], np.ones(4))


def test_json_without_tricks():
    for text, words in (
        ('{"a": 1, "a": 2}', "comes twice"),
        ("[NaN]", "NaN"),
        ("[" * 10**5, "nested"),
        ("{", "no JSON"),
    ):
        with pytest.raises(PdiffError, match=words):
            arrays.parse_json(text)


# --- properties: whatever the bytes are, a plain error or what the format's own library reads ----------

KINDS = (".safetensors", ".npz", ".msgpack", "lora", "")  # '' is Orbax
LIMIT_S = 10
spots = st.integers(0, 1 << 16)
few = st.binary(min_size=1, max_size=16)
edits = st.one_of(
    st.tuples(st.just("set"), spots, few),
    st.tuples(st.just("insert"), spots, few),
    st.tuples(st.just("cut off"), spots, st.just(b"")),
    st.tuples(st.just("leave out"), spots, few),
    st.tuples(st.just("repeat"), spots, few),
    st.tuples(st.just("begin with"), st.just(0), few),
)
damages = st.lists(edits, min_size=1, max_size=4) | st.integers(0, 2**32 - 1)  # or something else altogether


def edited(data, how):
    if isinstance(how, int):
        return hostile(data, np.random.default_rng(how))
    for what, at, extra in how:
        at, size = at % (len(data) + 1), len(extra)
        start, end = data[:at], data[at:]
        data = {
            "set": start + extra + end[size:],
            "insert": start + extra + end,
            "cut off": start,
            "leave out": start + end[size:],
            "repeat": start + end[:size] + end,
            "begin with": extra + data[size:],
        }[what]
    return data


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A network in each format: its folder, and its files with what is in them."""
    made = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp("sound")
        if kind == "lora":
            zoos.lora(root / "network", 0.5)
        else:
            zoos.save(root / f"network{kind}", zoos.network(0))
        paths = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "_CHECKPOINT_METADATA"]
        made[kind] = root, {p: p.read_bytes() for p in paths}
    return made


def read_damaged(sound, kind, which, how):
    """What is read of a network of which one file is damaged, or None and what was said; the file is whole again."""
    root, files = sound[kind]
    path = sorted(files)[which % len(files)]
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p != path}
    try:
        path.write_bytes(edited(files[path], how))
        network, start = root / f"network{'' if kind == 'lora' else kind}", time.perf_counter()
        try:
            if kind == "lora":
                found, adapter, _ = lora.read(network, arrays.Budget(1.0))
                names = lora.names(adapter)
                found = {names[p]: a for p, a in found.items()}
            else:
                found = arrays.read(network, arrays.Budget(1.0)).arrays
            arrays.check_floats(found)
            said = ""
        except (PdiffError, OSError) as e:
            found, said = None, str(e)
        assert time.perf_counter() - start < LIMIT_S
        theirs = None
        if found is not None:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.ExitStack() as stack:
                if kind == "":  # it does not read a checkpoint whose index has odd words that tell nothing of arrays
                    stack.enter_context(contextlib.suppress(Exception))
                    theirs = zoos.network(0)
                theirs = zoos.load(network / "adapter_model.safetensors" if kind == "lora" else network)
    finally:
        path.write_bytes(files[path])
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*") if p != path}
    return found, theirs, said


def check_read(found, theirs, said, kind):
    if found is None:
        assert 5 < len(said) < 4000
        return
    assert set(found) == set(theirs)
    for name in found:
        assert found[name].dtype == theirs[name].dtype and np.isfinite(found[name].astype(np.float32)).all()
        assert found[name].tobytes() == np.asarray(theirs[name]).tobytes()


@given(st.sampled_from(KINDS[:-1]), spots, damages)
def test_property_damaged_files_are_refused_or_read_as_their_own_library_does(sound, kind, which, how):
    check_read(*read_damaged(sound, kind, which, how), kind)


@settings(max_examples=max(30, settings().max_examples // 5))  # Orbax's own reader takes its time
@given(spots, damages)
def test_property_damaged_orbax_checkpoints_are_too(sound, which, how):
    check_read(*read_damaged(sound, "", which, how), "")


odd_names = st.sampled_from(["a", "a/b", "params/Dense_0/kernel", "../x", "/x", "a//b", "..", "a\nb", "é", "x" * 401,
                             "\x1b[2J", "a.b", "\u202e"]) | st.text(max_size=12)  # fmt: skip
odd_arrays = st.tuples(
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(["float32", "float32", "float16", "bfloat16", "float64", "int8", "bool"]),
    st.sampled_from(["finite"] * 3 + ["nan", "inf"]),
)


@given(st.sampled_from((".safetensors", ".npz", ".msgpack")), st.dictionaries(odd_names, odd_arrays, max_size=4), spots)
def test_property_sound_files_come_back_bit_for_bit_or_what_is_odd_is_named(tmp_path_factory, kind, described, seed):
    random, made = np.random.default_rng(seed), {}
    for name, (shape, dtype, value) in described.items():
        made[name] = random.standard_normal(shape).astype(dtype)
        if value != "finite" and made[name].size and "float" in dtype:
            made[name].reshape(-1)[0] = float(value)
    path = tmp_path_factory.getbasetemp() / f"odd{kind}"
    path.unlink(missing_ok=True)
    try:
        zoos.save(path, made)
        theirs = zoos.load(path)
    except Exception:  # what the library itself does not write or read
        return
    if set(theirs) != set(made):  # a tree holds no array where it has a branch
        return
    plain = made and all(
        n and len(n) <= 400 and n.isprintable() and all(p.strip(". ") for p in n.split("/"))
        and not any(m.startswith(f"{n}/") for m in made) for n in made
    )  # fmt: skip
    weights = all(
        str(a.dtype) in arrays.ALLOWED and a.size and np.isfinite(a.astype("f4")).all() for a in made.values()
    )
    try:
        found = arrays.read(path, arrays.Budget(1.0)).arrays
        arrays.check_floats(found)
    except PdiffError as e:
        odd = kind == ".npz" and any(a.dtype == ml_dtypes.bfloat16 for a in made.values())  # .npz has no such type
        assert not (plain and weights) or odd, e
        return
    assert plain and weights and set(found) == set(made) == set(theirs)
    assert all(found[n].dtype == made[n].dtype and found[n].tobytes() == made[n].tobytes() for n in made)
