"""A power cut: what was never synced is lost, in whole or in part, as POSIX allows.

A file's contents are safe once the file is synced, its name in a folder once the folder is. Each thing that is not safe
is kept or lost by chance: names that are new vanish, overwritten or deleted files are back, contents are cut short or
zero. What C++ wrote counts as unsynced until Python syncs it, which is stricter than the truth.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path


def seen(root: Path) -> list[dict]:
    """What is safe before a run begins: everything. Events like those of a journal."""
    return [_event(p) for p in (root, *root.rglob("*")) if p.is_dir() or p.is_file()] if root.exists() else []


def read(journal: Path) -> list[dict]:
    """The syncs in a journal of `shim`; a last line that was cut short is none."""
    events = []
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            break
        events += [event] if event["op"] == "fsync" else []
    return events


def cut(root: Path, journal: list[dict], before: list[dict], kept: Path, draw: random.Random) -> str:
    """Loses what was not safe below `root`; returns how much, in words."""
    files, folders = {}, {}
    for event in (*before, *journal):
        if "entries" in event:
            folders[event["ino"]] = event["entries"]
        else:
            files[event["ino"]] = (event["size"], event["mtime"])
    lost = {"names": 0, "contents": 0, "back": 0}
    for folder in list(_folders(root)):
        if not folder.exists():
            continue
        safe = folders.get(folder.stat().st_ino, {})
        present = {e.name: e.inode() for e in os.scandir(folder)}
        for name in sorted({*safe, *present}):
            if safe.get(name) == present.get(name) or draw.random() < 0.5:
                continue
            path, old = folder / name, kept / str(safe.get(name))
            if name in present:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                lost["names"] += 1
            if name in safe and old.exists():
                os.link(old, path)
                lost["back"] += 1
    for path in [p for folder in _folders(root) for p in sorted(folder.iterdir()) if p.is_file()]:
        found = path.stat()
        safe = files.get(found.st_ino)
        if safe == (found.st_size, found.st_mtime_ns) or draw.random() < 0.5:
            continue
        _damage(path, min(safe[0], found.st_size) if safe else 0, found.st_size, draw)
        lost["contents"] += 1
    return f"lost {lost['names']} names and {lost['contents']} contents, {lost['back']} old files are back"


def _folders(root: Path) -> Iterator[Path]:
    """Top down, in a fixed order, as they are when each is reached."""
    if root.exists():
        yield root
        for path in sorted(root.iterdir()):
            if path.is_dir() and not path.is_symlink():
                yield from _folders(path)


def _damage(path: Path, safe: int, size: int, draw: random.Random) -> None:
    """What lies beyond the first `safe` bytes is cut, or zero where the size had reached the disk."""
    keep = draw.randint(safe, size)
    data = path.read_bytes()[:keep]
    path.unlink()  # never through a hard link
    path.write_bytes(data if draw.random() < 0.5 else data.ljust(size, b"\0"))


def _event(path: Path) -> dict:
    found = path.stat()
    event = {"ino": found.st_ino, "size": found.st_size, "mtime": found.st_mtime_ns}
    return event | ({"entries": {e.name: e.inode() for e in os.scandir(path)}} if path.is_dir() else {})
