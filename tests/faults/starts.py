"""Two commands on one workdir at the same time: one does the work, the other says who holds it."""

import random
import time

from tests.faults.children import Child
from tests.faults.kills import compared
from tests.faults.outcome import Outcome
from tests.faults.scenario import Ground

HELD = "held by"


def start(ground: Ground, seed: str, scenario: str = "run", stage: str = "") -> Outcome:
    """Two starts within half a second; one time in three the run's former holder was killed just before."""
    draw = random.Random(seed)
    chosen, name = ground.scenarios[scenario], f"start_{seed}"
    stages = ["zoo", *(s for n, s in ground.copies if n == chosen.name)]
    stage = stage or draw.choice(stages)
    workdir, said = ground.place(chosen, name, stage), ground.folder / "said"
    orphaned = draw.random() < 1 / 3
    done = Outcome(f"two starts{', the holder killed' if orphaned else ''}", f"before {stage}", seed, "identical")
    began = time.perf_counter()
    settings = ground.settings(chosen, workdir, late={"seconds": 0.005, "seed": draw.randrange(1 << 30)})
    if orphaned:
        kill = {"stage": "bookkeeping", "nth": draw.randint(1, 5), "when": "after", "signal": "KILL"}
        holder = Child(ground.args(chosen, workdir), said / f"{name}.holder.txt", settings | {"kill": kill})
        holder.wait()
    two = []
    for i in range(2):
        two.append(Child(ground.args(chosen, workdir), said / f"{name}.{i}.txt", settings))
        time.sleep(draw.choice((0, draw.uniform(0, 0.5))) if i == 0 else 0)
    ended = [child.wait() for child in two]
    done.seconds = time.perf_counter() - began
    first, second = sorted(ended, key=lambda e: e.code)
    if first.traceback or second.traceback:
        return done.fail("traceback", first if first.traceback else second, workdir)
    if first.code != 0:
        return done.fail("stuck", first, workdir)
    if not (second.plain_error and HELD in second.error):
        return done.fail("silent", second, workdir)
    return compared(ground, done, chosen, first, workdir, name)
