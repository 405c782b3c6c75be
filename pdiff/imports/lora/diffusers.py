"""Adapters as diffusers keeps them: one safetensors file, with dotted names below the component of a pipeline."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pdiff.errors import PdiffError
from pdiff.imports.arrays import File, shown
from pdiff.imports.lora import components, form, peft
from pdiff.imports.lora.form import Adapter, Network

PARTS = {
    ".lora_A.weight": "A", ".lora_B.weight": "B", ".lora.down.weight": "A", ".lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A", ".lora_linear_layer.up.weight": "B",
    ".lora_down.weight": "A", ".lora_up.weight": "B",
    "_lora.down.weight": "A", "_lora.up.weight": "B", ".alpha": "alpha",
}  # fmt: skip
OLD = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # of text encoders, before 0.22


def is_spelled(names: Iterable[str]) -> bool:
    """Whether arrays of these names are such an adapter."""
    return any(name.endswith(tuple(e for e, part in PARTS.items() if part != "alpha")) for name in names)


def of_file(file: File) -> Network:
    """The adapter of a file."""
    parts: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in file.arrays:
        module, part = _part(name)
        if part and part in parts.get(module, {}):
            raise PdiffError(f"{shown(name)} and {shown(parts[module][part])} are one array; allowed: one of them")
        if part:
            parts.setdefault(module, {})[part] = name
        else:
            whole[name] = name
    for module in [m for m, names in parts.items() if set(names) == {"alpha"}]:
        name = parts.pop(module)["alpha"]  # of what is no adapter
        whole[name] = name
    if "/" in "".join(whole):
        raise PdiffError("has arrays whose names have a '/' beside the adapter; allowed: names with dots alone")
    configs = form.component_configs(file.metadata)
    for component, config in configs.items():
        try:
            peft.check_config(config, defaults=True)
        except PdiffError as e:
            raise PdiffError(f"{form.ADAPTER_METADATA}, {component or 'the only component'}: {e}") from e

    def scale_of(module: str, rank: int, alpha: float | None) -> float:
        return _scale(module, rank, alpha, configs)

    tree, modules, came = form.build(file.arrays, parts, whole, scale_of)
    return tree, Adapter("diffusers", modules, came, None, dict(file.metadata)), tuple(file.notes)


def _part(name: str) -> tuple[str, str]:
    """The module, by its name of today, and the part of it that an array is; '' for a whole array."""
    for ending, part in PARTS.items():
        if name.endswith(ending) and name != ending:
            module = name.removesuffix(ending).replace(".processor.", ".")
            if ending == "_lora.down.weight" or ending == "_lora.up.weight" or module.endswith("_lora"):
                front, _, last = module.removesuffix("_lora").rpartition(".")
                in_text = ".self_attn" in front
                last = OLD.get(last, last) if in_text else "to_out.0" if last == "to_out" else last
                module = f"{front}.{last}"
            return module, part
    if ".lora_" in name:
        raise PdiffError(
            f"{shown(name)} is not handled; allowed: MODULE.lora_A.weight and .lora_B.weight, without an adapter's name"
        )
    return name, ""


def _scale(module: str, rank: int, alpha: float | None, configs: Mapping[str, dict[str, Any]]) -> float:
    if not configs:
        return 1.0 if alpha is None else alpha / rank
    component, inner = components.of_diffusers(module)
    if component not in configs:
        component, inner = "", module
    if component not in configs:
        raise PdiffError(
            f"{form.ADAPTER_METADATA} says nothing of {shown(module)}; allowed: r and lora_alpha of each component"
        )
    scale = peft.scale_of(configs[component], inner, rank)
    if alpha is not None and not np.isclose(scale, alpha / rank):
        raise PdiffError(
            f"{shown(module)} counts {scale:g} times by {form.ADAPTER_METADATA} and {alpha / rank:g} times by its "
            "alpha; allowed: one of the two"
        )
    return scale


def of(adapter: Adapter) -> Adapter:
    """How an adapter that came in another spelling is written.

    Raises:
      PdiffError: its component is not known, or it has what diffusers has no names for.
    """
    components.plain(adapter)
    placed = components.in_pipeline(adapter)
    modules = {
        name: components.renamed(adapter, m, *(f"{'.'.join(placed[name])}.lora_{k}.weight" for k in "AB"))
        for name, m in adapter.modules.items()
    }
    configs = {}
    for component in sorted({component for component, _ in placed.values()}):
        inner = {placed[n][1]: m for n, m in modules.items() if placed[n][0] == component}
        configs[component] = peft.config_of(inner, adapter)
    metadata = form.with_component_configs(form.carried(adapter), configs)
    return Adapter("diffusers", modules, {}, None, metadata)
