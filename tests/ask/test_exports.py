"""What is written is what was given: in every format, as a whole or not at all."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.numpy
from flax import traverse_util

from pdiff.ask import exports
from pdiff.errors import PdiffError
from pdiff.imports import arrays, mapping, source
from pdiff.scenario import Facts
from tests.imports import zoos

ASKED = {"prompt": "a prompt", "seed": "3", "model": "ab" * 32}


def facts_of(found: source.Source) -> Facts:
    leaves = {p: [list(v.shape), v.dtype, v.place.name, v.place.transform] for p, v in found.leaves.items()}
    return Facts(found.digest, "", [], [], leaves, found.adapter, {})


def tree(params):
    return traverse_util.unflatten_dict(params, sep="/")


def test_one_file_holds_all_samples_by_flax_path(tmp_path):
    made = {p: np.stack([v, 2 * v]) for p, v in zoos.network(0).items()}
    exports.write(tree(made), tmp_path / "x.safetensors", "safetensors", ASKED)
    exports.write(tree(made), tmp_path / "x.npz", "npz", ASKED)
    for found in (safetensors.numpy.load_file(tmp_path / "x.safetensors"), dict(np.load(tmp_path / "x.npz"))):
        assert set(found) == set(made)
        for path, value in made.items():
            np.testing.assert_array_equal(found[path], value)
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == ASKED == json.loads((tmp_path / "x.npz.json").read_text())


def test_a_column_major_array_is_written_right(tmp_path):
    made = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    exports.write({"a": made}, tmp_path / "x.safetensors", "safetensors", ASKED)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x.safetensors")["a"], made)


def test_orbax_reads_each_network(tmp_path):
    made = {p: np.stack([v, 2 * v]) for p, v in zoos.network(0).items()}
    exports.write(tree(made), tmp_path / "out", "orbax", ASKED)
    for i in range(2):
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(tmp_path / "out" / f"sample_{i}")
        np.testing.assert_array_equal(found["params"]["Dense_0"]["kernel"], made["params/Dense_0/kernel"][i])
    assert json.loads((tmp_path / "out" / "pdiff.json").read_text()) == ASKED


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_adapters_go_out_as_they_came_in(tmp_path, dtype):
    made = list(zoos.loras(tmp_path / "in", 3, dtype=dtype).values())
    found = source.read(tmp_path / "in", 10)
    exports.write(tree(found.params), tmp_path / "out", "peft", ASKED, facts_of(found))
    again = source.read(tmp_path / "out", 10)
    assert [r.file for r in again.rows] == [f"sample_{i}" for i in range(3)]
    assert again.leaves == found.leaves and {v.dtype for v in again.leaves.values()} == {np.dtype(dtype).name}
    for path, value in found.params.items():
        np.testing.assert_array_equal(again.params[path], value)
    for i, given in enumerate(made):
        written = dict(arrays.read(tmp_path / "out" / f"sample_{i}" / "adapter_model.safetensors", arrays.Budget(1)))
        assert set(written) == set(given)
        for name, value in given.items():
            assert written[name].dtype == value.dtype
            np.testing.assert_array_equal(written[name], value)


def test_networks_of_another_layout_go_out_in_it(tmp_path):
    random = np.random.default_rng(0)
    for i in range(2):
        state = {
            "lin.weight": random.standard_normal((4, 3)).astype(np.float16),
            "lin.bias": np.ones(4, np.float32) * i,
        }
        zoos.save(tmp_path / "in" / f"n{i}.safetensors", state)
    rules = {
        "leaves": [
            {"from": "lin.weight", "to": "lin/kernel", "transform": "transpose"},
            {"from": "lin.bias", "to": "lin/bias"},
        ]
    }
    (tmp_path / "in" / mapping.NAME).write_text(json.dumps(rules))
    found = source.read(tmp_path / "in", 1)
    assert {p: v.shape for p, v in found.params.items()} == {"lin/kernel": (2, 3, 4), "lin/bias": (2, 4)}
    exports.write(tree(found.params), tmp_path / "out", "files", ASKED, facts_of(found))
    for i in range(2):
        before = safetensors.numpy.load_file(tmp_path / "in" / f"n{i}.safetensors")
        after = safetensors.numpy.load_file(tmp_path / "out" / f"sample_{i}.safetensors")
        assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)


def test_the_format_follows_the_ending_and_the_import():
    lora = Facts("", "", [], [], {}, zoos.lora_config(), {})
    plain = Facts("", "", [], [], {}, None, {})
    asked = [
        ("x.safetensors", None, None),
        ("x.npz", None, lora),
        ("x", None, None),
        ("x", None, plain),
        ("x", None, lora),
    ]
    assert [exports.format_of(Path(out), *a) for out, *a in asked] == ["safetensors", "npz", "orbax", "files", "peft"]
    assert exports.format_of(Path("nets.v1"), "orbax", None) == "orbax"
    for out, chosen, facts, word in (
        ("x", "npz", None, "ends in .npz"), ("x.npz", "orbax", None, "name of a folder"), ("x", "peft", plain, "LoRA"),
        ("x", "files", None, "imported"), ("x", "torch", None, "allowed: safetensors, npz"),
        ("x.pt", None, None, "got 'x.pt'.*allowed: .safetensors, .npz, or a folder's name .* .orbax.*peft"),
        ("x.pt", None, lora, "without an ending .peft."), ("nets.v1", None, plain, "without an ending .files."),
    ):  # fmt: skip
        with pytest.raises(PdiffError, match=word):
            exports.format_of(Path(out), chosen, facts)


def test_nothing_is_written_over_or_half(tmp_path):
    made = tree({p: v[None] for p, v in zoos.network(0).items()})
    (tmp_path / "taken").mkdir()
    with pytest.raises(PdiffError, match="exists"):
        exports.write(made, tmp_path / "taken", "orbax", ASKED)
    with pytest.raises(PdiffError, match="no existing folder"):
        exports.write(made, tmp_path / "no" / "x.npz", "npz", ASKED)
    other = Facts("", "", [], [], {"w": [[2], "float32", "w", "none"]}, None, {})
    with pytest.raises(PdiffError, match="leaf 'w' was imported"):
        exports.write(made, tmp_path / "out", "files", ASKED, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]
