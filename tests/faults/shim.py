"""Faults from inside a process: what it does to the files of one folder is counted, written down, and cut short.

`install` wraps the calls of the operating system through which Python changes files. What C++ writes (Orbax's arrays,
the zoo's records) passes by unseen, and so counts as never having reached the disk until Python syncs it.

Settings, all optional but the first:
  root: only what lies in this folder counts, or beside it under the names of its temporary versions.
  stage: every event is of this stage; else the event's path says.
  journal: a file to which events are appended, a JSON object each.
  kept: a folder for hard links to files that are overwritten or deleted, by inode, for `power`.
  kill: {stage, nth, when, delay, signal}: dies at the nth event (from 0) of that stage, before or after it, or `delay`
    seconds after; signal is KILL, TERM or INT (twice).
  full: {nth}: from the nth event on, nothing that takes room succeeds.
  clock: {shift, jump_after}: time.time() is that many seconds ahead, from the call `jump_after` on.
  late: {seconds, seed}: every event is preceded by a random wait of up to as long.
"""

import builtins
import errno
import io
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

from pdiff.system import claim

# What the first part of a path in a workdir says about the stage in which it is changed.
STAGES = {
    "zoo": "zoo", "imported": "import", "mean": "mean", "generator": "generator", "metrics.jsonl": "training",
    "tensorboard": "training", "checkpoints": "checkpointing", "rivals": "evaluation", "results.json": "evaluation",
    "closeup.json": "evaluation", "plots": "report", "report.html": "report", "table.md": "report",
}  # fmt: skip
OTHER = "bookkeeping"  # config.json, timing.json, manifest.json
CLAIM = "claim"  # which is written anew every few seconds: how often depends on the machine, and nothing else may
GROWS = ("open", "mkdir", "replace", "rename", "link", "fsync")  # what a full disk refuses


def install(settings: dict) -> None:
    """From here on, in this process."""
    if clock := settings.get("clock"):
        _shift(clock)
    watch = _Watch(settings)
    for name in ("replace", "rename", "link"):
        _wrap(os, name, watch, lambda args, _: args[1])
    for name in ("unlink", "remove", "mkdir", "rmdir"):
        _wrap(os, name, watch, lambda args, kwargs: _at(args[0], kwargs.get("dir_fd")))
    _wrap(os, "fsync", watch, lambda args, _: os.readlink(f"/proc/self/fd/{_descriptor(args[0])}"))
    _wrap(os, "open", watch, lambda args, kwargs: _at(args[0], kwargs.get("dir_fd")), _flags_write)
    original = io.open
    io.open = builtins.open = _wrapped(original, "open", watch, lambda args, _: args[0], _mode_writes)


class _Watch:
    def __init__(self, settings: dict):
        self.root = Path(settings["root"])
        self.settings = settings
        self.counts: dict[str, int] = {}
        self.total = 0
        self.lock = threading.Lock()
        self.inside = threading.local()  # whether this thread is in an event already
        self.journal = None
        if "journal" in settings:
            self.journal = os.open(settings["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.random = random.Random(settings.get("late", {}).get("seed", 0))

    def stage(self, path: str) -> str | None:
        """Which stage a change of `path` belongs to; None if it is none of ours."""
        path = os.path.abspath(path)
        root = str(self.root)
        if path == root or path.startswith(root + os.sep):
            parts = Path(path).relative_to(root).parts
            if claim.FOLDER in parts:
                return CLAIM
            if "stage" in self.settings:
                return self.settings["stage"]
            first = parts[0] if parts else ""
            if first.startswith(".") and first.endswith(".partial"):  # of `files.write_atomic`
                first = first[1:].rsplit(".", 2)[0]
            return STAGES.get(first, OTHER)
        beside = path.startswith(f"{self.root.parent}{os.sep}.{self.root.name}.")
        return self.settings.get("stage", OTHER) if beside else None

    def before(self, stage: str, name: str) -> int:
        with self.lock:
            nth = self.counts[stage] = self.counts.get(stage, -1) + 1
            total, self.total = self.total, self.total + 1
        if late := self.settings.get("late"):
            time.sleep(self.random.uniform(0, late["seconds"]))
        full = self.settings.get("full")
        if full and total >= full["nth"] and name in GROWS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._die(stage, nth, "before")
        return nth

    def after(self, stage: str, nth: int, name: str, path: str) -> None:
        if self.journal is not None:
            event = {"t": time.monotonic(), "stage": stage, "nth": nth, "op": name, "path": path} | _seen(name, path)
            os.write(self.journal, json.dumps(event).encode() + b"\n")
        self._die(stage, nth, "after")

    def keep(self, path: str) -> None:
        """Keeps a link to what `path` names now."""
        kept = self.settings.get("kept")
        if kept is None or not os.path.isfile(path):
            return
        link = os.path.join(kept, str(os.stat(path).st_ino))
        if not os.path.exists(link):
            _ORIGINAL["link"](path, link)

    def _die(self, stage: str, nth: int, when: str) -> None:
        kill = self.settings.get("kill")
        if not kill or (kill["stage"], kill["nth"]) != (stage, nth):
            return
        if kill["when"] == when:
            _signal(kill["signal"])
        elif kill["when"] == "later" and when == "after":
            threading.Thread(target=_later, args=(kill["delay"], kill["signal"]), daemon=True).start()


_ORIGINAL = {name: getattr(os, name) for name in ("link",)}


def _seen(name: str, path: str) -> dict:
    """What was synced: of a file inode, size and time, of a folder its entries."""
    if name != "fsync":
        return {}
    found = os.stat(path)
    seen = {"ino": found.st_ino, "size": found.st_size, "mtime": found.st_mtime_ns}
    if os.path.isdir(path):
        seen["entries"] = {e.name: e.inode() for e in os.scandir(path)}
    return seen


def _later(delay: float, name: str) -> None:
    time.sleep(delay)
    _signal(name)


def _signal(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
    if name == "INT":
        time.sleep(0.05)  # else the two are one
        os.kill(os.getpid(), signal.SIGINT)


def _wrap(module, name: str, watch: _Watch, path_of, counts=lambda args, kwargs: True) -> None:
    setattr(module, name, _wrapped(getattr(module, name), name, watch, path_of, counts))


def _wrapped(original, name: str, watch: _Watch, path_of, counts):
    def call(*args, **kwargs):
        if getattr(watch.inside, "event", False) or not counts(args, kwargs):
            return original(*args, **kwargs)
        watch.inside.event = True
        try:
            path = path_of(args, kwargs)
            path = os.fspath(path) if not isinstance(path, int) else f"/proc/self/fd/{path}"
            path = path.decode() if isinstance(path, bytes) else path
            stage = watch.stage(path)
            if stage is None:
                return original(*args, **kwargs)
            nth = watch.before(stage, name)
            if name in ("replace", "rename", "unlink", "remove"):
                watch.keep(path)
            done = original(*args, **kwargs)
            watch.after(stage, nth, name, path)
            return done
        finally:
            watch.inside.event = False

    return call


def _at(path, folder: int | None):
    return path if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fspath(path))


def _descriptor(file) -> int:
    return file if isinstance(file, int) else file.fileno()


def _flags_write(args, kwargs) -> bool:
    flags = args[1] if len(args) > 1 else kwargs["flags"]
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) and isinstance(args[0], (str, bytes, os.PathLike))


def _mode_writes(args, kwargs) -> bool:
    mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
    return isinstance(args[0], (str, bytes, os.PathLike)) and any(c in mode for c in "wax+")


def _shift(clock: dict) -> None:
    original, calls = time.time, [0]

    def shifted() -> float:
        calls[0] += 1
        return original() + (clock["shift"] if calls[0] > clock["jump_after"] else 0)

    time.time = shifted
