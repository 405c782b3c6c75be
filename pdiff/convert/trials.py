"""The layout of public model zoos, as Ray Tune leaves it: TRIAL/checkpoint_000050/checkpoints and TRIAL/result.json.

result.json has an object on each line, one for each iteration: training_iteration, what was measured, config. From
these comes a manifest: the accuracy of that iteration, and the numbers of the config in which trials differ.
"""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from pdiff.errors import PdiffError, some
from pdiff.imports.reading import text

RESULT = "result.json"
TORCH = (".pt", ".pth", ".bin", ".ckpt")
ACCURACIES = (
    "test_acc", "test_accuracy", "validation_acc", "validation_accuracy", "val_acc", "val_accuracy", "mean_accuracy",
    "accuracy", "acc",
)  # fmt: skip
MOST_FACTORS, LONGEST = 32, 60  # as in a manifest


def checkpoint(path: Path) -> int | None:
    """The iteration of TRIAL/checkpoint_000050/FILE beside TRIAL/result.json; None for other paths."""
    match = re.fullmatch(r"checkpoint_(\d{1,9})", path.parent.name)
    if match is None or not (path.parent.parent / RESULT).is_file():
        return None
    return int(match[1]) if path.suffix.lower() in ("", *TORCH) else None


def manifest(source: Path, now: dict[str, str]) -> tuple[str, list[str]]:
    """The text of a manifest.csv and lines about it; '' if no file of `source` is of a trial.

    Args:
      now: by old name below `source`, the new one of each file.
    """
    rows, notes, results = [], [], {}
    for old, new in sorted(now.items()):
        iteration = checkpoint(source / old)
        if iteration is None:
            continue
        trial = (source / old).parent.parent
        if trial not in results:
            try:
                results[trial] = _results(trial / RESULT)
            except PdiffError as e:
                notes.append(f"{trial.relative_to(source)}/{RESULT} is not read: {e}")
                results[trial] = {}
        rows.append((new, trial, results[trial].get(iteration, {}), results[trial]))
    if not rows:
        return "", []
    key = _accuracy_key([r[2] for r in rows])
    accuracies = [_number(r[2].get(key)) for r in rows]
    share = _share([a for a in accuracies if a is not None])
    if key is None or share is None:
        accuracies = [None] * len(rows)
        notes.append(f"manifest.csv: no accuracy of {', '.join(ACCURACIES[:4])}, … in {RESULT} of all trials")
    else:
        percent = ", a percentage" if share != 1 else ""
        notes.append(f"manifest.csv: accuracy is {key}{percent} of {RESULT} at the checkpoint's iteration")
    factors, left = _factors([_config(r[3]) for r in rows])
    if left:
        notes.append(f"manifest.csv: factors left out, of which at most {MOST_FACTORS} are allowed: {some(left)}")
    tasks = _names(source, {r[1] for r in rows})
    into = io.StringIO(newline="")
    writer = csv.writer(into, lineterminator="\n")
    writer.writerow(["file", "task", "accuracy", *(f"factor:{name}" for name in factors)])
    for i, (new, trial, _, _) in enumerate(rows):
        accuracy = "" if accuracies[i] is None else repr(accuracies[i] / share)
        writer.writerow([new, tasks[trial], accuracy, *(repr(values[i]) for values in factors.values())])
    if len(rows) < len([n for n in now.values() if n.endswith(".safetensors")]):
        notes.append("manifest.csv: lists the checkpoints of trials alone; other networks here are not in it")
    return into.getvalue(), notes


def _names(source: Path, trials: set[Path]) -> dict[Path, str]:
    """What to call the tasks: the trials' folders, or their whole paths if two have one name."""
    if len({t.resolve().name for t in trials}) == len(trials):
        return {t: t.resolve().name for t in trials}
    return {t: t.relative_to(source).as_posix() for t in trials}


def _results(path: Path) -> dict[int, dict[str, Any]]:
    """What was reported, by iteration; NaN, which Ray writes, counts as nothing."""
    reported = {}
    for i, line in enumerate(text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as e:
            raise PdiffError(f"line {i} is no JSON: {e}") from e
        if isinstance(entry, dict) and type(entry.get("training_iteration")) is int:
            reported[entry["training_iteration"]] = entry
    return reported


def _accuracy_key(entries: list[dict]) -> str | None:
    """The first name of an accuracy that all checkpoints have, but for those of which nothing was reported."""
    told = [e for e in entries if e]
    return next((k for k in ACCURACIES if told and all(_number(e.get(k)) is not None for e in told)), None)


def _share(values: list[float]) -> float | None:
    """What accuracies are to be divided by to be fractions; None if they are none."""
    if not values or min(values) < 0 or max(values) > 100:
        return None
    return 1 if max(values) <= 1 else 100


def _number(value: Any) -> float | None:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30
    return float(value) if plain and math.isfinite(value) else None


def _config(results: dict[int, dict]) -> dict[str, float]:
    """The numbers of a trial's config; '.' joins the keys of nested ones."""
    numbers, waiting = {}, [("", next(iter(results.values()), {}).get("config", {}))]
    while waiting:
        prefix, entries = waiting.pop()
        for name, value in entries.items() if isinstance(entries, dict) else ():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value))
            elif _number(value) is not None and f"{prefix}{name}".isprintable() and len(f"{prefix}{name}") <= LONGEST:
                numbers[f"{prefix}{name}"] = _number(value)
    return numbers


def _factors(configs: list[dict[str, float]]) -> tuple[dict[str, list[float]], list[str]]:
    """The values, for each row, of the numbers that all have and that differ; and the names beyond the most allowed."""
    shared = sorted(set.intersection(*map(set, configs))) if configs else []
    varying = [name for name in shared if len({c[name] for c in configs}) > 1]
    return {n: [c[n] for c in configs] for n in varying[:MOST_FACTORS]}, varying[MOST_FACTORS:]
