"""From what is said of single networks to tasks: names, descriptions, factors, and which are held out."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdiff.errors import Faults, PdiffError
from pdiff.imports.arrays import FILES, shown
from pdiff.imports.manifest import Row, words_of
from pdiff.tasks.base import SPLITS


def named(row: Row) -> str:
    """The task of a network: what the manifest says, else the first folder below the source, or the file itself."""
    path = Path(row.file)
    alone = path.stem if path.suffix.lower() in FILES else path.name  # a folder's name may have a dot: strength_0.5
    return row.task or (path.parts[0] if len(path.parts) > 1 else alone)


def gathered(rows: tuple[Row, ...], where: str) -> dict[str, dict[str, Any]]:
    """What rows say of each task, by name: `rows` (numbers), `factors`, `descriptions` and `split`.

    Raises:
      Faults: two rows of a task say different things, or tasks have different factors.
    """
    found: dict[str, dict[str, Any]] = {}
    faults = []
    for i, row in enumerate(rows):
        task = found.setdefault(named(row), {"rows": [], "descriptions": [], "factors": {}, "split": ""})
        task["rows"].append(i)
        for key, said in (("descriptions", list(row.descriptions)), ("factors", row.factors), ("split", row.split)):
            if said and task[key] and said != task[key]:
                faults.append(f"{row.line or row.file}: {key} {shown(said)}; an earlier network of task "
                              f"{shown(named(row))} has {shown(task[key])}")  # fmt: skip
            task[key] = task[key] or said
    names = max((list(t["factors"]) for t in found.values()), key=len)
    for name, task in found.items():
        if set(task["factors"]) != set(names):
            faults.append(f"task {shown(name)}: has the factors {sorted(task['factors'])}, others have {sorted(names)}")
    saying = [n for n, t in found.items() if t["split"]]
    if 0 < len(saying) < len(found):
        silent = next(n for n in found if n not in saying)
        faults.append(f"task {shown(silent)}: has no split and {shown(saying[0])} has; allowed: all tasks or none")
    if faults:
        raise Faults(where, faults)
    return found


def described(found: dict[str, dict[str, Any]], config: ConfigDict) -> tuple[list[dict[str, Any]], list[str]]:
    """Tasks by split, for `Facts.tasks` but for the file names, and the names of their factors.

    Tasks without a split are held out by a permutation that `config.seed` draws: first `tasks.num_unseen` unseen ones,
    then `tasks.num_validation`, then at most `tasks.num_seen` seen ones. All have as many descriptions as the one with
    most, repeating theirs; one without has its name in words.

    Raises:
      PdiffError: there are too few tasks, or none is seen.
    """
    if not any(t["split"] for t in found.values()):
        found = _split(found, config)
    factor_names = sorted(next(iter(found.values()))["factors"])
    texts = {n: t["descriptions"] or [words_of(n)] for n, t in found.items()}
    most = max(map(len, texts.values()))
    tasks = [
        {
            "name": name,
            "split": split,
            "factors": [t["factors"][f] for f in factor_names],
            "descriptions": [texts[name][j % len(texts[name])] for j in range(most)],
            "rows": t["rows"],
        }
        for split in SPLITS
        for name, t in found.items()
        if t["split"] == split
    ]
    seen = sum(len(t["rows"]) for t in tasks if t["split"] == "seen")
    if seen < 2:
        raise PdiffError(
            f"{seen} networks of seen tasks; allowed: at least 2, or there is no distribution to learn; hold out fewer "
            "with --config.tasks.num_unseen=0 --config.tasks.num_validation=0, or bring more"
        )
    return tasks, factor_names


def _split(found: dict[str, dict[str, Any]], config: ConfigDict) -> dict[str, dict[str, Any]]:
    counts = config.tasks
    held_out = counts.num_unseen + counts.num_validation
    if len(found) <= held_out:
        raise PdiffError(
            f"there are {len(found)} tasks; allowed: more than tasks.num_unseen + tasks.num_validation = "
            f"{counts.num_unseen} + {counts.num_validation}"
        )
    order = np.random.RandomState(config.seed).permutation(len(found))
    shuffled = [sorted(found)[i] for i in order]
    parts = {
        "unseen": shuffled[: counts.num_unseen],
        "validation": shuffled[counts.num_unseen : held_out],
        "seen": shuffled[held_out : held_out + counts.num_seen],
    }
    chosen = {n: split for split, names in parts.items() for n in names}
    return {n: found[n] | {"split": chosen[n]} for n in sorted(chosen)}
