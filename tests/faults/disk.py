"""A disk that fills up at a random point, and has room again when the same command is typed.

The disk is a tmpfs of random size where one can be mounted; elsewhere, from a random event on, Python's calls fail as
on a full disk.
"""

import os
import random
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from tests.faults import children
from tests.faults.kills import once_more
from tests.faults.outcome import Outcome
from tests.faults.scenario import Ground

ROOM = "No space left on device"


def can_mount() -> bool:
    """Whether this process may mount a tmpfs."""
    if os.geteuid():
        return False
    with tempfile.TemporaryDirectory() as where:
        try:
            with mounted(Path(where), 1 << 20):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def mounted(where: Path, size: int):
    """A disk of `size` bytes at the folder `where`."""
    where.mkdir(parents=True, exist_ok=True)
    _quietly("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where))
    try:
        yield where
    finally:
        _quietly("umount", "-l", str(where))


def full(ground: Ground, seed: str, scenario: str = "", stage: str = "", mount: bool = True) -> Outcome:
    """One disk that fills up some time after `stage` began."""
    draw = random.Random(seed)
    chosen = ground.scenarios[scenario or draw.choice(sorted(ground.scenarios))]
    stages = ["zoo", *(s for n, s in ground.copies if n == chosen.name)]
    stage, name = stage or draw.choice(stages), f"full_{seed}"
    done = Outcome("disk full", f"{chosen.name} before {stage}", seed, "refused")
    if not mount:
        workdir = ground.place(chosen, name, stage)
        events = [p for p in ground.points[chosen.name] if not p.gap]
        nth = draw.randrange(len(events) // (2 if stage == "zoo" else 4))
        done.detail += f", from event {nth} on"
        return _fill(ground, chosen, workdir, name, done, {"full": {"nth": nth}}, lambda: None)
    disk = ground.folder / "disk" / name
    with mounted(disk, 1 << 30):
        workdir = ground.place(chosen, "w", stage, inside=disk)
        used = shutil.disk_usage(disk).used
        room = draw.randint(4096, max(8192, _size(ground.reference(chosen.name)) - used))
        done.detail += f", {room} bytes of room"
        _quietly("mount", "-o", f"remount,size={used + room}", str(disk))
        more = lambda: _quietly("mount", "-o", f"remount,size={1 << 30}", str(disk))  # noqa: E731
        return _keep(_fill(ground, chosen, workdir, name, done, {}, more))


def _fill(ground: Ground, chosen, workdir: Path, name: str, done: Outcome, settings: dict, make_room) -> Outcome:
    out = ground.folder / "said" / f"{name}.txt"
    before = finished(workdir)
    ended = children.run(ground.args(chosen, workdir), out, ground.settings(chosen, workdir, **settings))
    done.seconds = ended.seconds
    if ended.traceback or ended.code < 0:
        return done.fail("traceback", ended, workdir)
    if ended.code and not (ended.plain_error and ROOM in ended.error):
        return done.fail("unnamed", ended, workdir)
    gone = before - finished(workdir)
    if gone and ended.code:
        return done.fail("lost", ended, workdir, f"{sorted(gone)[:3]} was finished and is gone")
    make_room()
    if not ended.code:
        done.verdict = "identical"  # there was room enough
    return once_more(ground, done, chosen, workdir, out, name)


def finished(workdir: Path) -> set[str]:
    """Folders with a manifest; of the checkpoints of a model, that there is one."""
    found = {str(p.parent.relative_to(workdir)) for p in workdir.rglob("manifest.json")}
    steps = {f for f in found if f.startswith(("mean/", "checkpoints/"))}
    return (found - steps) | {f"a checkpoint in {step.split('/')[0]}" for step in steps}


def _size(folder: Path) -> int:
    """Bytes that its files take, in pages."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def _quietly(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _keep(done: Outcome) -> Outcome:
    """The workdir of a failure, copied from a disk that is about to go."""
    if done.bad and Path(done.kept).parent.parent.name == "disk":
        kept = Path(done.kept).parents[2] / "work" / Path(done.kept).parent.name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(done.kept, kept)
        done.kept = str(kept)
    return done
