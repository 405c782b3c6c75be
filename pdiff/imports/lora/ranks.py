"""Adapters of several ranks brought to one, each update as near as that rank allows (Eckart & Young 1936)."""

import dataclasses
import json
import math

import numpy as np
from jaxtyping import Float

from pdiff.imports.lora import form, kohya, mlx, peft
from pdiff.imports.lora.form import Adapter, Array, Arrays, Module


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
        b, a, kept, left_out = _truncated(arrays[f"{path}/B"], arrays[f"{path}/A"], module.scale, rank)
        brought |= {f"{path}/A": a, f"{path}/B": b}
        modules[name] = _resized(module, rank, adapter.spelling == "mlx")
        lost, total = lost + left_out, total + kept + left_out
    return brought, _at_rank(adapter, modules, rank), math.sqrt(lost / total) if total else 0.0


def _truncated(
    b: Float[np.ndarray, "out r"], a: Float[np.ndarray, "r in"], scale: float, rank: int
) -> tuple[Float[np.ndarray, "out rank"], Float[np.ndarray, "rank in"], float, float]:
    """Factors of scale b a at `rank`, and the squared norms of what they hold and of what they do not.

    By the QR decompositions of the factors: the update itself, inputs times outputs large, is never computed.
    """
    left, inner_left = np.linalg.qr(b.astype(np.float64))
    right, inner_right = np.linalg.qr(a.astype(np.float64).T)
    u, s, vt = np.linalg.svd(scale * inner_left @ inner_right.T, full_matrices=False)
    kept = min(rank, len(s))
    root = np.sqrt(s[:kept])
    missing = ((0, 0), (0, rank - kept))  # zeros, which change nothing
    new_b = np.pad(left @ u[:, :kept] * root, missing).astype(np.float32)
    new_a = np.pad(right @ vt[:kept].T * root, missing).T.astype(np.float32)
    return new_b, np.ascontiguousarray(new_a), float((s[:kept] ** 2).sum()), float((s[kept:] ** 2).sum())


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
