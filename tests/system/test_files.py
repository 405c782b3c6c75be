"""Documents and directories that know when they are damaged, and files that are whole or absent."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdiff.errors import PdiffError
from pdiff.system import files

DOCUMENT = {"a": [1, 2.5, None], "b": {"c": "ä", "d": True}}


def test_a_document_is_what_was_written(tmp_path):
    files.write_json(tmp_path / "x.json", DOCUMENT)
    assert files.read_json(tmp_path / "x.json", "mend it") == DOCUMENT
    first = (tmp_path / "x.json").read_bytes()
    files.write_json(tmp_path / "x.json", dict(reversed(DOCUMENT.items())))
    assert (tmp_path / "x.json").read_bytes() == first
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": 1}', "has no sha256"),
        ('{"a": 1, "sha256": "00"}', "damaged or edited"),
        ('{"a": NaN, "sha256": "00"}', "not JSON: NaN is not allowed"),
        ("[1]", "not an object"),
        ("[" * 100_000, "not JSON"),
        ("\xff\xfe", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_other_documents_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(PdiffError, match=f"x.json: .*{message}.*; mend it"):
        files.read_json(path, "mend it")
    with pytest.raises(PdiffError, match="y.json: missing; mend it"):
        files.read_json(tmp_path / "y.json", "mend it")


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "w"
    (where / "in" / "side").mkdir(parents=True)
    (where / "a.bin").write_bytes(bytes(range(100)))
    (where / "in" / "side" / "b.bin").write_bytes(b"b" * 50)
    (where / "skipped").mkdir()
    (where / "skipped" / "c").write_bytes(b"c")
    files.write_manifest(where, "thing", skip=["skipped"])
    return where


def verify(where, kind="thing"):
    files.verify_manifest(where, kind, "mend it", skip=["skipped"])


def test_an_untouched_directory_is_sound(folder):
    verify(folder)
    assert set(files.read_manifest(folder, "thing", "")) == {"a.bin", "in/side/b.bin"}
    (folder / "skipped" / "c").write_bytes(b"d")
    verify(folder)


@pytest.mark.parametrize("name", ["a.bin", "in/side/b.bin", files.MANIFEST])
@pytest.mark.parametrize("what", ["flip", "truncate", "append", "empty", "remove"])
def test_whatever_is_changed_is_named(folder, name, what):
    path = folder / name
    data = path.read_bytes()
    middle = len(data) // 2
    changed = {"flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "truncate": data[:middle],
               "append": data + b"x", "empty": b""}  # fmt: skip
    if what == "remove":
        path.unlink()
    else:
        path.write_bytes(changed[what])
    with pytest.raises(PdiffError, match=f"{name}.*; mend it"):
        verify(folder)


def test_a_link_in_the_place_of_a_file_is_named(folder, tmp_path):
    (folder / "a.bin").rename(tmp_path / "elsewhere")
    (folder / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PdiffError, match="a.bin: a link; allowed: the file itself; mend it"):
        verify(folder)


def test_what_is_added_or_swapped_is_named(folder):
    (folder / "new").write_bytes(b"")
    with pytest.raises(PdiffError, match="new: not in the manifest"):
        verify(folder)
    (folder / "new").unlink()
    a, b = folder / "a.bin", folder / "in" / "side" / "b.bin"
    a.rename(folder / "t"), b.rename(a), (folder / "t").rename(b)
    with pytest.raises(PdiffError, match="a.bin: damaged"):
        verify(folder)


def test_another_kind_or_format_is_said_with_its_number(folder, monkeypatch):
    with pytest.raises(PdiffError, match="manifest.json: of a thing; expected that of a zoo; mend it"):
        verify(folder, "zoo")
    monkeypatch.setattr(files, "FORMAT", 3)
    with pytest.raises(files.OtherFormat, match="of format 2; this pdiff reads format 3"):
        verify(folder)
    (folder / files.MANIFEST).write_text(json.dumps({"a.bin": "0" * 64}))
    with pytest.raises(files.OtherFormat, match="of format 1"):
        verify(folder)


def test_all_is_on_the_disk_before_the_manifest_is(folder, monkeypatch):
    """A power cut after the manifest must find what it lists, and the names of it."""
    synced, real = [], os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_manifest(folder, "thing", skip=["skipped"])
    manifest = next(i for i, name in enumerate(synced) if name.endswith(".partial"))
    wanted = {folder / "a.bin", folder / "in" / "side" / "b.bin", folder, folder / "in", folder / "in" / "side",
              folder.parent}  # fmt: skip
    assert set(map(str, wanted)) <= set(synced[:manifest]) and synced[-1] == str(folder)


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".x.json.123.partial").write_bytes(b"half")
    (tmp_path / ".out.9.partial").mkdir()
    (tmp_path / ".out.9.partial" / "a").write_bytes(b"")
    (tmp_path / "deep" / "x.partial").write_bytes(b"a user's")
    files.remove_partial(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["deep", "deep/x.partial"]


def test_sums_are_those_of_sha256sum_and_hold(tmp_path):
    files.write_with_digest(tmp_path / "a b", b"data")
    files.verify_sums(tmp_path / "a b")
    (tmp_path / "d" / "in").mkdir(parents=True)
    (tmp_path / "d" / "in" / "x").write_bytes(b"x")
    files.write_sums(tmp_path / "d")
    files.verify_sums(tmp_path / "d")
    files.verify_sums(tmp_path / "d" / "in")  # has none
    text = (tmp_path / "d" / files.SUMS).read_text()
    assert text == f"{files.sha256(tmp_path / 'd' / 'in' / 'x')}  in/x\n"
    (tmp_path / "d" / "in" / "x").write_bytes(b"y")
    with pytest.raises(PdiffError, match="in/x: missing or damaged"):
        files.verify_sums(tmp_path / "d")
    (tmp_path / "a b").write_bytes(b"tada")
    with pytest.raises(PdiffError, match="a b: missing or damaged"):
        files.verify_sums(tmp_path / "a b")
    (tmp_path / "d" / files.SUMS).write_text(f"{'0' * 64}  ../a b\n")
    with pytest.raises(PdiffError, match="SHA256SUMS: damaged"):
        files.verify_sums(tmp_path / "d")


@pytest.mark.parametrize("names", [None, [], {"../a": "0" * 64}, {"/etc/passwd": "0" * 64}, {"a.bin": 3}])
def test_a_manifest_that_somebody_else_sealed_names_nothing_elsewhere(folder, names):
    sealed = {"format": files.FORMAT, "kind": "thing"} | ({} if names is None else {"files": names})
    files.write_json(folder / files.MANIFEST, sealed)
    with pytest.raises(PdiffError, match="manifest.json: files: not names of files below .*; mend it"):
        verify(folder)


# --- properties ----------------------------------------------------------------------------------

contents = st.dictionaries(
    st.lists(st.sampled_from(["a", "b.bin", "c d", "é", "x.json"]), min_size=1, max_size=3).map("/".join),
    st.binary(max_size=40), min_size=1, max_size=5,
).filter(lambda made: not any(m.startswith(f"{n}/") for m in made for n in made))  # fmt: skip


changes = st.sampled_from(["byte", "cut", "longer", "swap", "add", "remove"])


@given(contents, changes, st.integers(0, 9999), st.integers(1, 255))
def test_property_any_change_of_a_directory_is_found_and_named(tmp_path_factory, made, what, at, by):
    where = tmp_path_factory.getbasetemp() / "property"
    shutil.rmtree(where, ignore_errors=True)
    for name, data in made.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(data)
    files.write_manifest(where, "thing")
    files.verify_manifest(where, "thing", "mend it")
    names = [*made, files.MANIFEST]
    name = names[at % len(names)]
    data, other = (where / name).read_bytes(), names[(at + 1) % len(names)]
    if what == "byte" and data:
        place = at % len(data)
        (where / name).write_bytes(data[:place] + bytes([data[place] ^ by]) + data[place + 1 :])
    elif what == "cut" and data:
        (where / name).write_bytes(data[: at % len(data)])
    elif what == "longer":
        (where / name).write_bytes(data + b"x" * by)
    elif what == "swap" and data != (where / other).read_bytes():
        (where / name).write_bytes((where / other).read_bytes())
        (where / other).write_bytes(data)
    elif what == "remove":
        (where / name).unlink()
    else:
        name = other = f"new {by}"
        (where / name).write_bytes(data)
    with pytest.raises(PdiffError) as error:
        files.verify_manifest(where, "thing", "mend it")
    said = str(error.value)
    assert said.endswith("; mend it") or "this pdiff reads format" in said
    assert any(str(where / n) in said for n in ((name, other) if what == "swap" else (name,))), said


documents = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
).filter(lambda d: files.DIGEST not in d)


@given(documents, st.integers(0, 9999), st.integers(1, 255), st.sampled_from(["byte", "cut", "longer"]))
def test_property_a_document_is_what_was_written_or_refused(tmp_path_factory, document, at, by, what):
    path = tmp_path_factory.getbasetemp() / "document.json"
    files.write_json(path, document)
    assert files.read_json(path, "") == document
    data = path.read_bytes()
    place = at % len(data)
    changed = {"byte": data[:place] + bytes([data[place] ^ by]) + data[place + 1 :], "cut": data[:place],
               "longer": data + bytes([by])}[what]  # fmt: skip
    path.write_bytes(changed)
    try:
        # What is between the values may differ: a blank for a blank, or the case of a digit of an escape.
        assert files.read_json(path, "mend it") == document
    except PdiffError as e:
        assert "document.json: " in str(e) and str(e).endswith("; mend it")
