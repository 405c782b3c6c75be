"""What to expect is read off the results: of the very task, of its region, of its neighbours, or it is not known."""

import numpy as np
import pytest

from configs import smoke
from pdiff.ask.expect import Expectations
from pdiff.tasks import get_family

SAMPLER, TEXT = "heun", ("text",)


@pytest.fixture(scope="module")
def asked(made_up_results):
    config = smoke.get_config()
    with config.unlocked():
        config.tasks.unseen = "60:120"
        config.tasks.num_unseen = 6
    family = get_family(config.tasks)
    return family, Expectations(made_up_results(family, config), family)


def test_a_measured_task_is_its_own_row(asked):
    family, expectations = asked
    task = family.split("unseen")[2]
    found = expectations.for_task(task, SAMPLER, TEXT)
    assert found.mean == pytest.approx(0.702) and found.tasks == 1 and found.finetuned == pytest.approx(0.95)
    assert found.spread == pytest.approx(np.sqrt(0.702 * 0.298 / len(family.data["test"].y)))
    assert expectations.for_factors(task.factors, SAMPLER, TEXT) == found
    assert expectations.for_task(task, "posterior_mean", TEXT).mean == pytest.approx(0.692)  # its own column


def test_a_new_place_in_a_held_out_region_is_the_region(asked):
    _, expectations = asked
    found = expectations.for_factors((77.7,), SAMPLER, TEXT)
    values = 0.7 + 0.001 * np.arange(6)
    assert (found.mean, found.spread) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert str(found) == "expect 0.703 ± 0.002 (6 unseen tasks, degrees from 60 to 120; fine-tuned 0.950)"
    assert expectations.for_factors((77.7 + 360,), SAMPLER, TEXT) == found


def test_a_new_place_among_seen_tasks_is_the_nearest_of_them(asked):
    family, expectations = asked
    seen = family.split("seen")
    found = expectations.for_factors((seen[0].factors[0] + 1,), SAMPLER, TEXT)
    assert found.basis == "the 8 nearest measured tasks: 8 seen" and 0.9 <= found.mean < 0.912


def test_a_validation_region_is_what_chose_the_sampler(asked):
    family, expectations = asked
    found = expectations.for_task(family.split("validation")[0], SAMPLER, TEXT)
    assert found.mean == 0.85 and "on validation images" in found.basis
    assert found.spread == pytest.approx(0.01 * np.sqrt(4))  # two samples of each of four tasks


def test_mixtures_are_those_that_are_at_least_as_far_apart(asked):
    family, expectations = asked
    seen = family.split("seen")
    step = seen[1].factors[0] - seen[0].factors[0]
    near = expectations.between(seen[0], seen[1], 0.5, SAMPLER, TEXT)
    assert near.mean == 0.85 and f"{30 if step <= 30 else 60} degrees apart" in near.basis
    assert expectations.between(seen[0], seen[6], 0.5, SAMPLER, TEXT) is None  # farther than was measured
    assert expectations.between(seen[0], seen[1], 1.0, SAMPLER, TEXT) == expectations.for_task(seen[1], SAMPLER, TEXT)


def test_what_was_not_measured_is_not_known(asked):
    family, expectations = asked
    assert expectations.for_task(family.tasks[0], "ddim2", TEXT) is None
    assert expectations.for_factors((77.7,), SAMPLER, ("factors",)) is None
    nothing = {"splits": {}, "config": smoke.get_config().to_dict()}
    assert Expectations(nothing, family).for_factors((1.0,), SAMPLER, TEXT) is None


def test_a_set_is_its_measured_tasks_one_by_one(asked):
    family, expectations = asked
    grammar = family.grammar
    tasks = grammar.read("digits rotated by between 60 and 120 degrees")
    found = expectations.for_set(tasks, SAMPLER, TEXT)
    values = 0.7 + 0.001 * np.arange(6)  # all unseen tasks, and no other
    assert (found.mean, found.spread) == pytest.approx((values.mean(), values.std(ddof=1)))
    assert found.basis == f"6 tasks of {tasks.said}" and found.finetuned == pytest.approx(0.95)
    assert expectations.for_set(tasks, "posterior_mean", TEXT).mean == pytest.approx(found.mean - 0.01)
    every = expectations.for_set(grammar.read("digits rotated by some angle"), SAMPLER, TEXT)
    assert every.tasks == sum(len(family.split(s)) for s in ("seen", "interp", "unseen"))
    assert every.spread > 5 * found.spread  # seen and held-out tasks in one


def test_a_set_without_a_measured_task_is_not_known(asked):
    family, expectations = asked
    narrow = family.grammar.read("digits rotated by between 77.1 and 77.2 degrees")
    assert expectations.for_set(narrow, SAMPLER, TEXT) is None
    every = family.grammar.read("digits rotated by some angle")
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
    assert found.mean == pytest.approx(0.83) and found.tasks == 16 and found.spread == pytest.approx(0.01 * 4)
    assert found.basis == "16 unseen tasks from 4 labelled images of each class"
    assert expectations.adapted(0, False) is None  # some class has no label
    assert Expectations({}, family).adapted(4, False) is None
