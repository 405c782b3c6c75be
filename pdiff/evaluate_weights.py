"""Scores generated networks by their weights, for a zoo that was imported without images or a forward pass.

Samplers and the ridge are chosen on validation tasks first, as in `evaluate`; only then are other tasks looked at.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from pdiff import conditioning, rng
from pdiff.baselines import SeenZoo
from pdiff.baselines.blind import Gaussian, Soup
from pdiff.baselines.described import NearestDescribed, RidgeDescribed
from pdiff.baselines.hypernetwork import Hypernetwork
from pdiff.baselines.learned import Learned
from pdiff.baselines.neighbours import LinearInterpolation, Nearest, Noise
from pdiff.baselines.ridge import Ridge
from pdiff.evaluators.weight_space import MEASURES, Params, Reference, gram_of_updates, gram_of_weights
from pdiff.generator import Generator
from pdiff.imports.scenario import Facts
from pdiff.report.results import summary
from pdiff.sample import Samplers
from pdiff.stopping import StopSignal
from pdiff.tasks.base import REPORTED_SPLITS, Task
from pdiff.weights import codec
from pdiff.zoo.networks import Networks


class WeightEvaluation:
    """One evaluation of trained parameters against an imported zoo. `run` returns the parts of results.json."""

    def __init__(
        self,
        generator: Generator,
        params: PyTree,
        networks: dict[str, Networks],
        mesh: Mesh,
        facts: Facts,
        rivals: Mapping[str, Any] | None = None,
    ):
        self._generator, self._params, self._networks, self._facts = generator, params, networks, facts
        self._config, self._family, self._spec = generator.config, generator.family, generator.spec
        self._mesh, self._samplers, self._rivals = mesh, Samplers(generator, mesh), dict(rivals or {})
        seen = networks["seen"]
        base = codec.encode_stacked(self._spec, networks["base"].params)[0]
        tokens = codec.encode_stacked(self._spec, seen.params)
        self._zoo = SeenZoo(self._family, tokens, base, seen.task, seen.seed)
        grams = {"weights": gram_of_weights}
        if facts.adapter is not None:
            grams = {"updates": gram_of_updates} | grams  # what adapters do comes first
        self._grams = grams
        self._references = {
            split: self._reference(split) for split in networks if split in (*REPORTED_SPLITS, "validation")
        }

    def run(self, stop: StopSignal) -> dict:
        """Measures everything.

        Raises:
          Interrupted: a signal came; evaluation starts anew with the next command.
        """
        start = time.perf_counter()
        choosing = self._family.choosing_split
        chosen = self._tasks(choosing)
        names = self._config.sample.samplers
        scores = {n: self._summaries(choosing, chosen, self._generate(n, choosing, chosen))[self._space] for n in names}
        selection = {
            "sampler": min(names, key=lambda n: scores[n]["distance"]["mean"]),
            "validation": {n: s["distance"] for n, s in scores.items()},
        }
        self._sampler = selection["sampler"]
        controls = self._fit_controls(choosing, chosen)
        splits, made = {}, {}
        for split in REPORTED_SPLITS:
            stop.check("in evaluation, with the trained generator in a checkpoint")
            if self._family.split(split):
                splits[split], made[split] = self._split(split, controls)
        seconds = self._time_sampling()
        return {
            "selection": selection,
            "weight_space": {
                "spaces": list(self._grams),
                "units": {space: self._references["seen"][space].unit for space in self._grams},
                "splits": splits,
                "novelty": {space: self._novelty(space, made["seen"][self._sampler]) for space in self._grams},
            },
            "timing": {
                "sample_s_per_100": seconds[self._sampler],
                "sample_s_per_100_by_sampler": seconds,
                "evaluate_s": time.perf_counter() - start,
            },
        }

    @property
    def _space(self) -> str:
        """The space that choices are made in."""
        return next(iter(self._grams))

    def _tasks(self, split: str) -> tuple[Task, ...]:
        tasks = self._family.split(split)
        count = min(len(tasks), self._config.eval.max_tasks)
        return tuple(tasks[i] for i in np.linspace(0, len(tasks) - 1, count).round().astype(int)) if count else ()

    def _reference(self, split: str) -> dict[str, Reference]:
        seen, own = self._networks["seen"], self._networks[split]
        flat = {k: traverse_util.flatten_dict(n.params, sep="/") for k, n in (("seen", seen), ("own", own))}
        return {s: Reference.of(g, flat["own"], own.task, flat["seen"], seen.task) for s, g in self._grams.items()}

    def _generate(self, sampler: str, split: str, tasks: Sequence[Task]) -> Params:
        count = self._config.eval.samples_per_task
        condition = conditioning.asked(self._generator, tasks, count)
        key = rng.stream(self._config.seed, f"evaluate/{split}/{sampler}")
        return traverse_util.flatten_dict(self._samplers.networks(self._params, sampler, condition, key), sep="/")

    def _measures(self, split: str, tasks: Sequence[Task], made: Params) -> dict[str, dict[str, np.ndarray]]:
        """By space and measure, a row for each task."""
        count = len(next(iter(made.values()))) // len(tasks)
        task = np.repeat([t.id for t in tasks], count)
        found = {s: r.measures(made, task) for s, r in self._references[split].items()}
        return {s: {m: v.reshape(len(tasks), count) for m, v in measured.items()} for s, measured in found.items()}

    def _summaries(self, split: str, tasks: Sequence[Task], made: Params) -> dict[str, dict[str, dict]]:
        return _summarised(self._measures(split, tasks, made))

    def _control(self, baseline, tasks: Sequence[Task], count: int) -> Params:
        tokens = np.asarray(baseline.sample(tasks, count, np.random.default_rng(self._config.seed)), np.float32)
        parts = codec.decode_stacked(self._spec, np.ascontiguousarray(tokens.reshape(-1, *tokens.shape[2:])))
        return traverse_util.flatten_dict(parts, sep="/")

    def _fit_controls(self, choosing: str, tasks: Sequence[Task]) -> dict:
        zoo = self._zoo

        def score(baseline) -> float:  # higher is better
            return -self._measures(choosing, tasks, self._control(baseline, tasks, 1))[self._space]["distance"].mean()

        fitted = {
            "hypernetwork": Hypernetwork(self._generator, self._mesh),
            "soup": Soup.fit(zoo),
            "gaussian": Gaussian.fit(zoo),
            "noise": Noise.fit(zoo, self._config.eval.noise, self._spec.num_params),
        }
        if len(set(zoo.task)) > 1 and self._family.factor_names:
            fitted |= {"nearest_seen": Nearest.fit(zoo), "ridge": Ridge.select(zoo, score)}
            if len(self._family.factor_names) == 1:
                fitted["linear_interpolation"] = LinearInterpolation.fit(zoo)
        elif len(set(zoo.task)) > 1:
            fitted |= {"nearest_seen": NearestDescribed.fit(zoo), "ridge": RidgeDescribed.select(zoo, score)}
        tuned = {n: r.tuned(score) if isinstance(r, Learned) else r for n, r in self._rivals.items()}
        return fitted | tuned

    def _split(self, split: str, controls: dict) -> tuple[dict, dict[str, Params]]:
        """A split's entry of `weight_space.splits`, and its generated networks by sampler."""
        tasks, count = self._tasks(split), self._config.eval.samples_per_task
        made = {n: self._generate(n, split, tasks) for n in self._config.sample.samplers}
        generated = {n: self._measures(split, tasks, m) for n, m in made.items()}
        has_noise = split == "seen" or self._family.factor_names  # else no network is the nearest
        drawn = {n: self._control(b, tasks, count) for n, b in controls.items() if n != "noise" or has_noise}
        if len(tasks) > 1:
            shift = len(tasks) // 2 * count  # another task of the split, as far round as can be
            drawn["wrong_task"] = {p: np.roll(v, shift, 0) for p, v in made[self._sampler].items()}
        compared = {n: self._measures(split, tasks, m) for n, m in drawn.items()}
        entry = {
            "num_tasks": len(tasks),
            "generated": {n: _summarised(m) for n, m in generated.items()},
            "controls": {n: _summarised(m) for n, m in compared.items()},
            "per_task": [
                {
                    "task": t.name,
                    "id": t.id,
                    "factors": list(t.factors),
                    "generated": {n: _of_task(m, i) for n, m in generated.items()},
                    "controls": {n: _of_task(m, i) for n, m in compared.items()},
                }
                for i, t in enumerate(tasks)
            ],
        }
        own = {s: r.own_measures() for s, r in self._references[split].items()}
        if all(o is not None for o in own.values()):
            entry["own"] = {s: {m: summary(v, task) for m, v in values.items()} for s, (values, task) in own.items()}
        if split in self._facts.accuracies:
            entry["imported_accuracy"] = summary(np.array(self._facts.accuracies[split]), self._networks[split].task)
        return entry, made

    def _novelty(self, space: str, made: Params) -> dict:
        """How near generated networks of seen tasks are to the zoo's, and the zoo's to one another."""
        reference, seen = self._references["seen"][space], self._networks["seen"]
        task = np.repeat([t.id for t in self._tasks("seen")], self._config.eval.samples_per_task)
        return {
            "nearest": summary(reference.nearest(made), task),
            "zoo_nearest": summary(reference.nearest(reference.seen, np.arange(len(seen))), seen.task),
        }

    def _time_sampling(self) -> dict[str, float]:
        """Seconds for 100 networks by each sampler, compilation excluded."""
        batch, task = self._config.sample.batch_size, self._family.split("seen")[0]
        condition = self._generator.condition([task] * batch, given=self._config.sample.condition)
        seconds = {}
        for name in self._config.sample.samplers:
            start = time.perf_counter()
            self._samplers.networks(self._params, name, condition, rng.stream(0, "evaluate/timing"))
            seconds[name] = (time.perf_counter() - start) * 100 / batch
        return seconds


def _summarised(measured: dict[str, dict[str, Float[np.ndarray, "tasks count"]]]) -> dict[str, dict[str, dict]]:
    def of(values: Float[np.ndarray, "tasks count"]) -> dict:
        return summary(values.reshape(-1), np.repeat(np.arange(len(values)), values.shape[1]))

    return {space: {m: of(measures[m]) for m in MEASURES} for space, measures in measured.items()}


def _of_task(measured: dict[str, dict[str, np.ndarray]], i: int) -> dict[str, dict[str, float]]:
    return {space: {m: float(measures[m][i].mean()) for m in MEASURES} for space, measures in measured.items()}
