"""What else an evaluation asks: other conditions, calibration, spread, mixed conditions, transfer between tasks, places
that are no task."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, PyTree
from scipy.stats import spearmanr

from pdiff import rng
from pdiff.evaluation.bench import Bench, Scores
from pdiff.generator.conditioning import DESCRIBED
from pdiff.measures import likelihood, novelty
from pdiff.measures.accuracy import Scorer
from pdiff.models.conditions import Mixture, lerp, slerp
from pdiff.results import summary
from pdiff.system.evenly import evenly
from pdiff.tasks.base import REPORTED_SPLITS, Family, Task
from pdiff.zoo.store import Networks

MOST_MIXED = 32  # tasks for each separation
MOST_SPREAD = 32  # tasks of each split whose networks are compared with one another


def by_condition(bench: Bench, split: str, tasks: Sequence[Task], sampler: str) -> dict[str, Scores]:
    """Accuracy by what is given: each condition alone. No other task's id was ever trained than a seen one's."""
    use = [n for n in bench.config.condition.use if n != "id" or split == "seen"]
    return {n: bench.scores(sampler, tasks, f"evaluate/{split}/{n}", given=(n,)) for n in use}


def calibration(bench: Bench, sampler: str, networks: dict[str, Networks]) -> dict[str, dict]:
    """What an ensemble of a few networks of one task is worth, by split: its error and the log-likelihood that it gives
    test labels, in nats, and those of a single network, for drawn and for fine-tuned ones.

    Each has `networks`, how many there are in an ensemble: of fine-tuned ones at most those that the zoo has of a task.
    """
    family, apply, study = bench.generator.family, bench.generator.apply, {}
    test, count = family.data["test"], bench.config.eval.calibration_samples
    for split in REPORTED_SPLITS:
        tasks = bench.tasks(split, MOST_SPREAD)
        if not tasks:
            continue
        variables = jax.tree.map(lambda v, tasks=tasks: v[np.array([t.id for t in tasks])], family.variables)
        x, y = jax.jit(jax.vmap(family.all_of_task, (0, None, None)))(variables, test.x, test.y)
        finetuned = networks[split]
        tuned = min(count, *(int((finetuned.task == t.id).sum()) for t in tasks))
        rows = np.concatenate([np.flatnonzero(finetuned.task == t.id)[:tuned] for t in tasks])
        both = {
            "generated": (count, bench.generate(sampler, tasks, f"evaluate/calibration/{split}", count)),
            "finetuned": (tuned, finetuned[rows].params),
        }
        study[split] = {}
        for name, (size, flat) in both.items():
            grouped = jax.tree.map(lambda w, size=size: np.asarray(w).reshape(-1, size, *w.shape[1:]), flat)
            for kind, some in (("ensemble", grouped), ("single", jax.tree.map(lambda w: w[:, :1], grouped))):
                accuracy, likely = likelihood.ensemble(apply, some, np.asarray(x), np.asarray(y))
                study[split][f"{name}_{kind}"] = {
                    "networks": size if kind == "ensemble" else 1,
                    "error": summary(1 - accuracy),
                    "log_likelihood": summary(likely),
                }
    return study


def spread(bench: Bench, sampler: str, networks: dict[str, Networks]) -> dict[str, dict]:
    """How much networks of one task differ, by split: the zoo's (`zoo`), and those drawn for its description.

    A split without tasks is absent, and under `zoo` one whose tasks have a single network each.
    """
    study: dict = {"zoo": {}, "generated": {}}
    for split in ("validation", *REPORTED_SPLITS):
        tasks = bench.tasks(split, MOST_SPREAD)
        if tasks:
            generated = bench.generate(sampler, tasks, f"evaluate/spread/{split}", _count(tasks))
            study["generated"][split] = _accuracy_and_spread(bench, generated, tasks, split)
        if tuned := zoo_spread(bench, split, networks[split]) if split in networks else {}:
            study["zoo"][split] = tuned
    return study


def zoo_spread(bench: Bench, split: str, networks: Networks) -> dict:
    """`_accuracy_and_spread` of fine-tuned networks of each task, which is what an honest sampler would show."""
    tasks = [t for t in bench.tasks(split, MOST_SPREAD) if (networks.task == t.id).sum() > 1]
    if not tasks:
        return {}
    count = min(_count(tasks), *((networks.task == t.id).sum() // 2 * 2 for t in tasks))
    rows = np.concatenate([np.flatnonzero(networks.task == t.id)[:count] for t in tasks])
    return _accuracy_and_spread(bench, networks[rows].params, tasks, split)


def _count(tasks: Sequence[Task]) -> int:
    """Networks of each task, a few dozen in all: an even number, because they are compared two by two."""
    return 2 * max(1, 32 // len(tasks))


def _accuracy_and_spread(bench: Bench, networks: PyTree, tasks: Sequence[Task], split: str) -> dict:
    """Of networks for each task: accuracy, L2 between one and the next, and how often just one of the two is right.

    What stands for validation is scored on validation images, all others on test images.
    """
    part, count = "validation" if split == "validation" else "test", len(jax.tree.leaves(networks)[0]) // len(tasks)
    ids = np.repeat([t.id for t in tasks], count)
    right = bench.score[part].right(networks, ids).reshape(len(tasks), count // 2, 2, -1)
    tokens = bench.encode(networks).reshape(len(tasks) * count // 2, 2, -1)
    return {
        "accuracy": Scores(right.mean(-1).reshape(len(tasks), count)).summary(),
        "spread": summary(novelty.spread(tokens)),
        "disagreement": summary((right[:, :, 0] != right[:, :, 1]).mean(-1)),
    }


def mixing(bench: Bench, sampler: str, seen: Networks) -> list[dict]:
    """Networks for a task made from two seen ones on both sides of it, scored on that task.

    For each separation: tasks (seen and interp) that have a seen task half of it away on each side, or, where there
    are several factors and none wraps, that two seen tasks so far apart have nearly halfway between them. What is
    mixed, on the line and on the arc: the encoded conditions; the weights of two zoo networks of one seed.
    `description` asks for the task in words instead.
    """
    family = bench.generator.family
    plain = len(family.factor_names) == 1 or not any(family.factor_periods)
    if not family.factor_names or not plain or len(family.split("seen")) < 3:  # two to mix and another between
        return []
    around = _around if len(family.factor_names) == 1 else _amid
    rows = []
    candidates = (*bench.tasks("seen", MOST_MIXED), *bench.tasks("interp", MOST_MIXED))
    for separation in bench.config.eval.mixing_separations:
        triples = [t for t in (around(family, task, separation) for task in candidates) if t]
        if not triples:
            continue
        triples = [triples[i] for i in evenly(len(triples), MOST_MIXED)]
        middle, a, b, weight = (list(column) for column in zip(*triples, strict=True))
        mixtures = _mixed(bench, sampler, seen, middle, a, b, np.array(weight, np.float32))
        scores = {name: bench.accuracy(networks, middle).summary() for name, networks in mixtures.items()}
        rows.append({"separation": separation, "accuracy": scores})
    return rows


def _mixed(bench: Bench, sampler: str, seen: Networks, middle, a, b, weight) -> dict[str, PyTree]:
    key = rng.stream(bench.config.seed, "evaluate/mixing")
    ca, cb = bench.condition(a, 1), bench.condition(b, 1)
    mixtures = {"description": bench.samplers.networks(bench.params, sampler, bench.condition(middle, 1), key)}
    for name, spherical in (("lerp", False), ("slerp", True)):
        mixture = Mixture(ca, cb, weight, spherical)
        mixtures[f"condition_{name}"] = bench.samplers.networks(bench.params, sampler, mixture, key)
    first = {int(t): i for i, t in reversed(list(enumerate(seen.task)))}  # the same seed for every task
    xa, xb = (bench.encode(seen[np.array([first[t.id] for t in x])].params) for x in (a, b))
    for name, between in (("lerp", lerp), ("slerp", slerp)):
        mixtures[f"weights_{name}"] = bench.decode_tokens(np.asarray(between(xa, xb, weight)))
    return mixtures


def transfer(bench: Bench, sampler: str, seen: Networks, splits: dict) -> dict:
    """How far a network carries: fine-tuned ones of seen tasks on other tasks, against how unlike the two tasks are.

    Unlikeness is the distance of factors and, where a family has backgrounds, the rms difference of the two empty
    images. `pairs` takes the tasks of each split in turn, with seen tasks from the nearest to the farthest, near ones
    more densely. `generated` has, for each task of `splits` (of results.json), its distances to the nearest other seen
    task. The rank correlations (Spearman) are of accuracy with each distance, over all pairs.
    """
    family, count = bench.generator.family, -(-bench.config.eval.transfer_pairs // len(splits))
    others, first = family.split("seen"), {int(t): i for i, t in reversed(list(enumerate(seen.task)))}
    pairs, generated, right = [], [], []
    for split, entry in splits.items():
        tasks = [family.tasks[t["id"]] for t in entry["per_task"]]
        distances = _distances(family, tasks, others)
        order = np.argsort(distances["factors"], 1, kind="stable")
        order = [[j for j in row if others[j].id != t.id] for t, row in zip(tasks, order, strict=True)]
        for i, task in enumerate(entry["per_task"]):
            near = {f"nearest_{k}": float(d[i, order[i]].min()) for k, d in distances.items()}
            made, tuned = task["generated"][sampler], task["finetuned"]
            generated.append({"split": split, "task": task["task"], **near, "accuracy": made, "finetuned": tuned})
        ranks = np.geomspace(1, len(order[0]), count).round().astype(int) - 1
        rows = [i % len(tasks) for i in range(count)]
        columns = [order[i][r] for i, r in zip(rows, ranks, strict=True)]
        networks = seen[np.array([first[others[j].id] for j in columns])].params
        right.extend(bench.score["test"](networks, np.array([tasks[i].id for i in rows])).tolist())
        for i, j in zip(rows, columns, strict=True):
            pairs.append({"split": split, "from": others[j].name, "to": tasks[i].name})
            pairs[-1] |= {k: float(d[i, j]) for k, d in distances.items()}
    for pair, accuracy in zip(pairs, right, strict=True):
        pair["accuracy"] = accuracy
    correlation = {k: float(spearmanr([p[k] for p in pairs], right).statistic) for k in distances}
    return {"pairs": pairs, "generated": generated, "rank_correlation": correlation}


def at_factors(bench: Bench, there: Family, sampler: str, stream: str, count: int | None = None, **condition) -> Scores:
    """Test accuracy of `count` networks for each task of `Family.at`, asked for by its descriptions or factors."""
    networks = bench.generate(sampler, there.tasks, stream, count, **condition)
    score = Scorer(dataclasses.replace(bench.generator, family=there), "test", bench.mesh)
    each = len(jax.tree.leaves(networks)[0]) // len(there.tasks)
    return Scores(score(networks, np.repeat(np.arange(len(there.tasks)), each)).reshape(-1, each))


def singular(bench: Bench, sampler: str) -> list[dict]:
    """Accuracy at the `singular` values of the factor, which that of no task tells: rows as in `per_task`."""
    family, config = bench.generator.family, bench.config
    there = family.at(np.array(family.singular)[:, None])
    tables = {
        "generated": {n: at_factors(bench, there, n, f"evaluate/singular/{n}") for n in config.sample.samplers},
        "by_condition": {
            n: at_factors(bench, there, sampler, f"evaluate/singular/given/{n}", given=(n,))
            for n in config.condition.use
            if n in DESCRIBED
        },
    }
    return [
        {"factors": list(t.factors)} | {k: {n: s.per_task(i) for n, s in v.items()} for k, v in tables.items()}
        for i, t in enumerate(there.tasks)
    ]


def _distances(family: Family, a: Sequence[Task], b: Sequence[Task]) -> dict[str, Float[np.ndarray, "a b"]]:
    """By what is compared."""
    distances = {"factors": family.distance(family.factors(a), family.factors(b))}
    if family.backgrounds is not None:
        u, v = (family.backgrounds[np.array([t.id for t in x]), 0] for x in (a, b))
        distances["background"] = np.sqrt(((u[:, None] - v[None]) ** 2).mean(-1))
    return distances


def _around(family, task: Task, separation: float) -> tuple[Task, Task, Task, float] | None:
    """(task, a, b, weight): the seen tasks nearest to half of `separation` below and above, if both are near it."""
    others = [t for t in family.split("seen") if t.id != task.id]
    period = family.factor_periods[0]
    offset = np.array([t.factors[0] - task.factors[0] for t in others])
    if period:
        offset = (offset + period / 2) % period - period / 2
    low, high = np.abs(offset + separation / 2).argmin(), np.abs(offset - separation / 2).argmin()
    ends = offset[low], offset[high]
    if max(abs(ends[0] + separation / 2), abs(ends[1] - separation / 2)) > 0.2 * separation or ends[0] >= 0 >= ends[1]:
        return None
    return task, others[low], others[high], float(-ends[0] / (ends[1] - ends[0]))


def _amid(family, task: Task, separation: float) -> tuple[Task, Task, Task, float] | None:
    """(task, a, b, 1/2): of the pairs of seen tasks about `separation` apart the one whose middle is nearest to `task`,
    if that is within a quarter of `separation`. Distances are of factors."""
    others = [t for t in family.split("seen") if t.id != task.id]
    factors = family.factors(others)
    distance = family.distance(factors, factors)
    off = np.sqrt((((factors[:, None] + factors[None]) / 2 - family.factors([task])[0]) ** 2).sum(-1))
    off = np.where(np.abs(distance - separation) <= 0.2 * separation, off, np.inf)
    a, b = np.unravel_index(off.argmin(), off.shape)
    return (task, others[a], others[b], 0.5) if off[a, b] <= 0.25 * separation else None
