"""What is written is what was given: in every format, as a whole or not at all."""

import dataclasses
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
from pdiff.imports import arrays, lora, mapping, source
from pdiff.scenario import Facts
from tests.imports import loras, zoos

ASKED = {"prompt": "a prompt", "seed": "3", "model": "ab" * 32}


def facts_of(found: source.Source) -> Facts:
    leaves = {p: [list(v.shape), v.dtype, v.place.name, v.place.transform] for p, v in found.leaves.items()}
    return Facts(found.digest, "", [], [], leaves, found.adapter and dataclasses.asdict(found.adapter), {})


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
    exports.write(tree(zoos.params(found)), tmp_path / "out", "peft", ASKED, facts_of(found))
    again = source.read(tmp_path / "out", 10)
    assert [r.file for r in again.rows] == [f"sample_{i}" for i in range(3)]
    assert again.leaves == found.leaves and {v.dtype for v in again.leaves.values()} == {np.dtype(dtype).name}
    for path, value in zoos.params(found).items():
        np.testing.assert_array_equal(zoos.params(again)[path], value)
    for i, given in enumerate(made):
        path = tmp_path / "out" / f"sample_{i}" / "adapter_model.safetensors"
        written = arrays.read(path, arrays.Budget(1)).arrays
        assert set(written) == set(given)
        for name, value in given.items():
            assert written[name].dtype == value.dtype
            np.testing.assert_array_equal(written[name], value)


MADE = [  # each spelling as people have it: several dtypes, names of other times, metadata, alphas without axes, heads
    (loras.kohya, {"dtype": np.float16, "metadata": {"ss_sd_model_name": "a", "ss_output_name": None}}),
    (loras.kohya, {"alpha_dtype": np.int64, "modules": (f"lora_unet_{loras.CONV}", f"lora_te_{loras.TEXT}")}),
    (loras.kohya, {"alpha": None, "metadata": {"ss_network_dim": "3", "ss_network_alpha": "1"}}),
    (loras.diffusers, {"metadata": {"lora_adapter_metadata": '{"unet.r": 3, "unet.lora_alpha": 12}'}}),
    (loras.diffusers, {"modules": (f"unet.{loras.CONV}", "text_encoder.a"), "dtype": ml_dtypes.bfloat16}),
    (loras.mlx, {"scale": 3.0, "dtype": np.float16}),
    (loras.peft, {"use_rslora": True, "whole": {"base_model.model.score.modules_to_save.weight": None}}),
    (loras.peft, {"bias": "all", "whole": {"base_model.model.layers.0.q_proj.base_layer.bias": None}}),
]


@pytest.mark.parametrize(("make", "how"), MADE)
@pytest.mark.parametrize("form", [None, "files"])
def test_adapters_of_every_spelling_go_out_as_they_came_in(tmp_path, make, how, form):
    """Keys, shapes, dtypes, values, config, and the metadata that all of them share."""
    for i in range(3):
        special = {"metadata": {n: v or str(i) for n, v in how["metadata"].items()}} if "metadata" in how else {}
        special |= {"whole": {n: np.full((2, 3), i, np.float32) for n in how["whole"]}} if "whole" in how else {}
        name = f"n{i}.safetensors" if make in (loras.kohya, loras.diffusers) else f"n{i}"
        make(tmp_path / "in" / name, **how | special, seed=i)
    found = source.read(tmp_path / "in", 10)
    form = exports.format_of(tmp_path / "out", form, facts_of(found))
    exports.write(tree(zoos.params(found)), tmp_path / "out", form, ASKED, facts_of(found))
    came, went = (sorted((tmp_path / folder).rglob("*.safetensors")) for folder in ("in", "out"))
    for given, written in zip(came, went, strict=True):
        before, after = safetensors.numpy.load_file(given), safetensors.numpy.load_file(written)
        assert {n: (v.shape, v.dtype) for n, v in after.items()} == {n: (v.shape, v.dtype) for n, v in before.items()}
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)
        with safetensors.safe_open(given, "np") as one, safetensors.safe_open(written, "np") as other:
            shared = {n: v for n, v in (one.metadata() or {}).items() if n != "ss_output_name"}
            assert (other.metadata() or {}) == shared
        if (given.parent / "adapter_config.json").exists():
            one, other = (json.loads((p.parent / "adapter_config.json").read_text()) for p in (given, written))
            assert other == one | ({"inference_mode": True} if "r" in one else {})


def test_arrays_without_axes_stay_without(tmp_path):
    for i in range(2):
        state = {"fc.weight": np.ones((2, 2), np.float16) * i, "logit_scale": np.array(2.5 + i, np.float32)}
        zoos.save(tmp_path / "in" / f"n{i}.safetensors", state)
    found = source.read(tmp_path / "in", 1)
    for form in ("files", "orbax"):
        exports.write(tree(zoos.params(found)), tmp_path / form, form, ASKED, facts_of(found))
    for i in range(2):
        written = safetensors.numpy.load_file(tmp_path / "files" / f"sample_{i}.safetensors")
        assert written["logit_scale"].shape == () and written["logit_scale"] == 2.5 + i
        with ocp.StandardCheckpointer() as checkpointer:
            assert np.shape(checkpointer.restore(tmp_path / "orbax" / f"sample_{i}")["logit_scale"]) == ()


def test_networks_that_are_not_of_the_adapter_are_refused(tmp_path):
    for i in range(2):
        loras.kohya(tmp_path / "in" / f"n{i}.safetensors", seed=i)
    found = source.read(tmp_path / "in", 1)
    first = next(iter(zoos.params(found)))
    for params, words in (
        ({p: v for p, v in zoos.params(found).items() if p != first}, "was imported and is not generated"),
        (zoos.params(found) | {first: zoos.params(found)[first][:, :1]}, "has shape"),
    ):
        with pytest.raises(PdiffError, match=words):
            exports.write(tree(params), tmp_path / "out", "kohya", ASKED, facts_of(found))
    assert not (tmp_path / "out").exists()


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
    assert {p: v.shape for p, v in zoos.params(found).items()} == {"lin/kernel": (2, 3, 4), "lin/bias": (2, 4)}
    exports.write(tree(zoos.params(found)), tmp_path / "out", "files", ASKED, facts_of(found))
    for i in range(2):
        before = safetensors.numpy.load_file(tmp_path / "in" / f"n{i}.safetensors")
        after = safetensors.numpy.load_file(tmp_path / "out" / f"sample_{i}.safetensors")
        assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)


def test_the_format_follows_the_ending_and_the_import():
    adapter = lora.Adapter("peft", {}, {}, {}, {})
    adapters = Facts("", "", [], [], {}, dataclasses.asdict(adapter), {})
    single = dataclasses.replace(adapters, adapter=dataclasses.asdict(lora.Adapter("kohya", {}, {}, None, {})))
    plain = Facts("", "", [], [], {}, None, {})
    asked = [
        (("x.safetensors", None, None), "safetensors"), (("x.npz", None, adapters), "npz"),
        (("x", None, None), "orbax"),
        (("x", None, plain), "files"), (("x", None, adapters), "peft"), (("x", None, single), "kohya"),
        (("x", "files", single), "files"), (("x.safetensors", None, single), "safetensors"),
    ]  # fmt: skip
    for (out, *given), form in asked:
        assert exports.format_of(Path(out), *given) == form
    assert exports.format_of(Path("nets.v1"), "orbax", None) == "orbax"
    for out, chosen, facts, word in (
        ("x", "npz", None, "ends in .npz"), ("x.npz", "orbax", None, "name of a folder"), ("x", "kohya", plain, "LoRA"),
        ("x", "files", None, "imported"), ("x", "torch", None, "allowed: safetensors, npz"),
        ("x.pt", None, None, "got 'x.pt'.*allowed: .safetensors, .npz, or a folder's name .* .orbax.*peft"),
        ("x.pt", None, adapters, "without an ending .peft."), ("nets.v1", None, plain, "without an ending .files."),
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
