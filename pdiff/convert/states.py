"""One file of PyTorch, read without running code: the only place of pdiff that opens a pickle.

torch.load(weights_only=True) builds tensors, numbers, texts and containers of them, and refuses whatever else a pickle
asks for. Sizes are checked before, and this process may not take more memory than a file may hold a few times over.
"""

import dataclasses
import importlib.metadata
import re
import resource
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from packaging.version import Version

from pdiff.errors import PdiffError, some
from pdiff.imports.reading import MOST_LEAVES, ZIP, shown, size_of

OLDEST = "2.10"  # before it, damaged files could corrupt memory under weights_only (CVE-2026-24747)
TRAINING = re.compile(r"(optim|lr_sched|sched|scaler|rng|random_state|callbacks|loops|hyper_parameters|hparams)", re.I)
ALONE = "array"  # what a tensor without a name is called, as the array of a .npy
SPARE = 2 << 30  # bytes that torch takes for itself
BITS = {"bfloat16": ("int16", ml_dtypes.bfloat16)} | {
    name: ("uint8", getattr(ml_dtypes, name))
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
}  # torch's dtypes that its .numpy() does not know: as what to take their bits, and what they are


@dataclasses.dataclass(frozen=True)
class State:
    """What one file holds.

    Attributes:
      arrays: by name; empty where `shapes` are there.
      notes: lines about what was left out.
      shapes: by name, where the file holds only shapes, as weights2weights' weight_dimensions.pt does.
    """

    arrays: dict[str, Shaped[np.ndarray, "..."]]
    notes: tuple[str, ...] = ()
    shapes: dict[str, list[int]] | None = None

    @property
    def rows(self) -> bool:
        """Whether it is one 2-d array without a name."""
        return list(self.arrays) == [ALONE] and self.arrays[ALONE].ndim == 2


def confine(megabytes: float) -> None:
    """Imports torch, and bounds the memory of this process.

    Raises:
      PdiffError: torch is missing or too old.
    """
    try:
        version = importlib.metadata.version("torch")
        import torch  # noqa: F401  here, before memory is bounded
    except (ImportError, importlib.metadata.PackageNotFoundError) as e:
        raise PdiffError("torch: is not installed; pip install 'pdiff[convert]' brings it (a CPU build will do)") from e
    if Version(version) < Version(OLDEST):
        raise PdiffError(
            f"torch: is version {version}; allowed: at least {OLDEST}, as older ones read pickles unsafely"
        )
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the system does not bound memory this way
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + int(4 * megabytes * 1e6) + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def is_torch_zip(path: Path) -> bool:
    """Whether a file is an archive that torch.save wrote, whatever its name."""
    with open(path, "rb") as f:
        if f.read(len(ZIP)) != ZIP:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r"[^/]*/data\.pkl", name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def load(path: Path, megabytes: float) -> State:
    """The tensors of a file.

    Raises:
      PdiffError: it asks for more than tensors, is damaged, too large, or holds no state dict. It does not name the
        file.
    """
    import torch

    most = int(megabytes * 1e6)
    _check_size(path, most)
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # of pickle, zip, torch's C++, whatever damaged bytes make them stumble over
        raise PdiffError(_reason(e)) from e
    if shapes := _shapes(loaded):
        return State({}, (), shapes)
    tensors, notes = {ALONE: loaded} if isinstance(loaded, torch.Tensor) else None, []
    if tensors is None:
        tensors = _tensors(loaded, torch.Tensor, notes)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size > most or len(tensors) > MOST_LEAVES:
        raise PdiffError(f"holds {len(tensors)} tensors, {size:,} bytes; allowed: {MOST_LEAVES}, {most:,} (--mb)")
    return State({name: _array(name, tensor) for name, tensor in tensors.items()}, tuple(notes))


def _check_size(path: Path, most: int) -> None:
    size = size_of(path)
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(m.file_size for m in archive.infolist()))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
            raise PdiffError(f"is damaged: {e}") from e
    if size > most:
        raise PdiffError(f"says that it holds {size:,} bytes; allowed: {most:,} (--mb)")


def _reason(e: Exception) -> str:
    """Why torch refused a file, in a line."""
    text = str(e)
    wanted = re.search(r"GLOBAL ([\w.<>]+)", text) or re.search(r"[Uu]nsupported class ([\w.]+)", text)
    if wanted:
        return (
            f"asks for {shown(wanted[1])}, which is code and is not run; "
            "save the tensors alone where it was made: torch.save(model.state_dict(), file)"
        )
    if "nsupported operand" in text:
        return "is a pickle that torch.save did not write; allowed: torch.save(model.state_dict(), file)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if "Unpickler error" in line or "WeightsUnpickler" in line), "")
    return f"is damaged or no file of PyTorch: {(told or (lines or [type(e).__name__])[0])[:300]}"


def _shapes(loaded: Any) -> dict[str, list[int]] | None:
    """The shapes by name, where a file holds nothing else; weights2weights has pairs (flat shape, shape)."""

    def shape(value: Any) -> list[int] | None:
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, (tuple, list)) for v in value):
            value = value[1]
        whole = isinstance(value, (tuple, list)) and value and all(type(n) is int and n > 0 for n in value)
        return list(value) if whole else None

    if not isinstance(loaded, dict) or not loaded or not all(isinstance(k, str) for k in loaded):
        return None
    shapes = {name: shape(value) for name, value in loaded.items()}
    return None if None in shapes.values() else shapes


def _tensors(loaded: Any, kind: type, notes: list[str]) -> dict[str, Any]:
    """The one state dict in what was loaded; fills `notes` with what lies beside it."""
    where = ""
    while True:
        if not isinstance(loaded, dict):
            raise PdiffError(
                f"holds a {type(loaded).__name__}; allowed: a state dict (torch.save(model.state_dict(), …))"
            )
        tensors = {k: v for k, v in loaded.items() if isinstance(v, kind)}
        nested = {k: v for k, v in loaded.items() if k not in tensors and _bears(v, kind)}
        trained = [k for k in nested if isinstance(k, str) and TRAINING.match(k)]
        nested = {k: v for k, v in nested.items() if k not in trained}
        rest = [k for k in loaded if k not in tensors and k not in nested]
        if rest:
            notes.append(f"{some(map(shown, rest))} of {where or 'the file'} left out: no tensors of a network")
        if tensors and not nested:
            break
        if tensors or len(nested) != 1:
            places = some(map(shown, [*nested, *tensors])) or "nothing"
            raise PdiffError(f"holds tensors in {places}; allowed: one state dict, alone or as one entry of a dict")
        where, loaded = next(iter(nested.items()))
        where = shown(where)
        notes.append(f"the entry {where} is the network")
    if odd := [name for name in tensors if not isinstance(name, str)]:
        raise PdiffError(f"has a tensor named {shown(odd[0])}; allowed: texts, as in a state dict")
    return tensors


def _bears(value: Any, kind: type, depth: int = 0) -> bool:
    """Whether there are tensors somewhere in containers."""
    if isinstance(value, kind):
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return depth < 20 and any(_bears(v, kind, depth + 1) for v in inner)


def _array(name: str, tensor: Any) -> Shaped[np.ndarray, "..."]:
    """A tensor's values as an array of their own; tensors that share memory share it no longer."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise PdiffError(f"{shown(name)} is sparse, quantised or without values; allowed: plain tensors")
    tensor = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in BITS:
        bits, meant = BITS[dtype]
        return tensor.view(getattr(torch, bits)).numpy().view(meant)
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as e:
        raise PdiffError(f"{shown(name)} is {dtype}; allowed: dtypes that NumPy has") from e
