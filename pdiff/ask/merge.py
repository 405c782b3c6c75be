"""`--mode=merge`: the networks of some tasks as one, without training: for its own sake, and to compare with.

It needs a zoo alone, imported or fine-tuned, and no trained generator.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff import scenario
from pdiff.ask import exports
from pdiff.ask.request import MOST_SEED
from pdiff.errors import PdiffError, some
from pdiff.merging import methods, networks
from pdiff.merging.networks import Members, Method
from pdiff.scenario import IMPORTED, Facts
from pdiff.system import logs
from pdiff.system.logs import log
from pdiff.tasks import Family
from pdiff.tasks.base import Task
from pdiff.zoo import build, store


def merge(
    workdir: Path | None,
    *,
    method: str | None = None,
    tasks: Sequence[str] = (),
    t: float | None = None,
    density: float | None = None,
    seed: int = 0,
    out: str | None = None,
    form: str | None = None,
) -> None:
    """Merges the networks of some tasks, writes the one that results to `out`, and says what it lost.

    Args:
      workdir: of a run, finished or not, or of an import.
      method: one of `methods.METHODS`.
      tasks: names or ids; by default all seen ones. Several networks of one task count as their mean.
      t: for lerp and slerp, from the first task (0) to the second (1); by default 0.5.
      density: for ties, dare and dare_ties, the share of numbers that are kept; by default `methods.DENSITY`.
      seed: of what dare drops.
      form: one of `exports.FORMATS`, or as `out` ends.

    Raises:
      PdiffError: an argument does not fit, or there is no zoo, or its base is needed and not known. Nothing is written.
    """
    logs.set_up()
    chosen = _method(method, t, density, seed)
    if workdir is None:
        raise PdiffError("--workdir: missing; --mode=merge merges networks of a run or of an import")
    if out is None:
        raise PdiffError("--out: missing; allowed: the file or folder to write")
    config, facts = config_lib.read(workdir / "config.json"), scenario.load(workdir)
    form = exports.format_of(Path(out), form, facts)
    exports.check_out(Path(out))
    _check_kind(chosen, config, facts)
    family, _ = scenario.family_and_target(config, workdir)
    merged_tasks = _tasks(family, tasks, chosen)
    members = _members(config, workdir, facts, merged_tasks)
    for line in _notes(chosen, members):
        log.info("%s", line)
    scales = {} if facts is None else facts.scales
    network, error = networks.at_rank(networks.merged(chosen, members), members.params, scales)
    options = _options(chosen) | {"relative_error": f"{error:.6g}"}
    if facts is not None:
        options |= {"import": facts.digest}
    said = {"method": chosen.name, "tasks": json.dumps([task.name for task in merged_tasks])} | options
    exports.write(traverse_util.unflatten_dict(network, sep="/"), Path(out), form, said, facts)
    log.info("%s of %d tasks: %s", chosen.name, len(merged_tasks), some((task.name for task in merged_tasks), 8))
    if members.adapters:
        rank = max(members.params[f"{m}/A"].shape[1] for m in members.modules)
        log.info("at rank %d its updates are off the merge by %.3f of their norm", rank, error)
    log.info("written: %s", out)


def _method(name: str | None, t: float | None, density: float | None, seed: int) -> Method:
    """The method, after a check of its options."""
    if name not in methods.METHODS:
        got = "missing" if name is None else f"got {name!r}"
        raise PdiffError(f"--method: {got}; allowed: {', '.join(methods.METHODS)}")
    if t is not None and name not in methods.BETWEEN:
        raise PdiffError(f"--t: got {t:g}, which --method={name} has no use for; allowed with lerp and slerp")
    if t is not None and not 0 <= t <= 1:
        raise PdiffError(f"--t: got {t:g}; allowed: from 0, the first task, to 1, the second")
    if not 0 <= seed <= MOST_SEED:
        raise PdiffError(f"--sample_seed: got {seed}; allowed: from 0 to {MOST_SEED}")
    if density is not None and name not in methods.ELEMENTWISE:
        allowed = f"allowed with {', '.join(methods.ELEMENTWISE)}"
        raise PdiffError(f"--density: got {density:g}, which --method={name} has no use for; {allowed}")
    if density is not None and not 0 < density <= 1:
        raise PdiffError(f"--density: got {density:g}; allowed: above 0 and at most 1, the share that is kept")
    kept = methods.DENSITY.get(name, 1.0) if density is None else density
    return Method(name, kept, 0.5 if t is None else t, seed)


def _check_kind(method: Method, config: ConfigDict, facts: Facts | None) -> None:
    """Raises PdiffError if networks of this kind cannot be merged so."""
    adapters = facts is not None and facts.adapter is not None
    if config.tasks.family != IMPORTED and config.target.lora_rank:
        raise PdiffError(
            f"--mode=merge: this run's networks are factors (target.lora_rank = {config.target.lora_rank}), and a "
            "merge of factors is none of updates; allowed: imported adapters, or networks without target.lora_rank"
        )
    if method.name == "svd" and not adapters:
        raise PdiffError("--method: got 'svd', which cuts updates off at the rank of adapters; allowed here: mean")
    if method.name in methods.ELEMENTWISE and facts is not None and not (adapters or facts.has_base):
        raise PdiffError(
            f"--method: got {method.name!r}, which merges what networks changed of their base, and none was imported; "
            f"allowed: mean, lerp, slerp, or an import of a source with base.safetensors in it"
        )


def _tasks(family: Family, names: Sequence[str], method: Method) -> list[Task]:
    """The tasks to merge."""
    by_name = {task.name: task for task in family.tasks}
    chosen = []
    for name in names:
        if name not in by_name and not (name.isdecimal() and int(name) < len(family.tasks)):
            known = some(by_name, 4)
            raise PdiffError(f"--tasks: got {name!r}; allowed: names of tasks, such as {known}, or ids from 0")
        chosen.append(by_name[name] if name in by_name else family.tasks[int(name)])
    if twice := [task.name for i, task in enumerate(chosen) if task in chosen[:i]]:
        raise PdiffError(f"--tasks: {twice[0]!r} is there twice; allowed: each task once")
    chosen = chosen or list(family.split("seen"))
    if method.name in methods.BETWEEN and len(chosen) != 2:
        raise PdiffError(f"--tasks: {len(chosen)} tasks; allowed with --method={method.name}: two, as in --tasks=a,b")
    if len(chosen) < 2:
        raise PdiffError(f"--tasks: {len(chosen)} task; allowed: two or more, as in --tasks=a,b")
    return chosen


def _members(config: ConfigDict, workdir: Path, facts: Facts | None, tasks: Sequence[Task]) -> Members:
    """The tasks' networks, from the zoo."""
    where, name = build.directory(config, workdir), config_lib.zoo_fingerprint(config)
    if not store.exists(where, name):
        raise PdiffError(f"--workdir: {workdir} has no finished zoo; allowed: that of a run, or of --mode=import")
    zoo = store.read(where, name, config.zoo.memory_mb, store.REMEDY if facts is None else scenario.REMEDY)
    parts, groups, start = [], [], 0
    for task in tasks:
        rows = np.flatnonzero(zoo[task.split].task == task.id) if task.split in zoo else np.zeros(0, int)
        if not len(rows):
            raise PdiffError(f"--tasks: {task.name!r} has no network in the zoo; allowed: tasks of the zoo")
        parts.append(_flat(zoo[task.split][rows].params))
        groups.append(start + np.arange(len(rows)))
        start += len(rows)
    params = {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}
    base = None if facts is not None and not facts.has_base else _flat(zoo["base"].params)
    base = base and {path: base[path][0] for path in params}
    return Members(params, groups, base, facts is not None and facts.adapter is not None)


def _notes(method: Method, members: Members) -> list[str]:
    """What is done otherwise than the method's name says, a line each."""
    notes = []
    if members.base is None and members.arrays:
        arrays = some(members.arrays)
        if method.name in methods.ELEMENTWISE:
            notes.append(f"merged by the mean, as no base is known to which they could be compared: {arrays}")
        elif method.name == "slerp":
            notes.append(f"slerp of the weights themselves, as no base is known: {arrays}")
    if any(len(group) > 1 for group in members.groups):
        notes.append("several networks of a task count as their mean")
    return notes


def _options(method: Method) -> dict[str, str]:
    options = {"t": f"{method.t:g}"} if method.name in methods.BETWEEN else {}
    options |= {"density": f"{method.density:g}"} if method.name in methods.ELEMENTWISE else {}
    return options | ({"seed": str(method.seed)} if method.name.startswith("dare") else {})


def _flat(params: dict) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(params, sep="/")
