"""The contents of the page's tables and lists: from results.json and closeup.json to what the template writes."""

import json
import shlex
from typing import Any

from pdiff import config as config_lib
from pdiff.config.fields import defaults
from pdiff.report import plots, rows, scatter

NEEDED = ("num_tasks", "finetuned", "base", "generated", "controls", "per_task")  # of a split, to be compared
MOST_LAGGING, MOST_CONFUSIONS = 6, 4
PHASES = (("zoo_s", "zoo"), ("train_s", "training"), ("rivals_s", "rivals"), ("evaluate_s", "evaluation"))


def with_accuracies(results: dict) -> dict:
    """`results` with only the splits whose networks were compared by accuracy."""
    splits = {s: e for s, e in results.get("splits", {}).items() if all(k in e for k in NEEDED)}
    return results | {"splits": splits}


def compared(splits: list[dict]) -> list[rows.Row]:
    """A row for each thing compared on any of `splits` (of `rows.splits`), a column for each, sorted by kind."""
    order = ("finetuned", "chosen", "generated", "control", "base").index
    return sorted(rows.side_by_side(s["rows"] for s in splits), key=lambda r: order(r.kind))


def per_task(results: dict) -> list[dict]:
    """Every task with its split."""
    return [{"split": name, **task} for name, e in plots.ordered_splits(results) for task in e["per_task"]]


def lagging(results: dict) -> list[dict]:
    """The tasks whose generated networks are farthest below fine-tuned ones, farthest first."""
    chosen = results["selection"]["sampler"]
    tasks = [t | {"generated": t["generated"][chosen]} for t in per_task(results)]
    tasks = [t | {"gap": t["finetuned"] - t["generated"]} for t in tasks]
    return sorted((t for t in tasks if t["gap"] > 0), key=lambda t: -t["gap"])[:MOST_LAGGING]


def novelty(study: dict) -> list[dict]:
    """Rows of the novelty table: a distance, for generated networks and for the zoo's own."""
    measures = [
        ("highest overlap (IoU) of wrong predictions with a zoo network", "max_iou_to_zoo", "zoo_to_zoo_iou"),
        ("L2 distance to the nearest zoo network", "nearest_l2", "zoo_nearest_l2"),
    ]
    table = [{"title": title, "generated": study[a], "zoo": study[b]} for title, a, b in measures if a in study]
    spread = study.get("spread", {})
    for name in (n for n in spread if n != "zoo"):
        title = f"L2 distance between two networks of one task, {plots.label(name)}"
        table.append({"title": title, "generated": spread[name], "zoo": spread.get("zoo")})
    return table


def spread(study: dict) -> list[dict]:
    """Rows of the table of how much networks of one task differ: a split, with both summaries or None."""
    zoo, generated = (study.get(k, {}) for k in ("zoo", "generated"))
    return [{"split": s, "zoo": zoo.get(s), "generated": generated.get(s)} for s, _ in plots.in_order(zoo | generated)]


def calibration(study: dict) -> list[tuple[str, list[str]]]:
    """Rows of the table of ensembles: a split, and texts."""
    return [
        (split, [words, kind, str(e["networks"]), rows.pm(e["error"]), rows.pm(e["log_likelihood"])])
        for split, entry in plots.in_order(study)
        for key, words in (("generated", "generated"), ("finetuned", "fine-tuned"))
        for kind in ("ensemble", "single")
        for e in [entry[f"{key}_{kind}"]]
    ]


def rivals(results: dict, splits: list[dict]) -> list[dict]:
    """The generator and its rivals that were trained on the same zoo, with their accuracy on each of `splits`."""
    names = results.get("rivals") or {}
    if not names or not splits:
        return []
    chosen, costs = plots.label(results["selection"]["sampler"]), rows.costs(results)
    cells = {r.title: r.cells for r in compared(splits)}
    titles = {chosen: f"this generator, {chosen}"} | {plots.label(n): plots.label(n) for n in names}
    missing = [None] * len(splits)
    return [{"title": title, "cells": cells.get(key, missing)} | costs[key] for key, title in titles.items()]


def averaging(study: dict) -> list[dict]:
    """Rows of the comparison of averaged and raw parameters."""
    return [
        {"split": split, "sampler": plots.label(name), **pair, "gain": pair["averaged"]["mean"] - pair["raw"]["mean"]}
        for split, by_sampler in plots.in_order(study)
        for name, pair in by_sampler.items()
    ]


def confusions(study: dict) -> list[dict]:
    """The answers that generated networks give too often, by split: (label, answer) and both shares."""
    table = []
    for split, counts in plots.in_order(study):
        ours, theirs = (scatter.shares_of(counts[k]) for k in ("generated", "finetuned"))
        pairs = [(i, j) for i in range(len(ours)) for j in range(len(ours)) if i != j and ours[i, j] > theirs[i, j]]
        for i, j in sorted(pairs, key=lambda p: theirs[p] - ours[p])[:MOST_CONFUSIONS]:
            table.append({"split": split, "label": i, "answer": j, "generated": ours[i, j], "finetuned": theirs[i, j]})
    return table


def phases(timing: dict) -> list[dict]:
    """The parts of a run that took time, with their shares of it."""
    seconds = [(words, timing[k]) for k, words in PHASES if timing.get(k, 0) > 0]
    total = sum(s for _, s in seconds)
    return [{"name": n, "seconds": s, "share": s / total} for n, s in seconds]


def timings(timing: dict, samplers: list[str], duration) -> list[tuple[str, str]]:
    """Lines about time and memory, beside `phases`; `duration` writes seconds."""
    table = [("all of these", duration(timing["total_s"]))] if "total_s" in timing else []
    by_sampler = timing.get("sample_s_per_100_by_sampler", {})
    ordered = [n for n in samplers if n in by_sampler]
    table += [(f"sampling 100 networks, {plots.label(n)}", duration(by_sampler[n])) for n in ordered]
    if not ordered and "sample_s_per_100" in timing:
        table.append(("sampling 100 networks", duration(timing["sample_s_per_100"])))
    return table + ([("peak memory", f"{timing['peak_rss_mb']:,.0f} MB")] if "peak_rss_mb" in timing else [])


def flat_config(config: Any, where: str = "") -> dict[str, str]:
    """Field: value as JSON, of a nested config, as the command line would name the fields."""
    if isinstance(config, dict):
        parts = [flat_config(config[key], f"{where}.{key}" if where else key) for key in sorted(config)]
        return {k: v for part in parts for k, v in part.items()}
    return {where: json.dumps(config, ensure_ascii=False)}


def changed(config: dict) -> list[dict]:
    """The fields that are not at their defaults, with both values; None where one side lacks the field."""
    here, default = flat_config(config), flat_config(json.loads(config_lib.to_json(defaults())))
    names = sorted(here.keys() | default.keys())
    return [
        {"field": n, "here": here.get(n), "default": default.get(n)} for n in names if here.get(n) != default.get(n)
    ]


def commands(results: dict, closeup: dict, workdir: str) -> list[tuple[str, str]]:
    """What to type: to run the same again, and to go on from here."""
    here = f"python -m pdiff.main --workdir={shlex.quote(workdir)}"
    table = []
    if results.get("command"):
        table.append(("what made it; with another --workdir, all of it anew", results["command"]))
    tasks = [t for _, e in plots.ordered_splits(results) for t in e["per_task"]]
    request = f"--task={shlex.quote(tasks[-1]['task'])}" if tasks else None
    if closeup.get("prompt"):
        request = f"--prompt={shlex.quote(closeup['prompt'])}"
    if request:
        table.append(("networks from it", f"{here} --mode=sample {request} --num_samples=8 --out=nets.safetensors"))
    return [
        *table,
        ("are they copies? writes audit.html", f"{here} --mode=audit"),
        ("score again", f"{here} --mode=evaluate"),
        ("this page again", f"{here} --mode=report"),
        ("is every file whole?", f"{here} --mode=check"),
        ("beside other runs", f"python -m pdiff.main --mode=compare --workdirs={shlex.quote(workdir)},OTHER"),
    ]


def facts(results: dict, score) -> list[tuple[str, str]]:
    """What was run, in a few lines; the optional ones only where they were recorded. `score` writes an accuracy."""
    target = results["target"]
    table = [("target network", f"{target['name']}, {target['num_params']:,} parameters")]
    if "model" in results:
        table.append(("generator", f"{rows.num_params(results):,} parameters"))
    if "mean_params" in results.get("model", {}):
        m = results["model"]
        table.append(("of these, the mean network", f"{m['mean_params']:,}"))
        table.append(("what the prior learned from", f"{m['refined']:,} networks in {m['components']} components"))
    if "zoo" in results:
        table.append(("networks in the zoo", ", ".join(f"{plots.label(k)} {n:,}" for k, n in results["zoo"].items())))
    if "base_accuracy" in results:
        table.append(("base on its own task", score(results["base_accuracy"])))
    return [
        *table,
        ("seed", str(results["seed"])),
        ("made", results["created"]),
        ("commit", results["commit"]),
    ]


def hints(results: dict, splits: list[dict], closeup: dict, audited: bool) -> list[str]:
    """Where to look next, as sentences, from what these numbers say."""
    sentences, where = [], {}
    for s in splits:
        for name in s["rivals"]:
            where.setdefault(name, []).append(s["name"])
    for name, on in where.items():
        where_not = f"is not shown on {', '.join(on)} tasks: there {name} is not clearly below."
        sentences.append(f"What the generator adds over {name} {where_not}")
    if splits and (worst := lagging(results)):
        sentences.append(
            f"{worst[0]['task']} ({worst[0]['split']}) lags most behind fine-tuning, {worst[0]['generated']:.3f} "
            f"against {worst[0]['finetuned']:.3f}; see Every task."
        )
    raw_better = [r for r in averaging(closeup.get("averaging", {})) if r["split"] == "validation" and r["gain"] < 0]
    if raw_better:
        sentences.append(
            "On validation tasks raw parameters do better than their average: train.ema_decay may be too high "
            "for so few steps."
        )
    if not audited:
        sentences.append(
            "Whether generated networks are copies, noised copies or averages is answered by --mode=audit."
        )
    else:
        sentences.append("audit.html, beside this page, says whether generated networks are copies.")
    return sentences
