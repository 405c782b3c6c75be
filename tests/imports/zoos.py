"""Small sources to import, made up: adapters that depend smoothly on one factor, and plain networks in each format."""

import json
from pathlib import Path

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import traverse_util

MODULES = ("layers.0.q_proj", "layers.1.v_proj")
OUT, IN, RANK = 12, 16, 2


def update(strength: float, module: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors B (OUT, RANK) and A (RANK, IN) of a module's update, smooth in `strength`."""
    random = np.random.default_rng(module)
    b, a = random.standard_normal((3, OUT, RANK)), random.standard_normal((3, RANK, IN))
    return b[0] + np.sin(2 * strength) * b[1] + strength**2 * b[2], a[0] + np.cos(2 * strength) * a[1] + strength * a[2]


def lora_config(**changes) -> dict:
    """adapter_config.json of the adapters of `loras`."""
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "bias": "none", "base_model_name_or_path": "made-up",
             "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "task_type": None}  # fmt: skip
    return plain | changes


def lora(folder: Path, strength: float, seed: int = 0, dtype=np.float32, **config) -> dict[str, np.ndarray]:
    """One adapter, its factors in a gauge of its own, as training leaves them; returns its arrays."""
    random, arrays = np.random.default_rng([seed, int(1000 * strength)]), {}
    for i, module in enumerate(MODULES):
        b, a = update(strength, i)
        mixed = random.standard_normal((RANK, RANK)) + 2 * np.eye(RANK)
        arrays[f"base_model.model.{module}.lora_A.weight"] = np.linalg.solve(mixed, a).astype(dtype)
        arrays[f"base_model.model.{module}.lora_B.weight"] = (b @ mixed).astype(dtype)
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(lora_config(**config)))
    return arrays


def loras(root: Path, count: int = 10, **how) -> dict[str, dict[str, np.ndarray]]:
    """A folder for each strength from 0 to 1, named after it; returns the arrays of each."""
    strengths = np.linspace(0, 1, count).round(2)
    return {f"strength_{s:.2f}": lora(root / f"strength_{s:.2f}", float(s), **how) for s in strengths}


def network(seed: int) -> dict[str, np.ndarray]:
    """A plain network by path."""
    random = np.random.default_rng(seed)
    return {
        "params/Dense_0/bias": random.standard_normal(2).astype(np.float32),
        "params/Dense_0/kernel": random.standard_normal((3, 2)).astype(np.float32),
    }


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a network as the ending of `path` says; a folder is an Orbax checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".msgpack":
        path.write_bytes(flax.serialization.msgpack_serialize(traverse_util.unflatten_dict(arrays, sep="/")))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), traverse_util.unflatten_dict(arrays, sep="/"))


def load(path: Path) -> dict[str, np.ndarray]:
    """What each format's own library reads of it: an answer that does not come from `pdiff.imports`."""
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    if path.suffix == ".msgpack":
        return traverse_util.flatten_dict(flax.serialization.msgpack_restore(path.read_bytes()), sep="/")
    with ocp.PyTreeCheckpointer() as checkpointer:
        return traverse_util.flatten_dict(checkpointer.restore(path.absolute()), sep="/")


def params(found) -> dict[str, np.ndarray]:
    """All that an import has read, by path, with a leading axis of networks."""
    return {path: found.columns.read(path) for path in found.columns.shapes}


def networks(root: Path, ending: str, count: int = 4) -> dict[str, dict[str, np.ndarray]]:
    """A task for each of `count` plain networks, in files or folders of the format that `ending` says."""
    made = {f"task_{i}": network(i) for i in range(count)}
    for name, arrays in made.items():
        save(root / name / f"network{ending}", arrays)
    return made
