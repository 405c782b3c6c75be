"""Adapters as mlx-lm keeps them: adapter_config.json and adapters.safetensors, with factors the other way round.

y + scale (x lora_a) lora_b, with lora_a (inputs, r) and lora_b (r, outputs).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pdiff.errors import PdiffError
from pdiff.imports.arrays import File, shown
from pdiff.imports.lora import form
from pdiff.imports.lora.form import Adapter, Array, Module, Network

MODEL = "adapters.safetensors"
PARTS = {".lora_a": "A", ".lora_b": "B"}
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings")  # what is one in today's language models
ALL_LAYERS = -1


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is one of mlx-lm."""
    return "peft_type" not in config and bool({"lora_parameters", "fine_tune_type"} & set(config))


def check_config(config: Mapping[str, Any]) -> None:
    """Raises PdiffError, naming the field, unless scale B A is all that the adapter does."""
    if config.get("fine_tune_type", "lora") != "lora":
        method = config["fine_tune_type"]
        raise PdiffError(f"fine_tune_type is {shown(method)}, which is not handled; allowed: lora")
    if config.get("use_dora"):
        raise PdiffError("use_dora is true, which is not handled; allowed: false")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise PdiffError(f"lora_parameters is {shown(parameters)}; allowed: an object with rank and scale")
    rank, scale = parameters.get("rank"), parameters.get("scale")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 < rank <= form.MOST_RANK:
        raise PdiffError(f"lora_parameters.rank is {shown(rank)}; allowed: a whole number from 1 to {form.MOST_RANK}")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 1e6:
        raise PdiffError(f"lora_parameters.scale is {shown(scale)}; allowed: a number above 0")


def is_spelled(names: Iterable[str]) -> bool:
    """Whether arrays of these names are such an adapter."""
    return any(name.endswith(tuple(PARTS)) for name in names)


def of_folder(config: dict[str, Any], file: File) -> Network:
    """The adapter of a checked config and its arrays."""
    tree, adapter, notes = _read(file, config)
    if "alpha" in config["lora_parameters"]:
        notes += ("lora_parameters.alpha counts for nothing, as in mlx-lm of today: lora_parameters.scale does",)
    return tree, adapter, notes


def of_file(file: File) -> Network:
    """The adapter of a file alone, which does not say its scale."""
    tree, adapter, notes = _read(file, None)
    return (
        tree,
        adapter,
        (*notes, "the scale stands in an adapter_config.json, and none lies beside it: it is left out"),
    )


def _read(file: File, config: dict[str, Any] | None) -> Network:
    form.refuse_other_methods(file.arrays)
    parts: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in file.arrays:
        ending = name[-len(".lora_a") :]
        if ending in PARTS and name != ending:
            parts.setdefault(name.removesuffix(ending), {})[PARTS[ending]] = name
        elif "/" in name:
            raise PdiffError(f"{shown(name)} beside an adapter; allowed: names with dots alone")
        else:
            whole[name] = name
    if not parts:
        raise PdiffError("holds no MODULE.lora_a")
    for module in parts:
        if f"{module}.m" in file.arrays:
            raise PdiffError(f"{shown(f'{module}.m')} is of DoRA, which is not handled; train with fine_tune_type lora")
    parameters = (config or {}).get("lora_parameters", {})

    def scale_of(module: str, rank: int, _: float | None) -> float:
        if parameters and rank != parameters["rank"]:
            reason = f"allowed: {parameters['rank']}, the rank of its config"
            raise PdiffError(f"lora_a of {shown(module)} has rank {rank}; {reason}")
        return float(parameters.get("scale", 1.0))

    embeddings = frozenset(m for m in parts if m.rpartition(".")[2] in EMBEDDINGS)
    tree, modules, came = form.build(file.arrays, parts, whole, scale_of, transposed=True, embeddings=embeddings)
    adapter = Adapter("mlx", modules, came, config, dict(file.metadata), scaled=config is not None)
    return tree, adapter, tuple(file.notes)


def of(adapter: Adapter) -> Adapter:
    """How an adapter that came in another spelling is written.

    Raises:
      PdiffError: it is not of a language model, or not of one rank and scale.
    """
    if adapter.spelling != "peft":
        raise PdiffError("mlx-lm's adapters are of language models, and this one is of a diffusion pipeline")
    ranks, scales = ({getattr(m, field) for m in adapter.modules.values()} for field in ("rank", "scale"))
    if len(ranks) > 1 or len(scales) > 1:
        raise PdiffError(
            f"the modules have ranks {sorted(ranks)} and scales {sorted(scales)}, and mlx-lm has one of each; import "
            f"with --config.zoo.rank={max(ranks)}"
        )
    modules = {}
    for name, module in adapter.modules.items():
        if len(module.a.shape) > 2:
            raise PdiffError(f"{shown(name)} is a convolution, for which mlx-lm has no adapter")
        a, b = (Array(f"{name}.lora_{k}", getattr(module, k).shape[::-1], getattr(module, k).dtype) for k in "ab")
        modules[name] = Module(a, b, None, module.rank, module.scale, module.embedding)
    keys = sorted({re.sub(r"^.*?\blayers\.\d+\.", "", name) for name in modules})
    config = {
        "fine_tune_type": "lora",
        "lora_parameters": {"dropout": 0.0, "keys": keys, "rank": ranks.pop(), "scale": scales.pop()},
        "model": form.base_of(adapter),
        "num_layers": ALL_LAYERS,
    }
    return Adapter("mlx", modules, {}, config, form.carried(adapter))


def at_rank(config: dict[str, Any], rank: int) -> dict[str, Any]:
    """`config` with this rank and scale 1."""
    return config | {"lora_parameters": config["lora_parameters"] | {"rank": rank, "scale": 1.0}}
