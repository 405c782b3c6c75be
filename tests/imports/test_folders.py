"""Which networks lie in a folder, and what is told of all that lies beside them."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from pdiff import run
from pdiff.errors import Faults, PdiffError
from pdiff.imports import bases, folders, manifest, source, zoo
from pdiff.imports.tasks import task_name
from tests.fuzz_import import config as exact_config
from tests.imports import zoos


def rows(root):
    return [(r.file, r.task) for r in manifest.rows(root, None).rows]


def notes(root):
    return manifest.rows(root, None).notes


def model(folder, seed, name="model"):
    """A folder as `save_pretrained` of transformers, or of diffusers, leaves it."""
    zoos.save(folder / f"{name}.safetensors", zoos.network(seed))
    (folder / "config.json").write_text("{}")


def shards(folder, seed, name="model"):
    """A whole model in two parts."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for i, (path, value) in enumerate(zoos.network(seed).items()):
        places[path] = f"{name}-0000{i + 1}-of-00002.safetensors"
        safetensors.numpy.save_file({path: value}, folder / places[path])
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_folders_are_tasks_and_what_lies_in_them_their_seeds(tmp_path):
    zoos.loras(tmp_path, 2)
    zoos.lora(tmp_path / "many" / "seed_0", 0.5)
    zoos.lora(tmp_path / "many" / "seed_1", 0.6)
    (tmp_path / "many" / "description.txt").write_text("several seeds\n\nof one task\n")
    zoos.save(tmp_path / "single.safetensors", zoos.network(0))
    zoos.save(tmp_path / "base.safetensors", zoos.network(1))
    (tmp_path / "README.md").write_text("notes")
    found = manifest.rows(tmp_path, None)
    assert [(r.file, r.task) for r in found.rows] == [
        ("many/seed_0", "many"), ("many/seed_1", "many"), ("single.safetensors", "single"),
        ("strength_0.00", "strength_0.00"), ("strength_1.00", "strength_1.00"),
    ]  # fmt: skip
    assert found.rows[0].descriptions == ("several seeds", "of one task") and found.rows[2].descriptions == ()
    assert found.notes == ()


def test_folders_of_other_tools_are_left_out_with_a_line(tmp_path):
    zoos.networks(tmp_path, ".npz", 2)
    for name in ("runs/Nov29", "lightning_logs/version_0", ".git/objects", "mlruns/0", "notes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "Nov29" / "events.out.tfevents.1").write_bytes(b"x")
    (tmp_path / "mlruns" / "0" / "model.pkl").symlink_to(tmp_path / "never-opened")
    assert rows(tmp_path) == [("task_0/network.npz", "task_0"), ("task_1/network.npz", "task_1")]
    assert notes(tmp_path) == ("left out, no network lies in: 'lightning_logs', 'mlruns', 'notes' and 1 more",)


def test_pickles_beside_networks_are_never_opened(tmp_path, monkeypatch):
    model(tmp_path / "full", 0)
    zoos.lora(tmp_path / "lora", 0.3)
    zoos.save(tmp_path / "files" / "a.npz", zoos.network(1))
    zoos.save(tmp_path / "alone.npz", zoos.network(2))
    state = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth")
    for name in state:
        (tmp_path / "full" / name).write_bytes(b"\x80\x04")
    (tmp_path / "optimizer.bin").write_bytes(b"\x80\x04")
    for name in ("lora/old.pt", "files/a.ckpt", "alone.pth"):
        (tmp_path / name).write_bytes(b"\x80\x04")
    opened, real = [], open

    def watched(path, *args, **kwargs):
        opened.append(str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", watched)
    monkeypatch.setattr("io.open", watched)
    (tmp_path / "files" / "description.txt").write_text("some files")
    assert [task for _, task in rows(tmp_path)] == ["alone", "files", "full", "lora"]
    assert any(p.endswith("description.txt") for p in opened)
    assert not [p for p in opened if p.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    assert notes(tmp_path) == ("left alone, pickles beside networks: 'alone.pth', 'files/a.ckpt', 'lora/old.pt'",)


@pytest.mark.parametrize("name", ["task/pytorch_model.bin", "task/seed_1/net.pth", "lone.ckpt"])
def test_a_pickle_in_the_place_of_a_network_is_refused_with_the_way_on(tmp_path, name):
    zoos.networks(tmp_path, ".npz", 2)
    zoos.save(tmp_path / "task_0" / "seed_0" / "net.npz", zoos.network(3))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(Faults) as e:
        manifest.rows(tmp_path, None)
    (line,) = e.value.lines
    assert line.startswith(name.split("/")[0]) and f"python -m pdiff.convert --source={tmp_path} --out=DIR" in line


def test_adapters_below_an_adapter_are_left_out_with_a_line(tmp_path):
    for strength in (0.1, 0.9):
        zoos.lora(tmp_path / f"style_{strength}", strength)
        zoos.lora(tmp_path / f"style_{strength}" / "other", 0.5)
        zoos.lora(tmp_path / f"style_{strength}" / "checkpoint-20", 0.4)
        zoos.save(tmp_path / f"style_{strength}" / "embeddings.safetensors", zoos.network(0))
    assert rows(tmp_path) == [("style_0.1", "style_0.1"), ("style_0.9", "style_0.9")]
    told = notes(tmp_path)
    assert len(told) == 3 and told[0].endswith(": 'style_0.1/checkpoint-20', 'style_0.9/checkpoint-20'")
    assert "below the folder of another network" in told[1] and "'style_0.9/other'" in told[1]
    assert "beside the network" in told[2] and "'style_0.1/embeddings.safetensors'" in told[2]


def test_checkpoints_of_one_run_are_one_task_and_said(tmp_path):
    for step in (500, 1000):
        zoos.lora(tmp_path / "alone" / f"checkpoint-{step}", step / 1000)
        model(tmp_path / "with_last" / f"checkpoint_{step}", step)
    zoos.save(tmp_path / "with_last" / "model.safetensors", zoos.network(0))
    assert rows(tmp_path) == [
        ("alone/checkpoint-1000", "alone"), ("alone/checkpoint-500", "alone"),
        ("with_last/model.safetensors", "with_last"),
    ]  # fmt: skip
    steps, out = notes(tmp_path)
    assert steps == "steps of one run, not seeds, are taken as the networks of one task: " + repr(
        "alone (checkpoint-1000, checkpoint-500)"
    )
    assert out.startswith("left out, checkpoints of a run") and "'with_last/checkpoint_1000'" in out


def test_whole_models_are_one_network_each(tmp_path):
    model(tmp_path / "bert", 0)
    zoos.save(tmp_path / "bert" / "model.fp16.safetensors", zoos.network(0))
    model(tmp_path / "unet", 1, "diffusion_pytorch_model")
    shards(tmp_path / "llama", 2)
    shards(tmp_path / "flux", 3, "diffusion_pytorch_model")
    (tmp_path / "flux" / "config.json").write_text("{}")
    assert rows(tmp_path) == [
        ("bert/model.safetensors", "bert"), ("flux/diffusion_pytorch_model.safetensors.index.json", "flux"),
        ("llama", "llama"), ("unet/diffusion_pytorch_model.safetensors", "unet"),
    ]  # fmt: skip
    assert notes(tmp_path) == ("left out, beside the network of the folder: 'bert/model.fp16.safetensors'",)
    read = zoos.params(source.read(tmp_path, 1))
    for i, seed in enumerate((0, 3, 2, 1)):
        np.testing.assert_array_equal(read["params/Dense_0/kernel"][i], zoos.network(seed)["params/Dense_0/kernel"])
    shards(tmp_path / "flux", 3, "diffusion_pytorch_model.fp16")
    assert len(rows(tmp_path)) == 4 and "diffusion_pytorch_model.fp16-00001-of-00002.safetensors" in notes(tmp_path)[0]
    (tmp_path / "llama" / "model.safetensors.index.json").unlink()
    with pytest.raises(Faults, match="llama: model-00001-of-00002.safetensors is a part of one network, whose"):
        manifest.rows(tmp_path, None)


def test_a_source_that_is_one_network_is_not_taken_for_a_task(tmp_path):
    zoos.lora(tmp_path / "one", 0.5)
    with pytest.raises(PdiffError, match="is itself one network"):
        manifest.rows(tmp_path / "one", None)
    zoos.lora(tmp_path / "one" / "style_a", 0.6)
    zoos.lora(tmp_path / "one" / "style_b", 0.7)
    assert rows(tmp_path / "one") == [("style_a", "style_a"), ("style_b", "style_b")]
    assert "'adapter_config.json', 'adapter_model.safetensors'" in notes(tmp_path / "one")[0]
    model(tmp_path / "two", 0)
    with pytest.raises(PdiffError, match="is itself one network"):
        manifest.rows(tmp_path / "two", None)


def test_what_lies_too_deep_and_files_that_are_not_read_are_told(tmp_path):
    zoos.save(tmp_path / "a" / "b" / "c" / "net.npz", zoos.network(0))
    zoos.save(tmp_path / "a" / "b" / "c" / "d" / "net.npz", zoos.network(1))
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    assert rows(tmp_path) == [("a/b/c/net.npz", "a")]
    assert notes(tmp_path) == (
        "left out, more than 3 folders below the source: 'a/b/c/d'",
        "left out, not of a format that is read: 'weights.gguf'",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.onnx").write_bytes(b"x")
    with pytest.raises(PdiffError, match="holds no networks; left out, not of a format that is read: 'model.onnx'"):
        manifest.rows(tmp_path / "empty", None)


def test_rows_of_one_array_are_tasks(tmp_path):
    np.save(tmp_path / "weights.npy", np.arange(36, dtype=np.float32).reshape(12, 3))
    (tmp_path / "shapes.json").write_text(json.dumps({"w": [3]}))
    found = rows(tmp_path)
    assert found[0] == ("weights.npy#0", "row_00000") and found[11] == ("weights.npy#11", "row_00011")
    assert len(found) == 12
    (tmp_path / "manifest.csv").write_text("file,task\nweights.npy#11,last\nweights.npy#2,\n")
    listed = manifest.rows(tmp_path, None).rows
    assert [(r.file, task_name(r)) for r in listed] == [("weights.npy#11", "last"), ("weights.npy#2", "row_00002")]
    for line, why in (("weights.npy#12", "rows 0 to 11"), ("weights.npy", r"weights.npy#ROW, from weights.npy#0 on")):
        (tmp_path / "manifest.csv").write_text(f"file\n{line}\n")
        with pytest.raises(Faults, match=why):
            manifest.rows(tmp_path, None)


# --- bases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".npz"])
def test_tasks_may_be_called_base_and_a_number(tmp_path, ending):
    for i in range(3):
        zoos.save(tmp_path / (f"base.{i}/network.npz" if not ending else f"base.{i}.npz"), zoos.network(i))
    zoos.save(tmp_path / "base.npz", zoos.network(9))
    assert [task for _, task in rows(tmp_path)] == ["base.0", "base.1", "base.2"]
    assert bases.file_of(tmp_path) == "base.npz"


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".msgpack", ""])
def test_a_base_of_plain_networks_is_read(tmp_path, ending):
    zoos.networks(tmp_path, ".npz", 2)
    zoos.save(tmp_path / f"base{ending}", zoos.network(7))
    read = source.read(tmp_path, 1)
    for path, value in zoos.network(7).items():
        np.testing.assert_array_equal(read.base[path], value)
    assert read.notes == () and len(read.rows) == 2


def test_a_base_folder_may_be_a_model_and_has_to_be_one_network(tmp_path):
    zoos.networks(tmp_path, ".npz", 2)
    model(tmp_path / "base", 7)
    np.testing.assert_array_equal(
        source.read(tmp_path, 1).base["params/Dense_0/bias"], zoos.network(7)["params/Dense_0/bias"]
    )
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(PdiffError, match=r"base: is a folder without a network; base may be base.safetensors, "):
        source.read(tmp_path, 1)
    zoos.save(tmp_path / "base.npz", zoos.network(7))
    with pytest.raises(PdiffError, match="holds base.npz and base; allowed: one base"):
        source.read(tmp_path, 1)


def test_the_base_of_adapters_is_an_adapter(tmp_path):
    zoos.loras(tmp_path, 3)
    made = zoos.lora(tmp_path / "base", 0.25)
    read = source.read(tmp_path, 1)
    assert len(read.rows) == 3 and read.notes == ()
    for module in zoos.MODULES:
        np.testing.assert_array_equal(read.base[f"lora/{module}/A"], made[f"base_model.model.{module}.lora_A.weight"])
    (tmp_path / "base" / "adapter_config.json").write_text(json.dumps(zoos.lora_config(lora_alpha=7)))
    with pytest.raises(PdiffError, match="base: differs from the first network: the scale .* is 3.5, not 2 "):
        source.read(tmp_path, 1)


def test_the_model_that_adapters_adapt_is_left_out_with_one_line(tmp_path):
    for kind in ("file", "folder", "pickled", "huge"):
        zoos.loras(tmp_path / kind, 3)
    embedding = {"model.embed_tokens.weight": np.ones((300, 400), ml_dtypes.bfloat16)}
    zoos.save(tmp_path / "file" / "base.safetensors", embedding)
    zoos.save(tmp_path / "huge" / "base.safetensors", embedding)
    model(tmp_path / "folder" / "base", 0)
    (tmp_path / "pickled" / "base").mkdir()
    (tmp_path / "pickled" / "base" / "pytorch_model.bin").write_bytes(b"\x80")
    for kind, megabytes in (("file", 1), ("folder", 1), ("pickled", 1), ("huge", 0.1)):
        read = source.read(tmp_path / kind, megabytes)
        (line,) = read.notes
        assert read.base is None and len(read.rows) == 3
        assert "base is left out" in line and "the adapter that all of them started from" in line


def test_notes_are_told_by_an_import(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(zoo.log, "warning", lambda message, *args: told.append(message % args))
    zoos.networks(tmp_path / "in", ".npz", 3)
    (tmp_path / "in" / "wandb").mkdir()
    run.import_networks(exact_config(), tmp_path / "in", None, tmp_path / "w")
    assert "import: left out, no network lies in: 'wandb'" in told


def test_descriptions_do_not_come_from_elsewhere(tmp_path):
    zoos.networks(tmp_path / "in", ".npz", 2)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in" / "task_0" / "description.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(Faults, match="task_0: description.txt leads out of"):
        manifest.rows(tmp_path / "in", None)
    assert folders.task_of("base.0") == "base.0"


# --- folders that nobody vouches for ------------------------------------------------------------------

NAMES = (
    "a", "base", "base.1", "checkpoint-5", "checkpoint-10", "wandb", "models--x--y", "snapshots", "blobs", "refs",
    "main", "adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors",
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "net.npz", "weights.npy", "shapes.json",
    "x.pt", "optimizer.pt", "_METADATA", "_CHECKPOINT_METADATA", "description.txt", "a\x1b[31m.npz",
    "é.safetensors", "m.gguf", "base.npz", "weights.npy#3",
)  # fmt: skip


def grown(folder, random, sound, depth=0):
    """A tree of files, links and pipes with names that mean something."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in map(str, random.choice(NAMES, int(random.integers(1, 6)), replace=False)):
        path, kind = folder / name, int(random.integers(10))
        if depth < 4 and (not path.suffix or kind == 0):
            grown(path, random, sound, depth + 1)
        elif kind == 1:
            path.symlink_to(str(random.choice([str(path), str(sound), "..", "/etc/passwd"])))
        elif kind == 2:
            os.mkfifo(path)
        else:
            path.write_bytes(sound.read_bytes() if kind > 3 else random.bytes(30))


def test_any_tree_is_listed_or_refused_and_nothing_is_waited_for(tmp_path):
    zoos.save(tmp_path / "sound.safetensors", zoos.network(0))
    ended = set()
    for seed in range(150):
        root = tmp_path / str(seed)
        grown(root, np.random.default_rng(seed), tmp_path / "sound.safetensors")
        zoos.save(root / "good.npz", zoos.network(1))
        try:
            found = manifest.rows(root, None)
            bases.file_of(root)
        except PdiffError as e:
            assert 10 < len(str(e)) < 8000
            ended.add("refused")
        else:
            assert len({r.file for r in found.rows}) == len(found.rows) and "good.npz" in {r.file for r in found.rows}
            assert all(note.isprintable() and len(note) < 1000 for note in found.notes)
            ended.add("listed")
    assert ended == {"refused", "listed"}
