"""Adapters as kohya's sd-scripts keep them: one safetensors file, underscored names, an alpha for each module."""

from collections.abc import Iterable, Mapping
from typing import Any

from pdiff.errors import PdiffError
from pdiff.imports import arrays
from pdiff.imports.arrays import File, shown
from pdiff.imports.lora import components, form
from pdiff.imports.lora.form import Adapter, Network

PARTS = {"lora_down.weight": "A", "lora_up.weight": "B", "alpha": "alpha"}
SDXL_WIDTH = 2048  # of what SDXL's cross-attention reads


def is_spelled(names: Iterable[str]) -> bool:
    """Whether arrays of these names are such an adapter: no dot before the last part."""
    return any(n.startswith("lora_") and n.partition(".")[2] in ("lora_down.weight", "lora_up.weight") for n in names)


def of_file(file: File) -> Network:
    """The adapter of a file."""
    parts: dict[str, dict[str, str]] = {}
    for name in file.arrays:
        module, _, ending = name.partition(".")
        if ending not in PARTS or not module.startswith("lora_"):
            raise PdiffError(
                f"{shown(name)} is not handled; allowed beside kohya's names: MODULE.lora_down.weight, "
                "MODULE.lora_up.weight, MODULE.alpha"
            )
        parts.setdefault(module, {})[PARTS[ending]] = name
    without = [module for module, names in parts.items() if "alpha" not in names]
    windows = {m for m in parts if "A" in parts[m] and max(file.arrays[parts[m]["A"]].shape[2:], default=1) > 1}
    alphas = _alphas(file.metadata) if without else {}

    def scale_of(module: str, rank: int, alpha: float | None) -> float:
        return alpha / rank if alpha is not None else _by_metadata(module, rank, alphas, module in windows)

    tree, modules, _ = form.build(file.arrays, parts, {}, scale_of)
    notes = tuple(file.notes)
    if without:
        source = "ss_network_alpha and ss_network_dim of the metadata count" if alphas else "each counts once"
        notes += (f"{len(without)} of {len(parts)} modules have no alpha of their own: {source}",)
    return tree, Adapter("kohya", modules, {}, None, dict(file.metadata)), notes


def _alphas(metadata: Mapping[str, str]) -> dict[bool, tuple[int, float]]:
    """By whether it is of convolutions with a window: rank and alpha in the metadata, where they have them."""
    found = {}
    if {"ss_network_dim", "ss_network_alpha"} <= set(metadata):
        found[False] = _numbers(metadata, "ss_network_dim", "ss_network_alpha")
    if {"conv_dim", "conv_alpha"} <= set(fields := arguments(metadata)):
        found[True] = _numbers(fields, "conv_dim", "conv_alpha")
    return found


def arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata keep of the network's own arguments; {} where that is nothing that can be read."""
    try:
        fields = arrays.parse_json(metadata.get("ss_network_args", "{}"))
    except PdiffError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _numbers(fields: Mapping, dim: str, alpha: str) -> tuple[int, float]:
    try:
        rank, strength = int(fields[dim]), float(fields[alpha])
        if rank < 1 or not 0 < strength < 1e6:
            raise ValueError
    except (ValueError, TypeError, OverflowError) as e:
        given = f"{shown(fields[dim])} and {shown(fields[alpha])}"
        raise PdiffError(f"{dim} and {alpha} are {given}; allowed: numbers above 0") from e
    return rank, strength


def _by_metadata(module: str, rank: int, alphas: dict[bool, tuple[int, float]], window: bool) -> float:
    if not alphas:
        return 1.0
    dim, alpha = alphas.get(window) or alphas.get(False) or (0, 0.0)
    if dim != rank:
        raise PdiffError(
            f"{shown(module)} has no alpha, and rank {rank}, of which the metadata say nothing "
            f"(ss_network_dim {dim}); allowed: an alpha for each module"
        )
    return alpha / dim


def of(adapter: Adapter) -> Adapter:
    """How an adapter that came in another spelling is written.

    Raises:
      PdiffError: it is of a component or of modules that kohya's names are not known for.
    """
    components.plain(adapter)
    placed = components.in_pipeline(adapter)
    found = {component for component, _ in placed.values()}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
    if odd := sorted(found - set(prefixes)):
        raise PdiffError(
            f"the adapter is of {odd[0]}, which has other modules in kohya's files; allowed: diffusers, peft"
        )
    wide = any(i.endswith("attn2.to_k") and adapter.modules[n].a.shape[1] == SDXL_WIDTH for n, (_, i) in placed.items())
    if "text_encoder_2" in found or wide:
        prefixes["text_encoder"] = "lora_te1"  # as models with two have it
    modules = {}
    for name, module in adapter.modules.items():
        component, inner = placed[name]
        front = f"{prefixes[component]}_{components.underscored(inner)}"
        modules[name] = components.renamed(adapter, module, *(f"{front}.{ending}" for ending in PARTS))
    return Adapter("kohya", modules, {}, None, form.carried(adapter))
