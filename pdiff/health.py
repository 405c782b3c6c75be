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

from pdiff import api, generator
from pdiff import config as config_lib
from pdiff.checkpoint import Checkpoints
from pdiff.errors import PdiffError
from pdiff.report import results as results_lib
from pdiff.zoo import build, store

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
    """How far a run has come, a line for each stage that is whole, in order. Files are held against their sha256.

    Raises:
      PdiffError: names the first thing that is missing, incomplete or damaged, and what mends it.
    """
    path = where / "config.json"
    if not path.exists():
        raise PdiffError(f"{path}: missing; allowed: a --workdir that a run was started in")
    config = config_lib.from_json(path.read_text())
    yield f"config: family {config.tasks.family}, target {config.target.name}, seed {config.seed}"
    home = build.directory(config, where)
    if not store.exists(home, build.fingerprint(config)):
        raise PdiffError(f"{home}: the zoo is not finished; the command that started the run goes on with it")
    networks = store.read(home, build.fingerprint(config), config.zoo.memory_mb)
    yield "zoo: " + ", ".join(f"{len(n)} {split}" for split, n in networks.items())
    made = generator.load(where)
    step, params = _restored(made, where)
    if step < config.train.steps:
        raise PdiffError(
            f"{where / 'checkpoints'}: training is at step {step} of {config.train.steps}; the command that started "
            "the run goes on from there"
        )
    yield f"training: step {step} of {config.train.steps}, {sum(x.size for x in jax.tree.leaves(params)):,} parameters"
    results = results_lib.read(where / "results.json")
    faults = results_lib.check(results)
    if faults:
        raise PdiffError(f"{where / 'results.json'}: incomplete: {'; '.join(faults)}; --mode=evaluate measures again")
    yield f"results: complete, chosen sampler {results['selection']['sampler']}"
    if not (where / "report.html").exists():
        raise PdiffError(f"{where / 'report.html'}: missing; --mode=report writes it")
    yield f"report: {where / 'report.html'}"
    if (where / "audit.json").exists():
        yield f"audit: {where / 'audit.html'}"


def _restored(made: generator.Generator, where: Path):
    """The newest step of a run's checkpoints, and its averaged parameters, checked on the way."""
    checkpoints = Checkpoints(where / "checkpoints", made.config.train.keep_checkpoints)
    steps = checkpoints.steps()
    checkpoints.close()
    return (steps or [0])[-1], api.restore_params(made, where)


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
