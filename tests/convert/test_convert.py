"""Folders of PyTorch files, with a reader of ours in place of torch; test_states.py has torch's own files."""

import csv
import io
import json
import os
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pdiff.convert import trials, walk
from pdiff.convert.states import State
from pdiff.errors import PdiffError
from pdiff.imports import arrays

W = np.arange(6, dtype=np.float32).reshape(2, 3)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


def torch_like(path, **made):
    """What the reader of these tests takes for a file of PyTorch: a .npz under another name, with torch's member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        np.savez(f, **made)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", b"")
    return path


def load(path):
    """A state of the arrays in such a file; 'SHAPES' are shapes, 'CODE' is refused."""
    with np.load(path) as found:
        made = {n: found[n] for n in found.files if not n.endswith(".pkl")}
    if "CODE" in made:
        raise PdiffError("asks for 'os.system', which is code and is not run")
    if "SHAPES" in made:
        return State({}, (), json.loads(str(made["SHAPES"])))
    return State(made, ("'epoch' of the file left out",) if "epoch" in path.name else ())


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def read(path):
    return arrays.read(path, arrays.Budget(1))


@pytest.mark.parametrize(("name", "becomes"), [
    ("a/net.pt", "a/net.safetensors"), ("net.pth", "net.safetensors"), ("epoch=3.ckpt", "epoch=3.safetensors"),
    ("strength_0.50/weights", "strength_0.50/weights.safetensors"), ("strength_0.50", "strength_0.50.safetensors"),
    ("a/adapter_model.bin", "a/adapter_model.safetensors"), ("a/pytorch_model.bin", "a/model.safetensors"),
    ("a/v1.2.bin", "a/v1.2.safetensors"), ("a/NET.PT", "a/NET.safetensors"),
])  # fmt: skip
def test_names_and_folders_stay(tmp_path, name, becomes):
    torch_like(tmp_path / "in" / name, w=W, n=np.array(3))
    if name.startswith("a/"):
        (tmp_path / "in" / "a" / "config.json").write_text('{"x": 1}')
    done = walk.convert(tmp_path / "in", tmp_path / "out", load)
    assert (done.converted, done.refused) == (1, [])
    assert [n for n in files_below(tmp_path / "out") if "config" not in n] == [becomes]
    file = read(tmp_path / "out" / becomes)
    assert file.metadata == {"format": "pt"} and file.arrays["n"].shape == ()
    np.testing.assert_array_equal(file.arrays["w"], W)
    if name.startswith("a/"):
        assert (tmp_path / "out" / "a" / "config.json").read_text() == '{"x": 1}'


def test_what_is_refused_is_named_and_the_rest_is_written(tmp_path):
    source = tmp_path / "in"
    torch_like(source / "good.pt", w=W)
    torch_like(source / "evil.pt", CODE=W)
    (source / "lfs.npz").write_text(LFS)
    (source / "a.pkl").write_bytes(b"\x80\x04.")
    (source / "training_args.bin").write_bytes(b"PK\x03\x04")
    (source / "optimizer.pt").write_bytes(b"")
    (source / "picture.png").write_bytes(b"")
    (source / "link.pt").symlink_to("/etc/passwd")
    (source / "folder").symlink_to("/etc")
    os.mkfifo(source / "pipe.pt")
    (source / "SHA256SUMS").write_text("")
    done = walk.convert(source, tmp_path / "out", load)
    said = "\n".join(done.refused)
    for words in ("evil.pt: asks for 'os.system'", "lfs.npz: is a Git LFS pointer", "a.pkl: is a pickle",
                  "link.pt: leads out of", "folder: is a link to a folder", "pipe.pt: is no regular file"):  # fmt: skip
        assert words in said
    assert len(done.refused) == 6 and done.converted == 1
    assert files_below(tmp_path / "out") == ["good.safetensors"]
    notes = "\n".join(done.notes)
    assert "optimizer.pt, training_args.bin: left out: of a training" in notes and "picture.png: left out" in notes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_nothing_is_written_where_nothing_is_converted(tmp_path):
    torch_like(tmp_path / "in" / "evil.pt", CODE=W)
    with pytest.raises(PdiffError, match="nothing was written\n  evil.pt: asks for"):
        walk.convert(tmp_path / "in", tmp_path / "out", load)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PdiffError, match="no files of PyTorch"):
        walk.convert(tmp_path / "empty", tmp_path / "out", load)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "in"]


def test_a_reader_that_fails_leaves_nothing_half_written(tmp_path):
    torch_like(tmp_path / "in" / "a.pt", w=W)
    torch_like(tmp_path / "in" / "b.pt", w=W)

    def stumble(path):
        if path.name == "b.pt":
            raise KeyboardInterrupt
        return load(path)

    with pytest.raises(KeyboardInterrupt):
        walk.convert(tmp_path / "in", tmp_path / "out", stumble)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("out", "words"),
    [("in/new", "lies in"), ("full", "is not empty"), ("in", "is not empty"), ("file", "is not empty")],
)
def test_the_new_folder_is_new(tmp_path, out, words):
    torch_like(tmp_path / "in" / "a.pt", w=W)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    with pytest.raises(PdiffError, match=words):
        walk.convert(tmp_path / "in", tmp_path / out, load)
    with pytest.raises(PdiffError, match="no such folder"):
        walk.convert(tmp_path / "none", tmp_path / "out", load)


def test_two_files_of_one_name_are_not_one(tmp_path):
    torch_like(tmp_path / "in" / "a.bin", w=W)
    torch_like(tmp_path / "in" / "a.pt", w=2 * W)
    (tmp_path / "in" / "b").mkdir()
    safetensors.numpy.save_file({"w": 3 * W}, tmp_path / "in" / "b" / "model.safetensors")
    (tmp_path / "in" / "b" / "config.json").write_text("{}")
    torch_like(tmp_path / "in" / "b" / "pytorch_model.bin", w=W)
    done = walk.convert(tmp_path / "in", tmp_path / "out", load)
    assert done.refused == [
        "a.pt: would become a.safetensors, as a.bin does; leave one of them out",
        "b/pytorch_model.bin: would become b/model.safetensors, as b/model.safetensors does; leave one of them out",
    ]
    np.testing.assert_array_equal(read(tmp_path / "out" / "b" / "model.safetensors").arrays["w"], 3 * W)


def test_shards_and_their_index(tmp_path):
    net = tmp_path / "in" / "net"
    for i, name in enumerate("ab", 1):
        torch_like(net / f"pytorch_model-0000{i}-of-00002.bin", **{name: i * W})
    places = {n: f"pytorch_model-0000{i}-of-00002.bin" for i, n in enumerate("ab", 1)}
    (net / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    done = walk.convert(tmp_path / "in", tmp_path / "out", load)
    assert done.refused == [] and (tmp_path / "out" / "net" / "model.safetensors.index.json").exists()
    file = read(tmp_path / "out" / "net")
    np.testing.assert_array_equal(file.arrays["b"], 2 * W)
    assert list(file.arrays) == ["a", "b"]


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_manifest_names_the_new_files(tmp_path, kind):
    torch_like(tmp_path / "in" / "a" / "x.pt", w=W)
    torch_like(tmp_path / "in" / "b.ckpt", w=2 * W)
    rows = [{"file": " a/x.pt", "task": "one, two"}, {"file": "b.ckpt", "task": "b.ckpt"}]
    into = io.StringIO()
    writer = csv.DictWriter(into, ["task", "file"])
    writer.writeheader()
    writer.writerows(rows)
    text = into.getvalue() if kind == "csv" else json.dumps({"networks": rows})
    (tmp_path / "in" / f"manifest.{kind}").write_text(text)
    walk.convert(tmp_path / "in", tmp_path / "out", load)
    text = (tmp_path / "out" / f"manifest.{kind}").read_text()
    found = list(csv.DictReader(io.StringIO(text))) if kind == "csv" else json.loads(text)["networks"]
    assert [r["file"] for r in found] == ["a/x.safetensors", "b.safetensors"]
    assert [r["task"] for r in found] == ["one, two", "b.ckpt"]


# --- one array with a row for each network ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "dtype"), [("weights", np.float32), ("all", np.float16), ("weights", ml_dtypes.bfloat16)]
)
def test_rows_and_their_shapes(tmp_path, stem, dtype):
    made = np.arange(20).reshape(2, 10).astype(dtype)
    source = tmp_path / "in" / "w2w"
    torch_like(source / "weight_dimensions.pt", SHAPES=json.dumps({"a.w": [2, 3], "b": [4]}))
    path = torch_like(source / f"{stem}.pt", array=made.view(np.int16) if dtype == ml_dtypes.bfloat16 else made)

    def with_bfloat16(p):
        state = load(p)
        return State({"array": state.arrays["array"].view(dtype)}) if p == path else state

    done = walk.convert(tmp_path / "in", tmp_path / "out", with_bfloat16)
    assert done.refused == [] and done.converted == 1
    ending = "safetensors" if dtype == ml_dtypes.bfloat16 else "npy"
    out = tmp_path / "out" / "w2w"
    assert arrays.rows_of(out / f"{stem}.{ending}", out / "shapes.json") == 2
    found = read(out / f"{stem}.{ending}#1").arrays
    np.testing.assert_array_equal(found["a.w"], made[1, :6].reshape(2, 3))
    np.testing.assert_array_equal(found["b"], made[1, 6:])


def test_rows_that_do_not_fit_and_arrays_without_shapes(tmp_path):
    torch_like(tmp_path / "in" / "a" / "w.pt", array=np.ones((2, 9), np.float32))
    torch_like(tmp_path / "in" / "a" / "s.pt", SHAPES=json.dumps({"x": [10]}))
    torch_like(tmp_path / "in" / "b.pt", array=np.ones((2, 9), np.float32))
    done = walk.convert(tmp_path / "in", tmp_path / "out", load)
    assert done.refused == [
        "a/w.pt: has 9 columns, unlike the shapes in s.pt",
        "a/s.pt: holds shapes alone, and no array has such columns",
    ]
    assert files_below(tmp_path / "out") == ["b.safetensors"]


# --- trials of Ray Tune ----------------------------------------------------------------------------------


def trial(folder, config, lines, iterations=(0, 50), name="checkpoints"):
    for i in iterations:
        torch_like(folder / f"checkpoint_{i:06d}" / name, w=W + i)
    told = [json.dumps({"training_iteration": i, "config": config, **line}) for i, line in lines.items()]
    (folder / "result.json").write_text("\n".join(told) + "\n")


def manifest_of(folder):
    return list(csv.DictReader(io.StringIO((folder / "manifest.csv").read_text())))


@pytest.mark.parametrize("name", ["checkpoints", "checkpoint.pt"])
def test_trials_become_rows(tmp_path, name):
    for i in range(3):
        config = {
            "optim::lr": 0.1 * (i + 1),
            "seed": i,
            "model": {"width": 8 * (i + 1), "act": "relu"},
            "wd": 0.5,
            "gpu": i > 0,
        }
        lines = {0: {"test_acc": 0.1, "loss": float("nan")}, 50: {"test_acc": 0.5 + i / 10, "validation_acc": 0.2}}
        trial(tmp_path / "in" / "zoo" / f"trial_{i}", config, lines, name=name)
    done = walk.convert(tmp_path / "in", tmp_path / "out", load)
    assert done.refused == [] and done.converted == 6
    rows = manifest_of(tmp_path / "out")
    assert set(rows[0]) == {"file", "task", "accuracy", "factor:optim::lr", "factor:seed", "factor:model.width"}
    last = next(r for r in rows if r["file"] == "zoo/trial_2/checkpoint_000050.safetensors")
    assert last["task"] == "trial_2" and float(last["accuracy"]) == 0.7 and float(last["factor:model.width"]) == 24
    np.testing.assert_array_equal(read(tmp_path / "out" / last["file"]).arrays["w"], W + 50)
    assert "accuracy is test_acc of result.json" in "\n".join(done.notes)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ({"validation_acc": 40}, {"validation_acc": 90.5}, ["0.4", "0.905"]),  # per cent
        ({"accuracy": 0.25, "test_acc": 1}, {"accuracy": 0.5}, ["0.25", "0.5"]),  # what both have
        ({"loss": 1}, {"loss": 2}, ["", ""]),
        ({"test_acc": -3}, {"test_acc": 0.5}, ["", ""]),
        ({"test_acc": True}, {"test_acc": 0.5}, ["", ""]),
    ],
)
def test_accuracies_are_fractions_or_absent(tmp_path, first, second, wanted):
    trial(tmp_path / "in" / "a", {"x": 1}, {3: first}, (3,))
    trial(tmp_path / "in" / "b", {"x": 2}, {3: second}, (3,))
    walk.convert(tmp_path / "in", tmp_path / "out", load)
    assert [r["accuracy"] for r in manifest_of(tmp_path / "out")] == wanted


def test_results_that_cannot_be_read_cost_the_accuracy_alone(tmp_path):
    trial(tmp_path / "in" / "a" / "t", {"x": 1}, {3: {"test_acc": 0.5}}, (3, 4))
    trial(tmp_path / "in" / "b" / "t", {"x": 2}, {3: {"test_acc": 0.5}}, (3,))
    (tmp_path / "in" / "b" / "t" / "result.json").write_text("{" * 50)
    done = walk.convert(tmp_path / "in", tmp_path / "out", load)
    rows = manifest_of(tmp_path / "out")
    assert [(r["task"], r["accuracy"]) for r in rows] == [("a/t", "0.5"), ("a/t", ""), ("b/t", "")]
    assert set(rows[0]) == {"file", "task", "accuracy"} and "b/t/result.json is not read" in "\n".join(done.notes)


def test_other_folders_are_no_trials(tmp_path):
    assert trials.checkpoint(torch_like(tmp_path / "a" / "checkpoint_000050" / "checkpoints", w=W)) is None
    torch_like(tmp_path / "in" / "checkpoint_7" / "x.pt", w=W)
    walk.convert(tmp_path / "in", tmp_path / "out", load)
    assert files_below(tmp_path / "out") == ["checkpoint_7/x.safetensors"]


def test_without_torch_there_is_one_clear_line(tmp_path):
    torch_like(tmp_path / "in" / "a.pt", w=W)
    hidden = "import sys; sys.modules['torch'] = None; sys.argv[1:] = sys.argv[1:]; import runpy; " \
             "runpy.run_module('pdiff.convert', run_name='__main__')"  # fmt: skip
    command = [sys.executable, "-c", hidden, f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert done.stderr.count("\n") == 1 and "pip install 'pdiff[convert]'" in done.stderr
