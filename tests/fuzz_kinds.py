"""What `tests.fuzz_import` damages: a kind of source is an entry of `KINDS`.

Each writes a sound source of four tasks, and reads one of its networks by the format's own library: the arrays that an
import keeps, by the names that they came with.
"""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import flax.serialization
import h5py
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import traverse_util

from tests.imports import loras, zoos

Arrays = dict[str, np.ndarray]
TASKS = tuple(f"task_{i}" for i in range(4))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
      write: puts a sound one into an empty folder.
      read: the network of a task.
      folder: what is damaged, below the source; "" is all of it.
    """

    write: Callable[[Path], None]
    read: Callable[[Path, str], Arrays]
    folder: str = "task_1"


def each(save: Callable[[Path, int], None], load: Callable[[Path], Arrays], name: str, folder: str = "task_1") -> Kind:
    """A kind with one network in the folder of each task, saved by its number."""

    def write(root: Path) -> None:
        for i, task in enumerate(TASKS):
            (root / task).mkdir(parents=True)
            save(root / task / name, i)

    return Kind(write, lambda root, task: load(root / task / name), folder)


def plain(ending: str, more: Callable[[int], Arrays] = lambda i: {}, dtype=np.float32) -> Kind:
    """`zoos.network` in the format that the ending says; `more` are arrays that are not kept."""

    def save(path: Path, i: int) -> None:
        zoos.save(path, {n: a.astype(dtype) for n, a in zoos.network(i).items()} | more(i))

    return each(save, lambda path: weights(zoos.load(path)), f"network{ending}")


def weights(arrays: Arrays) -> Arrays:
    """The floats among arrays: whole numbers are kept beside the networks, and not as weights."""
    return {n: a for n, a in arrays.items() if np.asarray(a).dtype.kind not in "iub"}


def _save_sharded(path: Path, i: int) -> None:
    path.mkdir()
    places = {}
    for k, (name, array) in enumerate(zoos.network(i).items()):
        places[name] = f"model-{k + 1:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({name: array}, path / places[name], {"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _load_sharded(path: Path) -> Arrays:
    places = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    return {n: a for file in set(places.values()) for n, a in safetensors.numpy.load_file(path / file).items()}


def _of(tree: dict) -> Arrays:
    """By path; keys may be numbers, or have slashes."""
    return {"/".join(map(str, keys)): np.asarray(a) for keys, a in traverse_util.flatten_dict(tree).items()}


def _save_haiku(path: Path, i: int) -> None:
    network = list(zoos.network(i).values())
    tree = {"mlp/~/linear_0": {0: network[0], 7: network[1]}, "step": 3, "lr": np.float32(0.5)}
    path.write_bytes(flax.serialization.msgpack_serialize(tree))


def _load_haiku(path: Path) -> Arrays:
    return weights(_of(flax.serialization.msgpack_restore(path.read_bytes())))


def _save_nnx(path: Path, i: int) -> None:
    bias, kernel = zoos.network(i).values()
    layers = [{"kernel": {"value": kernel}}, {"bias": {"value": bias}}]
    key = {"value": np.array([0, i], np.uint32)}
    tree = {"layers": layers, "dropout": {"rngs": {"key": key, "count": {"value": np.uint32(2)}}}, "step": 5}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def _load_nnx(path: Path) -> Arrays:
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(path.absolute())
    if isinstance(tree.get("layers"), list):
        tree["layers"] = dict(enumerate(tree["layers"]))
    return weights(_of(tree))


def _save_h5(path: Path, i: int) -> None:
    with h5py.File(path, "w") as file:
        for k, array in enumerate(zoos.network(i).values()):
            file[f"layers/dense/vars/{k}"] = array
        file.create_dataset("layers/conv/vars/0", data=np.full((4, 4), i + 0.5, np.float32), compression="gzip")
        file["optimizer/vars/0"] = np.int64(3)


def _load_h5(path: Path | zipfile.ZipExtFile) -> Arrays:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda n, d: found.update({n: d[()]}) if isinstance(d, h5py.Dataset) else None)
    return {n: a for n, a in weights(found).items() if not n.startswith("optimizer/")}


def _save_keras(path: Path, i: int) -> None:
    _save_h5(path.with_suffix(".h5"), i)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"class_name": "Anything"}')
        archive.write(path.with_suffix(".h5"), "model.weights.h5")
    path.with_suffix(".h5").unlink()


def _load_keras(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
        return _load_h5(file)


def _rows(ending: str) -> Kind:
    """One array with a row for each network."""
    shapes = {n: a.shape for n, a in zoos.network(0).items()}

    def write(root: Path) -> None:
        root.mkdir(parents=True)
        (root / "shapes.json").write_text(json.dumps(shapes))
        rows = np.stack([np.concatenate([a.ravel() for a in zoos.network(i).values()]) for i in range(4)])
        if ending == ".npy":
            np.save(root / "weights.npy", rows)
        else:
            safetensors.numpy.save_file({"w": rows}, root / "weights.safetensors")

    def read(root: Path, task: str) -> Arrays:
        path, row = root / f"weights{ending}", int(task.rpartition("_")[2].rpartition("#")[2])
        rows = np.load(path) if ending == ".npy" else next(iter(safetensors.numpy.load_file(path).values()))
        shapes = json.loads((root / "shapes.json").read_text())
        ends = np.cumsum([np.prod(s, dtype=int) for s in shapes.values()])[:-1]
        return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), np.split(rows[row], ends), strict=True)}

    return Kind(write, read, "")


def _lora(write: Callable[[Path, int], object], file: str, *kept: str, transposed: bool = False) -> Kind:
    """Adapters in a file of some spelling; `kept` are the endings of the names of factors, A (rank, inputs) or not."""

    def load(path: Path) -> Arrays:
        found = {n: a for n, a in safetensors.numpy.load_file(path).items() if n.endswith(kept)}
        return {n: a.T for n, a in found.items()} if transposed else found

    return each(write, load, file)


def _peft(root: Path) -> None:
    zoos.loras(root, 4)


KINDS: dict[str, Kind] = {
    ".safetensors": plain(".safetensors"),
    ".npz": plain(".npz"),
    ".msgpack": plain(".msgpack"),
    "orbax": plain(""),
    "lora": Kind(_peft, lambda root, task: zoos.load(root / task / "adapter_model.safetensors"), "strength_0.33"),
    "with whole numbers": plain(".safetensors", lambda i: {"bn.num_batches_tracked": np.array(7, np.int64)}),
    "float64 .npz": plain(".npz", dtype=np.float64),
    ".npy": each(
        lambda path, i: np.save(path, zoos.network(i)["params/Dense_0/kernel"]),
        lambda path: {"array": np.load(path)},
        "network.npy",
    ),
    "rows of .npy": _rows(".npy"),
    "rows of .safetensors": _rows(".safetensors"),
    "sharded": each(_save_sharded, _load_sharded, "network"),
    "haiku .msgpack": each(_save_haiku, _load_haiku, "network.msgpack"),
    "nnx": each(_save_nnx, _load_nnx, "network"),
    ".weights.h5": each(_save_h5, _load_h5, "network.weights.h5"),
    ".keras": each(_save_keras, _load_keras, "network.keras"),
    "kohya": _lora(lambda p, i: loras.kohya(p, seed=i), "a.safetensors", "lora_down.weight", "lora_up.weight"),
    "diffusers": _lora(lambda p, i: loras.diffusers(p, seed=i), "a.safetensors", "lora_A.weight", "lora_B.weight"),
    "mlx": _lora(lambda p, i: loras.mlx(p.parent, seed=i), "adapters.safetensors", "lora_a", "lora_b", transposed=True),
}
