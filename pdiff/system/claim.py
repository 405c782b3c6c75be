"""One writer for a directory: who holds it, and when a holder counts as gone.

A claim is a file `claim/000007.json` in the directory. The next number is created exclusively (O_EXCL, which network
file systems have too), so of all who try one gets it; the highest number is the holder. The file says who that is, and
the holder writes it anew every few seconds: its heartbeat. So no lock of the operating system is needed, which would
mean nothing across hosts, and a claim that was left behind is taken over:

- on the same machine at once, if the process is gone (its number may be another's by now: the time it started tells),
- of another machine, container or boot of this one, if it shows no beat for `SILENCE` seconds of one's own clock.

A holder that was taken for dead and was not, as one that was suspended, finds a higher number at its next beat, and
ends.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pdiff.errors import PdiffError, complain
from pdiff.system import files, processes
from pdiff.system.logs import log

FOLDER = "claim"
BEAT, SILENCE = 5.0, 30.0  # seconds between two signs of life, and without one until a holder counts as gone
POLL = 0.5  # seconds between looks at a silent claim


@contextlib.contextmanager
def claimed(directory: Path, what: str) -> Iterator[None]:
    """Holds `directory`, which is made if missing, against all other runs; of many processes the first does.

    Args:
      what: for messages, as '--workdir: runs/a'.

    Raises:
      PdiffError: another process holds it; says which.
    """
    if not processes.is_first():
        processes.barrier(f"sure of {what}")
        yield
        return
    folder = Path(directory) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    mine = _take(folder, what)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(mine, done), daemon=True)
    beating.start()
    try:
        processes.barrier(f"sure of {what}")
        yield
    finally:
        done.set()
        beating.join()
        if _highest(folder) == mine:
            with contextlib.suppress(OSError):  # a full disk: the process is about to end, which says the same
                _write(mine, {"released": True})


def holder(directory: Path) -> str | None:
    """Who holds a directory, in words, if the holder is not known to be gone. Changes nothing."""
    newest = _highest(Path(directory) / FOLDER)
    claim = _read(newest) if newest else {"released": True}
    return None if claim.get("released") or _gone(claim) else _who(claim)


def _take(folder: Path, what: str) -> Path:
    """Makes the next claim, once the newest is released or its holder gone; its path."""
    newest = _highest(folder)
    if newest is not None:
        _check_free(newest, what)
    mine = folder / f"{int(newest.stem) + 1 if newest else 1:06d}.json"
    try:
        os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError as e:
        raise _held(what, _read(mine)) from e
    try:
        _write(mine, _me())
    except OSError:
        mine.unlink(missing_ok=True)
        raise
    newest = _highest(folder)
    if newest != mine:  # a claim went by between our look and ours
        mine.unlink(missing_ok=True)
        raise _held(what, _read(newest))
    for older in folder.glob("*.json"):
        if older.name < mine.name:
            older.unlink(missing_ok=True)
    return mine


def _check_free(path: Path, what: str) -> None:
    """Raises PdiffError unless the claim is released or its holder gone, which may take a while to find out."""
    claim = _read(path)
    if claim.get("released"):
        return
    if not _here(claim):
        log.info("%s is held by %s: waiting %g s for a sign of life", what, _who(claim), SILENCE)
        until = time.monotonic() + SILENCE
        while time.monotonic() < until:
            time.sleep(POLL)
            now = _read(path)
            if now.get("released"):
                return
            if now != claim:
                raise _held(what, now)
    elif not _gone(claim):
        raise _held(what, claim)
    log.warning("%s was held by %s, which is gone: taken over", what, _who(claim))


def _beat(mine: Path, done: threading.Event) -> None:
    beats = 0
    while not done.wait(BEAT):
        beats += 1
        newest = _highest(mine.parent)
        if newest is not None and newest.name > mine.name:
            why = f"taken over by {_who(_read(newest))}, which took this one for dead"
            complain(f"{mine.parent.parent}: {why}; what was finished is kept")
            os._exit(1)
        with contextlib.suppress(OSError):  # a full disk is reported by whoever writes there something that counts
            _write(mine, _me() | {"beat": beats})


def _me() -> dict:
    pid = os.getpid()
    me = {"pid": pid, "started": _started(pid), "host": platform.node(), "machine": _machine()}
    return me | {"since": time.strftime("%Y-%m-%dT%H:%M:%S")}


def _machine() -> str:
    """What process numbers are unique in: this boot of this machine, this container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if there is none, '' where that is not known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else ""
    return None if fields[0] in "ZX" else fields[19]  # a zombie writes nothing any more


def _here(claim: dict) -> bool:
    """Whether the holder's process number means something here."""
    return claim.get("machine") == _machine()


def _gone(claim: dict) -> bool:
    """Whether a holder is surely gone."""
    return _here(claim) and _started(int(claim["pid"])) != claim["started"]


def _held(what: str, claim: dict) -> PdiffError:
    return PdiffError(f"{what}: held by {_who(claim)}; allowed: one at a time; wait for it, or use another")


def _who(claim: dict) -> str:
    if "pid" not in claim:
        return "a process that has just started"
    return f"process {claim['pid']} on {claim['host']} since {claim['since']}"


def _highest(folder: Path) -> Path | None:
    claims = (p for p in folder.glob("*.json") if p.stem.isdigit())
    return max(claims, key=lambda p: p.name, default=None)


def _read(path: Path | None) -> dict:
    """A claim; {} while it is being made, or if it cannot be read."""
    try:
        claim = json.loads(path.read_bytes())
        return claim if isinstance(claim, dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(path: Path, claim: dict) -> None:
    files.write_atomic(path, json.dumps(claim).encode())
