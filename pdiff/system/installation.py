"""What this machine and installation offer: packages and their versions, devices, memory, disk, extras."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata

import jax
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pdiff.errors import PdiffError

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


def _requirements(extra: str) -> list[Requirement]:
    """The requirements of pdiff or, beyond these, of one of its extras."""

    def holds(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    requirements = map(Requirement, metadata.requires("pdiff") or ())
    return [r for r in requirements if holds(r, extra) and not (extra and holds(r, ""))]


def _fault(requirement: Requirement) -> str:
    """'' if it is met, else what is wrong."""
    try:
        version = metadata.version(canonicalize_name(requirement.name))
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    met = requirement.specifier.contains(version, prereleases=True)
    return "" if met else f"{requirement} is asked for, {version} is there"
