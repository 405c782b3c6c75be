"""Kills at random points of a run, and the same command again until it ends.

A point is an event of a run without a fault, before or after it, or a moment until the next one: so a kill can hit the
time of a long computation as well as the instant between two system calls.
"""

import json
import random
import re
import shutil
from pathlib import Path

from tests.faults import children, power
from tests.faults.outcome import Outcome
from tests.faults.scenario import INTERVAL, MEAN_STEPS, Ground, Point, Scenario

SIGNALS = ("KILL", "KILL", "KILL", "TERM", "INT")
AGAIN = 3  # more starts than this after one kill, and it is stuck
_STOPPED = {"KILL": (-9,), "TERM": (143, -15), "INT": (130, -2)}
_TRAINS = re.compile(r"train (mean|prior): +\d+%\|[^|]*\| +(\d+)/\d+")


def kill(ground: Ground, seed: str, scenario: str = "", stage: str = "", cut: bool = False) -> Outcome:
    """One kill, at a stage and a point of it drawn by `seed`; with `cut`, unsynced files are lost as well."""
    draw = random.Random(seed)
    chosen, point, detail = drawn_point(ground, draw, scenario, stage)
    signal = "KILL" if cut else draw.choice(SIGNALS)
    how = {"stage": point.at, "nth": point.nth, "signal": signal}
    if point.gap:
        how |= {"when": "later", "delay": draw.uniform(0, point.gap)}
    else:
        how |= {"when": draw.choice(("before", "after"))}
    detail += f" {signal} " + " ".join(str(how[k]) for k in ("when", "delay") if k in how)
    fault = f"{'power cut' if cut else 'kill'}: {point.stage}"
    name = f"{'cut' if cut else 'kill'}_{seed}"
    workdir, out = ground.place(chosen, name, point.stage), ground.folder / "said" / f"{name}.txt"
    more = {"kill": how}
    if cut:
        kept = ground.folder / "kept" / name
        kept.mkdir(parents=True, exist_ok=True)
        journal = out.with_suffix(".journal")
        journal.unlink(missing_ok=True)
        more |= {"journal": str(journal), "kept": str(kept)}
        before = power.seen(workdir)
    stopped = children.run(ground.args(chosen, workdir), out, ground.settings(chosen, workdir, **more))
    fine = (0, *_STOPPED[signal])
    done = Outcome(fault, detail, seed, "identical" if stopped.code else "missed", seconds=stopped.seconds)
    if stopped.code not in fine or stopped.traceback:
        return done.fail("traceback" if stopped.traceback else "different", stopped, workdir)
    if cut:
        done.detail += "; " + power.cut(workdir, power.read(journal), before, kept, draw)
    reached = _steps_done(workdir)
    for attempt in range(AGAIN):
        ended = children.run(ground.args(chosen, workdir), out)
        done.seconds += ended.seconds
        if attempt == 0 and not cut:
            done.lost_steps = max(0, reached - _resumed_from(ended.said, reached))
        if ended.traceback:
            return done.fail("traceback", ended, workdir)
        if ended.code == 0:
            break
    else:
        return done.fail("stuck", ended, workdir)
    wrong = ground.different(chosen, workdir)
    if wrong:
        return done.fail("different", ended, workdir, ", ".join(wrong[:4]))
    if done.lost_steps > INTERVAL:
        return done.fail("lost", ended, workdir, f"{done.lost_steps} steps, and a checkpoint every {INTERVAL}")
    clean(ground, workdir, name)
    return done


def kill_fresh(ground: Ground, seed: str) -> Outcome:
    """A run as people start it, killed after a while by the clock, and then started again in the same way."""
    draw, chosen, name = random.Random(seed), ground.scenarios["run"], f"fresh_{seed}"
    workdir = ground.place(chosen, name)
    after = draw.uniform(0, 1.5 * ground.seconds[chosen.name])  # it imports all that it needs first
    stopped = children.fresh(ground.args(chosen, workdir), ground.compiled, kill_after=after)
    ended = children.fresh(ground.args(chosen, workdir), ground.compiled)
    seconds = stopped.seconds + ended.seconds
    verdict = "identical" if stopped.code else "missed"
    done = Outcome("kill: by the clock", f"run, after {after:.1f} s", seed, verdict, seconds=seconds)
    if ended.code or ended.traceback or stopped.code not in (0, -9):
        return done.fail("traceback" if ended.traceback else "stuck", ended if ended.code else stopped, workdir)
    return compared(ground, done, chosen, ended, workdir, name)


def compared(ground: Ground, done: Outcome, chosen: Scenario, ended, workdir: Path, name: str) -> Outcome:
    """The outcome, once what the workdir ends with was held against the reference; `ended` is how the command did."""
    wrong = ground.different(chosen, workdir)
    if wrong:
        return done.fail("different", ended, workdir, ", ".join(wrong[:4]))
    clean(ground, workdir, name)
    return done


def once_more(ground: Ground, done: Outcome, chosen: Scenario, workdir: Path, out: Path, name: str) -> Outcome:
    """The same command again, which now has to end, and as the reference did."""
    again = children.run(ground.args(chosen, workdir), out)
    done.seconds += again.seconds
    if again.code or again.traceback:
        return done.fail("stuck", again, workdir)
    return compared(ground, done, chosen, again, workdir, name)


def clean(ground: Ground, workdir: Path, name: str) -> None:
    """Removes what an injection that went well leaves."""
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.rmtree(ground.folder / "kept" / name, ignore_errors=True)
    for path in (ground.folder / "said").glob(f"{name}.*"):
        path.unlink()


def drawn_point(ground: Ground, draw: random.Random, scenario: str, stage: str) -> tuple[Scenario, Point, str]:
    """Every stage as often as another; in a stage, moments of computation as often as system calls."""
    by_stage: dict[tuple[str, str], list[Point]] = {}
    for name, points in ground.points.items():
        for p in points:
            if scenario in ("", name) and stage in ("", p.stage):
                by_stage.setdefault((name, p.stage), []).append(p)
    stages = sorted({s for _, s in by_stage})
    drawn = draw.choice(stages)
    name = draw.choice(sorted(n for n, s in by_stage if s == drawn))
    points = by_stage[name, drawn]
    timed = [p for p in points if p.gap]
    if timed and draw.random() < 0.5:
        (point,) = draw.choices(timed, weights=[p.gap for p in timed])
    else:
        point = draw.choice([p for p in points if not p.gap] or timed)
    return ground.scenarios[name], point, f"{name}, {drawn}: event {point.nth} of {point.at}"


def _steps_done(workdir: Path) -> int:
    """Training steps that a stopped run had done, from its metrics."""
    path, last = workdir / "metrics.jsonl", 0
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            last = json.loads(line)["step"]
        except (ValueError, KeyError):
            break
    return last


def _resumed_from(said: str, reached: int) -> int:
    """Training steps that a run went on from, of both models together."""
    found = _TRAINS.search(said)
    return int(found[2]) + (MEAN_STEPS if found[1] == "prior" else 0) if found else reached
