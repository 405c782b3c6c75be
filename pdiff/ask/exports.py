"""Generated networks as files: for Flax, NumPy, Orbax, as what an import came as, or as adapters in any spelling.

| format | what is written | arrays |
| --- | --- | --- |
| safetensors, npz | one file | float32, named by Flax path, with a leading axis of samples |
| orbax | a folder with a checkpoint for each network | float32 trees |
| files | a folder with a file or a folder for each network | in the names, layout and dtypes of the import |
| peft, mlx | a folder with a LoRA folder for each network | adapters', in the dtypes of the import |
| diffusers, kohya | a folder with a safetensors file for each network | adapters', in the dtypes of the import |

What was asked for is kept with them: as metadata of the safetensors, in `<name>.json` beside an .npz, in `pdiff.json`
in a folder. Each is written beside its place and renamed, so it is there as a whole or not at all. A file comes with
`<name>.sha256`, which `sha256sum -c` reads; a folder with `SHA256SUMS`. An import holds what it reads against them.
"""

import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  makes np.dtype("bfloat16") known
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Float, PyTree, Shaped

from pdiff.ask import adapters
from pdiff.errors import PdiffError
from pdiff.imports import lora, mapping
from pdiff.imports.network import CONFIG
from pdiff.scenario import Facts
from pdiff.system import files
from pdiff.targets.base import Peft

FORMATS = ("safetensors", "npz", "orbax", "files", *lora.SPELLINGS)
ASKED = "pdiff.json"

Flat = dict[str, Shaped[np.ndarray, "..."]]


def format_of(out: Path, chosen: str | None, facts: Facts | None, as_adapter: Peft | None = None) -> str:
    """The format that `--format` names, or that the ending of `out` and the run's import or its target suggest.

    Raises:
      PdiffError: it does not fit the ending, or the run has not imported what it needs.
    """
    ending = Path(out).suffix.lower()[1:]
    usual = "orbax" if facts is None else "files" if facts.adapter is None else facts.adapter["spelling"]
    usual = "peft" if as_adapter else usual
    if chosen is None and ending not in ("", "safetensors", "npz"):
        raise PdiffError(
            f"--out: got {str(out)!r}, which ends as no format does; allowed: .safetensors, .npz, or a folder's name "
            f"without an ending ({usual}); with --format, one of {', '.join(FORMATS)}, a folder may end as it likes"
        )
    form = chosen or (ending if ending in ("safetensors", "npz") else usual)
    if form not in FORMATS:
        raise PdiffError(f"--format: got {form!r}; allowed: {', '.join(FORMATS)}")
    if form in ("safetensors", "npz") and ending != form:
        raise PdiffError(f"--out: got {str(out)!r}; allowed for --format={form}: a file that ends in .{form}")
    if form not in ("safetensors", "npz") and ending in ("safetensors", "npz"):
        raise PdiffError(f"--out: got {str(out)!r}; allowed for --format={form}: the name of a folder")
    if form in lora.SPELLINGS and not (form == "peft" and as_adapter):
        if facts is None or facts.adapter is None:
            allowed = "peft, orbax, safetensors, npz" if as_adapter else "where LoRA adapters were imported"
            raise PdiffError(f"--format: got {form!r}; allowed{':' if as_adapter else ''} {allowed}")
        lora.translated(lora.Adapter.of(facts.adapter), form)  # refuses what it cannot write
    if form == "files" and facts is None:
        raise PdiffError("--format: got 'files'; allowed where networks were imported")
    return form


def check_out(out: Path) -> None:
    """Raises PdiffError unless `out` is new and the folder for it is there."""
    for path in (Path(out), files.digest_of(out), _facts_of(out)):
        if path.exists():
            raise PdiffError(f"--out: {path} exists; allowed: a new file or folder")
    if not Path(out).absolute().parent.is_dir():
        raise PdiffError(f"--out: {out} is in no existing folder")


def write(
    networks: PyTree[Float[np.ndarray, "samples ..."]],
    out: Path,
    form: str,
    metadata: Mapping[str, str],
    facts: Facts | None = None,
    as_adapter: Peft | None = None,
) -> None:
    """Writes stacked networks to `out` in the format `form`, one of FORMATS.

    Args:
      metadata: what was asked for, of which model: kept with them.
      facts: of the run's import, which `files` and the spellings of adapters need.
      as_adapter: what PEFT calls the target's leaves, where they are an adapter of a published model.

    Raises:
      PdiffError: `out` is taken, the networks are not those of the import, or cannot be spelled so.
    """
    check_out(out)
    arrays = flat(networks)
    if form == "safetensors":
        files.write_with_digest(out, to_safetensors(arrays, metadata))
    elif form == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        files.write_atomic(_facts_of(out), _as_json(metadata))
        files.write_with_digest(out, buffer.getvalue())
    else:
        _folders(arrays, Path(out), _writer(form, facts, as_adapter), metadata)


def flat(networks: PyTree[Float[np.ndarray, "samples ..."]]) -> Flat:
    """The same as float32 arrays by Flax path."""
    by_path = traverse_util.flatten_dict(networks, sep="/")
    return {k: np.ascontiguousarray(v, np.float32) for k, v in by_path.items()}


def to_safetensors(arrays: Flat, metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays of float32, float16 or bfloat16 as safetensors."""
    # It writes non-contiguous arrays wrong without a word.
    return safetensors.numpy.save({k: np.asarray(v, order="C") for k, v in arrays.items()}, dict(metadata or {}))


def _folders(arrays: Flat, out: Path, one: Callable[[Flat, Path], None], metadata: Mapping[str, str]) -> None:
    """A folder with what `one` makes of each network, and of what was asked for, renamed into place when whole."""
    partial = files.partial_of(out.absolute())
    count = len(next(iter(arrays.values())))
    try:
        partial.mkdir()
        for i in range(count):
            one({path: np.asarray(v[i]) for path, v in arrays.items()}, partial / f"sample_{i:0{len(str(count - 1))}d}")
        (partial / ASKED).write_bytes(_as_json(metadata))
        files.write_sums(partial)
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _facts_of(out: Path) -> Path:
    """Where what was asked for is kept beside an .npz file."""
    return Path(out).with_name(f"{Path(out).name}.json")


def _as_json(metadata: Mapping[str, str]) -> bytes:
    return json.dumps(dict(metadata), indent=1, sort_keys=True).encode()


def _writer(form: str, facts: Facts | None, as_adapter: Peft | None) -> Callable[[Flat, Path], None]:
    """Writes one network at a path."""
    if form == "orbax":
        return _orbax
    if form == "peft" and as_adapter:
        return lambda network, where: adapters.write(network, where, as_adapter)
    if facts.adapter is None:
        return lambda network, where: _plain(network, facts, where)
    came = lora.Adapter.of(facts.adapter)
    adapter = came if form == "files" else lora.translated(came, form)
    return lambda network, where: _adapter(network, adapter, where)


def _orbax(network: Flat, where: Path) -> None:
    import orbax.checkpoint as ocp  # takes its time, and only this format needs it

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(where.absolute(), traverse_util.unflatten_dict(network, sep="/"))


def _plain(network: Flat, facts: Facts, where: Path) -> None:
    """As the networks of an import that are no adapters: a file, or a folder with config.json if each had one."""
    arrays, metadata = _as_imported(network, facts) | _constants(facts), {"format": "pt"} | facts.metadata
    if facts.beside:
        where.mkdir()
        (where / CONFIG).write_bytes(json.dumps(facts.beside, indent=2, sort_keys=True).encode())
        where = where / "model"
    _file(arrays, metadata, where)


def _constants(facts: Facts) -> Flat:
    """The arrays of whole numbers that all imported networks share, as they came."""
    return {
        name: np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape)
        for name, (shape, dtype, data) in facts.constants.items()
    }


def _adapter(network: Flat, adapter: lora.Adapter, where: Path) -> None:
    arrays = lora.as_spelled(network, adapter)
    if (name := lora.file_of(adapter)) is not None:
        where.mkdir()
        (where / lora.CONFIG).write_bytes(json.dumps(lora.config_of(adapter), indent=1, sort_keys=True).encode())
        _file(arrays, adapter.metadata, where / name)
    else:
        _file(arrays, adapter.metadata, where)


def _file(arrays: Flat, metadata: Mapping[str, str], where: Path) -> None:
    where.with_name(f"{where.name.removesuffix('.safetensors')}.safetensors").write_bytes(
        to_safetensors(arrays, metadata)
    )


def _as_imported(network: Flat, facts: Facts) -> Flat:
    """The leaves that were imported, in the names, axes and dtypes that they came in."""
    missing = sorted(set(facts.leaves) - set(network))
    if missing:
        raise PdiffError(f"leaf {missing[0]!r} was imported and is not generated; allowed: networks of the run's own")
    return {
        name: mapping.inverse(network[path], transform).astype(np.dtype(dtype))
        for path, (_, dtype, name, transform) in facts.leaves.items()
    }
