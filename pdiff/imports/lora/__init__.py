"""LoRA adapters in any spelling: read into one internal form, brought to one rank, and written again.

An adapter adds scale B A to the weight of each adapted module. Here it is lora/MODULE/A (r, inputs * window) and
lora/MODULE/B (outputs, r), and whole/NAME for arrays that replace one of the base's, such as heads and biases. How
each array came is kept in an `Adapter`. What changes the formula, or adds to it, is refused by name.

| spelling | how it lies there | scale |
| --- | --- | --- |
| peft | a folder: adapter_config.json, adapter_model.safetensors | lora_alpha / r, or / sqrt(r) with use_rslora |
| diffusers | a file: X.lora_A.weight, X.lora.down.weight, X.processor.to_q_lora.down.weight | lora_adapter_metadata, else X.alpha / r, else 1 |
| kohya | a file: lora_unet_X.lora_down.weight | X.alpha / r, else ss_network_alpha / ss_network_dim, else 1 |
| mlx | a folder: adapter_config.json, adapters.safetensors; or such a file alone: X.lora_a | lora_parameters.scale; a file alone does not say |
"""  # noqa: E501  a table

from pathlib import Path
from typing import Any

from pdiff.errors import PdiffError
from pdiff.imports import arrays
from pdiff.imports.lora import diffusers, kohya, mlx, peft
from pdiff.imports.lora.form import (
    Adapter,
    Network,
    as_spelled,
    differing,
    is_whole,
    leaves,
    names,
    refuse_other_methods,
    shared,
)
from pdiff.imports.lora.ranks import to_rank

__all__ = [
    "CONFIG", "FILES", "SPELLINGS", "Adapter", "as_spelled", "config_of", "differing", "file_of", "folder_of",
    "is_adapter", "is_whole", "leaves", "names", "read", "recognise", "shared", "to_rank", "translated",
]  # fmt: skip

CONFIG = "adapter_config.json"
FILES = (peft.MODEL, mlx.MODEL)  # beside CONFIG
_SPELLINGS = {"peft": peft, "diffusers": diffusers, "kohya": kohya, "mlx": mlx}
SPELLINGS = tuple(_SPELLINGS)


def is_adapter(path: Path) -> bool:
    """Whether a folder is one adapter."""
    return path.is_dir() and (path / CONFIG).exists()


def folder_of(path: Path) -> Path | None:
    """The folder of the adapter that `path` names, itself or by the file with its arrays; None if it is none."""
    if is_adapter(path):
        return path
    return path.parent if path.name in FILES and is_adapter(path.parent) else None


def read(folder: Path, budget: arrays.Budget) -> Network:
    """The adapter in `folder`, of PEFT or of MLX: arrays by internal path, how they came, and lines to tell.

    Raises:
      PdiffError: an option is not handled, or config and arrays do not fit. It does not name the folder.
    """
    try:
        config = arrays.json_of(folder / CONFIG)
        if not isinstance(config, dict):
            raise PdiffError("is no JSON object")
        spelling = mlx if mlx.is_config(config) else peft
        spelling.check_config(config)
    except PdiffError as e:
        raise PdiffError(f"{CONFIG}: {e}") from e
    path = folder / spelling.MODEL
    if not path.exists():
        others = sorted(p.name for p in folder.glob("adapter*") if p.is_file() and p.name != CONFIG)
        pickled = f"{others[0]} {arrays.refusal(folder / others[0])}" if others else f"allowed: that beside {CONFIG}"
        raise PdiffError(f"has no {spelling.MODEL}; {pickled}")
    try:
        return spelling.of_folder(config, arrays.read(path, budget))
    except PdiffError as e:
        raise PdiffError(f"{spelling.MODEL}: {e}") from e


def recognise(path: Path, file: arrays.File) -> Network | None:
    """As `read`, of a file that is an adapter by the names of its arrays; None if it is none.

    Raises:
      PdiffError: it is an adapter that is not handled. It does not name the file.
    """
    refuse_other_methods(file.arrays)
    for spelling in (kohya, mlx, diffusers):
        if spelling.is_spelled(file.arrays):
            if any(name.startswith(peft.PREFIX) for name in file.arrays):
                raise PdiffError(
                    f"is an adapter of PEFT, whose scale stands in {CONFIG}, and none goes with {path.name}; allowed: "
                    f"a folder with {CONFIG} and {peft.MODEL}"
                )
            return spelling.of_file(file)
    return None


def file_of(adapter: Adapter) -> str | None:
    """The name of the file with its arrays in the adapter's folder; None where it is a file alone."""
    return None if adapter.config is None else _SPELLINGS[adapter.spelling].MODEL


def config_of(adapter: Adapter) -> dict[str, Any]:
    """adapter_config.json of networks that are written as `adapter` is."""
    return (adapter.config or {}) | ({"inference_mode": True} if adapter.spelling == "peft" else {})


def translated(adapter: Adapter, spelling: str) -> Adapter:
    """How `adapter` is written in a spelling, one of SPELLINGS; itself, if it came in it.

    Raises:
      PdiffError: it cannot be written so, and how it can.
    """
    if spelling == adapter.spelling:
        return adapter
    try:
        _check_may_change(adapter)
        return _SPELLINGS[spelling].of(adapter)
    except PdiffError as e:
        raise PdiffError(f"--format: got {spelling!r}: {e}; --format={adapter.spelling} writes it as it came") from e


def _check_may_change(adapter: Adapter) -> None:
    if adapter.whole:
        name = next(iter(adapter.whole))
        raise PdiffError(
            f"{arrays.shown(name)} is a whole array beside the adapter ({len(adapter.whole)} such), for which the "
            "other spelling has no place"
        )
    if not adapter.scaled:
        raise PdiffError(
            f"the scale of the adapter is not known, as the file came without its {CONFIG}; import a folder with both"
        )
