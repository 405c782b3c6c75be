"""PEFT, transformers and diffusers load what is written of their own files: the extra "adapters", two minutes.

Tiny models from configs, nothing downloaded. An adapter that goes in and comes out untouched gives the same outputs to
1e-6, in its own spelling and in every other that has a place for it.
"""

import copy
import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from pdiff.ask import exports
from pdiff.imports import lora
from pdiff.scenario import Facts
from tests.imports import loras

pytestmark = pytest.mark.libraries
torch = pytest.importorskip("torch")
library = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


def trained(model):
    """The model with random values for all that is trained: adapters and, of PEFT's, heads and biases."""
    whole = isinstance(model, library.PeftModel)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or whole and value.requires_grad:
                value.copy_(0.3 * torch.randn_like(value))
    return model.eval()


def written(network, form, out):
    """The file or the folder of a network that was read, written again in a format."""
    tree, adapter, _ = network
    leaves = {p: [list(tree[p].shape), a.dtype, a.name, "none"] for p, a in lora.leaves(adapter).items()}
    facts = Facts("", "", [], [], leaves, dataclasses.asdict(adapter), {})
    stacked = {p: v[None].astype(np.float32) for p, v in tree.items()}
    exports.write(traverse_util.unflatten_dict(stacked, sep="/"), out, exports.format_of(out, form, facts), {}, facts)
    (path,) = (p for p in out.iterdir() if p.name.startswith("sample_"))
    return path


def same_files(before, after):
    """Keys, shapes, dtypes and values."""
    one, other = (safetensors.numpy.load_file(p) for p in (before, after))
    assert {n: (v.shape, v.dtype) for n, v in one.items()} == {n: (v.shape, v.dtype) for n, v in other.items()}
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)


def scalings(model):
    modules = dict(model.named_modules())
    return {n: dict(m.scaling) for n, m in modules.items() if hasattr(m, "lora_A")}


def near(one, other):
    size = float(other.abs().max())
    assert size > 1e-3 and float((one - other).abs().max()) <= TOLERANCE * max(size, 1)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def bert():
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )
    return transformers.BertForSequenceClassification(config).eval()


TOKENS = torch.arange(12).reshape(2, 6)
LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
FOLDERS = {
    "plain": (llama, LINEAR),
    "rslora": (llama, LINEAR | {"use_rslora": True, "r": 4, "lora_alpha": 6}),
    "patterns": (llama, LINEAR | {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
                                  "alpha_pattern": {r"layers\.0\.self_attn\.v_proj": 3}}),
    "regex": (llama, {"target_modules": r".*\.layers\.1\..*(q|k)_proj", "lora_alpha": 1}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "o_proj"]}),
    "biases": (bert, {"target_modules": ["query", "dense"], "bias": "all"}),
    "head": (bert, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "modules_to_save": (llama, LINEAR | {"modules_to_save": ["lm_head", "norm"]}),
}  # fmt: skip


def folder_of(kind, where, dtype=None):
    """A base, what PEFT saved of it adapted, its outputs, and its scalings."""
    make, config = FOLDERS[kind]
    base = make()
    adapted = trained(library.get_peft_model(copy.deepcopy(base), library.LoraConfig(**config)))
    if dtype is not None:
        base, adapted = base.to(dtype), adapted.to(dtype)
    adapted.save_pretrained(where)
    with torch.no_grad():
        return base, adapted(TOKENS).logits, scalings(adapted)


@pytest.mark.parametrize("kind", FOLDERS)
def test_peft_loads_its_own_folders_again(tmp_path, kind):
    base, outputs, scales = folder_of(kind, tmp_path / "in")
    path = written(loras.read(tmp_path / "in"), None, tmp_path / "out")
    same_files(tmp_path / "in" / "adapter_model.safetensors", path / "adapter_model.safetensors")
    before, after = (json.loads((p / "adapter_config.json").read_text()) for p in (tmp_path / "in", path))
    assert after == before | {"inference_mode": True}
    again = library.PeftModel.from_pretrained(copy.deepcopy(base), path).eval()
    assert scalings(again) == scales
    with torch.no_grad():
        near(again(TOKENS).logits, outputs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_of_half_precision(tmp_path, dtype):
    folder_of("plain", tmp_path / "in", getattr(torch, dtype))
    path = written(loras.read(tmp_path / "in"), None, tmp_path / "out")
    one, other = ((p / "adapter_model.safetensors").read_bytes() for p in (tmp_path / "in", path))
    assert len(one) == len(other)
    same_files(tmp_path / "in" / "adapter_model.safetensors", path / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["plain", "rslora", "embedding"])
def test_through_mlx_and_back(tmp_path, kind):
    """What `save_pretrained` wrote as mlx-lm has it, read so, and as PEFT has it again; transformers loads it too."""
    base, outputs, _ = folder_of(kind, tmp_path / "in")
    network = loras.read(tmp_path / "in")
    tree = {p: v for p, v in network[0].items() if not lora.is_whole(p)}  # PEFT saves the base's own embeddings too
    network = tree, dataclasses.replace(network[1], whole={}), ()
    as_mlx = loras.read(written(network, "mlx", tmp_path / "mlx"))
    assert as_mlx[1].spelling == "mlx" and as_mlx[1].config["lora_parameters"]["rank"] == as_mlx[1].rank
    path = written(as_mlx, "peft", tmp_path / "peft")
    with torch.no_grad():
        near(library.PeftModel.from_pretrained(copy.deepcopy(base), path).eval()(TOKENS).logits, outputs)
        model = copy.deepcopy(base)
        model.load_adapter(str(path))
        near(model.eval()(TOKENS).logits, outputs)


def test_at_another_rank(tmp_path):
    base, outputs, _ = folder_of("patterns", tmp_path / "in")
    tree, adapter, error = lora.to_rank(*loras.read(tmp_path / "in")[:2], 16)
    assert error < 1e-7
    path = written((tree, adapter, ()), "peft", tmp_path / "out")
    again = library.PeftModel.from_pretrained(copy.deepcopy(base), path).eval()
    assert {s for scale in scalings(again).values() for s in scale.values()} == {1.0}
    with torch.no_grad():
        near(again(TOKENS).logits, outputs)


def unet():
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, norm_num_groups=4, attention_head_dim=4,
    ).eval()  # fmt: skip


def text_encoder():
    config = transformers.CLIPTextConfig(
        vocab_size=40, hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    return transformers.CLIPTextModel(config).eval()


def seen(model):
    """Outputs of a UNet or of a text encoder."""
    with torch.no_grad():
        if isinstance(model, transformers.CLIPTextModel):
            return model(TOKENS).last_hidden_state
        if hasattr(model, "base_model"):
            model = model.base_model
        noise = torch.linspace(-1, 1, 2 * 4 * 64).reshape(2, 4, 8, 8)
        return model(noise, 3, torch.linspace(-1, 1, 2 * 6 * 12).reshape(2, 6, 12)).sample


UNETS = {
    "linear": {"r": 4, "lora_alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]},
    "convolutions": {"r": 3, "lora_alpha": 12, "target_modules": ["conv1", "proj_in", "conv_shortcut", "conv_in"]},
    "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True, "target_modules": ["to_q", "conv", "ff.net.0.proj"]},
    "patterns": {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "conv1", "time_emb_proj", "linear_1"],
                 "rank_pattern": {"to_q": 2}, "alpha_pattern": {"up_blocks.*conv1": 1, "linear_1": 16}},
}  # fmt: skip
LOADER = diffusers.StableDiffusionPipeline


def saved(kind, where, described=True):
    """A UNet, the file that diffusers saved of its adapter, and its outputs with it."""
    base = unet()
    adapted = copy.deepcopy(base)
    adapted.add_adapter(library.LoraConfig(**UNETS[kind]))
    trained_unet = trained(adapted)
    config = adapted.peft_config["default"].to_dict()
    layers = library.get_peft_model_state_dict(trained_unet)
    LOADER.save_lora_weights(where, layers, unet_lora_adapter_metadata=config if described else None)
    return base, where / "pytorch_lora_weights.safetensors", seen(trained_unet)


def loaded(base, path):
    """The UNet with a single file, as a pipeline loads it."""
    state, alphas, metadata = LOADER.lora_state_dict(path.parent, weight_name=path.name, return_lora_metadata=True)
    model = copy.deepcopy(base)
    LOADER.load_lora_into_unet(state, alphas, model, adapter_name="default", metadata=metadata)
    return model.eval()


@pytest.mark.parametrize("kind", UNETS)
def test_diffusers_loads_its_own_files_again(tmp_path, kind):
    base, file, outputs = saved(kind, tmp_path / "in")
    network = loras.read(file)
    path = written(network, None, tmp_path / "out")
    same_files(file, path)
    with safetensors.safe_open(file, "np") as one, safetensors.safe_open(path, "np") as other:
        assert one.metadata() == other.metadata()
    near(seen(loaded(base, path)), outputs)
    assert scalings(loaded(base, path)) == scalings(loaded(base, file))


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_diffusers_and_peft_load_its_files_in_other_spellings(tmp_path, kind, form):
    base, file, outputs = saved(kind, tmp_path / "in")
    path = written(loras.read(file), form, tmp_path / "out")
    if form == "kohya":
        near(seen(loaded(base, path)), outputs)
        back = written(loras.read(path), "diffusers", tmp_path / "back")
        near(seen(loaded(base, back)), outputs)
    else:
        near(seen(library.PeftModel.from_pretrained(copy.deepcopy(base), path).eval()), outputs)
        back = written(loras.read(path), "diffusers", tmp_path / "back")
        near(seen(loaded(base, back)), outputs)


def test_a_file_of_one_model_without_its_component(tmp_path):
    """As `save_lora_adapter` writes it, and `load_lora_adapter(prefix=None)` reads it."""
    base = unet()
    adapted = copy.deepcopy(base)
    adapted.add_adapter(library.LoraConfig(**UNETS["rslora"]))
    trained(adapted).save_lora_adapter(tmp_path / "in")
    (file,) = (tmp_path / "in").iterdir()
    path = written(loras.read(file), None, tmp_path / "out")
    same_files(file, path)
    again = copy.deepcopy(base)
    again.load_lora_adapter(path.parent, weight_name=path.name, prefix=None)
    near(seen(again), seen(adapted))
    kohya = written(loras.read(file), "kohya", tmp_path / "kohya")
    near(seen(loaded(base, kohya)), seen(adapted))


def test_of_a_unet_and_a_text_encoder(tmp_path):
    """Both components in one file: out as kohya's, and back; each loads what is its own."""
    bases = {"unet": unet(), "text_encoder": text_encoder()}
    adapted, layers, outputs = {}, {}, {}
    for name, targets, alpha in (
        ("unet", ["to_q", "to_out.0"], 2),
        ("text_encoder", ["q_proj", "out_proj", "fc1"], 12),
    ):
        adapted[name] = copy.deepcopy(bases[name])
        adapted[name].add_adapter(library.LoraConfig(r=4, lora_alpha=alpha, target_modules=targets), "default")
        trained(adapted[name])
        layers[name] = library.get_peft_model_state_dict(adapted[name], adapter_name="default")
        outputs[name] = seen(adapted[name])
    described = {f"{n}_lora_adapter_metadata": a.peft_config["default"].to_dict() for n, a in adapted.items()}
    LOADER.save_lora_weights(tmp_path / "in", layers["unet"], layers["text_encoder"], **described)
    file = tmp_path / "in" / "pytorch_lora_weights.safetensors"
    network = loras.read(file)
    ways = {form: written(network, form, tmp_path / str(form)) for form in (None, "kohya")}
    ways["back"] = written(loras.read(ways["kohya"]), "diffusers", tmp_path / "back")
    same_files(file, ways[None])
    for path in ways.values():
        near(seen(loaded(bases["unet"], path)), outputs["unet"])
        state, alphas, metadata = LOADER.lora_state_dict(path.parent, weight_name=path.name, return_lora_metadata=True)
        encoder = copy.deepcopy(bases["text_encoder"])
        LOADER.load_lora_into_text_encoder(state, alphas, encoder, prefix="text_encoder", metadata=metadata)
        near(seen(encoder.eval()), outputs["text_encoder"])


def test_a_file_of_kohyas_as_diffusers_makes_it(tmp_path):
    """`convert_state_dict_to_kohya` gives alphas that are whole numbers without axes."""
    from diffusers.utils import convert_state_dict_to_kohya

    base, file, outputs = saved("linear", tmp_path / "in", described=False)
    converted = convert_state_dict_to_kohya(safetensors.torch.load_file(file))
    safetensors.torch.save_file(converted, tmp_path / "kohya.safetensors")
    network = loras.read(tmp_path / "kohya.safetensors")
    assert {m.alpha.dtype for m in network[1].modules.values()} == {"int64"}
    path = written(network, None, tmp_path / "out")
    same_files(tmp_path / "kohya.safetensors", path)
    near(seen(loaded(base, path)), outputs)
    near(seen(loaded(base, written(network, "diffusers", tmp_path / "back"))), outputs)
