"""LoRA adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors.

An adapter adds (lora_alpha / r) B A to the weight of each adapted module, with A (r, inputs) and B (outputs, r). Here
it is the tree lora/MODULE/A, lora/MODULE/B. What changes this formula, or adds to it, is refused by name.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from numpy import ndarray

from pdiff.errors import PdiffError
from pdiff.imports import arrays
from pdiff.imports.arrays import shown

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
PREFIX, TREE = "base_model.model.", "lora"
MOST_RANK = 4096

AGREE = (  # fields that all networks of an import have to share
    "base_model_name_or_path", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "lora_alpha", "r",
    "target_modules",
)  # fmt: skip
# Fields with any value: how an adapter was trained or is shared out, not what it computes, or checked on their own.
FREE = (
    *AGREE, "auto_mapping", "bias", "ensure_weight_tying", "exclude_modules", "inference_mode", "init_lora_weights",
    "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "task_type",
)  # fmt: skip
INITS = (True, False, "gaussian", "orthogonal", "eva")  # others take a part of the base's own weights out of it


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One adapter: its arrays by path, and its config as it came."""

    arrays: dict[str, Shaped[ndarray, "..."]]
    config: dict[str, Any]


def is_adapter(path: Path) -> bool:
    """Whether a folder is one adapter."""
    return path.is_dir() and (path / CONFIG).exists()


def read(folder: Path, budget: arrays.Budget) -> Adapter:
    """The adapter in `folder`.

    Raises:
      PdiffError: an option is not handled, or config and arrays do not fit. It does not name the folder.
    """
    try:
        config = arrays.json_of(folder / CONFIG)
        check_config(config)
    except PdiffError as e:
        raise PdiffError(f"{CONFIG}: {e}") from e
    path = folder / MODEL
    if not path.exists():
        others = sorted(p.name for p in folder.glob("adapter_model*"))
        pickled = f"{others[0]} {arrays.refusal(folder / others[0])}" if others else f"allowed: {MODEL} beside {CONFIG}"
        raise PdiffError(f"has no {MODEL}; {pickled}")
    try:
        leaves = arrays.read(path, budget).arrays
        arrays.check_floats(leaves)
        return Adapter(_tree(leaves, config["r"]), config)
    except PdiffError as e:
        raise PdiffError(f"{MODEL}: {e}") from e


def check_config(config: Any) -> None:
    """Raises PdiffError, naming the field, unless (lora_alpha / r) B A is all that the adapter does."""
    if not isinstance(config, dict):
        raise PdiffError("is no JSON object")
    if config.get("peft_type") != "LORA":
        raise PdiffError(f"peft_type is {shown(config.get('peft_type'))}; allowed: LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank <= MOST_RANK:
        raise PdiffError(f"r is {shown(rank)}; allowed: a whole number from 1 to {MOST_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1e6:
        raise PdiffError(f"lora_alpha is {shown(alpha)}; allowed: a number above 0")
    if config.get("bias", "none") != "none":
        raise PdiffError(f"bias is {shown(config['bias'])}, which is not handled; allowed: none")
    if config.get("init_lora_weights", True) not in INITS:
        raise PdiffError(
            f"init_lora_weights is {shown(config['init_lora_weights'])}, which changes the base model and is not "
            f"handled; allowed: {', '.join(map(str, INITS))}"
        )
    for name, value in config.items():
        if name not in FREE and value:
            raise PdiffError(f"{name} is {shown(value)}, which is not handled; allowed: an adapter without it")


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The fields that have to agree and do not, each with both values."""

    def value(config: dict, name: str) -> Any:
        field = config.get(name)
        return sorted(field, key=str) if isinstance(field, list) else field

    return [f"{n} is {shown(value(a, n))}, not {shown(value(b, n))}" for n in AGREE if value(a, n) != value(b, n)]


def names(paths: list[str]) -> dict[str, str]:
    """The name that PEFT gives each path."""
    return {p: f"{PREFIX}{p.split('/')[1]}.lora_{p.rsplit('/', 1)[1]}.weight" for p in paths}


def written(config: dict[str, Any]) -> bytes:
    """adapter_config.json of adapters like those with `config`."""
    return json.dumps(config | {"inference_mode": True}, indent=1, sort_keys=True).encode()


def _tree(weights: dict[str, Shaped[ndarray, "..."]], rank: int) -> dict[str, Shaped[ndarray, "..."]]:
    tree = {}
    for name, value in weights.items():
        module, _, kind = name.removeprefix(PREFIX).rpartition(".lora_")
        if not name.startswith(PREFIX) or kind not in ("A.weight", "B.weight") or not module or "/" in module:
            allowed = f"{PREFIX}MODULE.lora_A.weight and .lora_B.weight alone"
            raise PdiffError(f"{shown(name)} is not handled; allowed: {allowed}")
        tree[f"{TREE}/{module}/{kind[0]}"] = value
    for path, value in tree.items():
        _, module, kind = path.split("/")
        other, axis, allowed = ("B", 0, f"({rank}, inputs)") if kind == "A" else ("A", 1, f"(outputs, {rank})")
        if f"{TREE}/{module}/{other}" not in tree:
            raise PdiffError(f"{shown(module)} has a lora_{kind} alone")
        if value.ndim != 2 or value.shape[axis] != rank:
            raise PdiffError(f"lora_{kind} of {shown(module)} has shape {value.shape}; allowed: {allowed}")
    return tree
