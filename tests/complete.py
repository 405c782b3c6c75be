"""What is missing or wrong in a results.json: the contract of docs/design.md, for tests of whole runs."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

from pdiff.config import rivals
from pdiff.config.fields import DESCRIBING, RIVALS
from pdiff.errors import PdiffError
from pdiff.results import CONTROLS, OF_TEXTS, SPLITS, leaves

SUMMARY_KEYS = ("mean", "sem", "min", "max", "n")
CALIBRATED = ("generated_ensemble", "generated_single", "finetuned_ensemble", "finetuned_single")
FIT_SHARES = ("high", "inside", "precision", "coverage", "total_variation")  # of networks for a vague description
ROUNDING = 1e-6  # a float32 mean may leave its range by this much
POINT_KINDS = ("generated", "zoo", "noise")
_OBJECTS = ("config", "target", "selection", "timing")
_BY_ANSWERS, _BY_WEIGHTS = ("splits", "novelty", "spread"), ("weight_space",)  # a run has the one or the other
_TOP = ("seed", "commit", "command", "created", *_OBJECTS)
_TIMES = ("zoo_s", "train_s", "sample_s_per_100", "evaluate_s", "peak_rss_mb", "total_s")


def check(results: dict, controls: Sequence[str] | None = None) -> list[str]:
    """What is missing or wrong in `results`, a line for each fault; empty when they are complete.

    Args:
      controls: the controls that every split must have. By default those of `expected_controls`.
    """
    by_weights = "weight_space" in results
    objects = (*_OBJECTS, *(_BY_WEIGHTS if by_weights else _BY_ANSWERS))
    faults = [f"{key}: missing" for key in dict.fromkeys((*_TOP, *objects)) if key not in results]
    measured = {k: v for k, v in results.items() if k != "config"}  # a config may hold what it likes
    for where, value in leaves(measured):
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
    of_texts = object_at(config, "tasks").get("family") == "text_rules"
    applies |= {name: of_texts for name in OF_TEXTS} | {"joined_head": of_texts and split != "unheard"}
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
    seen = object_at(object_at(found, "splits"), "seen")
    faults = lacking(where, found, ("spaces", "units", "splits", "novelty"))
    faults += lacking(f"{where}.splits", object_at(found, "splits"), ["seen"])
    for split, entry in object_at(found, "splits").items():
        for kind, name in (("generated", object_at(results, "selection").get("sampler")), ("controls", "soup")):
            for space in found.get("spaces", []):
                measured = object_at(object_at(object_at(entry, kind), str(name)), str(space))
                place = f"{where}.splits.{split}.{kind}.{name}.{space}.distance"
                faults += check_summary(place, measured.get("distance"), fractions=False)
        if split != "seen" and _several(seen.get("num_tasks")):
            faults += _check_merges(f"{where}.splits.{split}.controls", object_at(entry, "controls"), found)
    return faults


def _check_merges(where: str, controls: dict, found: dict) -> list[str]:
    """Merges of seen networks, beside held-out tasks: in the first space, of adapters exactly and at their rank."""
    space = (found.get("spaces") or [None])[0]
    adapters, dense = space == "updates", object_at(object_at(found, "merging"), "densities")
    wanted = ["lerp", "slerp", *dense, *(["mean"] if adapters else [])]
    names = [f"merged_{n}" for n in wanted]
    names += ["merged_svd" if n == "mean" else f"merged_{n}_svd" for n in wanted] if adapters else []
    faults = lacking(where, controls, names) + lacking("weight_space.merging", found.get("merging"), ("between",))
    for name in (n for n in names if n in controls):
        measured = object_at(controls[name], str(space)).get("distance")
        faults += check_summary(f"{where}.{name}.{space}.distance", measured, fractions=False)
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
    for key in ("held_out_wording", "by_condition"):
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


def check_spread(spread: dict) -> list[str]:
    """How much networks of one task differ: those drawn for seen tasks at least, zoo networks where a task has two."""
    faults = lacking("spread", spread, ("zoo", "generated"))
    faults += [] if faults else lacking("spread.generated", spread["generated"], ("seen",))
    for kind in ("zoo", "generated"):
        for split, entry in object_at(spread, kind).items():
            where = f"spread.{kind}.{split}"
            missing = lacking(where, entry, ("accuracy", "spread", "disagreement"))
            faults += missing
            if not missing:
                faults += check_summaries(where, {k: v for k, v in entry.items() if k != "spread"})
                faults += check_summary(f"{where}.spread", entry["spread"], fractions=False)
    return faults


def check_calibration(results: dict) -> list[str]:
    """What ensembles are worth: there if asked for, in every split for drawn and for fine-tuned networks."""
    asked = object_at(object_at(results, "config"), "eval").get("calibration_samples")
    if "calibration" not in results:
        return ["calibration: missing"] if asked else []
    faults = lacking("calibration", results["calibration"], ("seen",))
    for split, entry in object_at(results, "calibration").items():
        faults += lacking(f"calibration.{split}", entry, CALIBRATED)
        for kind in (k for k in CALIBRATED if isinstance(entry, dict) and k in entry):
            where = f"calibration.{split}.{kind}"
            missing = lacking(where, entry[kind], ("networks", "error", "log_likelihood"))
            faults += missing or [
                *check_summary(f"{where}.error", entry[kind]["error"]),
                *check_summary(f"{where}.log_likelihood", entry[kind]["log_likelihood"], fractions=None),
            ]
    return faults


def check_vague(found: Any) -> list[str]:
    """What is drawn for vague descriptions. Whether a family has any, results do not tell."""
    faults = [] if isinstance(found, list) else ["vague: not a list"]
    for i, entry in enumerate(() if faults else found):
        where = f"vague[{i}]"
        missing = lacking(where, entry, ("prompt", "said", "tasks", "samples", "networks"))
        faults += missing or lacking(f"{where}.networks", entry["networks"], ("generated", "task_of_set"))
        for name, fit in () if missing else object_at(entry, "networks").items():
            place = f"{where}.networks.{name}"
            missing = lacking(place, fit, ("best", "at_suited", *FIT_SHARES, "bins", "bins_hit", "share", "by_argmax"))
            faults += missing
            if not missing:
                faults += [f for k in ("best", "at_suited") for f in check_summary(f"{place}.{k}", fit[k])]
                faults += [f"{place}.{k}: {fit[k]!r} is not in [0, 1]" for k in FIT_SHARES if not is_fraction(fit[k])]
                share, hit = fit["share"], fit["bins_hit"]
                if not isinstance(share, list) or len(share) != fit["bins"] or not all(map(is_fraction, share)):
                    faults.append(f"{place}.share: {share!r}; allowed: a fraction for each of {fit['bins']!r} bins")
                elif not is_number(hit) or not 1 <= hit <= len(share):
                    faults.append(f"{place}.bins_hit: {hit!r}; allowed: from 1 to the number of bins")
    return faults


def check_adaptation(results: dict) -> list[str]:
    """Networks from a few labelled images: there if asked for and possible, with a recipe for what was fine-tuned."""
    if "adaptation" not in results:
        asked = object_at(object_at(results, "config"), "eval").get("adapt_tasks")
        held_out = not {"interp", "unseen"}.isdisjoint(object_at(results, "splits"))
        possible = held_out and "many_steps" in object_at(results, "selection")
        return ["adaptation: missing"] if asked and possible else []
    found, where = object_at(results, "adaptation"), "adaptation"
    faults = lacking(where, results["adaptation"], ("recipes", "splits"))
    for split, entries in object_at(found, "splits").items():
        if not isinstance(entries, list) or not entries:
            faults.append(f"{where}.splits.{split}: empty")
            continue
        for i, entry in enumerate(entries):
            place = f"{where}.splits.{split}[{i}]"
            missing = lacking(place, entry, ("shots", "accuracy", *(("images", "ahead") if i else ())))
            faults += missing or check_summaries(f"{place}.accuracy", entry["accuracy"], ("prior", "base"))
            if i and not missing:
                faults += check_summaries(f"{place}.ahead", entry["ahead"], ("base",), fractions=None)
                faults += lacking(f"{where}.recipes", found.get("recipes"), (str(entry["shots"]),))
    for shots, rows in object_at(found, "recipes").items():
        faults += lacking(f"{where}.recipes.{shots}", rows, ("prior", "base"))
        for name, recipe in object_at(found["recipes"], shots).items():
            place = f"{where}.recipes.{shots}.{name}"
            faults += lacking(place, recipe, ("space", "learning_rate", "steps", "validation"))
    return faults


def check_summaries(
    where: str, summaries: Any, required: Sequence[str] = (), fractions: bool | None = True
) -> list[str]:
    """Faults of summaries by name, of which some are required."""
    if not isinstance(summaries, dict) or (not summaries and not required):
        return [f"{where}: no summary in it"]
    faults = lacking(where, summaries, required)
    return faults + [f for name, s in summaries.items() for f in check_summary(f"{where}.{name}", s, fractions)]


def check_summary(where: str, s: Any, fractions: bool | None = True) -> list[str]:
    """Faults of a summary. `fractions` True: of numbers from 0 to 1; False: of 0 or more; None: of any numbers."""
    faults = lacking(where, s, SUMMARY_KEYS)
    if faults:
        return faults
    for key in ("mean", "min", "max"):
        if fractions and not is_fraction(s[key]):
            faults.append(f"{where}.{key}: {s[key]!r} is not in [0, 1]")
        elif is_negative(s[key]) and (fractions is not None or not is_number(s[key])):
            faults.append(f"{where}.{key}: {s[key]!r} is negative")
    if is_negative(s["sem"]):
        faults.append(f"{where}.sem: {s['sem']!r}; allowed: 0 or more")
    if not isinstance(s["n"], int) or s["n"] < 1:
        faults.append(f"{where}.n: {s['n']!r}; allowed: at least 1")
    if not faults and not s["min"] - ROUNDING <= s["mean"] <= s["max"] + ROUNDING:
        faults.append(f"{where}.mean: {s['mean']!r} is not between min {s['min']!r} and max {s['max']!r}")
    return faults


def lacking(where: str, found: Any, wanted: Sequence[str]) -> list[str]:
    """A fault for each key that is not there."""
    if not isinstance(found, dict):
        return [f"{where}: not an object"]
    return [f"{where}.{key}: missing" for key in wanted if key not in found]


def object_at(parent: dict, key: str) -> dict:
    """The object at `key`, empty where there is none."""
    return parent[key] if isinstance(parent.get(key), dict) else {}


def is_fraction(value: Any) -> bool:
    """Is it a number from 0 to 1?"""
    return is_number(value) and -ROUNDING <= value <= 1 + ROUNDING


def is_negative(value: Any) -> bool:
    """Is it anything but a number of 0 or more?"""
    return not (is_number(value) and value >= 0)


def is_number(value: Any) -> bool:
    """Is it a finite number?"""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
