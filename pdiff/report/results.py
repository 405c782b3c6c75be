"""results.json: the contract that tools read. Writing, reading, and saying what is missing or wrong.

Accuracies are fractions in [0, 1]. A split or a control that does not apply is absent, never null or zero.
"""

import math
import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from pdiff import files
from pdiff.config import DESCRIBING, RIVALS, rivals
from pdiff.errors import PdiffError

# Every control, in the order in which it is shown.
CONTROLS = (
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
SUMMARY_KEYS = ("mean", "sem", "min", "max", "n")
POINT_KINDS = ("generated", "zoo", "noise")
_OBJECTS = ("config", "target", "selection", "timing")
_BY_ANSWERS, _BY_WEIGHTS = ("splits", "novelty"), ("weight_space",)  # a run has the one or the other
_TOP = ("seed", "commit", "command", "created", *_OBJECTS)
_TIMES = ("zoo_s", "train_s", "sample_s_per_100", "evaluate_s", "peak_rss_mb", "total_s")
_ROUNDING = 1e-6  # a float32 mean may leave its range by this much


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
    faults += _missing("target", results.get("target", {}), ("name", "num_params"))
    faults += _check_selection(results.get("selection", {}), fractions=not by_weights)
    if by_weights:
        faults += _check_weight_space(results)
    else:
        faults += _check_splits(results, controls)
        faults += _check_novelty(results.get("novelty", {}))
        faults += _check_likelihood(results)
        faults += _check_score_likeness(results)
    timing = results.get("timing", {})
    faults += _missing("timing", timing, _TIMES)
    bad = [k for k in _TIMES if _negative(timing.get(k, 0))]
    faults += [f"timing.{k}: {timing[k]!r}; allowed: 0 or more" for k in bad]
    return faults


def expected_controls(results: dict, split: str) -> tuple[str, ...]:
    """The controls that apply to a split: those of one task, of several, of tasks with factors, of text."""
    entry, seen = results["splits"][split], _object(results["splits"], "seen")
    tasks = entry.get("per_task")
    tasks = [t for t in tasks if isinstance(t, dict)] if isinstance(tasks, list) else []
    factors = min((len(t["factors"]) for t in tasks if isinstance(t.get("factors"), list)), default=0)
    several_seen = _several(seen.get("num_tasks"))
    config = _object(results, "config")
    condition = _object(config, "sample").get("condition")
    applies = {
        "noise": split == "seen" or factors > 0,
        "nearest_seen": several_seen and factors > 0,
        "ridge": several_seen and factors > 0,
        "linear_interpolation": several_seen and factors == 1,
        "rebasin_merge": _object(results, "target").get("symmetric") is True
        and (seen.get("num_tasks") == 1 or (_several(seen.get("num_tasks")) and seen["num_tasks"] > 2 and factors > 0)),
        "wrong_task": _several(entry.get("num_tasks")),
        "shuffled_text": isinstance(condition, (list, tuple)) and any(n in condition for n in DESCRIBING),
    }
    trained = _rivals(_object(config, "eval").get("rivals"))
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
    faults = _missing(where, found, ("spaces", "units", "splits", "novelty"))
    faults += _missing(f"{where}.splits", _object(found, "splits"), ["seen"])
    for split, entry in _object(found, "splits").items():
        for kind, name in (("generated", _object(results, "selection").get("sampler")), ("controls", "soup")):
            for space in found.get("spaces", []):
                measured = _object(_object(_object(entry, kind), str(name)), str(space))
                place = f"{where}.splits.{split}.{kind}.{name}.{space}.distance"
                faults += _check_summary(place, measured.get("distance"), fractions=False)
    return faults


def _check_selection(selection: dict, fractions: bool = True) -> list[str]:
    if not isinstance(selection.get("sampler"), str):
        return [f"selection.sampler: {selection.get('sampler')!r}; allowed: the name of a sampler"]
    if "validation" not in selection:
        return []
    return _check_summaries("selection.validation", selection["validation"], [selection["sampler"]], fractions)


def _check_splits(results: dict, controls: Sequence[str] | None) -> list[str]:
    splits = results.get("splits", {})
    # The unseen tasks are what the arcs hold, where a family has arcs; any that were fine-tuned are in the zoo.
    arcs, zoo = _object(results, "arcs"), _object(results, "zoo")
    wanted = ["seen"] + [s for s in ("interp", "unseen") if arcs.get(s) or zoo.get(s)]
    faults = _missing("splits", splits, wanted)
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
    faults = _missing(where, entry, keys)
    for key in ("finetuned", "base"):
        if key in entry:
            faults += _check_summary(f"{where}.{key}", entry[key])
    for key, required in (
        ("generated", [sampler] if isinstance(sampler, str) else []),
        ("controls", controls),
    ):
        if key in entry:
            faults += _check_summaries(f"{where}.{key}", entry[key], required)
    for key in ("held_out_wording", "by_condition", "test_time"):
        if key in entry:
            faults += _check_summaries(f"{where}.{key}", entry[key])
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
    faults = _missing(where, task, ("task", "id", "factors", "finetuned", "base", "generated", "controls"))
    if faults:
        return faults
    if not isinstance(task["factors"], (list, tuple)) or not all(map(_number, task["factors"])):
        faults.append(f"{where}.factors: {task['factors']!r}; allowed: a list of numbers")
    values = {"finetuned": task["finetuned"], "base": task["base"]}
    for key in ("generated", "controls"):
        faults += _missing(f"{where}.{key}", task[key], tuple(_object(entry, key)))
        values |= {f"{key}.{k}": v for k, v in task[key].items()} if isinstance(task[key], dict) else {}
    return faults + [f"{where}.{k}: {v!r} is not in [0, 1]" for k, v in values.items() if not _fraction(v)]


def _check_novelty(novelty: dict) -> list[str]:
    overlaps, distances = ("max_iou_to_zoo", "zoo_to_zoo_iou"), ("nearest_l2", "zoo_nearest_l2")
    faults = _missing("novelty", novelty, (*overlaps, *distances, "points"))
    for key in (*overlaps, *distances):
        if key in novelty:
            faults += _check_summary(f"novelty.{key}", novelty[key], fractions=key in overlaps)
    if "spread" in novelty:
        faults += _check_summaries("novelty.spread", novelty["spread"], fractions=False)
    points = novelty.get("points")
    if not isinstance(points, list) or not points:
        return [*faults, "novelty.points: empty"]
    for i, point in enumerate(points):
        where = f"novelty.points[{i}]"
        missing = _missing(where, point, ("kind", "accuracy", "max_iou", "nearest_l2"))
        faults += missing
        if not missing:
            bad = [k for k in ("accuracy", "max_iou") if not _fraction(point[k])]
            faults += [f"{where}.{k}: {point[k]!r} is not in [0, 1]" for k in bad]
            faults += [f"{where}.nearest_l2: {point['nearest_l2']!r}"] * _negative(point["nearest_l2"])
            if point["kind"] not in POINT_KINDS:
                faults.append(f"{where}.kind: {point['kind']!r}; allowed: {', '.join(POINT_KINDS)}")
    return faults


def _check_likelihood(results: dict) -> list[str]:
    """Tasks told by likelihood: there if asked for and possible, with shares that are fractions."""
    study, where = results.get("likelihood"), "likelihood"
    if study is None:
        config, zoo = _object(results, "config"), _object(results, "zoo")
        condition = _object(config, "sample").get("condition")
        told = isinstance(condition, (list, tuple)) and any(n != "id" for n in condition)
        several = _several(_object(_object(results, "splits"), "seen").get("num_tasks"))
        possible = told and several and any(zoo.get(s) for s in ("validation", "interp", "unseen"))
        return [f"{where}: missing"] if possible and _object(config, "eval").get("likelihood_networks") else []
    faults = _missing(where, study, ("splits", "by_rank", "pairs"))
    if faults:
        return faults
    faults = [f"{where}.{k}: empty" for k in ("by_rank", "pairs") if not isinstance(study[k], list) or not study[k]]
    splits, rows = _object(study, "splits"), [] if faults else study["by_rank"]
    for name, entry in splits.items():
        faults += _missing(f"{where}.splits.{name}", entry, ("log_density", "log_density_raw", "top_1"))
        faults += _check_summaries(f"{where}.splits.{name}.top_1", _object(splits, name).get("top_1"))
    parts = {f"{where}.by_rank[{i}]": row for i, row in enumerate(rows)}
    parts |= {f"{where}.splits.{n}": e for n, e in splits.items() if "share" in _object(splits, n)}
    for name, entry in parts.items():
        missing = _missing(name, entry, ("share", "difference"))
        faults += missing or _check_summaries(f"{name}.share", entry["share"])
    return faults


def _check_score_likeness(results: dict) -> list[str]:
    """Likeness of score: every noise level that was asked for, with errors that are not negative."""
    levels, rows = _object(_object(results, "config"), "eval").get("score_levels"), results.get("score_likeness")
    levels = list(levels) if isinstance(levels, (list, tuple)) else []
    if not levels and rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        return ["score_likeness: missing, or no list of noise levels"]
    if [r.get("sigma") for r in rows] != levels:
        return [f"score_likeness: other levels than eval.score_levels, {levels}"]
    faults = []
    for i, row in enumerate(rows):
        where = f"score_likeness[{i}].cases"
        faults += _missing(where, row.get("cases"), ("seen",))
        for name, case in _object(row, "cases").items():
            faults += _missing(f"{where}.{name}", case, ("empirical", "gaussian", "largest_weight"))
            for reference in ("empirical", "gaussian"):
                error = _object(case, reference).get("relative_error") if isinstance(case, dict) else None
                faults += _check_summary(f"{where}.{name}.{reference}.relative_error", error, fractions=False)
    return faults


def _check_summaries(
    where: str, summaries: Any, required: Sequence[str] = (), fractions: bool = True
) -> list[str]:
    if not isinstance(summaries, dict) or (not summaries and not required):
        return [f"{where}: no summary in it"]
    faults = _missing(where, summaries, required)
    return faults + [
        f for name, s in summaries.items() for f in _check_summary(f"{where}.{name}", s, fractions)
    ]


def _check_summary(where: str, s: Any, fractions: bool = True) -> list[str]:
    faults = _missing(where, s, SUMMARY_KEYS)
    if faults:
        return faults
    for key in ("mean", "min", "max"):
        if fractions and not _fraction(s[key]):
            faults.append(f"{where}.{key}: {s[key]!r} is not in [0, 1]")
        elif _negative(s[key]):
            faults.append(f"{where}.{key}: {s[key]!r} is negative")
    if _negative(s["sem"]):
        faults.append(f"{where}.sem: {s['sem']!r}; allowed: 0 or more")
    if not isinstance(s["n"], int) or s["n"] < 1:
        faults.append(f"{where}.n: {s['n']!r}; allowed: at least 1")
    if not faults and not s["min"] - _ROUNDING <= s["mean"] <= s["max"] + _ROUNDING:
        faults.append(f"{where}.mean: {s['mean']!r} is not between min {s['min']!r} and max {s['max']!r}")
    return faults


def _missing(where: str, found: Any, wanted: Sequence[str]) -> list[str]:
    if not isinstance(found, dict):
        return [f"{where}: not an object"]
    return [f"{where}.{key}: missing" for key in wanted if key not in found]


def _object(parent: dict, key: str) -> dict:
    """The object at `key`, empty where there is none."""
    return parent[key] if isinstance(parent.get(key), dict) else {}


def _several(count: Any) -> bool:
    return _number(count) and count > 1


def _fraction(value: Any) -> bool:
    return _number(value) and -_ROUNDING <= value <= 1 + _ROUNDING


def _negative(value: Any) -> bool:
    return not (_number(value) and value >= 0)


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


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
