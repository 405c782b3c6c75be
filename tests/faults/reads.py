"""What reads a workdir looks at one that a kill left: before its zoo, between two checkpoints, without a report.

Each mode ends well or in one plain line, whatever is there, and changes nothing.
"""

import random
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.faults import children, kills
from tests.faults.flips import PROMPTS, Readers, digest_of_all
from tests.faults.outcome import Outcome
from tests.faults.scenario import Ground

MODES = ("check", "sample", "adapt", "serve", "publish")


def read(ground: Ground, readers: Readers, seed: str, scenario: str = "", stage: str = "") -> Outcome:
    """A process killed at a point drawn by `seed`, and then every reading mode on what it leaves."""
    draw, name, start = random.Random(seed), f"read_{seed}", time.perf_counter()
    chosen, point, detail = kills.drawn_point(ground, draw, scenario, stage)
    how = {"stage": point.at, "nth": point.nth, "signal": "KILL", "when": draw.choice(("before", "after"))}
    workdir, out = ground.place(chosen, name, point.stage), ground.folder / "said" / f"{name}.txt"
    stopped = children.run(ground.args(chosen, workdir), out, ground.settings(chosen, workdir, kill=how))
    done = Outcome(f"read after a kill: {point.stage}", detail, seed, "refused" if stopped.code else "missed")
    if stopped.code not in (0, -9):
        return done.fail("different", stopped, workdir)
    workdir.mkdir(exist_ok=True)  # killed before there was one
    before = digest_of_all(workdir)
    with tempfile.TemporaryDirectory(dir=ground.folder / "work") as written:
        for mode in MODES:
            ended = readers(mode, "", workdir, **_more(ground, mode, chosen.name, Path(written)))
            done.seconds = time.perf_counter() - start
            if ended.code == 0:  # harmless to one of the modes at least
                done.verdict = "harmless" if done.verdict == "refused" else done.verdict
            elif not ended.plain_error:
                return done.fail("traceback", ended, workdir, f"--mode={mode}: {ended.said.strip()[-400:]}")
            if digest_of_all(workdir) != before:
                return done.fail("different", ended, workdir, f"--mode={mode} changed a file")
    kills.clean(ground, workdir, name)
    return done


def _more(ground: Ground, mode: str, scenario: str, written: Path) -> dict[str, str]:
    """What a mode is asked for beside the workdir; what it writes is in `written`."""
    if mode in ("check", "serve"):
        return {}
    if mode == "publish":
        return {"out": str(written / "published")}
    more = {"prompt": PROMPTS[scenario], "out": str(written / f"{mode}.npz")}
    return more | ({"support": str(_images(ground.folder / "support"))} if mode == "adapt" else {})


def _images(folder: Path) -> Path:
    """Two images of each of ten classes, as a user would have them."""
    for i in range(20):
        (folder / str(i % 10)).mkdir(parents=True, exist_ok=True)
        path = folder / str(i % 10) / f"{i}.png"
        if not path.exists():
            Image.new("L", (8, 8), 12 * i).save(path)
    return folder
