"""Scores generated networks and everything that they are compared with, and assembles results.json.

The order matters for honesty: samplers and the ridge are chosen first, on validation tasks and
validation images; only then is any test image looked at.
"""

import random as python_random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from tqdm import tqdm

from pdiff import adaptation, closeup, copies, processes, rng, studies, vague
from pdiff.baselines.blind import Gaussian, Soup
from pdiff.baselines.hypernetwork import Hypernetwork
from pdiff.baselines.learned import Learned
from pdiff.baselines.neighbours import LinearInterpolation, Nearest, Noise
from pdiff.baselines.rebasin import RebasinMerge
from pdiff.baselines.ridge import Ridge
from pdiff.bench import Bench, Scores
from pdiff.config import DESCRIBING
from pdiff.evaluators.accuracy import majority, repeat
from pdiff.generator import Generator
from pdiff.stopping import StopSignal
from pdiff.tasks.base import REPORTED_SPLITS, Task
from pdiff.weights import codec
from pdiff.zoo.store import Networks

STAGES = 12  # of an evaluation, for its progress


class Evaluation:
    """One evaluation of trained parameters against a zoo. `run` returns the parts of results.json that it measures.

    `rivals` are other trained generators by name, each with `sample` as the baselines have it. `raw` are the parameters
    whose moving average `params` are, for the comparison of the two.
    """

    def __init__(
        self,
        generator: Generator,
        params: PyTree,
        networks: dict[str, Networks],
        mesh: Mesh,
        rivals: Mapping[str, Any] | None = None,
        raw: PyTree | None = None,
    ):
        self._bench = Bench(generator, params, mesh)
        self._rivals, self._raw = dict(rivals or {}), raw
        self._generator, self._networks = generator, networks
        self._config = generator.config
        self._tasks, self._generate, self._accuracy = self._bench.tasks, self._bench.generate, self._bench.accuracy
        self._base = codec.take(generator.spec, generator.base)
        self._described = not set(DESCRIBING).isdisjoint(generator.config.sample.condition)
        self._zoo = copies.seen_zoo(self._bench, networks["seen"])

    def run(self, stop: StopSignal) -> dict:
        """Measures everything, `closeup` (the contents of closeup.json) with it. Takes a minute or two.

        Raises:
          Interrupted: a signal came; evaluation starts anew with the next command.
        """
        start = time.perf_counter()
        progress = tqdm(total=STAGES, desc="evaluate", unit="stage", disable=not processes.is_first())

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            stop.check("in evaluation, with the trained generator in a checkpoint")
            progress.set_postfix_str(name)
            yield
            progress.update()

        with progress:
            return self._run(stage, start)

    def _run(self, stage: Callable[[str], AbstractContextManager], start: float) -> dict:
        evaluation, bench, seen = self._config.eval, self._bench, self._networks["seen"]
        with stage("choice of sampler"):
            selection = self._select_sampler()
            self._sampler, self._diverse = selection["sampler"], selection.get("many_steps")
        with stage("baselines"):
            baselines = self._fit_baselines()
        splits, seen_networks = {}, {}
        for split in REPORTED_SPLITS:
            with stage(f"{split} tasks"):
                tasks = self._tasks(split)
                if tasks:
                    splits[split], made = self._split(split, tasks, baselines)
                    seen_networks = made if split == "seen" else seen_networks
        results = {"selection": selection, "splits": splits}
        with stage("novelty"):
            noise = baselines["noise"]
            results["novelty"] = copies.novelty_in_results(bench, self._zoo, seen_networks, self._sampler, noise)
        with stage("spread"):
            results["spread"] = studies.spread(bench, self._sampler, self._networks)
            if evaluation.calibration_samples:
                results["calibration"] = studies.calibration(bench, self._sampler, self._networks)
        with stage("vague descriptions"):
            if evaluation.vague_samples and self._generator.family.grammar is not None and self._diverse:
                results["vague"] = vague.vague(bench, self._diverse, self._networks)
        with stage("adaptation"):
            held_out = self._tasks("interp") or self._tasks("unseen")
            if evaluation.adapt_tasks and held_out and self._diverse:
                results["adaptation"] = adaptation.adaptation(bench, self._diverse, self._networks)
        with stage("mixing and transfer"):
            if evaluation.mixing_separations:
                results["mixing"] = studies.mixing(bench, self._sampler, seen)
            if evaluation.transfer_pairs and "nearest_seen" in baselines:
                results["transfer"] = studies.transfer(bench, self._sampler, seen, splits)
        with stage("close-ups for the page"):
            if evaluation.closeup_tasks:
                results["closeup"] = closeup.measure(bench, self._networks, splits, selection, self._raw)
        with stage("time of sampling"):
            seconds = self._time_sampling()
        results["timing"] = {
            "sample_s_per_100": seconds[self._sampler],
            "sample_s_per_100_by_sampler": seconds,
            "evaluate_s": time.perf_counter() - start,
        }
        return results

    # --- choices, on validation tasks and images ------------------------------------------------

    def _select_sampler(self) -> dict:
        names, tasks = self._config.sample.samplers, self._bench.choosing_tasks()
        many_steps = [n for n in names if n != "posterior_mean"]
        scores = {
            n: self._bench.scores(n, tasks, f"evaluate/validation/{n}", part="validation").summary()
            for n in names
        }
        selection = {"sampler": max(names, key=lambda n: scores[n]["mean"]), "validation": scores}
        if many_steps:
            selection["many_steps"] = max(many_steps, key=lambda n: scores[n]["mean"])
        return selection

    def _fit_baselines(self) -> dict:
        zoo, tasks = self._zoo, self._bench.choosing_tasks()

        def validation_accuracy(baseline) -> float:
            return self._baseline(baseline, tasks, 1, "validation").values.mean()

        fitted = {
            "hypernetwork": Hypernetwork(self._generator, self._bench.mesh),
            "soup": Soup.fit(zoo),
            "gaussian": Gaussian.fit(zoo),
            "noise": Noise.fit(zoo, self._config.eval.noise, self._generator.spec.num_params),
        }
        if len(set(zoo.task)) > 1 and zoo.family.factor_names:
            fitted["nearest_seen"] = Nearest.fit(zoo)
            fitted["ridge"] = Ridge.select(zoo, validation_accuracy)
            if len(zoo.family.factor_names) == 1:
                fitted["linear_interpolation"] = LinearInterpolation.fit(zoo)
        symmetry = self._generator.target.symmetry()
        seen = len(set(zoo.task))
        if symmetry and (seen == 1 or (seen > 2 and zoo.family.factor_names)):
            fitted["rebasin_merge"] = RebasinMerge.fit(zoo, self._generator.spec, symmetry)
        tuned = {n: r.tuned(validation_accuracy) if isinstance(r, Learned) else r for n, r in self._rivals.items()}
        return fitted | tuned

    def _baseline_networks(self, baseline, tasks: Sequence[Task], count: int) -> PyTree:
        random = np.random.default_rng(self._config.seed)
        tokens = np.asarray(baseline.sample(tasks, count, random))
        return self._bench.decode_tokens(tokens)

    def _baseline(self, baseline, tasks: Sequence[Task], count: int, part: str = "test") -> Scores:
        return self._accuracy(self._baseline_networks(baseline, tasks, count), tasks, part)

    # --- one split ---------------------------------------------------------------------------

    def _split(self, split: str, tasks: Sequence[Task], baselines: dict) -> tuple[dict, dict[str, PyTree]]:
        """A split's entry of results.json, and its generated networks by sampler."""
        count = self._config.eval.samples_per_task
        made = {n: self._generate(n, tasks, f"evaluate/{split}/{n}") for n in self._config.sample.samplers}
        generated = {n: self._accuracy(networks, tasks) for n, networks in made.items()}
        records = self._networks[split]
        finetuned = Scores(np.stack([records.test_accuracy[records.task == t.id] for t in tasks]))
        base = self._accuracy(repeat(self._base, len(tasks)), tasks)
        has_noise = split == "seen" or self._generator.family.factor_names  # else no network is the nearest
        controls = {n: self._baseline(b, tasks, count) for n, b in baselines.items() if n != "noise" or has_noise}
        controls |= self._controls(split, tasks, made[self._sampler])
        by_condition = studies.by_condition(self._bench, split, tasks, self._sampler)
        entry = {
            "num_tasks": len(tasks),
            "finetuned": finetuned.summary(),
            "base": base.summary(),
            "generated": {n: s.summary() for n, s in generated.items()},
            "controls": {n: s.summary() for n, s in controls.items()},
            "per_task": [
                {
                    "task": t.name,
                    "id": t.id,
                    "factors": list(t.factors),
                    "finetuned": finetuned.per_task(i),
                    "base": base.per_task(i),
                    "generated": {n: s.per_task(i) for n, s in generated.items()},
                    "controls": {n: s.per_task(i) for n, s in controls.items()},
                    "by_condition": {n: s.per_task(i) for n, s in by_condition.items()},
                }
                for i, t in enumerate(tasks)
            ],
        }
        if self._described and all(t.held_out_descriptions for t in tasks):
            held_out = [d[j % len(d)] for d in (t.held_out_descriptions for t in tasks) for j in range(count)]
            scores = self._bench.scores(self._sampler, tasks, f"evaluate/{split}/{self._sampler}", texts=held_out)
            entry["held_out_wording"] = {self._sampler: scores.summary()}
        entry["by_condition"] = {n: s.summary() for n, s in by_condition.items()}
        return entry, made

    def _controls(self, split: str, tasks: Sequence[Task], networks: PyTree) -> dict[str, Scores]:
        """Controls that need the generator, the whole zoo, or the labels alone."""
        count = self._config.eval.samples_per_task
        blind = self._networks["task_blind"]
        repeated = jax.tree.map(lambda a: np.concatenate([a] * len(tasks)), blind.params)
        controls = {
            "task_blind": self._accuracy(repeated, tasks),
            "majority": Scores(majority(self._generator.family, tasks)[:, None]),
        }
        if len(tasks) > 1:
            shift = len(tasks) // 2 * count  # another task of the split, as far round as can be
            controls["wrong_task"] = self._accuracy(jax.tree.map(lambda a: np.roll(a, shift, 0), networks), tasks)
        if self._described:
            shuffle = python_random.Random(self._config.seed)
            most = self._config.condition.text_max_length - 1  # letters out of order are a token each
            texts = [
                "".join(shuffle.sample(d, len(d)))[:most]
                for d in (t.descriptions[j % len(t.descriptions)] for t in tasks for j in range(count))
            ]
            shuffled = self._bench.scores(self._sampler, tasks, f"evaluate/{split}/shuffled", texts=texts)
            controls["shuffled_text"] = shuffled
        return controls

    # --- time ------------------------------------------------------------------------------------

    def _time_sampling(self) -> dict[str, float]:
        """Seconds for 100 networks by each sampler, compilation excluded."""
        batch = self._config.sample.batch_size
        task = self._generator.family.split("seen")[0]
        condition = self._generator.condition([task] * batch, given=self._config.sample.condition)
        seconds = {}
        for name in self._config.sample.samplers:
            start = time.perf_counter()
            self._bench.samplers.networks(self._bench.params, name, condition, rng.stream(0, "evaluate/timing"))
            seconds[name] = (time.perf_counter() - start) * 100 / batch
        return seconds
