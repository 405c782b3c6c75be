"""What faults are injected into: a whole run, an import, and a run of what was imported, all as small as can be.

`Ground` makes each of them once without a fault, its reference, and a second time stopped dead where each stage begins.
The copies that are taken there are where later commands set out from, so that a fault late in a run costs little.
"""

import dataclasses
import json
import shutil
from pathlib import Path

from pdiff import workdir as workdir_lib
from pdiff.errors import PdiffError
from tests.faults import children
from tests.faults.ends import differences, ends
from tests.imports import zoos

HERE = Path(__file__).parent
NAMES = ("run", "import", "weights")
INTERVAL, MEAN_STEPS = 2, 4  # train.checkpoint_every and mean.steps of both configs
# Stages before whose first event a copy is taken: of the mean's checkpoints, what is made of it, the prior's ones, ….
BOUNDARIES = ("mean", "generator", "checkpointing", "evaluation", "report")
# From which copy a stage is reached soonest: its own, and metrics are written from the mean's training on.
SETS_OUT = {"training": "mean"} | {stage: stage for stage in BOUNDARIES}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command, and the workdir that it is typed for.

    Attributes:
      name: of its reference.
      args: without --workdir.
      start: name of the scenario whose end the workdir begins with; '' if there is none.
      stage: all that it does is that stage; '' if its files say.
    """

    name: str
    args: tuple[str, ...]
    start: str = ""
    stage: str = ""


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a process can be stopped: at, or for `gap` seconds after, an event (see `shim`)."""

    stage: str
    at: str
    nth: int
    gap: float


class Ground:
    """References, and copies of what a run is at each of its stages, in `folder`.

    Args:
      folder: a new one, or one where this was done before by the same code.
      compiled: where compiled programs are kept, by default in `folder`.
      names: scenarios to prepare.
    """

    def __init__(self, folder: Path, compiled: Path | None = None, names: tuple[str, ...] = NAMES):
        self.folder = folder.absolute()
        self.compiled = (compiled or folder / "compiled").absolute()
        for name in ("reference", "copies", "work", "said", "kept"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        children.start_server(self.compiled)
        source = self.folder / "my_loras"
        if not source.exists():
            zoos.loras(source, 6)
        small_run, small_import = (f"--config={HERE / n}.py" for n in ("small_run", "small_import"))
        known = (
            Scenario("run", (small_run,)),
            Scenario("import", (small_import, "--mode=import", f"--source={source}"), stage="import"),
            Scenario("weights", (small_import,), start="import"),
        )
        self.scenarios = {s.name: s for s in known if s.name in names}
        self.ends: dict[str, dict[str, str]] = {}
        self.points: dict[str, list[Point]] = {}
        self.copies: dict[tuple[str, str], Path] = {}
        self.seconds: dict[str, float] = {}
        for scenario in self.scenarios.values():
            kept = self.folder / f"{scenario.name}.json"
            if not kept.exists():
                self._prepare(scenario)
                self._save(kept, scenario.name)
            self._load(kept, scenario.name)

    def reference(self, name: str) -> Path:
        return self.folder / "reference" / name

    def args(self, scenario: Scenario, workdir: Path) -> list[str]:
        return [*scenario.args, f"--workdir={workdir}"]

    def settings(self, scenario: Scenario, workdir: Path, **more) -> dict:
        """For `shim`."""
        return {"root": str(workdir)} | ({"stage": scenario.stage} if scenario.stage else {}) | more

    def place(self, scenario: Scenario, name: str, stage: str = "", inside: Path | None = None) -> Path:
        """A new workdir `name` that stands where `stage` is about to begin."""
        workdir = (inside or self.folder / "work") / name
        shutil.rmtree(workdir, ignore_errors=True)
        source = self.copies.get((scenario.name, SETS_OUT.get(stage, "")))
        if source is None and scenario.start:
            source = self.reference(scenario.start)
        if source is not None:
            shutil.copytree(source, workdir)
        return workdir

    def different(self, scenario: Scenario, workdir: Path) -> list[str]:
        """What a workdir ends with and its reference does not, or the other way round, and what `check` finds in it."""
        try:
            if scenario.name != "import":  # which is no finished run
                for _ in workdir_lib.check(workdir):
                    pass
            found = ends(workdir, self.reference(scenario.name))
        except PdiffError as e:
            return [f"--mode=check: {e}"]
        except Exception as e:  # whatever a reader says of a damaged file, it is not the reference's end
            return [f"unreadable: {type(e).__name__}: {e}"]
        return differences(self.ends[scenario.name], found)

    def _save(self, kept: Path, name: str) -> None:
        points = [dataclasses.asdict(p) for p in self.points[name]]
        stages = [stage for n, stage in self.copies if n == name]
        found = {"ends": self.ends[name], "points": points, "stages": stages, "seconds": self.seconds[name]}
        kept.write_text(json.dumps(found))

    def _load(self, kept: Path, name: str) -> None:
        found = json.loads(kept.read_text())
        self.ends[name], self.seconds[name] = found["ends"], found["seconds"]
        self.points[name] = [Point(**p) for p in found["points"]]
        self.copies |= {(name, stage): self.folder / "copies" / f"{name}_{stage}" for stage in found["stages"]}

    def _prepare(self, scenario: Scenario) -> None:
        workdir, said = self.reference(scenario.name), self.folder / "said"
        if scenario.start:
            shutil.copytree(self.reference(scenario.start), workdir)
        journal = said / f"{scenario.name}.journal"
        ended = children.run(
            self.args(scenario, workdir), said / f"{scenario.name}.txt",
            self.settings(scenario, workdir, journal=str(journal)),
        )  # fmt: skip
        if ended.code:
            raise RuntimeError(f"{scenario.name}: the run without a fault failed: {ended.said}")
        self.seconds[scenario.name] = ended.seconds
        self.ends[scenario.name] = ends(workdir)
        self.points[scenario.name] = _points([json.loads(line) for line in journal.read_text().splitlines()])
        stages = {p.at for p in self.points[scenario.name]}
        stopped = self.place(scenario, f"{scenario.name}_stopped")
        for stage in (s for s in BOUNDARIES if s in stages):
            kill = {"stage": stage, "nth": 0, "when": "before", "signal": "KILL"}
            settings = self.settings(scenario, stopped, kill=kill)
            ended = children.run(self.args(scenario, stopped), said / f"{scenario.name}_{stage}.txt", settings)
            if ended.code != -9:
                raise RuntimeError(f"{scenario.name}: was not stopped before {stage}: {ended.said}")
            copy = self.folder / "copies" / f"{scenario.name}_{stage}"
            shutil.copytree(stopped, copy)
            self.copies[scenario.name, stage] = copy
        ended = children.run(self.args(scenario, stopped), said / f"{scenario.name}_again.txt")
        wrong = [ended.said] if ended.code else self.different(scenario, stopped)
        if wrong:
            raise RuntimeError(f"{scenario.name}: stopped before each stage, it ends otherwise: {wrong[:5]}")
        shutil.rmtree(stopped)


def _points(journal: list[dict]) -> list[Point]:
    """The events of a run as points, each with the seconds until the next; they count for the stage that goes on."""
    points = []
    for event, following in zip(journal, [*journal[1:], journal[-1]], strict=True):
        during = {"checkpointing": "training", "mean": "training"}.get(following["stage"], following["stage"])
        gap = following["t"] - event["t"]
        points.append(Point(event["stage"], event["stage"], event["nth"], 0.0))
        if gap > 0.02:
            points.append(Point(during, event["stage"], event["nth"], gap))
    return points
