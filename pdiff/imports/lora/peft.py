"""Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors."""

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pdiff.errors import PdiffError
from pdiff.imports.arrays import File, shown
from pdiff.imports.lora import components, form
from pdiff.imports.lora.form import Adapter, Module, Network

MODEL = "adapter_model.safetensors"
PREFIX = "base_model.model."
SAVED = ".modules_to_save."
# What a name ends with, and which part of a module it is.
PARTS = {
    ".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_embedding_A": "A", ".lora_embedding_B": "B",
}  # fmt: skip
# Fields with any value: how an adapter was trained or is shared out, not what it computes, or checked on their own.
FREE = (
    *form.AGREE, "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "lora_alpha", "lora_dropout",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "use_rslora",
)  # fmt: skip
BIASES = ("none", "all", "lora_only")
INITS = (True, False, "gaussian", "orthogonal", "eva")  # others take a part of the base's own weights out of it
RESTORED = ("pissa", "olora", "corda", "lora_ga")  # which PEFT can turn into adapters of the unchanged base
RESTORE = "model.save_pretrained(folder, path_initial_model_for_weight_conversion=…) of PEFT writes a LoRA of the base"
METHODS = "a LoRA; peft.save_as_lora(folder, model, rank=…) of PEFT 0.19 or newer writes one that is near some methods"
WAYS = {"use_dora": form.CONVERTED, "lora_bias": "train without lora_bias"}
LONGEST_PATTERN, MOST_REPEATS = 400, 3
_REPEATS, _REPEATED_GROUP = re.compile(r"[*+?{]"), re.compile(r"\)[*+?{]")
DEFAULT = 8  # r and lora_alpha of a LoraConfig that does not say them


def check_config(config: Mapping[str, Any], defaults: bool = False) -> None:
    """Raises PdiffError, naming the field, unless scale B A and whole arrays are all that the adapter does.

    Args:
      defaults: take what a LoraConfig has where fields are missing, as diffusers does.
    """
    if defaults:
        config = {"peft_type": "LORA", "r": DEFAULT, "lora_alpha": DEFAULT} | dict(config)
    if config.get("peft_type") != "LORA":
        raise PdiffError(f"peft_type is {shown(config.get('peft_type'))}; allowed: LORA, {METHODS}")
    _rank("r", config.get("r"))
    _alpha("lora_alpha", config.get("lora_alpha"))
    for name, check in (("rank_pattern", _rank), ("alpha_pattern", _alpha)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise PdiffError(f"{name} is {shown(pattern)}; allowed: an object of numbers by module")
        for key, value in pattern.items():
            check(f"{name}[{shown(key)}]", value)
    if config.get("bias", "none") not in BIASES:
        raise PdiffError(f"bias is {shown(config['bias'])}; allowed: {', '.join(BIASES)}")
    if not isinstance(config.get("use_rslora", False), (bool, type(None))):
        raise PdiffError(f"use_rslora is {shown(config['use_rslora'])}; allowed: true, false")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in INITS and init is not None:
        restored = isinstance(init, str) and init.lower().startswith(RESTORED)
        way = RESTORE if restored else f"allowed: {', '.join(map(str, INITS))}"
        raise PdiffError(f"init_lora_weights is {shown(init)}, which changes the base model and is not handled; {way}")
    for name, value in config.items():
        if name not in FREE and value:
            way = WAYS.get(name, "allowed: an adapter without it")
            raise PdiffError(f"{name} is {shown(value)}, which is not handled; {way}")


def _rank(name: str, rank: Any) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank <= form.MOST_RANK:
        raise PdiffError(f"{name} is {shown(rank)}; allowed: a whole number from 1 to {form.MOST_RANK}")


def _alpha(name: str, alpha: Any) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1e6:
        raise PdiffError(f"{name} is {shown(alpha)}; allowed: a number above 0")


def matched(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first key that matches the module as PEFT has it match: a regex of the end of its name."""
    for key, value in (pattern or {}).items():
        if key == module or module.endswith(f".{key}") or not _is_name(key) and _compiled(key).match(module):
            return value
    return default


@functools.lru_cache(4096)  # patterns of hundreds of names come once for each network and module
def _is_name(key: str) -> bool:
    return not set(key) & set(r"\^$*+?{}[]()|")


@functools.lru_cache(4096)
def _compiled(key: str) -> re.Pattern:
    if len(key) > LONGEST_PATTERN or len(_REPEATS.findall(key)) > MOST_REPEATS or _REPEATED_GROUP.search(key):
        allowed = "allowed: names of modules, with few repeats"  # as some names would keep others busy for ever
        raise PdiffError(f"the pattern {shown(key)} repeats a group, or more than {MOST_REPEATS} times; {allowed}")
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError) as e:
        raise PdiffError(f"the pattern {shown(key)} is no regular expression: {e}") from e


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """By what the update of a module counts.

    Raises:
      PdiffError: its rank is not that of the config.
    """
    expected = matched(config.get("rank_pattern"), module, config.get("r", DEFAULT))
    if rank != expected:
        raise PdiffError(f"lora_A of {shown(module)} has {rank} rows; allowed: {expected}, the rank of its config")
    alpha = matched(config.get("alpha_pattern"), module, config.get("lora_alpha", DEFAULT))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def of_folder(config: dict[str, Any], file: File) -> Network:
    """The adapter of a checked config and its arrays."""
    form.refuse_other_methods(file.arrays)
    parts: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in file.arrays:
        module, part = _part(name)
        if part:
            parts.setdefault(module, {})[part] = name
        elif module in whole:
            raise PdiffError(f"{shown(name)} and {shown(whole[module])} are one array; allowed: one of them")
        else:
            whole[module] = name
    if not parts:
        raise PdiffError(f"holds no {PREFIX}MODULE.lora_A.weight")
    embeddings = frozenset(m for m, names in parts.items() if any("lora_embedding" in n for n in names.values()))
    tree, modules, came = form.build(
        file.arrays, parts, whole, lambda module, rank, _: scale_of(config, module, rank), embeddings=embeddings
    )
    return tree, Adapter("peft", modules, came, config, dict(file.metadata)), tuple(file.notes)


def _part(name: str) -> tuple[str, str]:
    """The module and the part of it that an array is; '' for a whole array, whose own name it then is."""
    plain = name.removeprefix(PREFIX)
    for ending, part in PARTS.items():
        if plain.endswith(ending) and name.startswith(PREFIX) and plain != ending:
            return plain.removesuffix(ending), part
    if not name.startswith(PREFIX) or ".lora_" in plain or not plain or "/" in plain:
        raise PdiffError(
            f"{shown(name)} is not handled; allowed: {PREFIX}MODULE.lora_A.weight and .lora_B.weight, and whole arrays "
            f"{PREFIX}NAME, as model.save_pretrained(folder) writes them"
        )
    return plain.replace(SAVED, "."), ""


def of(adapter: Adapter) -> Adapter:
    """How an adapter that came in another spelling is written.

    Raises:
      PdiffError: it is of several components.
    """
    placed = components.of(adapter)
    found = sorted({component for component, _ in placed.values()})
    if len(found) > 1:
        raise PdiffError(
            f"the adapter is of {' and '.join(found)}, and a folder of PEFT is of one model; allowed: diffusers, kohya"
        )
    modules = {}
    for name, module in adapter.modules.items():
        inner = placed[name][1]
        endings = [e for e in PARTS if ("embedding" in e) == module.embedding]
        modules[name] = components.renamed(adapter, module, *(f"{PREFIX}{inner}{e}" for e in endings))
    config = config_of({placed[name][1]: m for name, m in modules.items()}, adapter)
    return Adapter("peft", modules, {}, config, form.carried(adapter))


def config_of(modules: dict[str, Module], adapter: Adapter) -> dict[str, Any]:
    """adapter_config.json of modules by their names in the model, for the base that `adapter` names."""
    ranks = Counter(m.rank for m in modules.values()).most_common(1)[0][0]
    alphas = Counter(m.strength for m in modules.values()).most_common(1)[0][0]
    keys = {name: _key(name, modules) for name in modules}
    facts = (adapter.config or {}) if adapter.spelling == "peft" else {}
    return {
        "alpha_pattern": {keys[n]: m.strength for n, m in modules.items() if m.strength != alphas},
        "base_model_name_or_path": form.base_of(adapter),
        "bias": "none",
        "fan_in_fan_out": facts.get("fan_in_fan_out", False),
        "inference_mode": True,
        "lora_alpha": alphas,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": ranks,
        "rank_pattern": {keys[n]: m.rank for n, m in modules.items() if m.rank != ranks},
        "revision": facts.get("revision"),
        "target_modules": sorted(modules),
        "task_type": facts.get("task_type"),
        "use_rslora": False,
    }


def _key(name: str, modules: Mapping[str, Any]) -> str:
    """A pattern that is matched by this module alone: its name, from its start where another ends so."""
    return f"^{name}" if any(other.endswith(f".{name}") for other in modules) else name


def at_rank(config: dict[str, Any], rank: int) -> dict[str, Any]:
    """`config` with this rank and scale 1."""
    return config | {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
