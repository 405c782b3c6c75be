"""Rows by condition, averages of samples, spread, mixing and transfer, on an untrained tiny generator."""

import copy
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.evaluation import studies
from pdiff.evaluation.bench import Bench
from pdiff.evaluation.evaluate import evaluate
from pdiff.generator.conditioning import make_constants, training_condition
from pdiff.system.stopping import StopSignal
from pdiff.tasks.base import Family, Task
from pdiff.zoo.networks import Networks
from tests.conftest import make_generator, refine
from tests.noise import noised


@pytest.fixture(scope="module")
def made(tiny_config, tiny_zoo, mesh):
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.condition.use = ("id", "text", "factors")
        config.eval.mixing_separations = (60.0, 1.0)
        config.eval.transfer_pairs = 30
        config.eval.adapt_tasks = config.eval.vague_samples = 0  # see test_adaptation and test_vague
    return refine(make_generator(config.lock(), tiny_zoo), tiny_zoo, mesh)


@pytest.fixture(scope="module")
def bench(made, mesh):
    return Bench(made, noised(jax.jit(made.init)(jax.random.key(0)), 0.1), mesh)


def test_a_row_for_each_condition(bench):
    tasks = bench.tasks("unseen")
    rows = studies.by_condition(bench, "unseen", tasks, "posterior_mean")
    assert set(rows) == {"text", "factors"}  # whose ids were never trained
    assert set(studies.by_condition(bench, "seen", bench.tasks("seen"), "posterior_mean")) == {"id", "text", "factors"}
    assert len({row.values.mean() for row in rows.values()}) == 2  # they are not one and the same
    assert all(row.values.shape == (len(tasks), bench.config.eval.samples_per_task) for row in rows.values())


class Signs(Bench):
    """A bench whose networks are four numbers; those above 0 get a test image right, above 1 a validation image too."""

    def __init__(self, counts):
        places = [(split, i) for split, count in counts.items() for i in range(count)]
        own = [Task(f"{s}_{i}", n, s, (), ("words",), ()) for n, (s, i) in enumerate(places)]
        self._tasks = {s: tuple(t for t in own if t.split == s) for s in counts}
        self.asked = {}
        self.score = {p: SimpleNamespace(right=lambda w, ids, b=b: w > b) for p, b in (("test", 0), ("validation", 1))}

    def tasks(self, split, most):
        return self._tasks.get(split, ())[:most]

    def generate(self, sampler, tasks, stream, count):
        self.asked[stream] = (sampler, len(tasks), count)
        return drawn(len(tasks) * count)

    def encode(self, networks):
        return networks.reshape(-1, 2, 2)


def drawn(count):
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


def of_task(task, params):
    whole, column = np.zeros(len(task), np.int32), np.zeros(len(task), np.float32)
    return Networks(np.array(task), whole, whole, column, column, params)


def test_networks_of_one_task_are_compared_two_by_two():
    signs = Signs({"validation": 1, "seen": 3, "interp": 2})
    tuned = {"seen": of_task([1, 1, 1, 2, 2, 3], drawn(6)), "interp": of_task([4, 5], drawn(2))}
    found = studies.spread(signs, "heun", tuned)
    assert set(found["zoo"]) == {"seen"}  # each interp task has one network, there are none of validation or unseen
    for entry, networks in ((found["generated"]["seen"], drawn(60)), (found["zoo"]["seen"], drawn(6)[[0, 1, 3, 4]])):
        first, second = networks[::2], networks[1::2]
        distance = np.linalg.norm(first - second, axis=1)
        assert entry["spread"]["mean"] == pytest.approx(distance.mean(), rel=1e-5)
        assert entry["spread"]["n"] == len(distance)
        assert entry["disagreement"]["mean"] == pytest.approx(((first > 0) != (second > 0)).mean())
        assert entry["accuracy"]["mean"] == pytest.approx((networks > 0).mean())
    assert found["generated"]["validation"]["accuracy"]["mean"] == pytest.approx((drawn(64) > 1).mean())
    assert signs.asked == {
        "evaluate/spread/validation": ("heun", 1, 64), "evaluate/spread/seen": ("heun", 3, 20),
        "evaluate/spread/interp": ("heun", 2, 32),
    }  # fmt: skip


def test_places_that_are_no_task_are_scored_on_their_own_images(bench, tiny_zoo):
    family, drawing, one = bench.generator.family, copy.copy(bench), tiny_zoo["seen"][np.arange(1)].params
    drawing.generate = lambda sampler, tasks, stream, count=None, **how: jax.tree.map(
        lambda w: np.repeat(w, 2 * len(tasks), 0), one
    )
    rows = studies.singular(drawing, "ddim")
    assert [row["factors"] for row in rows] == [[angle] for angle in family.singular]
    network = jax.tree.map(lambda w: w[0], one)
    for row in rows:
        x, y = family.labelled(family.vary(tuple(row["factors"])), family.data["test"].x, family.data["test"].y)
        right = (np.asarray(bench.generator.apply(network, x)).argmax(-1) == np.asarray(y)).mean()
        assert set(row["generated"]) == set(bench.config.sample.samplers)
        assert row["generated"]["ddim"] == pytest.approx(right, abs=1e-5)


def test_an_ensemble_averages_probabilities_beside_one_of_its_networks(bench, tiny_zoo):
    """By hand: for drawn networks, here some of the zoo's, and for the fine-tuned ones of each task."""
    family, drawing = bench.generator.family, copy.copy(bench)
    drawing.generate = lambda sampler, tasks, stream, count: tiny_zoo["seen"][np.arange(len(tasks) * count)].params
    found = studies.calibration(drawing, "ddim", tiny_zoo)
    for split, rows in found.items():
        tasks, tuned = bench.tasks(split), tiny_zoo[split]
        both = {
            "generated": tiny_zoo["seen"][np.arange(2 * len(tasks))].params,
            "finetuned": tuned[np.concatenate([np.flatnonzero(tuned.task == t.id)[:2] for t in tasks])].params,
        }
        for name, networks in both.items():
            error, likely = [], []
            for i, task in enumerate(tasks):
                own = jax.tree.map(lambda v, t=task.id: v[t], family.variables)
                x, y = family.labelled(own, family.data["test"].x, family.data["test"].y)
                two = jax.tree.map(lambda w, i=i: w[2 * i : 2 * i + 2], networks)
                p = np.asarray(jax.nn.softmax(jax.vmap(bench.generator.apply, (0, None))(two, x)))
                for kind in (p.mean(0), p[0]):
                    error.append((kind.argmax(-1) != np.asarray(y)).mean())
                    likely.append(np.log(kind[np.arange(len(y)), np.asarray(y)]).mean())
            for k, kind in enumerate(("ensemble", "single")):
                row = rows[f"{name}_{kind}"]
                assert row["error"]["mean"] == pytest.approx(np.mean(error[k::2]), abs=2e-3)
                assert row["log_likelihood"]["mean"] == pytest.approx(np.mean(likely[k::2]), rel=1e-3)


def test_mixed_weights_are_raw_weights_on_the_line_and_on_the_arc(bench, tiny_zoo):
    seen, tasks = tiny_zoo["seen"], bench.generator.family.split("seen")
    weight = np.array([0.25], np.float32)
    mixed = studies._mixed(bench, "posterior_mean", seen, [tasks[1]], [tasks[0]], [tasks[2]], weight)
    a, b = (seen[np.flatnonzero(seen.task == tasks[i].id)[:1]].params for i in (0, 2))
    for line, u, v in zip(*(jax.tree.leaves(x) for x in (mixed["weights_lerp"], a, b)), strict=True):
        np.testing.assert_allclose(line, 0.75 * u + 0.25 * v, atol=1e-6)
    arc, u, v = (np.linalg.norm(bench.encode(x)) for x in (mixed["weights_slerp"], a, b))
    assert arc == pytest.approx(0.75 * u + 0.25 * v, rel=1e-3)
    assert arc > 1.001 * np.linalg.norm(bench.encode(mixed["weights_lerp"]))


def test_mixing_is_scored_on_the_task_between(bench, tiny_zoo):
    (row,) = studies.mixing(bench, "posterior_mean", tiny_zoo["seen"])  # no two seen tasks are half a degree away
    assert row["separation"] == 60.0
    kinds = {f"{what}_{how}" for what in ("condition", "weights") for how in ("lerp", "slerp")}
    assert set(row["accuracy"]) == kinds | {"description"}


def test_neighbours_are_on_both_sides_and_the_weight_is_the_place_between(bench):
    family = bench.generator.family
    for task in family.split("seen"):
        found = studies._around(family, task, 60.0)
        if found:
            _, a, b, weight = found
            span = (b.factors[0] - a.factors[0]) % 360
            assert (a.factors[0] + weight * span) % 360 == pytest.approx(task.factors[0], abs=1e-3)
            assert task.id not in (a.id, b.id) and 0 < weight < 1
    assert any(studies._around(family, t, 60.0) for t in family.split("seen"))


def test_one_seen_task_cannot_be_mixed(bench, tiny_zoo):
    family = bench.generator.family
    alone = dataclasses.replace(family, tasks=(family.split("seen")[0], *family.split("unseen")))
    lonely = dataclasses.replace(bench.generator, family=alone)
    assert studies.mixing(Bench(lonely, bench.params, bench.mesh), "posterior_mean", tiny_zoo["seen"]) == []


def test_with_several_factors_the_mixed_pair_has_the_task_in_its_middle():
    def task(i, *factors):
        return Task(f"t{i}", i, "seen" if i else "interp", factors, ("words",), ())

    places = [(5.0, 5.0), (0.0, 5.5), (10.0, 5.0), (5.0, 5.2), (30.0, 30.0), (0.0, 0.0)]
    tasks = tuple(task(i, *p) for i, p in enumerate(places))
    family = Family("plane", ("x", "y"), (0.0, 0.0), 2, (1,), {}, tasks, None, lambda own, x: x, None)
    middle, a, b, weight = studies._amid(family, tasks[0], 10.0)
    assert middle is tasks[0] and {a.id, b.id} == {1, 2} and weight == 0.5
    assert studies._amid(family, tasks[0], 40.0) is None  # (0, 0) and (30, 30) are, but their middle is far off


def test_number_noise_moves_a_whole_text_and_its_factor_alike(made):
    config = made.config.copy_and_resolve_references()
    constants, task = jax.tree.map(jnp.asarray, make_constants(made)), jnp.arange(8)
    keys = jax.random.split(jax.random.key(0), 8)

    def drawn(noise):
        with config.unlocked():
            config.condition.number_noise = noise
        generator = dataclasses.replace(made, config=config)
        return training_condition(generator, constants, task, 0 * task, keys)

    still, moved = drawn(0.0), drawn(8.0)
    by = np.asarray(moved["factors"]["inputs"] - still["factors"]["inputs"])
    assert 2 < by.std() < 20
    number = still["text"]["inputs"]["is_number"]
    change = np.asarray(moved["text"]["inputs"]["values"] - still["text"]["inputs"]["values"])
    np.testing.assert_allclose(change, np.where(number, by, 0), atol=1e-3)
    angles = np.array([made.family.tasks[t].factors[0] for t in task])
    np.testing.assert_allclose(still["text"]["inputs"]["values"].max(1), angles, atol=1e-3)


def test_number_noise_moves_each_factor_in_its_own_units(made):
    several = dataclasses.replace(
        made.family, factor_names=("angle", "kind", "share"), factor_periods=(360.0, 0.0, 0.0),
        factor_units=(1.0, 0.0, 0.01),
    )  # fmt: skip
    generator = dataclasses.replace(made, family=several)
    constants, task = jax.tree.map(jnp.asarray, make_constants(made)), jnp.zeros(8, jnp.int32)
    constants["factors"] = jnp.tile(jnp.array([90.0, 1.0, 0.5]), (len(made.family.tasks), 1))
    keys = jax.random.split(jax.random.key(0), 8)
    drawn = training_condition(generator, constants, task, task, keys)
    change = np.asarray(drawn["factors"]["inputs"]) - [90.0, 1.0, 0.5]
    assert change[:, 0].std() > 2 and (change[:, 1] == 0).all()
    np.testing.assert_allclose(change[:, 2], change[:, 0] / 100, atol=1e-5)


def test_an_evaluation_scores_the_mean_alone_beside_the_generator(made, tiny_zoo, mesh, bench):
    results = evaluate(bench, tiny_zoo, StopSignal())
    assert "vague" not in results and "adaptation" not in results
    check_calibration(results["calibration"])
    for split in results["splits"].values():
        assert "hypernetwork" in split["controls"] and "by_condition" in split
    assert results["mixing"]
    for kind in ("zoo", "generated"):
        assert set(results["spread"][kind]) == {"validation", "seen", "interp", "unseen"}
    check_transfer(made, tiny_zoo["seen"], results)


def check_calibration(found):
    """Two drawn networks in an ensemble, as many fine-tuned ones; the log of a probability is below 0."""
    assert set(found) == {"seen", "interp", "unseen"}
    for rows in found.values():
        kinds = {f"{who}_{kind}": kind for who in ("generated", "finetuned") for kind in ("ensemble", "single")}
        assert {n: r["networks"] for n, r in rows.items()} == {n: 2 if k == "ensemble" else 1 for n, k in kinds.items()}
        assert all(r["log_likelihood"]["max"] < 0 <= r["error"]["min"] <= r["error"]["max"] <= 1 for r in rows.values())


def check_transfer(made, seen, results):
    """Each pair's accuracy and distance are those of the two tasks; near pairs and far ones are both there."""
    family, study = made.family, results["transfer"]
    by_name = {t.name: t for t in family.tasks}
    assert len(study["pairs"]) == 30 and set(study["rank_correlation"]) == {"factors"}
    for pair in study["pairs"]:
        a, b = by_name[pair["from"]], by_name[pair["to"]]
        assert (a.split, b.split) == ("seen", pair["split"]) and a.id != b.id
        gap = abs(a.factors[0] - b.factors[0])
        assert pair["factors"] == pytest.approx(min(gap, 360 - gap), abs=1e-3)
    for pair in study["pairs"][:3]:
        network = jax.tree.map(lambda p, a=by_name[pair["from"]]: p[np.flatnonzero(seen.task == a.id)[0]], seen.params)
        own = jax.tree.map(lambda v, b=by_name[pair["to"]]: v[b.id], family.variables)
        x, y = family.labelled(own, family.data["test"].x, family.data["test"].y)
        right = (made.target.apply(network, x).argmax(-1) == y).mean()
        assert pair["accuracy"] == pytest.approx(float(right), abs=0.01)
    own = [p for p in study["pairs"] if p["split"] == "unseen"]
    assert own[0]["factors"] < 60 < 90 < own[-1]["factors"]  # from the nearest seen task to the farthest
    for made_for, task in zip(study["generated"], results["splits"]["seen"]["per_task"], strict=False):
        assert made_for["task"] == task["task"] and made_for["finetuned"] == task["finetuned"]
        assert made_for["nearest_factors"] > 0


def test_backgrounds_are_compared_by_their_first_shots(made):
    random = np.random.default_rng(0)
    backgrounds = random.random((len(made.family.tasks), 2, 5)).astype(np.float32)
    tasks = made.family.tasks[:3]
    found = studies._distances(dataclasses.replace(made.family, backgrounds=backgrounds), tasks, tasks[1:])
    expected = np.sqrt(np.mean((backgrounds[0, 0] - backgrounds[2, 0]) ** 2))
    assert found["background"][0, 1] == pytest.approx(expected, rel=1e-5)
    assert found["background"][1, 0] == 0 and found["factors"].shape == (3, 2)
