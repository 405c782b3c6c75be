"""Generated networks against the zoo of their run: the audit of a finished one, and what all evaluations have of it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, PyTree

from pdiff.controls import SeenZoo
from pdiff.controls.neighbours import Noise
from pdiff.evaluation.audit import MOST_JUDGED, NOISE_CURVE, against, audit, flat
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
    distance[np.array([t.id for t in tasks])[:, None] == np.array([t.id for t in seen])] = -1  # itself first
    nearest = np.array([t.id for t in seen])[np.argsort(distance, 1, kind="stable")]
    return {t.id: novelty.compared(zoo.task, zoo.seed, n, most) for t, n in zip(tasks, nearest, strict=True)}


def audit_run(bench: Bench, zoo: SeenZoo, sampler: str) -> dict:
    """`audit` of what a trained generator draws for its seen tasks: the very networks that evaluation scores."""
    tasks, count = bench.tasks("seen"), bench.config.eval.samples_per_task
    made = bench.encode(bench.generate(sampler, tasks, f"evaluate/seen/{sampler}"))
    made = dict(zip((t.id for t in tasks), made.reshape(len(tasks), count, *made.shape[1:]), strict=True))
    return _audit_tokens(bench, zoo, {t.id: made[t.id] for t in _audited(bench)})


def audit_baseline(bench: Bench, zoo: SeenZoo, baseline) -> dict:
    """The same of what a baseline draws for these tasks."""
    tasks, random = _audited(bench), np.random.default_rng(bench.config.seed)
    made = np.asarray(baseline.sample(tasks, bench.config.eval.samples_per_task, random))
    return _audit_tokens(bench, zoo, {t.id: own for t, own in zip(tasks, made, strict=True)})


def _audited(bench: Bench) -> list[Task]:
    return [bench.tasks("seen")[i] for i in evenly(len(bench.tasks("seen")), MOST_TASKS)]


def _audit_tokens(bench: Bench, zoo: SeenZoo, made: dict[int, Float[np.ndarray, "count tokens dim"]]) -> dict:
    symmetry = bench.generator.target.symmetry()

    def match(reference, part):
        order = matching.weight_matching(symmetry, reference, part).permutations
        return permutations.apply_permutation(symmetry, order, part)

    def ask(tokens, task):
        return bench.score["test"].answers(bench.decode_tokens(tokens), np.full(len(tokens), task))

    near = comparisons(zoo, [bench.generator.family.tasks[t] for t in made], bench.config.eval.novelty_networks)
    return audit(
        made, zoo.tokens, near, ask, bench.generator.spec,
        seed=bench.config.seed, match=match if symmetry else None,
    )  # fmt: skip


def novelty_in_results(bench: Bench, zoo: SeenZoo, made: dict[str, PyTree], sampler: str, noise: Noise) -> dict:
    """The part `novelty` of results.json: overlaps and distances of seen tasks' networks, and of the zoo's own.

    Args:
      made: networks of all of `bench`'s seen tasks by sampler; those of `sampler` are compared.
    """
    tasks, count = bench.tasks("seen"), bench.config.eval.samples_per_task
    kept = _audited(bench)
    chosen = np.array([tasks.index(t) for t in kept])
    near = comparisons(zoo, kept, bench.config.eval.novelty_networks)
    score, random = bench.score["test"], np.random.default_rng(bench.config.seed)
    spec = bench.generator.spec
    weights = flat(zoo.tokens, spec)
    tokens = {n: bench.encode(m).reshape(len(tasks), count, -1) for n, m in made.items()}
    sets = {"generated": tokens[sampler][chosen], "noise": noise.sample(kept, count, random)}
    for scale in NOISE_CURVE:
        sets["noise", scale] = dataclasses.replace(noise, scale=scale).sample(kept, count, random)
    measured: dict = {kind: [] for kind in (*sets, "zoo")}
    for i, task in enumerate(kept):
        rows, own = near[task.id].rows, near[task.id].references(MOST_JUDGED)
        flats = {kind: flat(v[i].reshape(count, *spec.mask.shape), spec) for kind, v in sets.items()}
        asked = np.concatenate([weights[rows], *flats.values()]).reshape(-1, *spec.mask.shape)
        right = score.right(bench.decode_tokens(asked), np.full(len(asked), task.id))
        zoo_right, ends = right[: len(rows)], len(rows) + count * np.arange(1, len(flats) + 1)
        for (kind, v), end in zip(flats.items(), ends, strict=True):
            distance = novelty.l2_distances(v, weights[rows])
            everyone = np.ones_like(distance, bool)
            measured[kind].append(against(right[end - count : end], distance, zoo_right, everyone))
        distance = novelty.l2_distances(weights[rows[own]], weights[rows])
        measured["zoo"].append(against(zoo_right[own], distance, zoo_right, near[task.id].others(own)))
    ids = {k: np.concatenate([np.full(len(m["accuracy"]), t.id) for m, t in zip(ms, kept, strict=True)])
           for k, ms in measured.items()}  # fmt: skip
    joined = {k: {n: np.concatenate([m[n] for m in ms]) for n in ms[0]} for k, ms in measured.items()}
    found = {k: {n: summary(v, ids[k]) for n, v in m.items()} for k, m in joined.items()}
    spread = {n: summary(novelty.spread(t)) for n, t in tokens.items() if count > 1}
    pairs = [weights[zoo.rows_of(t.id)][None] for t in kept]
    if min(p.shape[1] for p in pairs) > 1:
        spread["zoo"] = summary(np.concatenate([novelty.spread(p) for p in pairs]))
    return {
        "max_iou_to_zoo": found["generated"]["max_iou"],
        "zoo_to_zoo_iou": found["zoo"]["max_iou"],
        "nearest_l2": found["generated"]["nearest_l2"],
        "zoo_nearest_l2": found["zoo"]["nearest_l2"],
        "spread": spread,
        "noise_curve": [
            {"scale": s, **{n: found["noise", s][n] for n in ("accuracy", "max_iou")}} for s in NOISE_CURVE
        ],
        "points": [
            {"kind": k, **{n: float(v[i]) for n, v in joined[k].items()}}
            for k in ("generated", "noise", "zoo")
            for i in range(len(ids[k]))
        ],
    }
