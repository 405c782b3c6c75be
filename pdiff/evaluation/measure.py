"""What "good" means: what networks answer, or, without images, how near they are to their task's networks."""

import dataclasses
import functools
import random as python_random
from collections.abc import Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float, PyTree

from pdiff import minilm
from pdiff.config.fields import DESCRIBING
from pdiff.controls import merged
from pdiff.controls.texts import Texts
from pdiff.evaluation import studies
from pdiff.evaluation.bench import Bench, Scores
from pdiff.measures.accuracy import majority, repeat
from pdiff.measures.weight_space import MEASURES, Reference, gram_of_updates, gram_of_weights
from pdiff.models.sentence import SentenceEncoder
from pdiff.results import summary
from pdiff.scenario import Facts
from pdiff.tasks.base import REPORTED_SPLITS, Task
from pdiff.weights import codec
from pdiff.zoo.networks import Networks


@runtime_checkable
class Measured(Protocol):
    """How good several networks for each of several tasks are."""

    @property
    def choice(self) -> float:
        """What is chosen by: higher is better."""

    def of_choice(self) -> dict:
        """A summary of what is chosen by."""

    def summary(self) -> dict:
        """Of all, as it stands in results.json."""

    def per_task(self, i: int) -> float | dict:
        """Of the i-th task."""


@runtime_checkable
class Measure(Protocol):
    """Measures networks, and knows what else stands beside them in results.json."""

    def of(self, networks: PyTree, tasks: Sequence[Task], choosing: bool = False) -> Measured:
        """Networks in task order, the same number for each; `choosing` keeps to what may choose."""

    def controls(self, split: str, tasks: Sequence[Task], sampler: str) -> dict[str, Measured]:
        """Controls that are not a function of the zoo's tokens."""

    def rows(self, split: str, tasks: Sequence[Task]) -> dict[str, Measured]:
        """What stands beside the generated networks and the controls of a split."""

    def tables(self, split: str, tasks: Sequence[Task], sampler: str) -> dict[str, dict[str, Measured]]:
        """Further rows of generated networks, under a key of their own."""

    def of_zoo(self, split: str) -> dict[str, dict]:
        """Summaries of the zoo's own networks of a split that are not task by task."""

    def results(self, splits: dict, seen: PyTree) -> dict:
        """The splits' entries as they lie in results.json; `seen` are generated networks of seen tasks."""


class Answers:
    """Accuracy on images: the test images, or, to choose by, the validation images."""

    def __init__(self, bench: Bench, networks: dict[str, Networks]):
        self._bench, self._networks = bench, networks
        self._described = not set(DESCRIBING).isdisjoint(bench.config.sample.condition)

    def of(self, networks: PyTree, tasks: Sequence[Task], choosing: bool = False) -> Scores:
        return self._bench.accuracy(networks, tasks, "validation" if choosing else "test")

    def controls(self, split: str, tasks: Sequence[Task], sampler: str) -> dict[str, Scores]:
        bench, blind = self._bench, self._networks["task_blind"]
        repeated = jax.tree.map(lambda a: np.concatenate([a] * len(tasks)), blind.params)
        rows = {
            "task_blind": bench.accuracy(repeated, tasks),
            "majority": Scores(majority(bench.generator.family, tasks)[:, None]),
        }
        if self._described:
            shuffle = python_random.Random(bench.config.seed)
            most = bench.config.condition.text_max_length - 1  # letters out of order are a token each
            texts = ["".join(shuffle.sample(d, len(d)))[:most] for d in self._wordings(tasks, "descriptions")]
            rows["shuffled_text"] = bench.scores(sampler, tasks, f"evaluate/{split}/shuffled", texts=texts)
        if bench.generator.family.sentences is not None:
            rows |= {name: Scores(values[:, None]) for name, values in self._texts.accuracy(tasks).items()}
        return rows

    @functools.cached_property
    def _texts(self) -> Texts:
        """The controls of a family of texts, fitted once."""
        generator = self._bench.generator
        encoder = generator.sentences or SentenceEncoder(minilm.find())
        return Texts.fit(generator.family, encoder, generator.config.seed)

    def rows(self, split: str, tasks: Sequence[Task]) -> dict[str, Scores]:
        bench, tuned = self._bench, self._networks[split]
        base = codec.take(bench.generator.spec, bench.generator.base)
        return {
            "finetuned": Scores(np.stack([tuned.test_accuracy[tuned.task == t.id] for t in tasks])),
            "base": bench.accuracy(repeat(base, len(tasks)), tasks),
        }

    def tables(self, split: str, tasks: Sequence[Task], sampler: str) -> dict[str, dict[str, Scores]]:
        tables = {"by_condition": studies.by_condition(self._bench, split, tasks, sampler)}
        if self._described and all(t.held_out_descriptions for t in tasks):
            texts = self._wordings(tasks, "held_out_descriptions")
            scores = self._bench.scores(sampler, tasks, f"evaluate/{split}/{sampler}", texts=texts)
            tables["held_out_wording"] = {sampler: scores}
        return tables

    def of_zoo(self, split: str) -> dict[str, dict]:
        return {}

    def results(self, splits: dict, seen: PyTree) -> dict:
        return {"splits": splits}

    def _wordings(self, tasks: Sequence[Task], of: str) -> list[str]:
        """One for each sample of each task, in turn."""
        count = self._bench.config.eval.samples_per_task
        return [d[j % len(d)] for d in (getattr(t, of) for t in tasks) for j in range(count)]


@dataclasses.dataclass(frozen=True)
class Distances:
    """By space and measure (of MEASURES), a row for each task. The first space is the one to choose by."""

    values: dict[str, dict[str, Float[np.ndarray, "tasks count"]]]

    @property
    def choice(self) -> float:
        return -float(next(iter(self.values.values()))["distance"].mean())

    def of_choice(self) -> dict:
        return next(iter(self.summary().values()))["distance"]

    def summary(self) -> dict[str, dict[str, dict]]:
        return {space: {m: Scores(measures[m]).summary() for m in MEASURES} for space, measures in self.values.items()}

    def per_task(self, i: int) -> dict[str, dict[str, float]]:
        return {s: {m: float(measures[m][i].mean()) for m in MEASURES} for s, measures in self.values.items()}


class Weights:
    """Distances from the task's own networks, for a zoo that was imported without images or a forward pass."""

    def __init__(self, bench: Bench, networks: dict[str, Networks], facts: Facts):
        self._bench, self._networks, self._facts = bench, networks, facts
        self._grams = {"weights": gram_of_weights}
        if facts.adapter is not None:
            updates = partial(gram_of_updates, scales=facts.scales)
            self._grams = {"updates": updates} | self._grams  # what adapters do comes first
        flat = {split: traverse_util.flatten_dict(n.params, sep="/") for split, n in networks.items()}
        seen = networks["seen"]
        self._references: dict[str, dict[str, Reference]] = {
            split: {
                space: Reference.of(gram, flat[split], networks[split].task, flat["seen"], seen.task)
                for space, gram in self._grams.items()
            }
            for split in networks
            if split in (*REPORTED_SPLITS, "validation")
        }
        family, base = bench.generator.family, flat["base"] if facts.has_base else None
        self._merges = merged.Merges(
            family=family,
            members=merged.members_of(family, flat["seen"], seen.task, base, facts.adapter is not None),
            references={split: r[self._space] for split, r in self._references.items()},
            choosing=bench.choosing_tasks(),
            scales=facts.scales,
            seed=bench.config.seed,
        )

    @property
    def _space(self) -> str:
        """The space to choose by, in which merges are."""
        return next(iter(self._grams))

    def of(self, networks: PyTree, tasks: Sequence[Task], choosing: bool = False) -> Distances:
        flat = traverse_util.flatten_dict(networks, sep="/")
        count = len(next(iter(flat.values()))) // len(tasks)
        ids = np.repeat([t.id for t in tasks], count)
        distances = {s: r.measures(flat, ids) for s, r in self._references[tasks[0].split].items()}
        return Distances({s: {m: v.reshape(len(tasks), count) for m, v in d.items()} for s, d in distances.items()})

    def controls(self, split: str, tasks: Sequence[Task], sampler: str) -> dict[str, Distances]:
        if split == "seen" or len(self._merges.members.groups) < 2:
            return {}
        return {n: Distances({self._space: values}) for n, values in self._merges.measures(tasks).items()}

    def rows(self, split: str, tasks: Sequence[Task]) -> dict[str, Distances]:
        return {}

    def tables(self, split: str, tasks: Sequence[Task], sampler: str) -> dict[str, dict[str, Distances]]:
        return {}

    def of_zoo(self, split: str) -> dict[str, dict]:
        summaries = {}
        spread = {s: r.own_measures() for s, r in self._references[split].items()}
        if all(o is not None for o in spread.values()):
            summaries["own"] = {
                s: {m: summary(v, task) for m, v in values.items()} for s, (values, task) in spread.items()
            }
        if split in self._facts.accuracies:
            stated = np.array(self._facts.accuracies[split])
            summaries["imported_accuracy"] = summary(stated, self._networks[split].task)
        return summaries

    def results(self, splits: dict, seen: PyTree) -> dict:
        generated = traverse_util.flatten_dict(seen, sep="/")
        return {
            "weight_space": {
                "spaces": list(self._grams),
                "units": {space: self._references["seen"][space].unit for space in self._grams},
                "splits": splits,
                "novelty": {space: self._novelty(space, generated) for space in self._grams},
            }
            | self._merging(splits)
        }

    def _merging(self, splits: dict) -> dict:
        """What the controls that merge have chosen, where there are any."""
        held_out = [t for s in splits if s != "seen" for t in self._bench.tasks(s)]
        if not held_out or len(self._merges.members.groups) < 2:
            return {}
        places = {t.name: merged.between(self._bench.generator.family, t) for t in held_out}
        places = {name: {"tasks": [a.name, b.name], "t": t} for name, (a, b, t) in places.items()}
        return {"merging": {"densities": self._merges.densities, "between": places}}

    def _novelty(self, space: str, generated: dict[str, np.ndarray]) -> dict:
        """How near generated networks of seen tasks are to the zoo's, and the zoo's to one another."""
        reference, seen = self._references["seen"][space], self._networks["seen"]
        task = np.repeat([t.id for t in self._bench.tasks("seen")], self._bench.config.eval.samples_per_task)
        return {
            "nearest": summary(reference.nearest(generated), task),
            "zoo_nearest": summary(reference.nearest(reference.seen, np.arange(len(seen))), seen.task),
        }
