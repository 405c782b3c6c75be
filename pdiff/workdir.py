"""The folder of a run: who writes there, what is in it, how far it is, and when it is whole.

A workdir holds config.json, zoo/, basis/ (of large networks), mean/ (checkpoints of the mean), generator/, checkpoints/
(of the prior), metrics.jsonl, tensorboard/, timing.json, results.json, closeup.json, plots/ and report.html, and, after
an audit, audit.json and audit.html. Each is written whole or not at all, so running the same command again goes on
where the last one stopped. manifest.json, of what lies beside it, comes last and says that the run is finished; claim/
says who is writing.
"""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff import results as results_lib
from pdiff import scenario
from pdiff.errors import RERUN, PdiffError
from pdiff.generator import generator, large
from pdiff.rivals import trained
from pdiff.system import checkpoint, claim, files, processes
from pdiff.system.logs import log
from pdiff.training import stages
from pdiff.zoo import build, store

KIND = "run"  # of the manifest at the root of a finished workdir
REMEDY = f"{RERUN}: it evaluates again, and writes the report"
START = "the command that started the run"  # in messages of what is not finished
TIMING = "timing.json"
# Folders that have manifests of their own, or are no part of the run's outcome.
PARTS = ("zoo", large.FOLDER, stages.MEAN, "generator", stages.CHECKPOINTS, "rivals", claim.FOLDER, "wandb")


@contextmanager
def writing(workdir: Path):
    """Holds the workdir against other runs, and removes files that killed ones had not finished."""
    with claim.claimed(workdir, f"--workdir: {workdir}"):
        processes.on_first(partial(files.remove_partial, workdir), "rid of partial files")
        yield


def keep_config(config: ConfigDict, workdir: Path) -> None:
    """Makes the workdir this config's, or raises. After an import all may change that it did not depend on."""
    if scenario.load(workdir) is None or (workdir / stages.MEAN).exists():
        config_lib.check_same(config, workdir)
    else:
        check_import(config, workdir)
    config_lib.write(workdir / "config.json", config)


def check_import(config: ConfigDict, workdir: Path) -> None:
    """Raises PdiffError, naming the fields, if the networks in `workdir` were imported with others that shape a zoo."""
    imported = config_lib.read(workdir / "config.json")
    if config_lib.zoo_fingerprint(config) != config_lib.zoo_fingerprint(imported):
        shaping = [x for x in config_lib.difference(config, imported) if config_lib.shapes_zoo(x.partition(" ")[0])]
        raise PdiffError(
            f"--workdir: {workdir}: its networks were imported with other fields: {'; '.join(shaping)}; import them "
            "again with these, into a new --workdir"
        )


def is_finished(workdir: Path) -> bool:
    """Whether the run is finished and every file is as it was written; if one is damaged, a warning names it."""
    return is_whole(workdir, lambda: list(check(workdir)))


def is_whole(where: Path, verify: Callable[[], object]) -> bool:
    """Whether there is a manifest and `verify` raises no PdiffError; a warning repeats its message."""
    if not (where / files.MANIFEST).exists():
        return False
    try:
        verify()
    except files.OtherFormat:
        raise
    except PdiffError as e:
        log.warning("warning: %s", e)
        return False
    return True


def check_rest(workdir: Path, written: Sequence[str]) -> None:
    """Raises PdiffError, naming the file, if a finished run is damaged elsewhere than in what is `written` anew.

    Otherwise the new manifest would cover up the damage.
    """
    if not (workdir / files.MANIFEST).exists():
        return
    digests = files.read_manifest(workdir, KIND, REMEDY)
    rest = {n: d for n, d in digests.items() if n not in written and n.split("/")[0] not in written}
    files.verify_digests(workdir, rest, REMEDY)


def unseal(workdir: Path) -> None:
    """What lies in the workdir is about to change: it is not finished any more."""
    processes.on_first(lambda: (workdir / files.MANIFEST).unlink(missing_ok=True), "about to write")


def seal(workdir: Path) -> None:
    """Marks a run as finished, with its files as they are now; the folders PARTS are not among them."""
    processes.on_first(partial(files.write_manifest, workdir, KIND, PARTS), "done with the manifest")


@contextmanager
def timed(workdir: Path, name: str):
    """Adds the seconds spent inside to `name` in timing.json, so that a resumed run reports all of them."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = timing(workdir)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        if processes.is_first():
            files.write_json(workdir / TIMING, seconds)


def timing(workdir: Path) -> dict[str, float]:
    path = workdir / TIMING
    return files.read_json(path, "delete it: only the times that the run has taken are lost") if path.exists() else {}


def command(workdir: Path) -> str:
    """The command that made the run, from its results."""
    path = workdir / "results.json"
    return results_lib.read(path)["command"] if path.exists() else ""


def commit() -> str:
    """The commit of the code, if it runs from a git checkout."""
    try:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def check(where: Path) -> Iterator[str]:
    """How far a run has come, a line for each finished part; every file is compared with its sha256.

    Nothing is changed, and one file at a time is in memory.

    Raises:
      PdiffError: names the first thing that is missing, incomplete or damaged, and the remedy.
    """
    path = where / "config.json"
    if not path.exists():
        raise PdiffError(f"{path}: missing; allowed: a --workdir that a run was started in")
    config = config_lib.read(path)
    yield f"config: family {config.tasks.family}, target {config.target.name}, seed {config.seed}"
    remedy = store.REMEDY if scenario.load(where) is None else scenario.REMEDY
    home, name = build.directory(config, where), config_lib.zoo_fingerprint(config)
    if not store.exists(home, name):
        raise PdiffError(f"{home}: the zoo is not finished; {START} goes on with it")
    files.verify_manifest(store.location(home, name), store.KIND, remedy)
    yield f"zoo: {store.location(home, name)}"
    yield f"training of the mean: step {_trained(where / stages.MEAN, config.mean.steps)} of {config.mean.steps}"
    if (where / large.FOLDER).exists():
        files.verify_manifest(where / large.FOLDER, large.KIND, large.REMEDY)
        yield f"basis: {where / large.FOLDER}"
    files.verify_manifest(where / generator.ARTIFACTS, generator.KIND, generator.REMEDY)
    done = _trained(where / stages.CHECKPOINTS, config.train.steps)
    yield f"training of the prior: step {done} of {config.train.steps}"
    for rival in config_lib.rivals(config.eval.rivals):
        trained.verify(where / "rivals" / rival)
        yield f"rival: {rival}"
    if not (where / files.MANIFEST).exists():
        raise PdiffError(f"{where}: not evaluated yet; {START} goes on with that")
    files.verify_digests(where, files.read_manifest(where, KIND, REMEDY), REMEDY)
    results = results_lib.read(where / "results.json")
    yield f"results: whole, chosen sampler {results['selection']['sampler']}"
    yield f"report: {where / 'report.html'}"
    if (where / "audit.json").exists():
        yield f"audit: {where / 'audit.html'}"


def _trained(where: Path, steps: int) -> int:
    """The newest step of a run's checkpoints, if it is the last of training and all are as they were written."""
    if not where.exists():
        raise PdiffError(f"{where}: missing; {START} trains")
    checkpoint.verify(where)
    step = max((int(p.parent.name) for p in where.glob(f"[0-9]*/{files.MANIFEST}")), default=0)
    if step < steps:
        raise PdiffError(f"{where}: training is at step {step} of {steps}; {START} goes on from there")
    return step
