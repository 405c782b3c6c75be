"""What to expect is read off the results: of the task itself, of those nearby, of its region's ends, or not known."""

import dataclasses

import numpy as np
import pytest

from configs import smoke
from pdiff.ask.expect import Expectation, Expectations
from pdiff.ask.nearby import flips, student
from pdiff.tasks import get_family

SAMPLER, TEXT = "heun", ("text",)
HELD_OUT = 0.7 + 0.001 * np.arange(6)  # the unseen tasks of the made-up results


@pytest.fixture(scope="module")
def config():
    config = smoke.get_config()
    with config.unlocked():
        config.tasks.unseen = "60:120"
        config.tasks.num_unseen = 6
    return config


@pytest.fixture(scope="module")
def asked(config, made_up_results):
    family = get_family(config.tasks)
    return family, Expectations(made_up_results(family, config), family)


def width(found: Expectation) -> float:
    return found.high - found.low


def test_a_measured_task_is_its_own_row(asked):
    family, expectations = asked
    task, images = family.split("unseen")[2], len(family.data["test"].y)
    found = expectations.for_task(task, SAMPLER, TEXT)
    assert found.mean == pytest.approx(0.702) and found.tasks == 1 and found.finetuned == pytest.approx(0.95)
    assert (found.low, found.high) == pytest.approx((0.702 - flips(images), 0.702 + flips(images)))
    assert str(found) == (
        f"expect 0.702, 90% of its networks between {found.low:.3f} and {found.high:.3f} "
        f"(unseen task {task.name} itself, on {images} test images; fine-tuned 0.950)"
    )
    assert expectations.for_factors(task.factors, SAMPLER, TEXT) == found
    assert expectations.for_task(task, "posterior_mean", TEXT).mean == pytest.approx(0.692)  # its own column


def test_a_perfect_score_is_never_certain(asked, config, made_up_results):
    family, _ = asked
    results = made_up_results(family, config)
    for row in (row for entry in results["splits"].values() for row in entry["per_task"]):
        row["generated"] = dict.fromkeys(row["generated"], 1.0)
    expectations = Expectations(results, family)
    for factors in (family.split("seen")[0].factors, (77.7,), (93.0,)):
        found = expectations.for_factors(factors, SAMPLER, TEXT)
        assert found.mean == pytest.approx(1.0) and found.high == 1.0
        assert found.low <= 1 - 1 / len(family.data["test"].y)  # one image may yet be wrong


def test_a_new_place_in_a_held_out_region_goes_by_the_nearest_tasks_there(asked):
    _, expectations = asked
    found = expectations.for_factors((77.7,), SAMPLER, TEXT)  # unseen tasks lie at 65, 75 … 115
    assert 0.701 < found.mean < 0.702 and found.low < found.mean < found.high
    assert found.basis == "from 6 unseen tasks, the nearest rotation_75" and found.finetuned == pytest.approx(0.95)
    assert str(found).startswith("expect 0.701, 90% of such tasks between ")
    again = expectations.for_factors((77.7 + 360,), SAMPLER, TEXT)
    assert (again.mean, again.low, again.high) == pytest.approx((found.mean, found.low, found.high), abs=1e-6)
    assert expectations.for_factors((117.7,), SAMPLER, TEXT).mean > 0.704


def test_an_interval_is_wider_where_less_was_measured(config, made_up_results):
    family = get_family(config.tasks)
    results, random = made_up_results(family, config), np.random.default_rng(0)
    for row in results["splits"]["unseen"]["per_task"]:
        row["generated"][SAMPLER] = 0.8 + 0.05 * float(random.normal())
    expectations = Expectations(results, family)
    at = [width(expectations.for_factors((x,), SAMPLER, TEXT)) for x in (75.0, 76.0, 80.0, 119.9)]
    assert sorted(at) == at and at[3] > 1.1 * at[2] > 1.5 * at[1]
    few = {
        **results,
        "splits": {**results["splits"], "unseen": {"per_task": results["splits"]["unseen"]["per_task"][:3]}},
    }
    assert width(Expectations(few, family).for_factors((80.0,), SAMPLER, TEXT)) > at[2]


def test_a_new_place_among_seen_tasks_goes_by_the_nearest_of_them(asked):
    family, expectations = asked
    seen = family.split("seen")
    found = expectations.for_factors((seen[0].factors[0] + 1,), SAMPLER, TEXT)
    assert found.basis == f"from {len(seen)} seen tasks, the nearest {seen[0].name}" and 0.9 <= found.mean < 0.912


def test_an_end_of_a_region_is_in_both(asked):
    _, expectations = asked
    assert expectations._splits((60.0,)) == ["seen", "unseen"] and expectations._splits((120.004,)) == [
        "unseen",
        "seen",
    ]
    assert expectations._splits((60.1,)) == ["unseen"] and expectations._splits((59.9,)) == ["seen"]
    found = expectations.for_factors((60.0,), SAMPLER, TEXT)
    seen, unseen = (expectations.for_factors((x,), SAMPLER, TEXT) for x in (59.9, 60.1))
    assert found.low <= unseen.low + 1e-3 and found.high >= seen.high - 1e-3
    assert found.mean == pytest.approx((seen.mean + unseen.mean) / 2, abs=1e-3)
    assert found.basis.startswith("an end of a region: from 12 seen tasks")


def test_the_last_end_of_a_line_is_in_its_region():
    config = smoke.get_config()
    with config.unlocked():
        config.tasks.update(dict(family="corruptions", unseen="30:45,85:100", num_seen=14, num_unseen=14))
    family = get_family(config.tasks)
    expectations, rest = Expectations({}, family), (0.0,) * (len(family.factor_names) - 1)
    assert expectations._splits((1.0, *rest)) == ["unseen"] and expectations._splits((0.0, *rest)) == ["seen"]
    assert expectations._splits((0.45, *rest)) == ["unseen", "seen"]


def test_a_singular_place_is_a_stranger_until_it_is_measured(asked, config, made_up_results):
    family, expectations = asked
    found = expectations.for_factors((0.0,), SAMPLER, TEXT)
    margin = student(6) * HELD_OUT.std(ddof=1) * np.sqrt(7 / 6)
    assert (found.mean, found.high) == pytest.approx((HELD_OUT.mean(), HELD_OUT.mean() + margin))
    assert "unlike those just beside, and 6 unseen tasks stand for it" in found.basis
    assert expectations.for_factors((-360.0,), SAMPLER, TEXT) == found
    measured = made_up_results(family, config)
    row = {"factors": [0.0], "generated": {SAMPLER: 0.88}, "by_condition": {"text": 0.87}}
    there = Expectations(measured | {"singular": [row]}, family)
    found = there.for_factors((720.0,), SAMPLER, TEXT)
    assert found.mean == 0.88 and found.basis == "measured there, on 397 test images"
    assert there.for_factors((90.0,), SAMPLER, TEXT) == expectations.for_factors((90.0,), SAMPLER, TEXT)
    assert there.for_factors((0.3,), SAMPLER, TEXT).mean > 0.89  # its neighbours are as ever


def test_a_validation_region_is_what_chose_the_sampler(asked):
    family, expectations = asked
    found = expectations.for_task(family.split("validation")[0], SAMPLER, TEXT)
    assert found.mean == 0.85 and "on validation images" in found.basis
    assert found.high - 0.85 == pytest.approx(student(4) * 0.01 * np.sqrt(5))  # two samples of each of four tasks


def test_mixtures_are_those_that_are_at_least_as_far_apart(asked):
    family, expectations = asked
    seen = family.split("seen")
    step = seen[1].factors[0] - seen[0].factors[0]
    near = expectations.between(seen[0], seen[1], 0.5, SAMPLER, TEXT)
    assert near.mean == 0.85 and f"{30 if step <= 30 else 60} degrees apart" in near.basis
    assert near.high - 0.85 == pytest.approx(student(9) * 0.01 * np.sqrt(10))
    assert expectations.between(seen[0], seen[6], 0.5, SAMPLER, TEXT) is None  # farther than was measured
    assert expectations.between(seen[0], seen[1], 1.0, SAMPLER, TEXT) == expectations.for_task(seen[1], SAMPLER, TEXT)


def test_a_single_mixture_says_nothing_of_the_spread(asked, config, made_up_results):
    family, _ = asked
    results = made_up_results(family, config)
    for row in results["mixing"]:
        row["accuracy"]["condition_lerp"] |= {"n": 1, "sem": 0.0}
    seen = family.split("seen")
    assert Expectations(results, family).between(seen[0], seen[1], 0.5, SAMPLER, TEXT) is None


def test_what_was_not_measured_is_not_known(asked):
    family, expectations = asked
    assert expectations.for_task(family.tasks[0], "ddim2", TEXT) is None
    assert expectations.for_factors((77.7,), SAMPLER, ("factors",)) is None
    nothing = {"splits": {}, "config": smoke.get_config().to_dict()}
    assert Expectations(nothing, family).for_factors((1.0,), SAMPLER, TEXT) is None
    blind = dataclasses.replace(family, data={})
    assert Expectations(expectations._results, blind).for_task(family.tasks[0], SAMPLER, TEXT) is None


def test_a_set_is_all_that_may_be_drawn_from_it(asked):
    family, expectations = asked
    tasks = family.grammar.read("digits rotated by between 60 and 120 degrees").tasks
    found = expectations.for_set(tasks, SAMPLER, TEXT)
    assert found.mean == pytest.approx(HELD_OUT.mean(), abs=3e-3) and found.low < 0.701 and found.high > 0.704
    assert found.basis == f"120 tasks of {tasks.said}" and found.finetuned == pytest.approx(0.95)
    assert expectations.for_set(tasks, "posterior_mean", TEXT).mean == pytest.approx(found.mean - 0.01, abs=1e-3)
    every = expectations.for_set(family.grammar.read("digits rotated by some angle").tasks, SAMPLER, TEXT)
    assert every.low < 0.72 and every.high > 0.9  # seen and held-out tasks in one


def test_a_narrow_set_is_one_place(asked):
    family, expectations = asked
    narrow = expectations.for_set(
        family.grammar.read("digits rotated by between 77.1 and 77.9 degrees").tasks, SAMPLER, TEXT
    )
    near = expectations.for_factors((77.5,), SAMPLER, TEXT)
    assert (narrow.low, narrow.high) == pytest.approx((near.low, near.high), abs=1e-3)
    every = family.grammar.read("digits rotated by some angle").tasks
    assert expectations.for_set(every, "ddim2", TEXT) is None and expectations.for_set(every, SAMPLER, ("id",)) is None


def row(shots, prior, described):
    one = {"sem": 0.01, "min": 0.0, "max": 1.0, "n": 16}
    means = {"prior": prior, "prior_guided": prior + 0.03, "prior_described": described}
    return {"shots": shots, "accuracy": {n: one | {"mean": m} for n, m in means.items()}}


def test_what_is_adapted_is_the_worst_split_with_no_more_images(asked):
    family, _ = asked
    splits = {
        "interp": [row(0, 0.1, 0.1), row(1, 0.7, 0.9), row(4, 0.9, 0.92)],
        "unseen": [row(0, 0.1, 0.1), row(1, 0.6, 0.95), row(4, 0.8, 0.91)],
    }
    recipes = {
        "1": {"prior": {"validation": 0.8}, "prior_guided": {"validation": 0.7}},
        "4": {"prior": {"validation": 0.8}, "prior_guided": {"validation": 0.9}},  # which users get then
    }
    expectations = Expectations({"adaptation": {"splits": splits, "recipes": recipes}}, family)
    assert expectations.adapted(1, False).mean == expectations.adapted(3, False).mean == 0.6
    assert expectations.adapted(1, True).mean == 0.9  # by interp's
    found = expectations.adapted(40, False)
    assert found.mean == pytest.approx(0.83) and found.tasks == 16
    assert found.mean - found.low == pytest.approx(student(16) * 0.01 * np.sqrt(17))
    assert found.basis == "16 unseen tasks from 4 labelled images of each class"
    assert expectations.adapted(0, False) is None  # some class has no label
    assert Expectations({}, family).adapted(4, False) is None
