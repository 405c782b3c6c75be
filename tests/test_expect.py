"""What to expect is read off the results: of the very task, of its region, of its neighbours, or it is not known."""

import numpy as np
import pytest

from configs import smoke
from pdiff.expect import Expectations
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
    assert found.mean == pytest.approx(0.702) and found.tasks == 1 and found.finetuned == 0.95
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


def test_support_images_are_the_worst_split_with_no_more_of_them(asked):
    _, expectations = asked
    assert expectations.support(1, True, SAMPLER).mean == pytest.approx(0.5015, abs=0.01)
    assert expectations.support(1, False, SAMPLER) is None and expectations.support(0.5, True, SAMPLER) is None


def test_what_was_not_measured_is_not_known(asked):
    family, expectations = asked
    assert expectations.for_task(family.tasks[0], "ddim2", TEXT) is None
    assert expectations.for_factors((77.7,), SAMPLER, ("factors",)) is None
    nothing = {"splits": {}, "config": smoke.get_config().to_dict()}
    assert Expectations(nothing, family).for_factors((1.0,), SAMPLER, TEXT) is None
