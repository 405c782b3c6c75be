"""A folder as a whole: what networks share is kept, adapters are brought to one rank, and memory is bounded."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import traverse_util

from pdiff.ask import exports
from pdiff.errors import Faults, PdiffError
from pdiff.imports import columns as columns_lib
from pdiff.imports import source, zoo
from pdiff.scenario import Facts
from tests.imports import loras, zoos

CONFIG = {"architectures": ["BertModel"], "hidden_size": 4, "id2label": {"0": "a"}}


def model(folder, seed, position_ids=None, config=None, metadata=None):
    """A whole model of transformers with a scalar, whole numbers and a config."""
    random = np.random.default_rng(seed)
    given = {
        "fc.weight": random.standard_normal((4, 3)).astype(np.float32),
        "logit_scale": np.asarray(random.standard_normal(), np.float32),
        "embeddings.position_ids": np.arange(5)[None] if position_ids is None else position_ids,
        "mask": np.tri(3, dtype=bool),
    }
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(given, folder / "model.safetensors", {"format": "pt"} | (metadata or {}))
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    return given


def written(found, out):
    """The networks as they came in, by the facts that an import keeps."""
    facts = Facts(
        "", "", [], [], {p: [list(v.shape), v.dtype, v.place.name, v.place.transform] for p, v in found.leaves.items()},
        found.adapter and dataclasses.asdict(found.adapter), {}, found.metadata, zoo.packed(found.constants),
        found.beside,
    )  # fmt: skip
    facts = Facts(**json.loads(json.dumps(dataclasses.asdict(facts))))
    exports.write(traverse_util.unflatten_dict(zoos.params(found), sep="/"), out, "files", {"prompt": "x"}, facts)


@pytest.mark.parametrize("memory", [1, 3e-4])  # in memory, and on disk
def test_whole_models_go_out_as_they_came_with_config_metadata_and_whole_numbers(tmp_path, memory):
    made = [model(tmp_path / "in" / f"task_{i}", i, metadata={"by": "me", "when": str(i)}) for i in range(3)]
    found = source.read(tmp_path / "in", memory, scratch=tmp_path)
    assert found.columns.on_disk == (memory < 1)
    assert set(found.leaves) == {"fc.weight", "logit_scale"} and found.leaves["logit_scale"].shape == ()
    assert found.metadata == {"format": "pt", "by": "me"} and "left out: when" in " ".join(found.notes)
    written(found, tmp_path / "out")
    for i, given in enumerate(made):
        folder = tmp_path / "out" / f"sample_{i}"
        assert json.loads((folder / "config.json").read_text()) == CONFIG
        again = safetensors.numpy.load_file(folder / "model.safetensors")
        assert {n: (a.shape, a.dtype) for n, a in again.items()} == {n: (a.shape, a.dtype) for n, a in given.items()}
        for name, value in given.items():
            np.testing.assert_array_equal(again[name], value)
        with safetensors.safe_open(folder / "model.safetensors", "np") as f:
            assert f.metadata() == {"format": "pt", "by": "me"}


def test_whole_numbers_that_differ_are_refused_with_the_rule_that_leaves_them_out(tmp_path):
    for i in range(3):
        model(tmp_path / f"task_{i}", i, position_ids=np.array([7 + (i == 2)]))
    with pytest.raises(Faults, match=r"task_2.*'embeddings.position_ids', of whole numbers, .*\*.position_ids"):
        source.read(tmp_path, 1)
    (tmp_path / "layout.json").write_text(json.dumps({"ignore": ["*.position_ids"]}))
    assert set(source.read(tmp_path, 1).constants) == {"mask"}


def test_configs_that_differ_are_told_and_the_first_is_kept(tmp_path):
    for i in range(3):
        model(tmp_path / f"task_{i}", i, config={"id2label": {"0": f"label {i}"}})
    found = source.read(tmp_path, 1)
    assert found.beside["id2label"] == {"0": "label 0"}
    assert "config.json differs between networks in id2label; that of the first is kept" in found.notes
    (tmp_path / "task_1" / "config.json").unlink()
    (tmp_path / "task_1" / "model.safetensors").rename(tmp_path / "task_1" / "other.safetensors")
    assert source.read(tmp_path, 1).beside == {}


def mixed(root, ranks, alpha=None):
    """Adapters of these ranks, and what each does."""
    made = {}
    for i, rank in enumerate(ranks):
        _, factors = loras.peft(root / f"task_{i:02d}", seed=i, r=rank, lora_alpha=alpha or 2 * rank)
        made[f"task_{i:02d}"] = {m: loras.update(a, b, (alpha or 2 * rank) / rank) for m, (a, b) in factors.items()}
    return made


@pytest.mark.parametrize("alpha", [None, 8])
def test_adapters_of_several_ranks_are_exact_at_the_largest(tmp_path, alpha):
    made = mixed(tmp_path, [4, 8, 16] * 4, alpha)
    with pytest.raises(Faults, match="the rank of .* is 8, not 4 .*--config.zoo.rank=8 brings all to that rank"):
        source.read(tmp_path, 1)
    found = source.read(tmp_path, 1, rank=16)
    params = zoos.params(found)
    assert len(found.rows) == 12 and found.adapter.rank == 16 and set(found.adapter.scales.values()) == {1.0}
    assert any("no update loses anything" in note for note in found.notes)
    for i, row in enumerate(found.rows):
        for module, update in made[row.file].items():
            ours = loras.update(params[f"lora/{module}/A"][i], params[f"lora/{module}/B"][i])
            assert np.linalg.norm(ours - update) < 1e-6 * np.linalg.norm(update)
    written(found, tmp_path / "out")
    again = loras.updates(loras.read(tmp_path / "out" / "sample_01"))
    for module, update in made["task_01"].items():
        assert np.linalg.norm(again[module] - update) < 1e-6 * np.linalg.norm(update)


def test_at_a_smaller_rank_what_is_lost_is_told(tmp_path):
    made = mixed(tmp_path, [2, 4, 4])
    found = source.read(tmp_path, 1, rank=2)
    (note,) = (n for n in found.notes if n.startswith("zoo.rank"))
    assert "task_01" in note and "task_02" in note and "task_00" not in note
    kept = lost = 0.0
    for update in made["task_01"].values():
        values = np.linalg.svd(update, compute_uv=False) ** 2
        kept, lost = kept + values[:2].sum(), lost + values[2:].sum()
    assert f"task_01 {np.sqrt(lost / (kept + lost)):.2%}" in note
    with pytest.raises(Faults, match="is no adapter; --config.zoo.rank=2"):
        zoos.networks(tmp_path / "plain", ".npz")
        source.read(tmp_path / "plain", 1, rank=2)


def test_a_network_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    zoos.networks(tmp_path, ".npz", 3)

    class Changing(columns_lib.Columns):
        def __init__(self, *args):
            super().__init__(*args)
            zoos.save(tmp_path / "task_2" / "network.npz", zoos.network(99))

    monkeypatch.setattr(source, "Columns", Changing)
    with pytest.raises(PdiffError, match="task_2/network.npz: has changed while it was read"):
        source.read(tmp_path, 1)


def test_one_network_above_the_limit_is_told_and_many_below_it_are_not(tmp_path):
    for i in range(40):
        zoos.save(tmp_path / f"task_{i}.npz", {"w": np.full((50, 50), i + 1, np.float32)})
    found = source.read(tmp_path, 0.02, scratch=tmp_path)  # 400 kB by networks of 10 kB
    assert found.columns.on_disk and len(found.rows) == 40
    with pytest.raises(Faults, match="zoo.import_mb"):
        source.read(tmp_path, 0.005)
