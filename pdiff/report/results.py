"""results.json: the contract that tools read. Writing, reading, and saying what is missing or wrong.

Accuracies are fractions in [0, 1]. A split or a control that does not apply is absent, never null or zero.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from pdiff import files
from pdiff.config import DESCRIBING, RIVALS, rivals
from pdiff.errors import PdiffError
from pdiff.report.checks import (
    check_adaptation,
    check_calibration,
    check_spread,
    check_summaries,
    check_summary,
    check_vague,
    is_fraction,
    is_negative,
    is_number,
    lacking,
    object_at,
)

# Every control, in the order in which it is shown.
CONTROLS = (
    "hypernetwork",
    "soup",
    "gaussian",
    "noise",
    "nearest_seen",
    "ridge",
    *RIVALS,
    "linear_interpolation",
    "rebasin_merge",
    "task_blind",
    "wrong_task",
    "shuffled_text",
    "majority",
)
SPLITS = ("seen", "interp", "unseen", "validation")
POINT_KINDS = ("generated", "zoo", "noise")
_OBJECTS = ("config", "target", "selection", "timing")
_BY_ANSWERS, _BY_WEIGHTS = ("splits", "novelty", "spread"), ("weight_space",)  # a run has the one or the other
_TOP = ("seed", "commit", "command", "created", *_OBJECTS)
_TIMES = ("zoo_s", "train_s", "sample_s_per_100", "evaluate_s", "peak_rss_mb", "total_s")


def summary(values: Float[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"] | None = None) -> dict:
    """Mean, standard error, extremes and count of `values`.

    Args:
      groups: the task of each value. Networks of one task are not independent, so the standard error is
        then that of the tasks' means. With a single group it is taken over the values.

    Returns:
      {"mean", "sem", "min", "max", "n"}; `sem` of a single value is 0.
    """
    values = np.asarray(values, np.float64).reshape(-1)
    if not len(values):
        raise ValueError("a summary needs at least one value")
    independent = values
    if groups is not None:
        _, index = np.unique(np.asarray(groups).reshape(-1), return_inverse=True)
        if len(index) != len(values):
            raise ValueError(f"{len(values)} values, but {len(index)} groups; give the group of each value")
        if index.max() > 0:
            independent = np.bincount(index, values) / np.bincount(index)
    count = len(independent)
    return {
        "mean": float(values.mean()),
        "sem": float(independent.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
        "n": len(values),
    }


def write(path: Path, results: dict) -> None:
    """Writes `results` whole or not at all, with sorted keys, so that equal results are equal bytes.

    Raises:
      PdiffError: a value is NaN or infinite; its place is named.
    """
    for where, value in _leaves(results):
        if isinstance(value, (float, np.floating)) and not math.isfinite(value):
            raise PdiffError(f"{path}: {where} is {value}; allowed: finite numbers")
    files.write_json(path, results, _plain)


def read(path: Path) -> dict:
    """The results in `path`.

    Raises:
      PdiffError: the file is missing, damaged, or was edited.
    """
    return files.read_json(path, "--mode=evaluate writes it again")


def check(results: dict, controls: Sequence[str] | None = None) -> list[str]:
    """What is missing or wrong in `results`, a line for each fault; empty when they are complete.

    Args:
      controls: the controls that every split must have. By default those of `expected_controls`.
    """
    by_weights = "weight_space" in results
    objects = (*_OBJECTS, *(_BY_WEIGHTS if by_weights else _BY_ANSWERS))
    faults = [f"{key}: missing" for key in dict.fromkeys((*_TOP, *objects)) if key not in results]
    measured = {k: v for k, v in results.items() if k != "config"}  # a config may hold what it likes
    for where, value in _leaves(measured):
        if value is None:
            faults.append(f"{where}: null; what does not apply is left out")
        elif isinstance(value, float) and not math.isfinite(value):
            faults.append(f"{where}: {value}")
    shapeless = [f"{k}: not an object" for k in objects if not isinstance(results.get(k, {}), dict)]
    if shapeless:
        return faults + shapeless
    faults += lacking("target", results.get("target", {}), ("name", "num_params"))
    faults += _check_selection(results.get("selection", {}), fractions=not by_weights)
    if by_weights:
        faults += _check_weight_space(results)
    else:
        faults += _check_splits(results, controls)
        faults += _check_novelty(results.get("novelty", {}))
        faults += check_spread(results.get("spread", {}))
        faults += check_calibration(results) + check_vague(results.get("vague", [])) + check_adaptation(results)
    timing = results.get("timing", {})
    faults += lacking("timing", timing, _TIMES)
    bad = [k for k in _TIMES if is_negative(timing.get(k, 0))]
    faults += [f"timing.{k}: {timing[k]!r}; allowed: 0 or more" for k in bad]
    return faults


def expected_controls(results: dict, split: str) -> tuple[str, ...]:
    """The controls that apply to a split: those of one task, of several, of tasks with factors, of text."""
    entry, seen = results["splits"][split], object_at(results["splits"], "seen")
    tasks = entry.get("per_task")
    tasks = [t for t in tasks if isinstance(t, dict)] if isinstance(tasks, list) else []
    factors = min((len(t["factors"]) for t in tasks if isinstance(t.get("factors"), list)), default=0)
    several_seen = _several(seen.get("num_tasks"))
    config = object_at(results, "config")
    condition = object_at(config, "sample").get("condition")
    applies = {
        "noise": split == "seen" or factors > 0,
        "nearest_seen": several_seen and factors > 0,
        "ridge": several_seen and factors > 0,
        "linear_interpolation": several_seen and factors == 1,
        "rebasin_merge": object_at(results, "target").get("symmetric") is True
        and (seen.get("num_tasks") == 1 or (_several(seen.get("num_tasks")) and seen["num_tasks"] > 2 and factors > 0)),
        "wrong_task": _several(entry.get("num_tasks")),
        "shuffled_text": isinstance(condition, (list, tuple)) and any(n in condition for n in DESCRIBING),
    }
    trained = _rivals(object_at(config, "eval").get("rivals"))
    applies |= {name: name in trained for name in RIVALS}
    return tuple(c for c in CONTROLS if applies.get(c, True))


def _rivals(text: Any) -> tuple[str, ...]:
    """The names of `eval.rivals`; none where it says nothing of the kind, since a config may hold what it likes."""
    try:
        return rivals(text) if isinstance(text, str) else ()
    except PdiffError:
        return ()


def _check_weight_space(results: dict) -> list[str]:
    """The section that stands for accuracies where networks are known by their weights alone."""
    found, where = results["weight_space"], "weight_space"
    faults = lacking(where, found, ("spaces", "units", "splits", "novelty"))
    faults += lacking(f"{where}.splits", object_at(found, "splits"), ["seen"])
    for split, entry in object_at(found, "splits").items():
        for kind, name in (("generated", object_at(results, "selection").get("sampler")), ("controls", "soup")):
            for space in found.get("spaces", []):
                measured = object_at(object_at(object_at(entry, kind), str(name)), str(space))
                place = f"{where}.splits.{split}.{kind}.{name}.{space}.distance"
                faults += check_summary(place, measured.get("distance"), fractions=False)
    return faults


def _check_selection(selection: dict, fractions: bool = True) -> list[str]:
    if not isinstance(selection.get("sampler"), str):
        return [f"selection.sampler: {selection.get('sampler')!r}; allowed: the name of a sampler"]
    if "validation" not in selection:
        return []
    return check_summaries("selection.validation", selection["validation"], [selection["sampler"]], fractions)


def _check_splits(results: dict, controls: Sequence[str] | None) -> list[str]:
    splits = results.get("splits", {})
    # The unseen tasks are what the arcs hold, where a family has arcs; any that were fine-tuned are in the zoo.
    arcs, zoo = object_at(results, "arcs"), object_at(results, "zoo")
    wanted = ["seen"] + [s for s in ("interp", "unseen") if arcs.get(s) or zoo.get(s)]
    faults = lacking("splits", splits, wanted)
    for name, entry in splits.items():
        where = f"splits.{name}"
        if name not in SPLITS:
            faults.append(f"{where}: unknown; allowed: {', '.join(SPLITS)}")
        elif not isinstance(entry, dict):
            faults.append(f"{where}: not an object")
        else:
            required = expected_controls(results, name) if controls is None else controls
            faults += _check_split(where, entry, results.get("selection", {}).get("sampler"), required)
    return faults


def _check_split(where: str, entry: dict, sampler: str | None, controls: Sequence[str]) -> list[str]:
    keys = ("num_tasks", "finetuned", "base", "generated", "controls", "per_task")
    faults = lacking(where, entry, keys)
    for key in ("finetuned", "base"):
        if key in entry:
            faults += check_summary(f"{where}.{key}", entry[key])
    for key, required in (
        ("generated", [sampler] if isinstance(sampler, str) else []),
        ("controls", controls),
    ):
        if key in entry:
            faults += check_summaries(f"{where}.{key}", entry[key], required)
    for key in ("held_out_wording", "by_condition", "test_time"):
        if key in entry:
            faults += check_summaries(f"{where}.{key}", entry[key])
    tasks = entry.get("per_task")
    if tasks is None:
        return faults
    if not isinstance(tasks, list) or not tasks:
        return [*faults, f"{where}.per_task: empty"]
    if len(tasks) != entry.get("num_tasks", len(tasks)):
        faults.append(f"{where}.per_task: {len(tasks)} entries for num_tasks {entry['num_tasks']}")
    for i, task in enumerate(tasks):
        faults += _check_task(f"{where}.per_task[{i}]", task, entry)
    return faults


def _check_task(where: str, task: dict, entry: dict) -> list[str]:
    faults = lacking(where, task, ("task", "id", "factors", "finetuned", "base", "generated", "controls"))
    if faults:
        return faults
    if not isinstance(task["factors"], (list, tuple)) or not all(map(is_number, task["factors"])):
        faults.append(f"{where}.factors: {task['factors']!r}; allowed: a list of numbers")
    values = {"finetuned": task["finetuned"], "base": task["base"]}
    for key in ("generated", "controls"):
        faults += lacking(f"{where}.{key}", task[key], tuple(object_at(entry, key)))
        values |= {f"{key}.{k}": v for k, v in task[key].items()} if isinstance(task[key], dict) else {}
    return faults + [f"{where}.{k}: {v!r} is not in [0, 1]" for k, v in values.items() if not is_fraction(v)]


def _check_novelty(novelty: dict) -> list[str]:
    overlaps, distances = ("max_iou_to_zoo", "zoo_to_zoo_iou"), ("nearest_l2", "zoo_nearest_l2")
    faults = lacking("novelty", novelty, (*overlaps, *distances, "points"))
    for key in (*overlaps, *distances):
        if key in novelty:
            faults += check_summary(f"novelty.{key}", novelty[key], fractions=key in overlaps)
    if "spread" in novelty:
        faults += check_summaries("novelty.spread", novelty["spread"], fractions=False)
    points = novelty.get("points")
    if not isinstance(points, list) or not points:
        return [*faults, "novelty.points: empty"]
    for i, point in enumerate(points):
        where = f"novelty.points[{i}]"
        missing = lacking(where, point, ("kind", "accuracy", "max_iou", "nearest_l2"))
        faults += missing
        if not missing:
            bad = [k for k in ("accuracy", "max_iou") if not is_fraction(point[k])]
            faults += [f"{where}.{k}: {point[k]!r} is not in [0, 1]" for k in bad]
            faults += [f"{where}.nearest_l2: {point['nearest_l2']!r}"] * is_negative(point["nearest_l2"])
            if point["kind"] not in POINT_KINDS:
                faults.append(f"{where}.kind: {point['kind']!r}; allowed: {', '.join(POINT_KINDS)}")
    return faults


def _several(count: Any) -> bool:
    return is_number(count) and count > 1


def _leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a dict or a list, with its place, as in `splits.seen.per_task[3].base`."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, (list, tuple, np.ndarray)):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{where}[{i}]")
    else:
        yield where, tree


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in results.json")
