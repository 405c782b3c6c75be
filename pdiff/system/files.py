"""Files that are whole or absent, documents and directories that can be checked, and what survives a power cut.

Everything that pdiff keeps is one of three: a JSON document that carries its own sha256 (`write_json`), a directory
with a manifest, written last, of the sha256 of each of its files (`write_manifest`), or a file that a manifest further
up lists. Orbax and safetensors restore flipped bytes without a word, so this is what stands between a bad disk and
silently wrong weights.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pdiff.errors import AGAIN, PdiffError

MANIFEST = "manifest.json"
FORMAT = 2  # of all that pdiff keeps; raised with every change that makes older files unreadable
DIGEST, SUMS = "sha256", "SHA256SUMS"


class OtherFormat(PdiffError):
    """What was kept is whole, but of a format that this pdiff does not read."""


def write_atomic(path: Path, data: bytes) -> None:
    """Writes beside `path` and renames, so that a reader sees the old file or the whole new one, after a crash too."""
    path = Path(path)
    partial = partial_of(path)
    try:
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as e:  # of a write, which does not say to what file
        raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """The temporary file of this process for `path`."""
    return Path(path).with_name(f".{Path(path).name}.{os.getpid()}.partial")


def remove_partial(directory: Path) -> None:
    """Removes temporary files of killed writers below `directory`; nobody else may be writing there."""
    for path in Path(directory).rglob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def require_space(directory: Path, size: int, what: str) -> None:
    """Raises PdiffError unless `size` bytes, and a tenth more, fit on the disk of `directory`.

    For libraries that, on a full disk, leave half a file and fill the screen with their threads' tracebacks.
    """
    free = shutil.disk_usage(directory).free
    if free < 1.1 * size:
        room = f"{1.1 * size / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
        raise PdiffError(
            f"{directory}: No space left on device for {what}: {room}; what was finished is kept; make room and {AGAIN}"
        )


def sha256(path: Path, sync: bool = False) -> str:
    """Hex digest of a file's contents; with `sync` these are also brought to the disk."""
    with open(path, "rb") as f:
        if sync:
            os.fsync(f.fileno())
        return hashlib.file_digest(f, DIGEST).hexdigest()


def digest_of(path: Path) -> Path:
    """Where the sha256 of a file that stands alone is kept."""
    return Path(path).with_name(f"{Path(path).name}.{DIGEST}")


def write_with_digest(path: Path, data: bytes) -> None:
    """Writes a file that stands alone, and then its sha256 as `sha256sum -c` reads it."""
    write_atomic(path, data)
    write_atomic(digest_of(path), f"{hashlib.sha256(data).hexdigest()}  {Path(path).name}\n".encode())


def write_sums(directory: Path) -> None:
    """Writes the sha256 of every file of a folder to its SHA256SUMS, for `sha256sum -c` by those who get it."""
    directory = Path(directory)
    lines = [f"{sha256(p, sync=True)}  {p.relative_to(directory)}\n" for p in _contents(directory)]
    write_atomic(directory / SUMS, "".join(lines).encode())


def verify_sums(path: Path) -> None:
    """Compares a file with the sha256 beside it, or the files of a folder with its SHA256SUMS, if there is one.

    Raises:
      PdiffError: one is not as it was written, or the sums cannot be read.
    """
    path = Path(path)
    beside, folder = (path / SUMS, path) if path.is_dir() else (digest_of(path), path.parent)
    if not beside.is_file():
        return
    for line in beside.read_bytes().splitlines():
        digest, _, name = line.decode("utf-8", "replace").partition("  ")
        file = folder / name
        if len(digest) != 64 or not name or not file.resolve().is_relative_to(folder.resolve()):
            raise PdiffError(f"{beside}: damaged; allowed: lines of a {DIGEST}, two spaces, and a file of {folder}")
        if not file.is_file() or sha256(file) != digest:
            why = f"missing or damaged, its {DIGEST} is not the one in {beside.name}"
            raise PdiffError(f"{file}: {why}; get a whole copy")


# --- documents -----------------------------------------------------------------------------------


def write_json(path: Path, document: dict[str, Any], default: Callable[[Any], Any] | None = None) -> None:
    """Writes a JSON object with its own sha256 among its fields, keys sorted, so that equal objects are equal bytes.

    Raises:
      ValueError: a number is NaN or infinite, which JSON does not have.
    """
    plain = json.loads(json.dumps(document, allow_nan=False, default=default))
    text = json.dumps(plain | {DIGEST: _digest(plain)}, indent=1, sort_keys=True)
    write_atomic(path, text.encode() + b"\n")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object that `write_json` wrote, without its digest.

    Raises:
      PdiffError: there is none, or it is not what was written; the message ends with `remedy`.
    """
    document = _parsed(path, remedy)
    if DIGEST not in document:
        raise PdiffError(f"{path}: has no {DIGEST}: cut short, or of another version of pdiff; {remedy}")
    if document.pop(DIGEST) != _digest(document):
        raise PdiffError(f"{path}: damaged or edited, its {DIGEST} is not the one that it says; {remedy}")
    return document


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _parsed(path: Path, remedy: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_bytes(), parse_constant=_refuse)
    except FileNotFoundError as e:
        raise PdiffError(f"{path}: missing; {remedy}") from e
    except (ValueError, RecursionError) as e:
        raise PdiffError(f"{path}: damaged, not JSON: {e}; {remedy}") from e
    if not isinstance(document, dict):
        raise PdiffError(f"{path}: damaged, not an object of JSON; {remedy}")
    return document


def _refuse(constant: str):
    raise ValueError(f"{constant} is not allowed")


# --- directories ---------------------------------------------------------------------------------


def write_manifest(directory: Path, kind: str, skip: Collection[str] = ()) -> None:
    """Records the sha256 of every file below `directory`, last, so that its presence means finished.

    All of them, and their folders, are brought to the disk before the manifest is.

    Args:
      kind: what it is, as 'zoo' or 'checkpoint'.
      skip: names in `directory` that are no part of it.
    """
    directory = Path(directory)
    contents = _contents(directory, skip)
    digests = {str(p.relative_to(directory)): sha256(p, sync=True) for p in contents}
    inner = {folder for p in contents for folder in p.parents if directory in folder.parents}
    for folder in sorted({directory.parent, directory, *inner}):
        _sync(folder)
    write_json(directory / MANIFEST, {"format": FORMAT, "kind": kind, "files": digests})


def read_manifest(directory: Path, kind: str, remedy: str) -> dict[str, str]:
    """The sha256 of each file of a directory by name, as its manifest has them.

    Raises:
      PdiffError: it is missing or damaged, or of another kind or format, which is named.
    """
    path, elsewhere = Path(directory) / MANIFEST, "use another --workdir, or the pdiff that made it"
    manifest = _parsed(path, remedy)
    if manifest and all(isinstance(v, str) and len(v) == 64 for v in manifest.values()):  # format 1 was digests alone
        raise OtherFormat(f"{path}: of format 1; this pdiff reads format {FORMAT}; {elsewhere}")
    manifest = read_json(path, remedy)
    if (version := manifest.get("format")) != FORMAT:
        raise OtherFormat(f"{path}: of format {version}; this pdiff reads format {FORMAT}; {elsewhere}")
    if manifest.get("kind") != kind:
        raise PdiffError(f"{path}: of a {manifest.get('kind')}; expected that of a {kind}; {remedy}")
    digests = manifest.get("files")
    if not isinstance(digests, dict) or not all(isinstance(v, str) and _below(n) for n, v in digests.items()):
        raise PdiffError(f"{path}: files: not names of files below {directory} with their {DIGEST}; {remedy}")
    return digests


def verify_manifest(directory: Path, kind: str, remedy: str, skip: Collection[str] = ()) -> None:
    """Compares every file below `directory`, but for the names to `skip` and what is in them, with its manifest.

    Raises:
      PdiffError: a file is missing, added or changed; the message ends with `remedy`.
    """
    digests = read_manifest(directory, kind, remedy)
    added = {str(p.relative_to(directory)) for p in _contents(directory, skip)} - set(digests)
    if added:
        raise PdiffError(f"{Path(directory) / min(added)}: not in the manifest; {remedy}")
    verify_digests(directory, digests, remedy)


def verify_digests(directory: Path, digests: dict[str, str], remedy: str) -> None:
    """Raises PdiffError, which ends with `remedy`, if one of those files of a directory is missing or changed."""
    for fault in faults(directory, digests).values():
        raise PdiffError(f"{fault}; {remedy}")


def fault(directory: Path, kind: str) -> str:
    """What is wrong with a directory that has, or lacks, a manifest; '' if nothing is.

    Raises:
      OtherFormat: it is of another format.
    """
    try:
        verify_manifest(directory, kind, "")
    except OtherFormat:
        raise
    except PdiffError as e:
        return str(e).removesuffix("; ")
    return ""


def faults(directory: Path, digests: dict[str, str]) -> dict[str, str]:
    """What is wrong with those files of a directory that are missing or changed, by name."""
    messages = {}
    for name, digest in sorted(digests.items()):
        path = Path(directory) / name
        if not path.is_file():
            messages[name] = f"{path}: missing, but in the manifest"
        elif path.is_symlink():
            messages[name] = f"{path}: a link; allowed: the file itself"
        elif sha256(path) != digest:
            messages[name] = f"{path}: damaged, its {DIGEST} is not the one in the manifest"
    return messages


def _below(name: str) -> bool:
    """Whether a name in a manifest stays below its directory, whoever wrote it."""
    return "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def _contents(directory: Path, skip: Collection[str] = ()) -> list[Path]:
    """The files below a directory but for its manifest, whatever is in the folders that `skip` names."""
    directory = Path(directory)
    below = (p for entry in directory.iterdir() if entry.name not in skip for p in (entry, *entry.rglob("*")))
    return sorted(p for p in below if p.is_file() and p != directory / MANIFEST)


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no such thing for folders
            os.fsync(handle)
    finally:
        os.close(handle)
