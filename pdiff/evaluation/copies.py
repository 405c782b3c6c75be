"""Generated networks against the zoo of their run: the audit of a finished one, and what all evaluations have of it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, PyTree

from pdiff.controls import SeenZoo
from pdiff.controls.neighbours import Noise
from pdiff.evaluation.audit import MOST_JUDGED, NOISE_CURVE, Table, against, audit, flat
from pdiff.evaluation.bench import Bench
from pdiff.measures import novelty
from pdiff.measures.novelty import Compared
from pdiff.results import summary
from pdiff.system.evenly import evenly
from pdiff.tasks.base import Task
from pdiff.weights import codec, matching, permutations
from pdiff.zoo.store import Networks

MOST_TASKS = 32  # tasks that are looked at, evenly chosen


def seen_zoo(bench: Bench, seen: Networks) -> SeenZoo:
    """The networks that a generator learned from, as raw tokens."""
    spec = bench.generator.spec
    base = np.asarray(codec.encode(spec, bench.generator.base))
    return SeenZoo(bench.generator.family, bench.encode(seen.params), base, seen.task, seen.seed)


def comparisons(zoo: SeenZoo, tasks: Sequence[Task], most: int) -> dict[int, Compared]:
    """For each seen task the at most `most` zoo networks that its networks are compared with, nearest tasks first."""
    seen = zoo.family.split("seen")
    distance = zoo.family.distance(zoo.family.factors(tasks), zoo.family.factors(seen))
    ids = np.array([t.id for t in seen])
    distance[np.array([t.id for t in tasks])[:, None] == ids] = -1  # itself first
    nearest = ids[np.argsort(distance, 1, kind="stable")]
    return {t.id: novelty.compared(zoo.task, zoo.seed, n, most) for t, n in zip(tasks, nearest, strict=True)}


def audit_run(bench: Bench, zoo: SeenZoo, sampler: str) -> dict:
    """`audit` of what a trained generator draws for its seen tasks: the very networks that evaluation scores."""
    tasks = bench.tasks("seen")
    tokens = bench.encode(bench.generate(sampler, tasks, f"evaluate/seen/{sampler}"))
    tokens = tokens.reshape(len(tasks), -1, *tokens.shape[1:])
    audited = _audited(bench)
    return _audit_tokens(bench, zoo, {t.id: tokens[tasks.index(t)] for t in audited})


def audit_rival(bench: Bench, zoo: SeenZoo, rival) -> dict:
    """The same of what a rival draws for these tasks."""
    tasks, random = _audited(bench), np.random.default_rng(bench.config.seed)
    tokens = np.asarray(rival.sample(tasks, bench.config.eval.samples_per_task, random))
    return _audit_tokens(bench, zoo, {t.id: v for t, v in zip(tasks, tokens, strict=True)})


def _audited(bench: Bench) -> list[Task]:
    tasks = bench.tasks("seen")
    return [tasks[i] for i in evenly(len(tasks), MOST_TASKS)]


def _audit_tokens(bench: Bench, zoo: SeenZoo, drawn: dict[int, Float[np.ndarray, "count tokens dim"]]) -> dict:
    symmetry, config, spec = bench.generator.target.symmetry(), bench.config, bench.generator.spec

    def match(reference, part):
        order = matching.weight_matching(symmetry, reference, part).permutations
        return permutations.apply_permutation(symmetry, order, part)

    def ask(tokens, task):
        return bench.score["test"].answers(bench.decode_tokens(tokens), np.full(len(tokens), task))

    near = comparisons(zoo, [bench.generator.family.tasks[t] for t in drawn], config.eval.novelty_networks)
    return audit(drawn, zoo.tokens, near, ask, spec, seed=config.seed, match=match if symmetry else None)


def novelty_in_results(bench: Bench, zoo: SeenZoo, generated: dict[str, PyTree], sampler: str, noise: Noise) -> dict:
    """The part `novelty` of results.json: overlaps and distances of seen tasks' networks, and of the zoo's own.

    Args:
      generated: networks of all of `bench`'s seen tasks by sampler; those of `sampler` are compared.
    """
    tasks, count, spec = bench.tasks("seen"), bench.config.eval.samples_per_task, bench.generator.spec
    audited, random = _audited(bench), np.random.default_rng(bench.config.seed)
    tokens = {n: bench.encode(v).reshape(len(tasks), count, -1) for n, v in generated.items()}
    scaled = {f"noise {s}": dataclasses.replace(noise, scale=s) for s in NOISE_CURVE}
    sets = {"generated": tokens[sampler][[tasks.index(t) for t in audited]]}
    sets |= {n: control.sample(audited, count, random) for n, control in ({"noise": noise} | scaled).items()}
    near, weights = comparisons(zoo, audited, bench.config.eval.novelty_networks), flat(zoo.tokens, spec)
    by_task = []
    for i, task in enumerate(audited):
        networks = {n: flat(v[i].reshape(count, *spec.mask.shape), spec) for n, v in sets.items()}
        by_task.append(_against_zoo(bench, task, networks, weights, near[task.id]))
    tables = {n: Table.of([t.id for t in audited], [measured[n] for measured in by_task]) for n in by_task[0]}
    spread = {n: summary(novelty.spread(v)) for n, v in tokens.items() if count > 1}
    of_task = [weights[zoo.rows_of(t.id)][None] for t in audited]
    if min(v.shape[1] for v in of_task) > 1:
        spread["zoo"] = summary(np.concatenate([novelty.spread(v) for v in of_task]))
    curve = [(control.scale, tables[n]) for n, control in scaled.items()]
    points = [(n, i) for n in ("generated", "noise", "zoo") for i in range(len(tables[n].task))]
    return {
        "max_iou_to_zoo": tables["generated"].summary("max_iou"),
        "zoo_to_zoo_iou": tables["zoo"].summary("max_iou"),
        "nearest_l2": tables["generated"].summary("nearest_l2"),
        "zoo_nearest_l2": tables["zoo"].summary("nearest_l2"),
        "spread": spread,
        "noise_curve": [{"scale": s} | {n: t.summary(n) for n in ("accuracy", "max_iou")} for s, t in curve],
        "points": [{"kind": n} | {k: float(v[i]) for k, v in tables[n].columns.items()} for n, i in points],
    }


def _against_zoo(
    bench: Bench,
    task: Task,
    networks: dict[str, Float[np.ndarray, "count params"]],
    weights: Float[np.ndarray, "zoo params"],
    compared: Compared,
) -> dict[str, dict[str, Float[np.ndarray, " nets"]]]:
    """`against` of sets of one task's networks by name, and under `zoo` of the zoo's own; all are scored at once."""
    zoo, judged = weights[compared.rows], compared.references(MOST_JUDGED)
    every = np.concatenate([zoo, *networks.values()]).reshape(-1, *bench.generator.spec.mask.shape)
    right = bench.score["test"].right(bench.decode_tokens(every), np.full(len(every), task.id))
    zoo_right, *rights = np.split(right, np.cumsum([len(zoo), *map(len, networks.values())])[:-1])
    measured = {}
    for (name, v), own_right in zip(networks.items(), rights, strict=True):
        distance = novelty.l2_distances(v, zoo)
        measured[name] = against(own_right, distance, zoo_right, np.ones_like(distance, bool))
    distance = novelty.l2_distances(zoo[judged], zoo)
    measured["zoo"] = against(zoo_right[judged], distance, zoo_right, compared.others(judged))
    return measured
