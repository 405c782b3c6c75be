"""Adapters of several ranks brought to one, each update as near as that rank allows (Eckart & Young 1936)."""

import dataclasses
import json
import math

import numpy as np

from pdiff.imports.lora import form, kohya, mlx, peft
from pdiff.imports.lora.form import Adapter, Array, Arrays, Module
from pdiff.merging import updates


def to_rank(arrays: Arrays, adapter: Adapter, rank: int) -> tuple[Arrays, Adapter, float]:
    """The adapter with factors of one rank for every module, float32, and scale 1, counted into them.

    Args:
      rank: at least 1. Where it is no smaller than a module's own, its update stays what it was, to float32.

    Returns:
      arrays by internal path, how they are written (in the dtypes that they came in), and the relative error of the
      update in the Frobenius norm, over all modules.
    """
    brought = dict(arrays)
    modules = {}
    lost = total = 0.0
    for name, module in adapter.modules.items():
        path = f"{form.TREE}/{name}"
        update = updates.Factors(module.scale * arrays[f"{path}/B"].astype(np.float64), arrays[f"{path}/A"])
        near = updates.truncated(update, rank)
        brought |= {f"{path}/A": near.a.astype(np.float32), f"{path}/B": near.b.astype(np.float32)}
        modules[name] = _resized(module, rank, adapter.spelling == "mlx")
        whole = updates.square(update)
        lost, total = lost + max(0.0, whole - updates.square(near)), total + whole
    return brought, _at_rank(adapter, modules, rank), math.sqrt(lost / total) if total else 0.0


def _resized(module: Module, rank: int, transposed: bool) -> Module:
    """The same names and dtypes, with shapes of this rank, and scale 1."""
    a, b = module.a.shape, module.b.shape
    a = (*a[:-1], rank) if transposed else (rank, *a[1:])
    b = (rank, *b[1:]) if transposed else (b[0], rank, *b[2:])
    return dataclasses.replace(
        module,
        a=Array(module.a.name, a, module.a.dtype),
        b=Array(module.b.name, b, module.b.dtype),
        rank=rank,
        scale=1.0,
    )


def _at_rank(adapter: Adapter, modules: dict[str, Module], rank: int) -> Adapter:
    """The adapter with these modules, and with what its config and metadata say of ranks and scales made true."""
    metadata, config = dict(adapter.metadata), adapter.config
    if configs := form.component_configs(metadata):
        metadata = form.with_component_configs(
            metadata, {c: peft.at_rank(fields, rank) for c, fields in configs.items()}
        )
    metadata |= {n: str(rank) for n in ("ss_network_dim", "ss_network_alpha") if n in metadata}
    if fields := kohya.arguments(metadata):
        fields |= {n: str(rank) for n in ("conv_dim", "conv_alpha") if n in fields}
        metadata["ss_network_args"] = json.dumps(fields)
    if config is not None:
        config = (mlx if adapter.spelling == "mlx" else peft).at_rank(config, rank)
    return dataclasses.replace(adapter, modules=modules, config=config, metadata=metadata)
