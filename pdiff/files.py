"""Files that are whole or absent, and directories whose contents can be checked."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from pdiff.errors import PdiffError

MANIFEST = "manifest.json"


def write_atomic(path: Path, data: bytes) -> None:
    """Writes beside `path` and renames, so that a reader sees the old file or the whole new one."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def require_space(directory: Path, size: int, what: str) -> None:
    """Raises PdiffError unless `size` bytes, and a tenth more, fit on the disk of `directory`.

    For libraries that fill a full disk with half a file and the screen with their threads' tracebacks.
    """
    free = shutil.disk_usage(directory).free
    if free < 1.1 * size:
        raise PdiffError(
            f"{directory}: No space left on device for {what}: {1.1 * size / 1e6:.1f} MB are needed, "
            f"{free / 1e6:.1f} MB are free; what was finished is kept; make room and run the same command again"
        )


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_manifest(directory: Path) -> None:
    """Records the sha256 of every file below `directory`, last, so that its presence means finished."""
    digests = {str(p.relative_to(directory)): sha256(p) for p in _contents(directory)}
    write_atomic(Path(directory) / MANIFEST, json.dumps(digests, indent=1, sort_keys=True).encode())


def verify_manifest(directory: Path, remedy: str) -> None:
    """Compares every file below `directory` with its manifest.

    Orbax and safetensors restore flipped bytes without a word, so this is what stands between a
    bad disk and silently wrong weights.

    Raises:
      PdiffError: a file is missing, added or changed; the message ends with `remedy`.
    """
    directory = Path(directory)
    try:
        digests = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError) as e:
        raise PdiffError(f"{directory / MANIFEST}: missing or unreadable; {remedy}") from e
    found = {str(p.relative_to(directory)) for p in _contents(directory)}
    for name in sorted(found ^ set(digests)):
        raise PdiffError(
            f"{directory / name}: {'not in' if name in found else 'missing, but in'} the manifest; {remedy}"
        )
    for name, digest in digests.items():
        if sha256(directory / name) != digest:
            raise PdiffError(f"{directory / name}: damaged, its sha256 is not the one in the manifest; {remedy}")


def _contents(directory: Path) -> list[Path]:
    return sorted(p for p in Path(directory).rglob("*") if p.is_file() and p.name != MANIFEST)
