"""From each spelling to each other: the same update under the names of the other, or a refusal that says what works."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from pdiff.errors import PdiffError
from pdiff.imports import lora
from pdiff.imports.lora import components
from tests.imports import loras

NAMES = (  # of diffusers' UNet and CLIP's text models
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "down_blocks.2.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv_shortcut", "down_blocks.1.resnets.1.time_emb_proj", "mid_block.resnets.1.conv2",
    "mid_block.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
    "mid_block.attentions.0.transformer_blocks.3.ff.net.2", "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0", "up_blocks.1.attentions.2.proj_out", "conv_in",
    "conv_out", "time_embedding.linear_1", "add_embedding.linear_2", "text_model.encoder.layers.11.self_attn.out_proj",
    "text_model.encoder.layers.0.mlp.fc1", "text_projection",
)  # fmt: skip
SDXL = {  # the same modules of SDXL's UNet under both names
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_8_1_transformer_blocks_9_ff_net_2": "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2",
    "input_blocks_5_0_in_layers_2": "down_blocks.1.resnets.1.conv1",
    "input_blocks_6_0_op": "down_blocks.1.downsamplers.0.conv",
    "input_blocks_7_0_skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks_0_1_transformer_blocks_2_attn2_to_k": "up_blocks.0.attentions.0.transformer_blocks.2.attn2.to_k",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
    "output_blocks_8_0_out_layers_3": "up_blocks.2.resnets.2.conv2",
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
}  # fmt: skip


def test_dots_are_put_back_by_words():
    for name in NAMES:
        assert components.dotted(components.underscored(name)) == name
    for name in ("down_blocks_0_unheard_of", "single_transformer_blocks_1", "to_qq", "down_blocks_x"):
        assert components.dotted(name) is None
    with pytest.raises(PdiffError, match="not made of the words"):
        components.underscored("down_blocks.0.a_word.to_q")


def test_the_first_names_of_sdxl_are_counted_otherwise():
    metadata = {"ss_base_model_version": "sdxl_base_v1-0"}
    for name, expected in SDXL.items():
        assert components.of_kohya(f"lora_unet_{name}", metadata) == ("unet", expected)
        if "blocks" in name:
            with pytest.raises(PdiffError, match="do not say sdxl"):
                components.of_kohya(f"lora_unet_{name}", {})


def spelled(tmp_path, network, spelling, name="out"):
    """What lies there after the network was written in a spelling, and the network that is read from it."""
    adapter = lora.translated(network[1], spelling)
    given, file = lora.as_spelled(network[0], adapter), lora.file_of(adapter)
    where = tmp_path / name / file if file else tmp_path / f"{name}.safetensors"
    path = loras.write(where, given, file and lora.config_of(adapter), adapter.metadata)
    return given, loras.read(path)


UNET = (f"unet.{loras.ATTENTION}", f"unet.{loras.CONV}")
ONE_WAY = ((f"text_encoder.{loras.TEXT}",), ("a.b", "b"))  # a folder of PEFT's does not say what component it is of
WAYS = [
    (loras.diffusers, {"modules": UNET, "dtype": np.float16}, "kohya"),
    (loras.diffusers, {"modules": (*UNET, f"text_encoder.{loras.TEXT}", f"text_encoder_2.{loras.TEXT}")}, "kohya"),
    (loras.diffusers, {"modules": UNET}, "peft"),
    (loras.diffusers, {"modules": ONE_WAY[0], "rank": 1}, "peft"),
    (loras.diffusers, {"modules": ONE_WAY[1]}, "peft"),
    (loras.kohya, {"modules": tuple(f"lora_{n}" for n in UNET), "alpha": 1.3}, "diffusers"),
    (loras.kohya, {"modules": (f"lora_unet_{loras.OUT}", f"lora_te_{loras.TEXT}"), "dtype": np.float16}, "diffusers"),
    (loras.kohya, {"modules": tuple(f"lora_{n}" for n in UNET), "alpha": None}, "peft"),
    (loras.peft, {"modules": (loras.ATTENTION, loras.OUT), "dtype": ml_dtypes.bfloat16}, "diffusers"),
    (loras.peft, {"modules": (loras.ATTENTION, loras.CONV), "use_rslora": True}, "kohya"),
    (loras.peft, {"modules": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_out")}, "diffusers"),
    (loras.peft, {"modules": ("model.layers.0.q_proj", "model.layers.1.mlp.fc")}, "mlx"),
    (loras.peft, {"use_rslora": True, "dtype": np.float16}, "mlx"),
    (loras.mlx, {}, "peft"),
    (loras.mlx, {"modules": ("model.embed_tokens", "lm_head"), "scale": 0.3, "rank": 5}, "peft"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "how", "spelling"), WAYS)
def test_across_spellings_the_update_is_the_same(tmp_path, make, how, spelling):
    network = loras.read(
        make(tmp_path / ("x.safetensors" if make in (loras.diffusers, loras.kohya) else "x"), **how)[0]
    )
    given, again = spelled(tmp_path, network, spelling)
    assert again[1].spelling == spelling
    before, after = list(loras.updates(network).values()), list(loras.updates(again).values())
    key = lambda update: float(update.sum())  # noqa: E731  the modules have other names now
    for one, other in zip(sorted(before, key=key), sorted(after, key=key), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    dtypes = {str(v.dtype) for n, v in given.items() if not n.endswith(".alpha")}
    assert dtypes == {np.dtype(how.get("dtype", np.float32)).name}
    if how.get("modules") not in ONE_WAY:
        _, back = spelled(tmp_path, again, network[1].spelling, "back")
        for one, other in zip(sorted(before, key=key), sorted(loras.updates(back).values(), key=key), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_names_of_each_spelling_are_those_of_its_tools(tmp_path):
    """As diffusers' own `_convert_non_diffusers_lora_to_diffusers` and `convert_state_dict_to_kohya` pair them."""
    modules = (f"unet.{loras.ATTENTION}", f"text_encoder.{loras.TEXT}", f"text_encoder_2.{loras.TEXT}")
    network = loras.read(loras.diffusers(tmp_path / "x.safetensors", modules)[0])
    given, again = spelled(tmp_path, network, "kohya")
    unet = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
    one, two = (f"lora_te{i}_text_model_encoder_layers_3_self_attn_q_proj" for i in (1, 2))
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(given) == {f"{m}.{e}" for m in (unet, one, two) for e in ends}
    assert given[f"{unet}.alpha"].shape == () and given[f"{unet}.alpha"] == 3
    given, _ = spelled(tmp_path, again, "diffusers", "back")
    assert set(given) == {f"{m}.lora_{k}.weight" for m in modules for k in "AB"}
    alone = loras.read(loras.diffusers(tmp_path / "y.safetensors", modules[:2])[0])
    assert any(n.startswith("lora_te_text_model") for n in spelled(tmp_path, alone, "kohya", "z")[0])


def test_a_config_of_pefts_says_where_modules_differ(tmp_path):
    """A name that another ends with is matched from its start."""
    a = {"unet.proj_out": 2, "unet.up.proj_out": 3, "unet.conv_in": 3}
    given = {}
    for module, rank in a.items():
        given |= {f"{module}.lora_{k}.weight": v for k, v in zip("AB", loras.factors(module, rank), strict=True)}
    network = loras.read(loras.write(tmp_path / "x.safetensors", given, None, {"a": "b"}))
    adapter = lora.translated(network[1], "peft")
    assert adapter.config["rank_pattern"] == {"^proj_out": 2} == adapter.config["alpha_pattern"]
    assert adapter.config["r"] == 3 == adapter.config["lora_alpha"] and adapter.metadata == {"format": "pt", "a": "b"}
    _, again = spelled(tmp_path, network, "peft")
    assert {f"unet.{n}": m.rank for n, m in again[1].modules.items()} == a


def test_base_and_task_type_come_along(tmp_path):
    network = loras.read(loras.peft(tmp_path / "x", (loras.OUT,), task_type="FEATURE_EXTRACTION")[0])
    _, again = spelled(tmp_path, network, "diffusers")
    fields = json.loads(again[1].metadata["lora_adapter_metadata"])
    assert fields["unet.base_model_name_or_path"] == "some/base" and fields["unet.task_type"] == "FEATURE_EXTRACTION"
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"
    _, back = spelled(tmp_path, again, "peft", "back")
    assert back[1].config["base_model_name_or_path"] == "some/base"
    network = loras.read(loras.mlx(tmp_path / "y")[0])
    assert spelled(tmp_path, network, "peft", "z")[1][1].config["base_model_name_or_path"] == "some/base"


HEAD = {"base_model.model.score.weight": np.ones((2, 2), np.float32)}


@pytest.mark.parametrize(
    ("make", "how", "spelling", "words"),
    [
        (loras.diffusers, {"modules": ("unet.conv_in", "text_encoder.a")}, "peft", "of text_encoder and unet"),
        (loras.kohya, {"modules": ("lora_unet_conv_in", f"lora_te2_{loras.TEXT}")}, "peft", ".*diffusers, kohya"),
        (loras.peft, {"modules": (loras.ATTENTION,), "whole": HEAD}, "kohya", "'score.weight' is a whole array"),
        (loras.peft, {"modules": (loras.ATTENTION,), "whole": HEAD}, "diffusers", "'score.weight' is a whole array"),
        (loras.peft, {}, "diffusers", "does not say which component"),
        (loras.peft, {"modules": ("bert.encoder.layer.0.query",)}, "kohya", "does not say which component"),
        (loras.peft, {"modules": ("transformer_blocks.0.attn.to_q",)}, "kohya", "transformer.*diffusers, peft"),
        (loras.diffusers, {"modules": ("diffusion_model.a",)}, "kohya", "diffusion_model.*allowed: diffusers, peft"),
        (loras.kohya, {"modules": ("lora_unet_double_blocks_0_img_attn_qkv",)}, "diffusers", "other words"),
        (loras.kohya, {"modules": ("lora_unet_input_blocks_4_1_proj_in",)}, "peft", "do not say sdxl"),
        (loras.diffusers, {}, "mlx", "of language models"), (loras.kohya, {}, "mlx", "of language models"),
        (loras.peft, {"alpha_pattern": {"fc": 3}}, "mlx", "scales .1.0, 2.0.*zoo.rank=3"),
        (loras.peft, {"rank_pattern": {"fc": 5}, "ranks": {"layers.1.fc": 5}}, "mlx", "ranks .3, 5.*zoo.rank=5"),
        (loras.peft, {"modules": (loras.CONV,)}, "mlx", "is a convolution"),
        (loras.mlx, {}, "kohya", "does not say which component"),
        (loras.mlx, {"alone": True}, "peft", "scale of the adapter is not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_for_sure_is_refused(tmp_path, make, how, spelling, words):
    if how.get("modules") == (loras.CONV,):
        a, b = loras.factors("c", 3, window=(3, 3))
        names = (f"base_model.model.{loras.CONV}.lora_{k}.weight" for k in "AB")
        how = {"modules": (), "whole": dict(zip(names, (a, b), strict=True))}
    path = make(tmp_path / ("x.safetensors" if make in (loras.diffusers, loras.kohya) else "x"), **how)[0]
    adapter = loras.read(path)[1]
    with pytest.raises(PdiffError, match=f"--format: got '{spelling}': .*{words}.*--format={adapter.spelling} writes"):
        lora.translated(adapter, spelling)
    assert lora.translated(adapter, adapter.spelling) is adapter


def test_an_embedding_has_no_name_in_diffusers(tmp_path):
    names = (f"base_model.model.time_embedding.lora_embedding_{k}" for k in "AB")
    whole = dict(zip(names, loras.factors("e"), strict=True))
    adapter = loras.read(loras.peft(tmp_path / "x", (), whole=whole)[0])[1]
    for spelling in ("diffusers", "kohya"):
        with pytest.raises(PdiffError, match="'time_embedding' is an embedding"):
            lora.translated(adapter, spelling)
