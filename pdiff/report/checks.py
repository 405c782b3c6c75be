"""The parts of `results.check`: what is missing or wrong in summaries, and in what the studies measure."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

SUMMARY_KEYS = ("mean", "sem", "min", "max", "n")
CALIBRATED = ("generated_ensemble", "generated_single", "finetuned_ensemble", "finetuned_single")
FIT_SHARES = ("high", "inside", "precision", "coverage", "total_variation")  # of networks for a vague description
ROUNDING = 1e-6  # a float32 mean may leave its range by this much


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
    return faults + [
        f for name, s in summaries.items() for f in check_summary(f"{where}.{name}", s, fractions)
    ]


def check_summary(where: str, s: Any, fractions: bool | None = True) -> list[str]:
    """Faults of a summary of fractions; where `fractions` is False they may be above 1, where it is None below 0 too."""
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
