"""Adapters in every spelling: what is read, by its update and its scale, and what is refused by name."""

import dataclasses
import json
import re

import ml_dtypes
import numpy as np
import pytest

from pdiff.errors import Faults, PdiffError
from pdiff.imports import arrays, lora, source
from pdiff.imports.lora import peft
from tests.imports import loras, zoos


def is_read(path, made, scale):
    """The updates of what lies at `path` are `scale` times those of the factors `made`, by name in the file."""
    network = loras.read(path)
    scales = scale if isinstance(scale, dict) else dict.fromkeys(made, scale)
    found = loras.updates(network)
    assert set(found) == set(made)
    for name, (a, b) in made.items():
        np.testing.assert_allclose(found[name], loras.update(a, b, scales[name]), rtol=1e-12)
        assert network[0][f"lora/{name}/A"].dtype == a.dtype and network[0][f"lora/{name}/A"].ndim == 2
    assert lora.Adapter.of(json.loads(json.dumps(dataclasses.asdict(network[1])))) == network[1]
    return network


@pytest.mark.parametrize(
    ("how", "scale"),
    [
        ({}, 2.0),
        ({"lora_alpha": 1.5, "dtype": ml_dtypes.bfloat16}, 0.5),
        ({"use_rslora": True}, 6 / np.sqrt(3)),
        ({"use_rslora": True, "r": 4, "lora_alpha": 8, "dtype": np.float16}, 4.0),
        ({"alpha_pattern": {"q_proj": 12}}, {"layers.0.q_proj": 4.0, "layers.1.fc": 2.0}),
        ({"alpha_pattern": {r"layers\.\d+\.fc": 3, "fc": 9}}, {"layers.0.q_proj": 2.0, "layers.1.fc": 1.0}),
        ({"rank_pattern": {"fc": 2}, "ranks": {"layers.1.fc": 2}}, {"layers.0.q_proj": 2.0, "layers.1.fc": 3.0}),
        ({"rank_pattern": {"^layers.0.q_proj": 1}, "ranks": {"layers.0.q_proj": 1}, "use_rslora": True},
         {"layers.0.q_proj": 6.0, "layers.1.fc": 6 / np.sqrt(3)}),
    ],
)  # fmt: skip
def test_a_folder_of_peft(tmp_path, how, scale):
    path, made = loras.peft(tmp_path / "a", **how)
    is_read(path, made, scale)


def test_patterns_match_the_end_of_a_name_and_the_first_counts():
    for key, module, matches in (
        ("q_proj", "a.q_proj", True), ("q_proj", "q_proj", True), ("proj", "a.q_proj", False), ("^q", "a.q", False),
        ("^q", "q", True), (r"layers\.[01]\.q", "m.layers.1.q", True), (r"layers\.[01]\.q", "m.layers.2.q", False),
        ("a|q_proj", "m.q_proj", True), ("q_proj.x", "q_proj", False),
    ):  # fmt: skip
        assert (peft.matched({key: 5}, module, 1) == 5) == matches, (key, module)
    assert peft.matched({"b": 2, "a.b": 3}, "a.b", 1) == 2
    with pytest.raises(PdiffError, match="no regular expression"):
        peft.matched({"(": 2}, "a", 1)
    for key in ("(a+)+b", ".*.*.*.*b", "^" + "a" * 500, "(?:a|aa)*b"):  # the first would take for ever
        with pytest.raises(PdiffError, match="repeats a group|more than 3 times"):
            peft.matched({key: 2}, "a" * 200, 1)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"task_type": "SEQ_CLS", "modules_to_save": ["score"]}, "score.weight"),
        ({"task_type": "SEQ_CLS", "modules_to_save": None}, "classifier.dense.bias"),
        ({"modules_to_save": ["head"]}, "head.modules_to_save.weight"),
        ({"bias": "all"}, "layers.0.norm.bias"),
        ({"bias": "lora_only"}, "layers.0.q_proj.base_layer.bias"),
    ],
)
def test_heads_and_biases_are_whole_arrays(tmp_path, config, name):
    head = np.arange(6, dtype=np.float32).reshape(2, 3)
    path, made = loras.peft(tmp_path / "a", whole={f"base_model.model.{name}": head}, **config)
    tree, adapter, _ = is_read(path, made, 2.0)
    (internal,) = adapter.whole
    assert internal == name.replace(".modules_to_save", "")
    assert adapter.whole[internal].name == f"base_model.model.{name}" and lora.is_whole(f"whole/{internal}")
    np.testing.assert_array_equal(tree[f"whole/{internal}"], head)
    np.testing.assert_array_equal(lora.as_spelled(tree, adapter)[f"base_model.model.{name}"], head)


def test_embeddings_and_convolutions_of_peft(tmp_path):
    a, b = loras.factors("e", 3, inputs=50)
    c, d = loras.factors("c", 3, window=(3, 3))
    given = {f"{peft.PREFIX}emb.lora_embedding_{k}": v for k, v in (("A", a), ("B", b))}
    given |= {f"{peft.PREFIX}conv.lora_{k}.weight": v for k, v in (("A", c), ("B", d))}
    path, _ = loras.peft(tmp_path / "a", modules=(), whole=given)
    _, adapter, _ = is_read(path, {"emb": (a, b), "conv": (c, d)}, 2.0)
    assert [m.embedding for m in adapter.modules.values()] == [False, True]


OLD = {  # names of older versions, and of today
    "unet.down_blocks.0.attn1.processor.to_q_lora.{}.weight": "unet.down_blocks.0.attn1.to_q",
    "unet.down_blocks.0.attn1.processor.to_out_lora.{}.weight": "unet.down_blocks.0.attn1.to_out.0",
    "mid_block.attn2.processor.to_v_lora.{}.weight": "mid_block.attn2.to_v",
    "unet.mid_block.attn2.to_k.lora.{}.weight": "unet.mid_block.attn2.to_k",
    "text_encoder.text_model.0.self_attn.to_out_lora.{}.weight": "text_encoder.text_model.0.self_attn.out_proj",
    "text_encoder.text_model.layers.0.mlp.fc1.lora_linear_layer.{}.weight": "text_encoder.text_model.layers.0.mlp.fc1",
    "diffusion_model.blocks.0.attn.qkv.lora_{}.weight": "diffusion_model.blocks.0.attn.qkv",
}


@pytest.mark.parametrize("name", OLD)
def test_a_file_of_diffusers_under_its_older_names(tmp_path, name):
    a, b = loras.factors(name)
    path = loras.write(tmp_path / "x.safetensors", {name.format("down"): a, name.format("up"): b})
    tree, adapter, _ = is_read(path, {OLD[name]: (a, b)}, 1.0)
    spelled = lora.as_spelled(tree, adapter)
    assert set(spelled) == {name.format("down"), name.format("up")}


def described(**fields):
    return {"lora_adapter_metadata": json.dumps(fields)}


@pytest.mark.parametrize(
    ("modules", "metadata", "scale"),
    [
        (("unet.a.to_q", "unet.conv1"), {}, 1.0),
        (("transformer.a.to_q",), described(**{"transformer.r": 3, "transformer.lora_alpha": 12}), 4.0),
        (("a.to_q", "b.to_q"), described(r=3, lora_alpha=1.5, target_modules=["to_q"]), 0.5),
        (("unet.a", "text_encoder.a"), described(**{"unet.r": 3, "unet.lora_alpha": 3, "text_encoder.r": 3}),
         {"unet.a": 1.0, "text_encoder.a": 8 / 3}),
        (("unet.a", "unet.b"), described(**{"unet.r": 3, "unet.alpha_pattern": {"b": 6}, "unet.lora_alpha": 3,
                                            "unet.use_rslora": True}),
         {"unet.a": np.sqrt(3), "unet.b": 6 / np.sqrt(3)}),
    ],
)  # fmt: skip
def test_a_file_of_diffusers_counts_as_its_metadata_say(tmp_path, modules, metadata, scale):
    path, made = loras.diffusers(tmp_path / "x.safetensors", modules, metadata=metadata)
    is_read(path, made, scale)


def test_alphas_of_dotted_names_count_and_may_not_contradict(tmp_path):
    a, b = loras.factors("m")
    given = {"unet.m.lora_A.weight": a, "unet.m.lora_B.weight": b, "unet.m.alpha": np.array(6, np.int64)}
    is_read(loras.write(tmp_path / "x.safetensors", given), {"unet.m": (a, b)}, 2.0)
    metadata = described(**{"unet.r": 3, "unet.lora_alpha": 9})
    with pytest.raises(PdiffError, match="'unet.m' counts 3 times .* and 2 times"):
        loras.read(loras.write(tmp_path / "y.safetensors", given, None, metadata))


@pytest.mark.parametrize(
    ("how", "scale"),
    [
        ({}, 2.0),
        ({"alpha": 1.5, "dtype": np.float16, "alpha_dtype": np.float16}, 0.5),
        ({"alpha": 3, "alpha_dtype": np.int64, "modules": ("lora_te_text.q", "lora_te2_text.q")}, 1.0),
        ({"modules": (f"lora_unet_{loras.CONV}",), "alpha": 12}, 4.0),
        ({"alpha": None}, 1.0),
        ({"alpha": None, "metadata": {"ss_network_dim": "3", "ss_network_alpha": "1.5"}}, 0.5),
        ({"alpha": None, "metadata": {"ss_network_dim": "8", "ss_network_alpha": "8",
                                      "ss_network_args": '{"conv_dim": "3", "conv_alpha": "12"}'},
          "modules": (f"lora_unet_{loras.CONV}",)}, 4.0),
    ],
)  # fmt: skip
def test_a_file_of_kohyas(tmp_path, how, scale):
    path, made = loras.kohya(tmp_path / "x.safetensors", **how)
    _, adapter, notes = is_read(path, made, scale)
    assert adapter.spelling == "kohya" and bool(notes) == ("alpha" in how and how["alpha"] is None)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"alpha": 0.0}, "is 0, which some read as the rank"),
        ({"alpha": [1.0, 2.0]}, "has shape .2,.; allowed: one number"),
        (
            {"alpha": None, "metadata": {"ss_network_dim": "4", "ss_network_alpha": "4"}},
            "rank 3, of which the metadata",
        ),
        (
            {"alpha": None, "metadata": {"ss_network_dim": "Dynamic", "ss_network_alpha": "4"}},
            "'Dynamic' and '4'; allowed",
        ),
        ({"alpha": None, "metadata": {"ss_network_dim": "3", "ss_network_alpha": "nan"}}, "'3' and 'nan'; allowed"),
    ],
)
def test_an_alpha_that_does_not_say_the_scale_is_refused(tmp_path, how, words):
    path, _ = loras.kohya(tmp_path / "x.safetensors", **how)
    with pytest.raises(PdiffError, match=words):
        loras.read(path)


@pytest.mark.parametrize("how", [{}, {"scale": 0.5, "rank": 5, "dtype": np.float16}])
def test_a_folder_of_mlx_has_its_factors_the_other_way_round(tmp_path, how):
    path, made = loras.mlx(tmp_path / "a", **how)
    tree, adapter, notes = is_read(path, made, how.get("scale", 20.0))
    name = next(iter(made))
    np.testing.assert_array_equal(lora.as_spelled(tree, adapter)[f"{name}.lora_a"], made[name][0].T)
    assert notes == ()


def test_a_file_of_mlx_alone_does_not_say_its_scale(tmp_path):
    for i, modules in enumerate((("model.layers.0.self_attn.q_proj",), ("layers.5.mlp.w1", "embed_tokens"))):
        path, made = loras.mlx(tmp_path / str(i), modules, alone=True)
        _, adapter, (note,) = is_read(path / "adapters.safetensors" if path.is_dir() else path, made, 1.0)
        assert not adapter.scaled and "scale" in note


@pytest.mark.parametrize(
    ("field", "value", "way"),
    [("peft_type", "LOHA", "save_as_lora"), ("r", True, "from 1"), ("r", 0, "from 1"), ("lora_alpha", "8", "above 0"),
     ("bias", "some", "lora_only"), ("use_dora", True, "save_as_lora"), ("rank_pattern", {"q": 0}, "from 1"),
     ("rank_pattern", ["q"], "an object"), ("alpha_pattern", {"q": None}, "above 0"), ("use_rslora", "no", "true"),
     ("lora_bias", True, "without"), ("init_lora_weights", "pissa", "path_initial_model_for_weight_conversion"),
     ("init_lora_weights", "pissa_niter_4", "path_initial"), ("init_lora_weights", "OLoRA", "path_initial"),
     ("init_lora_weights", "loftq", "allowed: True"), ("layer_replication", [[0, 1]], "without it"),
     ("target_parameters", ["experts"], "without it"), ("invented_next_year", "on", "without it")],
)  # fmt: skip
def test_options_that_change_what_an_adapter_does_are_refused_by_name(field, value, way):
    peft.check_config(zoos.lora_config())
    with pytest.raises(PdiffError, match=f"{field}.*{way}"):
        peft.check_config(zoos.lora_config(**{field: value}))


def test_options_that_are_off_are_no_obstacle():
    off = {"use_dora": False, "rank_pattern": {}, "modules_to_save": None, "invented_next_year": None,
           "qalora_group_size": 16, "use_rslora": False, "init_lora_weights": "gaussian"}  # fmt: skip
    peft.check_config(zoos.lora_config(**off))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora'"),
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_parameters": {"rank": 3}}, "lora_parameters.scale is None"),
        ({"lora_parameters": {"rank": 4, "scale": 1.0}}, "has rank 3; allowed: 4"),
        ({"lora_parameters": None}, "an object with rank and scale"),
    ],
)
def test_folders_of_mlx_that_do_other_things_are_refused(tmp_path, changes, words):
    path, _ = loras.mlx(tmp_path / "a", **changes)
    with pytest.raises(PdiffError, match=words):
        loras.read(path)


METHODS = [
    ("lora_unet_a.hada_w1_a", "LoHa"), ("base_model.model.m.lokr_w1", "LoKr"), ("unet.m.lora_magnitude_vector", "DoRA"),
    ("lora_te_a.dora_scale", "DoRA"), ("lora_unet_a.lora_mid.weight", "Tucker"), ("m.lora_B.bias", "lora_bias"),
    ("lora_unet_a.oft_blocks", "OFT"), ("m.lora_a_scales", "quantised"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_other_methods_are_refused_by_name(tmp_path, name, method):
    for more in ({}, {"lora_unet_x.lora_down.weight": np.ones((2, 3), np.float32)}):
        path = loras.write(tmp_path / "x.safetensors", {name: np.ones((2, 2), np.float32)} | more)
        with pytest.raises(PdiffError, match=f"is of .*{method}.*, which is not handled; "):
            lora.recognise(path, arrays.read(path, arrays.Budget(1)))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("base_model.model.m.lora_A.default.weight", (3, 3), "is not handled"),
        ("model.m.lora_A.weight", (3, 3), "is not handled"),
        ("base_model.model.m.lora_A.weight", (3, 3), "has a lora_A alone"),
        ("base_model.model.layers.0.q_proj.lora_A.weight", (2, 10), r"lora_B .* has shape \(7, 3\)"),
        ("base_model.model.layers.0.q_proj.lora_A.weight", (3,), r"have shapes \(3,\)"),
        ("base_model.model.layers.0.q_proj.lora_B.weight", (7, 3, 3, 3), "have shapes|a window of 1"),
    ],
)
def test_arrays_that_are_no_adapters_are_refused(tmp_path, name, shape, words):
    path, _ = loras.peft(tmp_path / "a", whole={name: np.ones(shape, np.float32)})
    with pytest.raises(PdiffError, match=words):
        loras.read(path)


def test_ranks_that_the_config_does_not_say_are_refused(tmp_path):
    path, _ = loras.peft(tmp_path / "a", ranks={"layers.1.fc": 2})
    with pytest.raises(PdiffError, match="lora_A of 'layers.1.fc' has 2 rows; allowed: 3"):
        loras.read(path)


def test_convolutions_in_groups_are_refused(tmp_path):
    a, b = np.ones((4, 2, 3, 3), np.float32), np.ones((8, 2, 1, 1), np.float32)
    path = loras.write(tmp_path / "x.safetensors", {"m.lora_A.weight": a, "m.lora_B.weight": b})
    with pytest.raises(PdiffError, match="in groups"):
        loras.read(path)


@pytest.mark.parametrize("arguments", ["{", "[]", "null", "4", '{"conv_dim": "x"}'])
def test_arguments_that_nobody_needs_are_no_obstacle(tmp_path, arguments):
    network = loras.read(loras.kohya(tmp_path / "x.safetensors", metadata={"ss_network_args": arguments})[0])
    assert lora.to_rank(*network[:2], 4)[1].rank == 4


@pytest.mark.parametrize("name", ["unet.x.alpha", "beta.alpha"])
def test_an_alpha_of_what_is_no_adapter_is_a_whole_array(tmp_path, name):
    path, _ = loras.diffusers(tmp_path / "x.safetensors")
    given = arrays.read(path, arrays.Budget(1)).arrays | {name: np.ones(2, np.float32)}
    tree, adapter, _ = loras.read(loras.write(path, given))
    assert list(adapter.whole) == [name] and (lora.as_spelled(tree, adapter)[name] == 1).all()


def test_plain_networks_are_no_adapters(tmp_path):
    for i, names in enumerate((("a.weight", "b.alpha"), ("params/lora/Dense_0/A", "params/lora/Dense_0/B"))):
        path = loras.write(tmp_path / f"{i}.safetensors", {n: np.ones((2, 2), np.float32) for n in names})
        assert lora.recognise(path, arrays.read(path, arrays.Budget(1))) is None


def test_a_file_of_peft_without_its_config_is_refused(tmp_path):
    path, _ = loras.peft(tmp_path / "a")
    (path / "adapter_config.json").unlink()
    with pytest.raises(
        PdiffError, match="none goes with adapter_model.safetensors; allowed: a folder with adapter_config.json"
    ):
        loras.read(path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("make", "file"), [(loras.peft, "adapter_model.safetensors"), (loras.mlx, "adapters.safetensors")]
)
def test_a_manifest_may_name_the_file_in_the_folder(tmp_path, make, file):
    for i in range(3):
        make(tmp_path / f"strength_{i}", seed=i)
    by_folder = source.read(tmp_path, 1)
    lines = [f"strength_{i}/{file},strength {i}" for i in range(3)]
    (tmp_path / "manifest.csv").write_text("\n".join(["file,description", *lines]))
    by_file = source.read(tmp_path, 1)
    assert by_file.adapter == by_folder.adapter and by_file.adapter is not None
    for path, value in zoos.params(by_folder).items():
        np.testing.assert_array_equal(zoos.params(by_file)[path], value)
    config = json.loads((tmp_path / "strength_1/adapter_config.json").read_text())
    config |= {"lora_alpha": 99} if "r" in config else {"lora_parameters": {"rank": 3, "scale": 33}}
    (tmp_path / "strength_1/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Faults, match="strength_1.*the scale of .* is 33, not "):
        source.read(tmp_path, 1)


def one(tmp_path, make, name="x", **how):
    return loras.read(make(tmp_path / name, **how)[0])[1]


@pytest.mark.parametrize(
    ("make", "first", "other", "words"),
    [
        (loras.peft, {}, {"base_model_name_or_path": "b"}, ["base_model_name_or_path is 'b', not 'some/base'"]),
        (loras.peft, {}, {"task_type": None}, ["task_type is None, not 'CAUSAL_LM'"]),
        (loras.peft, {}, {"target_modules": ["fc", "q_proj"], "lora_dropout": 0.5}, []),
        (loras.peft, {}, {"base_model_name_or_path": None}, []),
        (loras.peft, {}, {"lora_alpha": 3}, ["the scale of 'layers.0.q_proj' is 1, not 2 .2 such"]),
        (loras.peft, {}, {"alpha_pattern": {"fc": 3}}, ["the scale of 'layers.1.fc' is 1, not 2 .1 such"]),
        (loras.peft, {}, {"r": 5}, ["the rank of 'layers.0.q_proj' is 5, not 3 .*zoo.rank=5"]),
        (loras.peft, {"use_rslora": True, "r": 4}, {"r": 4, "lora_alpha": 12}, []),
        (loras.kohya, {}, {"alpha": 3.0}, ["the scale of"]),
        (loras.kohya, {"metadata": {"ss_base_model_version": "sd_v1"}}, {"metadata": {"ss_base_model_version": "sdxl"}},
         ["ss_base_model_version is 'sdxl', not 'sd_v1'"]),
        (loras.kohya, {"metadata": {"ss_sd_model_name": "a"}}, {"metadata": {"modelspec.architecture": "b"}}, []),
        (loras.diffusers, {"metadata": described(**{"unet.r": 3, "unet.base_model_name_or_path": "a"})},
         {"metadata": described(**{"unet.r": 3, "unet.base_model_name_or_path": "b"})}, ["base_model_name_or_path is"]),
        (loras.mlx, {}, {"model": "b"}, ["base_model_name_or_path is 'b', not 'some/base'"]),
    ],
)  # fmt: skip
def test_what_keeps_two_adapters_out_of_one_zoo(tmp_path, make, first, other, words):
    end = ".safetensors" if make in (loras.kohya, loras.diffusers) else ""
    found = lora.differing(one(tmp_path, make, f"b{end}", **other), one(tmp_path, make, f"a{end}", **first))
    assert len(found) == len(words)
    for line, pattern in zip(found, words, strict=True):
        assert re.search(pattern, line), line


def test_metadata_that_all_share_stay_and_hashes_of_one_go(tmp_path):
    same = {"ss_sd_model_name": "a", "ss_network_alpha": "6"}
    both = [
        one(
            tmp_path,
            loras.kohya,
            f"{i}.safetensors",
            seed=i,
            metadata=same | {"ss_seed": str(i), "sshs_model_hash": "0"},
        )
        for i in range(2)
    ]
    assert lora.shared(*both).metadata == same
