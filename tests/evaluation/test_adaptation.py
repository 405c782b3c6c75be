"""The study of adaptation: what the rows start from, that all see the same images, and what is chosen for them."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pdiff.evaluation import adaptation
from pdiff.evaluation.bench import Bench
from pdiff.generator.adapt import SPACES, WEIGHTS, Adapter, Recipe
from pdiff.measures.accuracy import repeat
from pdiff.tasks.base import Images
from pdiff.tasks.support import UNKNOWN
from pdiff.weights import codec
from tests.annotations import unchecked
from tests.conftest import make_generator, refine
from tests.noise import noised

ROWS = ("prior", "prior_guided", "prior_described", "described", "refined_zoo", "refined_all", "zoo", "reptile", "base")


@pytest.fixture(scope="module")
def bench(tiny_config, tiny_zoo, mesh):
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.adapt.update(dict(num_samples=8, guided=4, steps=2, learning_rates=(1e-5, 3e-2)))
        config.eval.update(dict(adapt_tasks=2, adapt_shots=(1, 3)))
        config.sample.batch_size = 8
    made = refine(make_generator(config.lock(), tiny_zoo), tiny_zoo, mesh)
    return Bench(made, noised(jax.jit(made.init)(jax.random.key(0)), 0.05), mesh)


@pytest.fixture(scope="module")
def found(bench, tiny_zoo):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "REPTILE_STEPS", 5)
        return adaptation.adaptation(bench, "ddim", tiny_zoo)


def test_every_row_is_there_for_every_split_and_number_of_images(found):
    assert set(found["splits"]) == {"interp", "unseen"} and set(found["recipes"]) == {"1", "3"}
    for rows in found["splits"].values():
        assert [r["shots"] for r in rows] == [0, 1, 3]
        assert set(rows[0]["accuracy"]) == {"prior", "described", "zoo", "base"}
        for row in rows[1:]:
            assert set(row["accuracy"]) == {*ROWS, "prior_chosen", "unlabelled"}
            assert set(row["ahead"]) == set(row["accuracy"]) - {"prior"}
            assert row["images"] == 10 * row["shots"]
            assert all(s["n"] == 2 for s in (*row["accuracy"].values(), *row["ahead"].values()))


def test_how_far_the_prior_is_ahead_is_the_difference_task_by_task(found):
    for rows in found["splits"].values():
        for row in rows[1:]:
            for name, ahead in row["ahead"].items():
                gap = row["accuracy"]["prior"]["mean"] - row["accuracy"][name]["mean"]
                assert ahead["mean"] == pytest.approx(gap, abs=1e-6)


def test_what_is_chosen_is_what_was_best_on_validation_images_of_validation_tasks(found, bench, tiny_zoo):
    adapter = Adapter(bench.generator, bench.mesh)
    tasks = bench.choosing_tasks(2)
    assert all(t.split == "validation" for t in tasks)
    for shots in (1, 3):
        sets = adaptation._draw(bench, tasks, shots, "validation")
        start = adapter.choose(tiny_zoo["seen"].params, sets)
        tuned = {rate: adapter.finetune(start, sets, Recipe(WEIGHTS, rate, 2)) for rate in (1e-5, 3e-2)}
        tried = {rate: bench.accuracy(n, tasks, "validation").values.mean() for rate, n in tuned.items()}
        chosen = found["recipes"][str(shots)]["zoo"]
        assert chosen["learning_rate"] == max(tried, key=tried.get)
        assert chosen["validation"] == pytest.approx(max(tried.values()))
    assert {r["space"] for name, r in found["recipes"]["3"].items() if not name.startswith("prior")} == {WEIGHTS}


def test_every_start_may_choose_its_rate_and_some_their_space_or_their_time(bench):
    every = {name: adaptation._recipes(bench, name) for name in ROWS}
    assert {r.learning_rate for r in every["zoo"]} == {1e-5, 3e-2} and {r.steps for r in every["zoo"]} == {2}
    for name in ("prior", "prior_guided", "prior_described"):
        assert {r.space for r in every[name]} == set(SPACES)
    for name in ("base", "reptile"):
        assert {r.steps for r in every[name]} == {2, 2 * adaptation.LONGER}
    assert all(len(set(recipes)) == len(recipes) for recipes in every.values())
    guided = {name: {r.guided for r in recipes} for name, recipes in every.items()}
    assert guided == {name: {4 if name == "prior_guided" else 0} for name in ROWS}


def test_images_are_the_tasks_own_training_images_so_many_of_each_label(bench):
    tasks, family = bench.tasks("unseen", 2), bench.generator.family
    one, three = (adaptation._draw(bench, tasks, shots, "unseen") for shots in (1, 3))
    assert one.x.shape == three.x.shape  # one program serves both
    assert one.real.sum(1).tolist() == [10, 10] and three.real.sum(1).tolist() == [30, 30]
    for i, task in enumerate(tasks):
        for sets, shots in ((one, 1), (three, 3)):
            assert np.bincount(sets.y[i][sets.real[i]], minlength=10).tolist() == [shots] * 10
        own = jax.tree.map(lambda v, t=task.id: v[t], family.variables)
        x, y = map(np.asarray, family.labelled(own, family.data["train"].x, family.data["train"].y))
        gap = np.abs(three.x[i][three.real[i]][:, None] - x[None]).max(-1)
        assert gap.min(1).max() < 1e-4 and (y[gap.argmin(1)] == three.y[i][three.real[i]]).all()
        fewer = {tuple(row.round(3)) for row in one.x[i][one.real[i]]}
        assert fewer < {tuple(row.round(3)) for row in three.x[i][three.real[i]]}
    assert np.abs(one.x[0] - one.x[1]).max() > 0.1


@unchecked()  # the bench has no more than what is read of it here
def test_labels_that_a_task_has_few_of_have_those_that_there_are(bench):
    family, images = bench.generator.family, bench.generator.family.data["train"]
    few = Images(images.x[:12], images.y[:12], images.index[:12])
    fewer = dataclasses.replace(family, data={"train": few})
    sets = adaptation._draw(
        SimpleNamespace(generator=SimpleNamespace(family=fewer), config=bench.config), bench.tasks("unseen", 1), 3, "x"
    )
    counts, drawn = (np.bincount(y, minlength=10) for y in (few.y, sets.y[0][sets.real[0]]))
    assert counts.max() > 1 and drawn.tolist() == counts.clip(max=3).tolist()


def test_without_a_label_the_same_pool_is_asked_in_another_way(bench, tiny_zoo, monkeypatch):
    """`unlabelled` has no label at all, and every row the same images."""
    monkeypatch.setattr(adaptation, "REPTILE_STEPS", 1)
    seen = []
    choose = Adapter.choose

    def noted(self, networks, support):
        seen.append((support.x, (support.y[support.real] == UNKNOWN).all()))
        return choose(self, networks, support)

    monkeypatch.setattr(Adapter, "choose", noted)
    config = bench.config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.update(dict(adapt_tasks=1, adapt_shots=(1,)))
        config.adapt.learning_rates = (1e-3,)
    monkeypatch.setattr(bench, "config", config)
    adaptation.adaptation(bench, "ddim", tiny_zoo)
    assert sum(blank for _, blank in seen) == 2  # for interp and for unseen tasks
    assert len({x.tobytes() for x, _ in seen}) == 3 < len(seen)  # of the task that chooses, and of theirs


def test_reptile_learns_a_start_that_seen_tasks_are_sooner_learned_from(bench, monkeypatch):
    base = codec.take(bench.generator.spec, bench.generator.base)
    monkeypatch.setattr(adaptation, "REPTILE_STEPS", 40)
    learned, tasks = adaptation.reptile(bench, base), bench.tasks("seen", 8)
    adapter = Adapter(bench.generator, bench.mesh)
    sets = adaptation._draw(bench, tasks, 3, "seen")

    def after(start):
        tuned = adapter.finetune(jax.tree.map(np.array, repeat(start, len(tasks))), sets, Recipe(WEIGHTS, 1e-2, 5))
        return bench.accuracy(tuned, tasks).values.mean()

    assert after(learned) > after(base) + 0.03
