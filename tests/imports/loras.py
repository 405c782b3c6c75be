"""Small adapters in every spelling, and what they do: scale B A, computed here and not by `pdiff.imports`."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from pdiff.imports import arrays, lora

ATTENTION = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.1.resnets.0.conv1"
TEXT = "text_model.encoder.layers.3.self_attn.q_proj"


def factors(name: str, rank: int = 3, seed: int = 0, dtype=np.float32, inputs: int = 10, outputs: int = 7, window=()):
    """A (rank, inputs, *window) and B (outputs, rank, 1…) of a module."""
    random = np.random.default_rng([seed, *name.encode()])
    a = random.standard_normal((rank, inputs, *window)).astype(dtype)
    return a, random.standard_normal((outputs, rank, *[1] * len(window))).astype(dtype)


def update(a, b, scale: float = 1.0):
    """The update of a weight (outputs, inputs * window)."""
    return scale * b.astype(np.float64).reshape(b.shape[:2]) @ a.astype(np.float64).reshape(len(a), -1)


def write(path: Path, given: dict[str, np.ndarray], config: dict | None = None, metadata: dict | None = None) -> Path:
    """A file, or the folder of one with a config beside; returns what an import is pointed to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({n: np.asarray(v, order="C") for n, v in given.items()}, path, metadata)
    if config is None:
        return path
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    return path.parent


def read(path: Path) -> lora.Network:
    """As an import reads what lies at `path`."""
    if path.is_dir():
        return lora.read(path, arrays.Budget(1))
    network = lora.recognise(path, arrays.read(path, arrays.Budget(1)))
    assert network is not None
    return network


def updates(network: lora.Network) -> dict[str, np.ndarray]:
    """What each module of a network adds to its weight, by name."""
    tree, adapter, _ = network
    return {
        name: update(tree[f"lora/{name}/A"], tree[f"lora/{name}/B"], m.scale) for name, m in adapter.modules.items()
    }


def peft(
    folder: Path, modules=("layers.0.q_proj", "layers.1.fc"), seed=0, dtype=np.float32, ranks=None, whole=None, **config
):
    """A folder of PEFT's, and the factors of its modules."""
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "base_model_name_or_path": "some/base",
              "target_modules": ["q_proj", "fc"], "task_type": "CAUSAL_LM"} | config  # fmt: skip
    made = {m: factors(m, (ranks or {}).get(m, config["r"]), seed, dtype) for m in modules}
    given = {
        f"base_model.model.{m}.lora_{k}.weight": v for m, ab in made.items() for k, v in zip("AB", ab, strict=True)
    }
    return write(folder / "adapter_model.safetensors", given | (whole or {}), config, {"format": "pt"}), made


def diffusers(
    path: Path, modules=(f"unet.{ATTENTION}", f"unet.{OUT}"), seed=0, rank=3, dtype=np.float32, metadata=None
):
    """A file as today's diffusers writes it, and the factors of its modules."""
    made = {m: factors(m, rank, seed, dtype, window=(3, 3) if m.endswith("conv1") else ()) for m in modules}
    given = {f"{m}.lora_{k}.weight": v for m, ab in made.items() for k, v in zip("AB", ab, strict=True)}
    return write(path, given, None, {"format": "pt"} | (metadata or {})), made


def kohya(
    path: Path,
    modules=(f"lora_unet_{ATTENTION}", f"lora_unet_{OUT}"),
    seed=0,
    rank=3,
    alpha=6.0,
    dtype=np.float32,
    alpha_dtype=np.float32,
    metadata=None,
):
    """A file of kohya's, with an alpha for each module unless it is None, and the factors of its modules."""
    made = {
        m.replace(".", "_"): factors(m, rank, seed, dtype, window=(3, 3) if m.endswith("conv1") else ())
        for m in modules
    }
    given = {f"{m}.lora_{k}.weight": v for m, ab in made.items() for k, v in zip(("down", "up"), ab, strict=True)}
    if alpha is not None:
        given |= {f"{m}.alpha": np.array(alpha, alpha_dtype) for m in made}
    return write(path, given, None, metadata), made


def mlx(
    folder: Path,
    modules=("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"),
    seed=0,
    rank=3,
    scale=20.0,
    dtype=np.float32,
    alone=False,
    **config,
):
    """A folder of mlx-lm's, or the file of one alone, and the factors of its modules."""
    config = {"fine_tune_type": "lora", "num_layers": 2, "model": "some/base",
              "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0}} | config  # fmt: skip
    made = {m: factors(m, rank, seed, dtype) for m in modules}
    given = {f"{m}.lora_{k}": v.T for m, ab in made.items() for k, v in zip("ab", ab, strict=True)}
    return write(folder / "adapters.safetensors", given, None if alone else config), made
