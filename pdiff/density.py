"""Studies of the density that a generator has learned: whose weights does it find likely, and how like is its score
to the zoo's? Networks are never run here: their weights alone are read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from pdiff import rng
from pdiff.bench import Bench
from pdiff.diffusion import likelihood
from pdiff.diffusion.denoiser import loss_weight
from pdiff.diffusion.samplers import noise_levels
from pdiff.evaluators import score_likeness as likeness
from pdiff.evaluators.novelty import evenly
from pdiff.generator import Generator
from pdiff.report.results import summary
from pdiff.tasks.base import Family, Task
from pdiff.weights import stats
from pdiff.zoo.store import Networks

HELD_OUT = ("validation", "interp", "unseen")
ESTIMATES = ("likelihood", "elbo", "weighted", "direction")
WRONG_SEEN = 6  # seen tasks that a network's own is told from, from the nearest to the farthest
LIKENESS_NETWORKS = 32  # noised, for each case and level


@dataclasses.dataclass(frozen=True)
class Question:
    """How likely is network number `network`, fine-tuned for `task`, under the condition of task `about`?

    `kind` says what `about` is: `right`, `opposite` or `seen`; a seen one is the `rank`-th nearest.
    """

    network: int
    split: str
    task: Task
    about: Task
    kind: str
    rank: int = 0


def identification(bench: Bench, networks: dict[str, Networks]) -> dict:
    """Which task were held-out networks fine-tuned for? The right task's condition against wrong ones'.

    The wrong tasks of a network are the one half its split away, as for the control `wrong_task`, and seen tasks from
    the nearest to the farthest by their factors, near ones more densely (without factors: spread evenly). Weights,
    noise and probes are the same for every task that a network is asked about. Four estimates:

      likelihood  the exact log-density of x0 + sigma_min eps, by the probability-flow ODE
      elbo        minus the diffusion loss, a bound on it up to a constant (Li et al. 2023)
      weighted    minus the loss that the generator is trained with, without its functional part, evenly over log sigma
      direction   the cosine of the weights and their posterior mean at sigma_max, both from the zoo's centre: with a
                  functional loss the length of the posterior mean's error depends on the task, which the others count

    Returns:
      `splits`: for each split the log-density in nats per parameter under the right condition, of normalised and of
      raw weights, and by estimate the share of networks for which right is above the one half the split away, the mean
      difference in nats per parameter (`weighted` and `direction` in their own units), and the share with the right
      task on top of all. `by_rank`: share and difference against the seen task of each rank by distance. `pairs`: the
      differences of every pair. Empty where no network is held out, or there is nothing but ids to tell tasks by.
    """
    family, given = bench.generator.family, _telling(bench)
    chosen = _held_out(networks, bench.config.eval.likelihood_networks)
    if not given or not chosen or len(family.split("seen")) < 2:
        return {}
    asked, parts = [], [(split, task) for split, own in chosen.items() for task in own.task]
    for network, (split, task) in enumerate(parts):
        asked += _questions(family, network, split, family.tasks[task])
    x0 = np.concatenate([np.asarray(bench.generator.encode(own.params)) for own in chosen.values()])
    rows = np.array([q.network for q in asked], np.int32)
    condition = bench.condition([q.about for q in asked], 1, given=given)
    return _summarised(bench.generator, asked, _estimates(bench, x0, rows, condition))


def _telling(bench: Bench) -> tuple[str, ...]:
    """The conditions that can say what a held-out task is; no such task's id was ever trained."""
    return tuple(n for n in bench.config.sample.condition if n != "id")


def _held_out(networks: dict[str, Networks], most: int) -> dict[str, Networks]:
    """About `most` held-out networks in all, evenly chosen from every split that has some."""
    found = {s: networks[s] for s in HELD_OUT if s in networks and len(networks[s])}
    each = -(-most // max(1, len(found)))
    return {s: n[evenly(np.arange(len(n)), each)] for s, n in found.items()}


def _questions(family: Family, network: int, split: str, task: Task) -> list[Question]:
    """The right task, the one of its split that is as far round as can be, and seen ones by rank of distance."""
    own, seen = family.split(split), family.split("seen")
    asked = [Question(network, split, task, task, "right")]
    if len(own) > 1:
        place = [t.id for t in own].index(task.id)
        asked.append(Question(network, split, task, own[(place + len(own) // 2) % len(own)], "opposite"))
    order, ranks = np.arange(len(seen)), np.linspace(1, len(seen), WRONG_SEEN)
    if family.factor_names:
        order = np.argsort(family.distance(family.factors([task]), family.factors(seen))[0], kind="stable")
        ranks = np.geomspace(1, len(seen), WRONG_SEEN)
    chosen = np.unique(ranks.round().astype(int))
    return asked + [Question(network, split, task, seen[order[r - 1]], "seen", int(r)) for r in chosen]


def _estimates(
    bench: Bench, x0: Float[np.ndarray, "nets tokens dim"], rows: Int[np.ndarray, " pairs"], condition: PyTree
) -> dict[str, Float[np.ndarray, " pairs"]]:
    """Each estimate, higher being likelier, of network `rows[i]` under condition i; nats are for each parameter."""
    made, config = bench.generator, bench.config.eval
    varying, count = np.asarray(stats.varying(made.stats)), _count(made)
    steps, probes = config.likelihood_steps, config.likelihood_probes
    up = noise_levels(made.path, steps + 1, bench.config.sample.rho)[:-1][::-1]
    even = jnp.geomspace(made.path.sigma_min, made.path.sigma_max, steps + 1)
    key = rng.stream(bench.config.seed, "evaluate/likelihood")

    def estimate(params, condition, args):
        x, index = args
        streams = jax.vmap(lambda k: jax.random.split(k, 3))(rng.per_example(key, index))  # of networks, not of pairs
        denoise = made.denoiser(params, made.context(params, condition))
        noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(streams[:, 0])
        drawn = likelihood.rademacher(streams[:, 1], probes, varying)
        errors = likelihood.squared_errors(denoise, x, even, streams[:, 2], probes)
        exact = likelihood.log_likelihood(denoise, made.path, x + up[0] * noise, up, drawn, varying)
        return {
            "likelihood": exact / count,
            "elbo": -likelihood.diffusion_loss(errors, even) / count,
            "weighted": -(loss_weight(even, made.spread)[:, None] * errors).mean(0) / count,
            "direction": _cosine(x, denoise(up[-1] * noise, jnp.full(len(x), up[-1]))),
        }

    return bench.over(bench.mapped(estimate), condition, (x0[rows], rows))


def _count(generator: Generator) -> int:
    """How many elements vary over the zoo."""
    return int(np.asarray(stats.varying(generator.stats)).sum())


def _cosine(a: Float[Array, "batch tokens dim"], b: Float[Array, "batch tokens dim"]) -> Float[Array, " batch"]:
    squared = ((a**2).sum((1, 2)) * (b**2).sum((1, 2))).clip(1e-30)
    return (a * b).sum((1, 2)) / jnp.sqrt(squared)


def _summarised(generator: Generator, asked: list[Question], values: dict[str, Float[np.ndarray, " pairs"]]) -> dict:
    """The study's results from each estimate of every question; a network's first question is the right one."""
    family, volume = generator.family, stats.log_volume(generator.stats) / _count(generator)
    network, right = np.array([q.network for q in asked]), np.flatnonzero([q.kind == "right" for q in asked])
    ahead = {n: v[right][network] - v for n, v in values.items()}
    top = {n: np.minimum.reduceat(d, right) >= 0 for n, d in ahead.items()}
    pairs = [
        _pair(family, q) | {n: float(d[i]) for n, d in ahead.items()} for i, q in enumerate(asked) if q.kind != "right"
    ]
    splits = {}
    for split in dict.fromkeys(q.split for q in asked):
        own = np.flatnonzero([asked[i].split == split for i in right])
        ids = np.array([asked[i].task.id for i in right[own]])
        density = values["likelihood"][right[own]]
        splits[split] = {
            "log_density": summary(density, ids),
            "log_density_raw": summary(density - volume, ids),
            "top_1": {n: summary(t[own], ids) for n, t in top.items()},
        }
        splits[split] |= _shares([p for p in pairs if p["split"] == split and p["kind"] == "opposite"])
    by_rank = []
    for rank in sorted({q.rank for q in asked if q.rank}):
        own = [p for p in pairs if p.get("rank") == rank]
        place = {"distance": float(np.mean([p["distance"] for p in own]))} if family.factor_names else {}
        by_rank.append({"rank": rank} | place | _shares(own))
    return {"splits": splits, "by_rank": by_rank, "pairs": pairs}


def _pair(family: Family, asked: Question) -> dict:
    """What the two tasks are, and how far apart where there are factors."""
    pair = {"split": asked.split, "kind": asked.kind, "task": asked.task.name, "against": asked.about.name}
    pair |= {"rank": asked.rank} if asked.rank else {}
    if family.factor_names:
        pair["distance"] = float(family.distance(family.factors([asked.task]), family.factors([asked.about]))[0, 0])
    return pair


def _shares(pairs: list[dict]) -> dict:
    """By estimate: the share of pairs in which the right task is ahead, and by how much; nothing for no pair."""
    if not pairs:
        return {}
    tasks = np.array([p["task"] for p in pairs])
    values = {n: np.array([p[n] for p in pairs]) for n in ESTIMATES}
    return {
        "share": {n: summary(v > 0, tasks) for n, v in values.items()},
        "difference": {n: summary(v, tasks) for n, v in values.items()},
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """Networks to be noised, what of their tasks the generator is told, and the zoo networks to compare with.

    `references` are pairs of rows of `networks` and of the zoo; together they cover every network once.
    """

    networks: Networks
    given: tuple[str, ...]
    references: list[tuple[Int[np.ndarray, " some"], Int[np.ndarray, " rows"]]]
    spread: float


def score_likeness(bench: Bench, networks: dict[str, Networks]) -> list[dict]:
    """How like the learned score is to that of the zoo's own networks, and to that of a Gaussian, by noise level.

    For each of `eval.score_levels`, on noised networks, by case:

      seen                    zoo networks under their own task's condition; the reference is that task's networks
      held_out                networks never trained on, under theirs; it is the networks of the nearest seen task
      seen_unconditional      zoo networks, no condition given; it is the whole zoo
      held_out_unconditional  networks never trained on, no condition given; it is the whole zoo

    Each case has the relative error and the cosine to the `empirical` score, that of the reference networks convolved
    with noise, and to the `gaussian` one, N(their mean, spread^2), the spread being that within tasks, or over the
    zoo; and `largest_weight`, the highest posterior probability of one reference network, which is 1 where the
    empirical score has collapsed onto it. A case that does not apply is absent.
    """
    made, on = bench.generator, np.asarray(stats.varying(bench.generator.stats))
    zoo = np.asarray(made.encode(networks["seen"].params))[:, on]
    rows = [{"sigma": sigma, "cases": {}} for sigma in bench.config.eval.score_levels]
    for name, case in _cases(bench, networks).items():
        condition = bench.condition([made.family.tasks[t] for t in case.networks.task], 1, given=case.given)
        x0 = np.asarray(made.encode(case.networks.params))
        key = rng.stream(bench.config.seed, f"evaluate/score/{name}")
        noise = np.where(on, jax.random.normal(key, x0.shape), 0).astype(np.float32)
        for row in rows:
            z = x0 + np.float32(row["sigma"]) * noise
            found = bench.denoise(condition, z, np.full(len(z), row["sigma"], np.float32))
            row["cases"][name] = _likeness(found[:, on], z[:, on], row["sigma"], zoo, case)
    return rows


def _cases(bench: Bench, networks: dict[str, Networks]) -> dict[str, Case]:
    """The cases of `score_likeness` that apply."""
    seen, family, config = networks["seen"], bench.generator.family, bench.config
    tokens = bench.encode(seen.params)
    within = stats.spread_within(bench.generator.stats, tokens, seen.task)
    overall = stats.spread_within(bench.generator.stats, tokens, np.zeros_like(seen.task))
    known = seen[evenly(np.arange(len(seen)), LIKENESS_NETWORKS)]
    cases = {"seen": Case(known, config.sample.condition, _by_task(known.task, seen.task), within)}
    parts = list(_held_out(networks, LIKENESS_NETWORKS).values())
    new = Networks.concatenate(parts) if parts else None
    given = _telling(bench)
    if new and given and family.factor_names:
        others = family.split("seen")
        factors = family.factors([family.tasks[t] for t in new.task])
        nearest = np.array([t.id for t in others])[family.distance(factors, family.factors(others)).argmin(1)]
        cases["held_out"] = Case(new, given, _by_task(nearest, seen.task), within)
    if config.condition.drop_all:
        for name, own in (("seen", known), ("held_out", new)):
            if own:
                everything = [(np.arange(len(own)), np.arange(len(seen)))]
                cases[f"{name}_unconditional"] = Case(own, (), everything, overall)
    return cases


def _by_task(reference: Int[np.ndarray, " nets"], zoo: Int[np.ndarray, " zoo"]) -> list[tuple]:
    """For each task whose networks stand as reference: which networks are compared with them, and their rows."""
    return [(np.flatnonzero(reference == t), np.flatnonzero(zoo == t)) for t in np.unique(reference)]


def _likeness(
    found: Float[np.ndarray, "nets dim"],
    z: Float[np.ndarray, "nets dim"],
    sigma: float,
    zoo: Float[np.ndarray, "zoo dim"],
    case: Case,
) -> dict:
    """One case at one level: how the denoised `found` of z compares with what its references imply."""
    empirical, gaussian = np.zeros(z.shape), np.zeros(z.shape)
    largest = np.zeros(len(z))
    for own, rows in case.references:
        weights = likeness.posterior_weights(z[own], sigma, zoo[rows])
        empirical[own] = weights @ zoo[rows].astype(np.float64)
        largest[own] = weights.max(1)
        gaussian[own] = likeness.gaussian_denoiser(z[own], sigma, zoo[rows].mean(0, np.float64), case.spread)
    score, made = likeness.score(found, z, sigma), {}
    for name, denoised in (("empirical", empirical), ("gaussian", gaussian)):
        reference = likeness.score(denoised, z, sigma)
        measures = {"relative_error": likeness.relative_error, "cosine": likeness.cosine}
        made[name] = {k: summary(measure(score, reference), case.networks.task) for k, measure in measures.items()}
    return made | {"largest_weight": summary(largest, case.networks.task)}
