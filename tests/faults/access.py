"""Permissions that are missing, clocks that are wrong, and a disk on which everything takes its time."""

import os
import random
import time
from pathlib import Path

from tests.faults import children
from tests.faults.kills import compared, once_more
from tests.faults.outcome import Outcome
from tests.faults.scenario import Ground

KINDS = ("permission", "clock", "late")


def hinder(ground: Ground, seed: str, kind: str, scenario: str = "", stage: str = "") -> Outcome:
    """One run that is hindered from a random stage on. A missing permission has to be said, the rest to be borne."""
    draw = random.Random(seed)
    chosen = ground.scenarios[scenario or draw.choice(sorted(ground.scenarios))]
    stages = ["zoo", *(s for n, s in ground.copies if n == chosen.name)]
    stage, name = stage or draw.choice(stages), f"{kind}_{seed}"
    workdir, out = ground.place(chosen, name, stage), ground.folder / "said" / f"{name}.txt"
    workdir.mkdir(exist_ok=True)
    done = Outcome(kind, f"{chosen.name} before {stage}", seed, "identical")
    if kind == "permission":
        return _forbidden(ground, chosen, workdir, out, name, done, draw)
    if kind == "clock":
        shift = draw.choice((-1, 1)) * draw.choice((1.0, 3600.0, 86400.0 * 400))
        settings = {"clock": {"shift": shift, "jump_after": draw.choice((0, draw.randrange(200)))}}
        ahead = time.time() + draw.choice((-1, 1)) * draw.uniform(0, 1e8)
        for path in workdir.rglob("*"):
            os.utime(path, (ahead, ahead))
        done.detail += f", {shift:g} s from call {settings['clock']['jump_after']} on, files of {ahead:.0f}"
    else:
        settings = {"late": {"seconds": 0.02, "seed": draw.randrange(1 << 30)}}
    ended = children.run(ground.args(chosen, workdir), out, ground.settings(chosen, workdir, **settings))
    done.seconds = ended.seconds
    if ended.traceback or ended.code:
        return done.fail("traceback" if ended.traceback else "stuck", ended, workdir)
    return compared(ground, done, chosen, ended, workdir, name)


def _forbidden(ground: Ground, chosen, workdir: Path, out: Path, name: str, done: Outcome, draw) -> Outcome:
    """A file that may not be read, or a folder that may not be written; then they may."""
    files = sorted(p for p in workdir.rglob("*") if p.is_file())
    folders = [workdir, *sorted(p for p in workdir.rglob("*") if p.is_dir())]
    path, mode = draw.choice([(draw.choice(files or [workdir]), 0), (draw.choice(folders), 0o555)])
    done.detail += f", {path.relative_to(workdir)} has mode {mode:o}"
    before = path.stat().st_mode
    path.chmod(mode)
    ended = children.run(ground.args(chosen, workdir), out, privileged=False)
    done.seconds = ended.seconds
    if path.exists():
        path.chmod(before)
    if ended.traceback:
        return done.fail("traceback", ended, workdir)
    if ended.code and not ended.plain_error:
        return done.fail("unnamed", ended, workdir)
    done.verdict = "refused" if ended.code else "identical"  # what was forbidden was not needed
    return once_more(ground, done, chosen, workdir, out, name)
