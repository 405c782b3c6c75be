"""`--mode=check`: what this machine and installation offer, and how far a run has come and whether it is whole."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pdiff import checkpoint, files, generator, rivals, stages
from pdiff import config as config_lib
from pdiff.errors import PdiffError
from pdiff.imports import scenario
from pdiff.report import results as results_lib
from pdiff.zoo import build, store

KIND = "run"  # of the manifest at the root of a finished workdir
AGAIN = "run the run's command again: it evaluates again, and writes the report"
OPTIONAL = ("bench", "serve", "text", "wandb")  # extras of users; others are for developers, or a device


def environment() -> Iterator[str]:
    """What there is, a line each: Python, packages, devices, memory, disk, and extras that are missing.

    Raises:
      PdiffError: a package that pdiff needs is missing, or of a version that it was not made for.
    """
    wrong = [fault for r in _requirements("") if (fault := _fault(r))]
    if wrong:
        raise PdiffError(f"installation: {'; '.join(wrong)}; `pip install -e .` puts it right")
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("jax", "flax", "optax", "orbax-checkpoint"))
    yield f"pdiff {metadata.version('pdiff')}, Python {platform.python_version()}, {versions}"
    kinds = sorted({d.device_kind for d in jax.devices()})
    yield f"devices: {jax.device_count()} x {jax.default_backend()} ({', '.join(kinds)}), {os.cpu_count()} CPU cores"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield f"memory: {memory / 1e9:.1f} GB; free here on disk: {shutil.disk_usage('.').free / 1e9:.1f} GB"
    yield f"compiled programs: {jax.config.jax_compilation_cache_dir or 'not kept'}"
    for extra in OPTIONAL:
        missing = [r.name for r in _requirements(extra) if _fault(r)]
        state = f"missing {', '.join(missing)}: pip install -e '.[{extra}]'" if missing else "there"
        yield f"extra {extra}: {state}"


def workdir(where: Path) -> Iterator[str]:
    """How far a run has come, a line for each part that is finished; every file is held against its sha256.

    Nothing is changed, and nothing but a file at a time is in memory.

    Raises:
      PdiffError: names the first thing that is missing, incomplete or damaged, and what mends it.
    """
    path = where / "config.json"
    if not path.exists():
        raise PdiffError(f"{path}: missing; allowed: a --workdir that a run was started in")
    config = config_lib.read(path)
    yield f"config: family {config.tasks.family}, target {config.target.name}, seed {config.seed}"
    imported = scenario.load(where) is not None
    home, name = build.directory(config, where), build.fingerprint(config)
    if not store.exists(home, name):
        raise PdiffError(f"{home}: the zoo is not finished; the command that started the run goes on with it")
    files.verify_manifest(store.location(home, name), store.KIND, scenario.REMEDY if imported else store.REMEDY)
    yield f"zoo: {store.location(home, name)}"
    yield f"training of the mean: step {_trained(where / stages.MEAN, config.mean.steps)} of {config.mean.steps}"
    files.verify_manifest(where / generator.ARTIFACTS, generator.KIND, generator.REMEDY)
    done = _trained(where / stages.CHECKPOINTS, config.train.steps)
    yield f"training of the prior: step {done} of {config.train.steps}"
    for rival in config_lib.rivals(config.eval.rivals):
        rivals.verify(where / "rivals" / rival)
        yield f"rival: {rival}"
    if not (where / files.MANIFEST).exists():
        raise PdiffError(f"{where}: not evaluated yet; the command that started the run goes on with that")
    digests = files.read_manifest(where, KIND, AGAIN)
    for fault in files.faults(where, digests).values():
        raise PdiffError(f"{fault}; {AGAIN}")
    results = results_lib.read(where / "results.json")
    yield f"results: whole, chosen sampler {results['selection']['sampler']}"
    yield f"report: {where / 'report.html'}"
    if (where / "audit.json").exists():
        yield f"audit: {where / 'audit.html'}"


def _trained(where: Path, steps: int) -> int:
    """The newest step of a run's checkpoints, if it is the last of training and all are as they were written."""
    if not where.exists():
        raise PdiffError(f"{where}: missing; the command that started the run trains")
    checkpoint.verify(where)
    step = max((int(p.parent.name) for p in where.glob(f"[0-9]*/{files.MANIFEST}")), default=0)
    if step < steps:
        raise PdiffError(
            f"{where}: training is at step {step} of {steps}; the command that started the run goes on from there"
        )
    return step


def _requirements(extra: str) -> list[Requirement]:
    """What pdiff, or one of its extras, asks for."""

    def holds(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    asked = [Requirement(r) for r in metadata.requires("pdiff") or ()]
    return [r for r in asked if holds(r, extra) and not (extra and holds(r, ""))]


def _fault(requirement: Requirement) -> str:
    """'' if it is met, else what is wrong."""
    try:
        found = metadata.version(canonicalize_name(requirement.name))
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    met = requirement.specifier.contains(found, prereleases=True)
    return "" if met else f"{requirement} is asked for, {found} is there"
