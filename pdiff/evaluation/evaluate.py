"""Scores generated networks and everything that they are compared with: the parts of results.json that are measured.

The order matters for honesty: samplers, controls and rivals are chosen first, on validation tasks and validation
images; only then is any test image looked at. What "good" means is the measure's: what networks answer, or, where
there are no images, how far they are from their task's networks. What else is asked is a list of studies.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from pdiff import rng
from pdiff.controls import SeenZoo
from pdiff.controls.blind import Gaussian, Soup
from pdiff.controls.described import NearestDescribed, RidgeDescribed
from pdiff.controls.hypernetwork import Hypernetwork
from pdiff.controls.neighbours import LinearInterpolation, Nearest, Noise
from pdiff.controls.rebasin import RebasinMerge
from pdiff.controls.ridge import Ridge
from pdiff.evaluation import adaptation, closeup, copies, studies, vague
from pdiff.evaluation.bench import Bench
from pdiff.evaluation.measure import Answers, Measure, Weights
from pdiff.generator.conditioning import DESCRIBED
from pdiff.rivals.learned import Learned
from pdiff.scenario import Facts
from pdiff.system import processes
from pdiff.system.stopping import StopSignal
from pdiff.tasks.base import REPORTED_SPLITS, Task
from pdiff.zoo.networks import Networks


def evaluate(
    bench: Bench,
    networks: dict[str, Networks],
    stop: StopSignal,
    *,
    facts: Facts | None = None,
    rivals: Mapping[str, Any] | None = None,
    raw: PyTree | None = None,
) -> dict:
    """The parts of results.json that are measured, and under `closeup` the contents of closeup.json.

    Args:
      networks: the zoo's, by split.
      facts: of an imported zoo.
      rivals: other trained generators by name, each with `sample` as the controls have it.
      raw: the parameters whose moving average the bench's are, for the comparison of the two.

    Raises:
      Interrupted: a signal came; evaluation starts anew with the next command.
    """
    start = time.perf_counter()
    has_images = bool(bench.generator.family.data)
    measure: Measure = Answers(bench, networks) if has_images else Weights(bench, networks, facts)
    stages = 3 + len(REPORTED_SPLITS)
    progress = tqdm(total=stages, desc="evaluate", unit="stage", disable=not processes.is_first())

    def stage(name: str) -> None:
        stop.check("in evaluation, with the trained generator in a checkpoint")
        progress.set_postfix_str(name)
        progress.update()

    with progress:
        stage("choice of sampler")
        selection = select_sampler(bench, measure)
        stage("controls")
        zoo = copies.seen_zoo(bench, networks["seen"])
        controls = fit_controls(bench, measure, zoo, rivals or {})
        splits, seen = {}, {}
        for split in REPORTED_SPLITS:
            stage(f"{split} tasks")
            if bench.tasks(split):
                splits[split], generated = _split(bench, measure, split, controls, selection["sampler"])
                seen = generated if split == "seen" else seen
        results = {"selection": selection} | measure.results(splits, seen.get(selection["sampler"]))
        if has_images:
            applying = _studies(bench, networks, zoo, selection, splits, controls, seen, raw)
            progress.total += len(applying)
            for name, study in applying.items():
                stage(name)
                results[name] = study()
        stage("time of sampling")
        seconds = _time_sampling(bench)
    results["timing"] = {
        "sample_s_per_100": seconds[selection["sampler"]],
        "sample_s_per_100_by_sampler": seconds,
        "evaluate_s": time.perf_counter() - start,
    }
    return results


def _studies(
    bench: Bench,
    networks: dict[str, Networks],
    zoo: SeenZoo,
    selection: dict,
    splits: dict,
    controls: dict,
    seen: dict[str, PyTree],
    raw: PyTree | None,
) -> dict[str, Callable[[], Any]]:
    """By key of results.json, what measures it, of the studies that apply. A new study is a file, and an entry here.

    `seen` are the generated networks of seen tasks by sampler; the rest is as in `evaluate` and in results.json.
    """
    config, sampler, zoo_seen = bench.config.eval, selection["sampler"], networks["seen"]
    many_steps = selection.get("many_steps")  # none if `posterior_mean`, whose networks are all alike, is the only one
    measured: dict[str, Callable[[], Any]] = {
        "novelty": partial(copies.novelty_in_results, bench, zoo, seen, sampler, controls["noise"]),
        "spread": partial(studies.spread, bench, sampler, networks),
    }
    if bench.generator.family.singular and DESCRIBED.issuperset(bench.config.sample.condition):
        measured["singular"] = partial(studies.singular, bench, sampler)
    if config.calibration_samples:
        measured["calibration"] = partial(studies.calibration, bench, sampler, networks)
    if config.vague_samples and many_steps and bench.generator.family.grammar is not None:
        measured["vague"] = partial(vague.vague, bench, many_steps, networks)
    if config.adapt_tasks and many_steps and (bench.tasks("interp") or bench.tasks("unseen")):
        measured["adaptation"] = partial(adaptation.adaptation, bench, many_steps, networks)
    if config.mixing_separations:
        measured["mixing"] = partial(studies.mixing, bench, sampler, zoo_seen)
    if config.transfer_pairs and "nearest_seen" in controls:
        measured["transfer"] = partial(studies.transfer, bench, sampler, zoo_seen, splits)
    if config.closeup_tasks:
        measured["closeup"] = partial(closeup.measure, bench, networks, splits, selection, raw)
    return measured


def select_sampler(bench: Bench, measure: Measure) -> dict:
    """The part `selection` of results.json: the sampler that does best on validation tasks, and how all of them do."""
    names, tasks = bench.config.sample.samplers, bench.choosing_tasks()
    scores = {n: measure.of(bench.generate(n, tasks, f"evaluate/validation/{n}"), tasks, choosing=True) for n in names}
    selection = {
        "sampler": max(names, key=lambda n: scores[n].choice),
        "validation": {n: s.of_choice() for n, s in scores.items()},
    }
    if many_steps := [n for n in names if n != "posterior_mean"]:
        selection["many_steps"] = max(many_steps, key=lambda n: scores[n].choice)
    return selection


def fit_controls(bench: Bench, measure: Measure, zoo: SeenZoo, rivals: Mapping[str, Any]) -> dict:
    """The controls that apply to the zoo, and the rivals; their options are chosen on validation tasks."""
    generator, family, tasks = bench.generator, zoo.family, bench.choosing_tasks()

    def score(model) -> float:
        return measure.of(_drawn(bench, model, tasks, 1), tasks, choosing=True).choice

    several = len(set(zoo.task))
    fitted = {
        "hypernetwork": Hypernetwork(generator, bench.mesh),
        "soup": Soup.fit(zoo),
        "gaussian": Gaussian.fit(zoo),
        "noise": Noise.fit(zoo, bench.config.eval.noise, generator.spec.num_params),
    }
    if several > 1 and family.factor_names:
        fitted |= {"nearest_seen": Nearest.fit(zoo), "ridge": Ridge.select(zoo, score)}
        if len(family.factor_names) == 1:
            fitted["linear_interpolation"] = LinearInterpolation.fit(zoo)
    elif several > 1 and not family.data:
        fitted |= {"nearest_seen": NearestDescribed.fit(zoo), "ridge": RidgeDescribed.select(zoo, score)}
    symmetry = generator.target.symmetry()
    if symmetry and (several == 1 or (several > 2 and family.factor_names)):
        fitted["rebasin_merge"] = RebasinMerge.fit(zoo, generator.spec, symmetry)
    return fitted | {n: r.tuned(score) if isinstance(r, Learned) else r for n, r in rivals.items()}


def _drawn(bench: Bench, model, tasks: Sequence[Task], count: int) -> PyTree:
    """The networks of a control or a rival, `count` for each task."""
    tokens = np.asarray(model.sample(tasks, count, np.random.default_rng(bench.config.seed)), np.float32)
    return bench.decode_tokens(tokens)


def _split(bench: Bench, measure: Measure, split: str, controls: dict, chosen: str) -> tuple[dict, dict[str, PyTree]]:
    """A split's entry of results.json, and its generated networks by sampler."""
    tasks, count = bench.tasks(split), bench.config.eval.samples_per_task
    networks = {n: bench.generate(n, tasks, f"evaluate/{split}/{n}") for n in bench.config.sample.samplers}
    has_noise = split == "seen" or bench.generator.family.factor_names  # else no network is the nearest
    drawn = {n: _drawn(bench, c, tasks, count) for n, c in controls.items() if n != "noise" or has_noise}
    if len(tasks) > 1:
        shift = len(tasks) // 2 * count  # another task of the split, as far round as can be
        drawn["wrong_task"] = jax.tree.map(lambda a: np.roll(a, shift, 0), networks[chosen])
    generated = {n: measure.of(m, tasks) for n, m in networks.items()}
    compared = {n: measure.of(m, tasks) for n, m in drawn.items()} | measure.controls(split, tasks, chosen)
    rows, tables = measure.rows(split, tasks), measure.tables(split, tasks, chosen)
    tables = {"generated": generated, "controls": compared} | tables
    by_task = [n for n in tables if n != "held_out_wording"]
    per_task = [
        {"task": t.name, "id": t.id, "factors": list(t.factors)}
        | {n: {k: m.per_task(i) for k, m in tables[n].items()} for n in by_task}
        | {n: m.per_task(i) for n, m in rows.items()}
        for i, t in enumerate(tasks)
    ]
    entry = {"num_tasks": len(tasks)} | {n: m.summary() for n, m in rows.items()}
    entry |= {n: {k: m.summary() for k, m in table.items()} for n, table in tables.items()}
    return entry | measure.of_zoo(split) | {"per_task": per_task}, networks


def _time_sampling(bench: Bench) -> dict[str, float]:
    """Seconds for 100 networks by each sampler, compilation excluded."""
    batch, task = bench.config.sample.batch_size, bench.generator.family.split("seen")[0]
    condition = bench.generator.condition([task] * batch, given=bench.config.sample.condition)
    seconds = {}
    for name in bench.config.sample.samplers:
        start = time.perf_counter()
        bench.samplers.networks(bench.params, name, condition, rng.stream(0, "evaluate/timing"))
        seconds[name] = (time.perf_counter() - start) * 100 / batch
    return seconds
