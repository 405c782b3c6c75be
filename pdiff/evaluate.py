"""Scores generated networks and everything that they are compared with, and assembles results.json.

The order matters for honesty: samplers and the ridge are chosen first, on validation tasks and
validation images; only then is any test image looked at.
"""

import dataclasses
import random as python_random
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from pdiff import rng
from pdiff.baselines import SeenZoo
from pdiff.baselines.blind import Gaussian, Soup
from pdiff.baselines.neighbours import LinearInterpolation, Nearest, Noise
from pdiff.baselines.ridge import Ridge
from pdiff.evaluators import novelty
from pdiff.evaluators.accuracy import Scorer, repeat
from pdiff.generator import Generator
from pdiff.report.results import summary
from pdiff.sample import Samplers
from pdiff.stopping import StopSignal
from pdiff.tasks.base import Task
from pdiff.weights import codec
from pdiff.zoo.store import Networks

REPORTED_SPLITS = ("seen", "interp", "unseen")
NOVELTY_TASKS = 32


@dataclasses.dataclass(frozen=True)
class Scores:
    """Accuracies of several networks for each of several tasks."""

    values: Float[np.ndarray, "tasks count"]

    def summary(self) -> dict:
        groups = np.repeat(np.arange(len(self.values)), self.values.shape[1])
        return summary(self.values.reshape(-1), groups)

    def per_task(self, i: int) -> float:
        return float(self.values[i].mean())


class Evaluation:
    """One evaluation of trained parameters against a zoo. `run` returns the parts of results.json that it measures."""

    def __init__(self, generator: Generator, params: PyTree, networks: dict[str, Networks], mesh: Mesh):
        self._generator, self._params, self._networks = generator, params, networks
        self._config = generator.config
        self._samplers = Samplers(generator, mesh)
        self._score = {part: Scorer(generator, part, mesh) for part in ("validation", "test")}
        self._encode = jax.jit(jax.vmap(lambda p: codec.encode(generator.spec, p)))
        self._decode = jax.jit(jax.vmap(lambda t: codec.decode(generator.spec, t, generator.base)))
        seen = networks["seen"]
        self._zoo = SeenZoo(
            generator.family,
            np.asarray(self._encode(seen.params)),
            np.asarray(codec.encode(generator.spec, generator.base)),
            seen.task,
            seen.seed,
        )

    def run(self, stop: StopSignal) -> dict:
        """Measures everything. Takes a minute or two.

        Raises:
          Interrupted: a signal came; evaluation starts anew with the next command.
        """
        start = time.perf_counter()
        selection = self._select_sampler()
        self._sampler = selection["sampler"]
        baselines = self._fit_baselines()
        splits, seen_networks = {}, {}
        for split in REPORTED_SPLITS:
            stop.check("in evaluation, with the trained generator in a checkpoint")
            tasks = self._tasks(split)
            if tasks:
                splits[split], made = self._split(split, tasks, baselines)
                if split == "seen":
                    seen_networks = made
        results = {"selection": selection, "splits": splits}
        results["novelty"] = self._novelty(self._tasks("seen"), seen_networks, baselines["noise"])
        seconds = self._time_sampling()
        results["timing"] = {
            "sample_s_per_100": seconds[self._sampler],
            "sample_s_per_100_by_sampler": seconds,
            "evaluate_s": time.perf_counter() - start,
        }
        return results

    # --- what is generated -------------------------------------------------------------------

    def _tasks(self, split: str) -> tuple[Task, ...]:
        """At most `eval.max_tasks` tasks of a split, evenly chosen."""
        tasks = self._generator.family.split(split)
        count = min(len(tasks), self._config.eval.max_tasks)
        return tuple(tasks[i] for i in np.linspace(0, len(tasks) - 1, count).round().astype(int)) if count else ()

    def _generate(self, name: str, tasks: Sequence[Task], stream: str, texts=None) -> PyTree:
        """`samples_per_task` networks for each task, in task order; sample j is asked for in the j-th wording."""
        count = self._config.eval.samples_per_task
        if texts is None:
            texts = [t.descriptions[j % len(t.descriptions)] for t in tasks for j in range(count)]
        repeated = [t for t in tasks for _ in range(count)]
        condition = self._generator.condition(repeated, texts, self._config.sample.condition)
        return self._samplers.networks(self._params, name, condition, rng.stream(self._config.seed, stream))

    def _accuracy(self, networks: PyTree, tasks: Sequence[Task], part: str = "test") -> Scores:
        """Scores networks that come in task order, the same number for each."""
        count = len(jax.tree.leaves(networks)[0]) // len(tasks)
        ids = np.repeat([t.id for t in tasks], count)
        return Scores(self._score[part](networks, ids).reshape(len(tasks), count))

    # --- choices, on validation tasks and images ------------------------------------------------

    def _select_sampler(self) -> dict:
        names, tasks = self._config.sample.samplers, self._tasks("validation")
        if not tasks:
            return {"sampler": names[0]}
        scores = {
            n: self._accuracy(self._generate(n, tasks, f"evaluate/validation/{n}"), tasks, "validation").summary()
            for n in names
        }
        return {"sampler": max(names, key=lambda n: scores[n]["mean"]), "validation": scores}

    def _fit_baselines(self) -> dict:
        zoo, tasks = self._zoo, self._tasks("validation") or self._tasks("seen")

        def validation_accuracy(ridge: Ridge) -> float:
            return self._baseline(ridge, tasks, 1, "validation").values.mean()

        fitted = {
            "soup": Soup.fit(zoo),
            "gaussian": Gaussian.fit(zoo),
            "noise": Noise.fit(zoo, self._config.eval.noise, self._generator.spec.num_params),
        }
        if len(set(zoo.task)) > 1:
            fitted["nearest_seen"] = Nearest.fit(zoo)
            if zoo.family.factor_names:
                fitted["ridge"] = Ridge.select(zoo, validation_accuracy)
            if len(zoo.family.factor_names) == 1:
                fitted["linear_interpolation"] = LinearInterpolation.fit(zoo)
        return fitted

    def _baseline_networks(self, baseline, tasks: Sequence[Task], count: int) -> PyTree:
        random = np.random.default_rng(self._config.seed)
        tokens = np.asarray(baseline.sample(tasks, count, random))
        return jax.tree.map(np.asarray, self._decode(tokens.reshape(-1, *tokens.shape[2:])))

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
        base = self._accuracy(repeat(self._generator.base, len(tasks)), tasks)
        controls = {n: self._baseline(b, tasks, count) for n, b in baselines.items()}
        controls |= self._controls(split, tasks, made[self._sampler])
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
                }
                for i, t in enumerate(tasks)
            ],
        }
        if "text" in self._config.sample.condition:
            held_out = [d[j % len(d)] for d in (t.held_out_descriptions for t in tasks) for j in range(count)]
            networks = self._generate(self._sampler, tasks, f"evaluate/{split}/{self._sampler}", held_out)
            entry["held_out_wording"] = {self._sampler: self._accuracy(networks, tasks).summary()}
        return entry, made

    def _controls(self, split: str, tasks: Sequence[Task], networks: PyTree) -> dict[str, Scores]:
        """Controls that need the generator or the whole zoo."""
        count = self._config.eval.samples_per_task
        blind = self._networks["task_blind"]
        repeated = jax.tree.map(lambda a: np.concatenate([a] * len(tasks)), blind.params)
        controls = {"task_blind": self._accuracy(repeated, tasks)}
        if len(tasks) > 1:
            shift = len(tasks) // 2 * count  # another task of the split, as far round as can be
            controls["wrong_task"] = self._accuracy(jax.tree.map(lambda a: np.roll(a, shift, 0), networks), tasks)
        if "text" in self._config.sample.condition:
            shuffle = python_random.Random(self._config.seed)
            texts = [
                "".join(shuffle.sample(d, len(d)))
                for d in (t.descriptions[j % len(t.descriptions)] for t in tasks for j in range(count))
            ]
            shuffled = self._generate(self._sampler, tasks, f"evaluate/{split}/shuffled", texts)
            controls["shuffled_text"] = self._accuracy(shuffled, tasks)
        return controls

    # --- novelty and time ----------------------------------------------------------------------

    def _novelty(self, tasks: Sequence[Task], made: dict[str, PyTree], noise: Noise) -> dict:
        """Distances of generated seen-task networks, and of the zoo's own, to the zoo."""
        count = self._config.eval.samples_per_task
        chosen = np.linspace(0, len(tasks) - 1, min(NOVELTY_TASKS, len(tasks))).round().astype(int)
        kept = [tasks[i] for i in chosen]
        rows = (chosen[:, None] * count + np.arange(count)).reshape(-1)
        score, zoo = self._score["test"], self._networks["seen"]
        errors = novelty.ZooErrors(score, zoo.params, len(zoo), kept)
        weights = self._zoo.tokens.reshape(len(zoo), -1)
        ids = np.repeat([t.id for t in kept], count)
        points = []

        def measure(kind: str, networks: PyTree) -> None:
            right = score.right(networks, ids)
            overlap = np.concatenate(
                [errors.overlap(t.id, right[i * count : (i + 1) * count]).max(1) for i, t in enumerate(kept)]
            )
            tokens = np.asarray(self._encode(networks)).reshape(len(ids), -1)
            _extend(points, kind, right.mean(-1), overlap, novelty.l2_distances(tokens, weights).min(1), ids)

        measure("generated", jax.tree.map(lambda a: a[rows], made[self._sampler]))
        measure("noise", self._baseline_networks(noise, kept, count))
        for task in kept:
            own = self._zoo.rows_of(task.id)
            distance = novelty.l2_distances(weights[own], weights)
            distance[np.arange(len(own)), own] = np.inf
            overlap = np.nanmax(errors.among(task.id, own), 1)
            _extend(points, "zoo", zoo.test_accuracy[own], overlap, distance.min(1), [task.id] * len(own))

        def of(kind: str, field: str) -> dict:
            chosen = [p for p in points if p["kind"] == kind]
            return summary(np.array([p[field] for p in chosen]), np.array([p["task"] for p in chosen]))

        spread = {
            n: summary(novelty.spread(np.asarray(self._encode(networks)).reshape(len(tasks), count, -1)))
            for n, networks in made.items()
            if count > 1
        }
        own = [weights[self._zoo.rows_of(t.id)] for t in kept]
        if min(len(o) for o in own) > 1:
            spread["zoo"] = summary(np.concatenate([novelty.spread(o[None]) for o in own]))
        return {
            "max_iou_to_zoo": of("generated", "max_iou"),
            "zoo_to_zoo_iou": of("zoo", "max_iou"),
            "nearest_l2": of("generated", "nearest_l2"),
            "zoo_nearest_l2": of("zoo", "nearest_l2"),
            "spread": spread,
            "points": [{k: v for k, v in p.items() if k != "task"} for p in points],
        }

    def _time_sampling(self) -> dict[str, float]:
        """Seconds for 100 networks by each sampler, compilation excluded."""
        batch = self._config.sample.batch_size
        task = self._generator.family.split("seen")[0]
        condition = self._generator.condition([task] * batch, given=self._config.sample.condition)
        seconds = {}
        for name in self._config.sample.samplers:
            start = time.perf_counter()
            self._samplers.networks(self._params, name, condition, rng.stream(0, "evaluate/timing"))
            seconds[name] = (time.perf_counter() - start) * 100 / batch
        return seconds


def _extend(points: list[dict], kind: str, accuracy, overlap, distance, tasks) -> None:
    for a, o, d, t in zip(accuracy, overlap, distance, tasks, strict=True):
        points.append({"kind": kind, "accuracy": float(a), "max_iou": float(o), "nearest_l2": float(d), "task": int(t)})
