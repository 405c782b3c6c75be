"""The tasks of imported networks: names, descriptions, factors, and which are held out."""

import itertools
from typing import Any

from ml_collections import ConfigDict

from pdiff.errors import Faults, PdiffError
from pdiff.imports.arrays import shown
from pdiff.imports.folders import Row, task_of
from pdiff.system.logs import log
from pdiff.tasks.base import SPLITS, hold_out, same_descriptions, words_of


def task_name(row: Row) -> str:
    """The task of a network: that of the manifest, else by where it lies."""
    return row.task or task_of(row.file)


def gathered(rows: tuple[Row, ...], where: str) -> dict[str, dict[str, Any]]:
    """The entries of each task, by name: `rows` (numbers), `factors`, `descriptions` and `split`.

    Raises:
      Faults: two rows of a task contradict each other, or tasks have different factors.
    """
    tasks: dict[str, dict[str, Any]] = {}
    faults = []
    for i, row in enumerate(rows):
        name = task_name(row)
        task = tasks.setdefault(name, {"rows": [], "descriptions": [], "factors": {}, "split": ""})
        task["rows"].append(i)
        for key, value in (("descriptions", list(row.descriptions)), ("factors", row.factors), ("split", row.split)):
            if value and task[key] and value != task[key]:
                earlier = f"an earlier network of task {shown(name)} has {shown(task[key])}"
                faults.append(f"{row.line or row.file}: {key} {shown(value)}; {earlier}")
            task[key] = task[key] or value
    names = max((list(t["factors"]) for t in tasks.values()), key=len)
    for name, task in tasks.items():
        if set(task["factors"]) != set(names):
            faults.append(f"task {shown(name)}: has the factors {sorted(task['factors'])}, others have {sorted(names)}")
    with_split = [n for n, t in tasks.items() if t["split"]]
    without = [n for n, t in tasks.items() if not t["split"]]
    if with_split and without:
        reason = f"has no split and {shown(with_split[0])} has; allowed: all tasks or none"
        faults.append(f"task {shown(without[0])}: {reason}")
    if faults:
        raise Faults(where, faults)
    return tasks


def described(gathered: dict[str, dict[str, Any]], config: ConfigDict) -> tuple[list[dict[str, Any]], list[str]]:
    """Tasks by split, for `Facts.tasks` but for the file names, and the names of their factors.

    If no task has a split, `hold_out` draws them by `config.seed`. All have as many descriptions as the one with most,
    repeating theirs; one without has its name in words.

    Raises:
      PdiffError: there are too few tasks, or none is seen.
    """
    if not any(t["split"] for t in gathered.values()):
        split_of = hold_out(gathered, config.tasks, config.seed, "there are")
        gathered = {name: gathered[name] | {"split": split_of[name]} for name in sorted(split_of)}
    factor_names = sorted(next(iter(gathered.values()))["factors"])
    texts = {n: t["descriptions"] or [words_of(n)] for n, t in gathered.items()}
    for line in same_descriptions(texts):
        log.warning("warning: %s; describe them in a manifest", line)
    most = max(map(len, texts.values()))
    tasks = [
        {
            "name": name,
            "split": split,
            "factors": [t["factors"][f] for f in factor_names],
            "descriptions": list(itertools.islice(itertools.cycle(texts[name]), most)),
            "rows": t["rows"],
        }
        for split in SPLITS
        for name, t in gathered.items()
        if t["split"] == split
    ]
    seen = sum(len(t["rows"]) for t in tasks if t["split"] == "seen")
    if seen < 2:
        raise PdiffError(
            f"{seen} networks of seen tasks; allowed: at least 2, or there is no distribution to learn; hold out fewer "
            "with --config.tasks.num_unseen=0 --config.tasks.num_validation=0, or bring more"
        )
    return tasks, factor_names
