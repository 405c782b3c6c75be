"""Scores generated networks and everything that they are compared with: the parts of results.json that are measured.

The order matters for honesty: samplers, controls and rivals are chosen first, on validation tasks and validation
images; only then is any test image looked at. What "good" means is the measure's: what networks answer, or, where
there are no images, how far they are from their task's networks. What else is asked is a list of studies.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
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
from pdiff.rivals.learned import Learned
from pdiff.scenario import Facts
from pdiff.system import processes
from pdiff.system.stopping import StopSignal
from pdiff.tasks.base import REPORTED_SPLITS, Task
from pdiff.zoo.networks import Networks


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What studies look at.

    Attributes:
      networks: the zoo's, by split.
      zoo: the seen ones as raw tokens.
      selection: what validation chose, as in results.json.
      splits: their entries of results.json.
      controls: the fitted ones by name.
      seen: generated networks of seen tasks, by sampler.
      raw: the parameters whose moving average the bench's are.
    """

    bench: Bench
    networks: dict[str, Networks]
    zoo: SeenZoo
    selection: dict
    splits: dict
    controls: dict
    seen: dict[str, PyTree]
    raw: PyTree | None

    @property
    def sampler(self) -> str:
        return self.selection["sampler"]

    @property
    def many_steps(self) -> str | None:
        """The best sampler whose networks differ; None if the run has none but `posterior_mean`."""
        return self.selection.get("many_steps")

    @property
    def held_out(self) -> bool:
        """Whether there are tasks that no network of the zoo's training is for."""
        return any(self.bench.tasks(split) for split in ("interp", "unseen"))

    def asks(self, field: str) -> bool:
        """Whether the config's `eval` has that study."""
        return bool(self.bench.config.eval[field])


# Key in results.json -> what is there; None leaves it out. A new study is a file, and a line here.
Study = Callable[[Evaluated], Any]
STUDIES: dict[str, Study] = {
    "novelty": lambda e: copies.novelty_in_results(e.bench, e.zoo, e.seen, e.sampler, e.controls["noise"]),
    "spread": lambda e: studies.spread(e.bench, e.sampler, e.networks),
    "calibration": lambda e: (
        studies.calibration(e.bench, e.sampler, e.networks) if e.asks("calibration_samples") else None
    ),
    "vague": lambda e: (
        vague.vague(e.bench, e.many_steps, e.networks)
        if e.asks("vague_samples") and e.many_steps and e.bench.generator.family.grammar is not None
        else None
    ),
    "adaptation": lambda e: (
        adaptation.adaptation(e.bench, e.many_steps, e.networks)
        if e.asks("adapt_tasks") and e.many_steps and e.held_out
        else None
    ),
    "mixing": lambda e: (
        studies.mixing(e.bench, e.sampler, e.networks["seen"]) if e.asks("mixing_separations") else None
    ),
    "transfer": lambda e: (
        studies.transfer(e.bench, e.sampler, e.networks["seen"], e.splits)
        if e.asks("transfer_pairs") and "nearest_seen" in e.controls
        else None
    ),
    "closeup": lambda e: (
        closeup.measure(e.bench, e.networks, e.splits, e.selection, e.raw) if e.asks("closeup_tasks") else None
    ),
}


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
    by_answers = bool(bench.generator.family.data)
    measure: Measure = Answers(bench, networks) if by_answers else Weights(bench, networks, facts)
    wanted = STUDIES if by_answers else {}
    progress = tqdm(
        total=3 + len(REPORTED_SPLITS) + len(wanted), desc="evaluate", unit="stage", disable=not processes.is_first()
    )

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
                splits[split], made = _split(bench, measure, split, controls, selection["sampler"])
                seen = made if split == "seen" else seen
        results = {"selection": selection} | measure.results(splits, seen.get(selection["sampler"]))
        evaluated = Evaluated(bench, networks, zoo, selection, splits, controls, seen, raw)
        for name, study in wanted.items():
            stage(name)
            found = study(evaluated)
            if found is not None:
                results[name] = found
        stage("time of sampling")
        seconds = _time_sampling(bench)
    results["timing"] = {
        "sample_s_per_100": seconds[selection["sampler"]],
        "sample_s_per_100_by_sampler": seconds,
        "evaluate_s": time.perf_counter() - start,
    }
    return results


def select_sampler(bench: Bench, measure: Measure) -> dict:
    """The part `selection` of results.json: the sampler that does best on validation tasks, and how all of them do."""
    names, tasks = bench.config.sample.samplers, bench.choosing_tasks()
    found = {n: measure.of(bench.generate(n, tasks, f"evaluate/validation/{n}"), tasks, choosing=True) for n in names}
    selection = {
        "sampler": max(names, key=lambda n: found[n].choice),
        "validation": {n: f.of_choice() for n, f in found.items()},
    }
    if many_steps := [n for n in names if n != "posterior_mean"]:
        selection["many_steps"] = max(many_steps, key=lambda n: found[n].choice)
    return selection


def fit_controls(bench: Bench, measure: Measure, zoo: SeenZoo, rivals: Mapping[str, Any]) -> dict:
    """Controls that the zoo allows, and the rivals; what they have to choose is chosen on validation tasks."""
    generator, family, tasks = bench.generator, zoo.family, bench.choosing_tasks()

    def score(control) -> float:
        return measure.of(_drawn(bench, control, tasks, 1), tasks, choosing=True).choice

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


def _drawn(bench: Bench, control, tasks: Sequence[Task], count: int) -> PyTree:
    """A control's networks, `count` for each task."""
    tokens = np.asarray(control.sample(tasks, count, np.random.default_rng(bench.config.seed)), np.float32)
    return bench.decode_tokens(tokens)


def _split(bench: Bench, measure: Measure, split: str, controls: dict, chosen: str) -> tuple[dict, dict[str, PyTree]]:
    """A split's entry of results.json, and its generated networks by sampler."""
    tasks, count = bench.tasks(split), bench.config.eval.samples_per_task
    made = {n: bench.generate(n, tasks, f"evaluate/{split}/{n}") for n in bench.config.sample.samplers}
    has_noise = split == "seen" or bench.generator.family.factor_names  # else no network is the nearest
    drawn = {n: _drawn(bench, c, tasks, count) for n, c in controls.items() if n != "noise" or has_noise}
    if len(tasks) > 1:
        shift = len(tasks) // 2 * count  # another task of the split, as far round as can be
        drawn["wrong_task"] = jax.tree.map(lambda a: np.roll(a, shift, 0), made[chosen])
    generated = {n: measure.of(m, tasks) for n, m in made.items()}
    compared = {n: measure.of(m, tasks) for n, m in drawn.items()} | measure.controls(split, tasks, chosen)
    beside = measure.beside(split, tasks, chosen)
    entry = {
        "num_tasks": len(tasks),
        "generated": {n: m.summary() for n, m in generated.items()},
        "controls": {n: m.summary() for n, m in compared.items()},
        **{n: m.summary() for n, m in beside.items() if not isinstance(m, dict)},
        **{n: {k: v.summary() for k, v in m.items()} for n, m in beside.items() if isinstance(m, dict)},
        **measure.of_zoo(split),
        "per_task": [
            {
                "task": t.name,
                "id": t.id,
                "factors": list(t.factors),
                "generated": {n: m.per_task(i) for n, m in generated.items()},
                "controls": {n: m.per_task(i) for n, m in compared.items()},
                **{n: m.per_task(i) for n, m in beside.items() if not isinstance(m, dict)},
                **{n: {k: v.per_task(i) for k, v in m.items()} for n, m in beside.items() if n == "by_condition"},
            }
            for i, t in enumerate(tasks)
        ],
    }
    return entry, made


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
