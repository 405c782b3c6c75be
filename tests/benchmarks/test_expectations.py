"""The packaged generator's intervals hold, on tasks that chose nothing."""

import numpy as np
import pytest

from benchmarks import expectations
from pdiff.ask.expect import Expectation
from pdiff.config.fields import defaults
from pdiff.tasks import get_family


def test_it_counts_what_lies_inside():
    expected = [Expectation(0.9, 0.8, 0.95, 3, ""), None, Expectation(0.5, 0.4, 0.6, 3, "")]
    found = expectations.held(expected, np.array([[0.8, 0.94], [0.0, 0.0], [0.6, 0.7]]))
    assert (found.tasks, found.of_tasks, found.of_networks) == (2, 0.5, 0.75)
    assert (found.width, found.bias) == pytest.approx((0.175, 0.06))


def test_random_tasks_are_new_and_ends_are_all():
    family = get_family(defaults().tasks)
    new = expectations.random_tasks(family, 500, seed=0)
    assert len(new) == 500 and not set(new[:, 0]) & set(family.factors()[:, 0].astype(float))
    assert np.histogram(new, 6, (0, 360))[0].min() > 50
    assert {60.0, 90.0, 216.0, 234.0} <= set(expectations.ends(family)[:, 0])


def test_the_packaged_generators_intervals_hold():
    found = expectations.measure(None, 200, seed=1)
    for place, least, most in (("random", 0.85, 1.0), ("random, held out", 0.75, 1.0), ("ends", 0.8, 1.0)):
        assert least <= found[place].of_tasks <= most and found[place].of_networks >= least - 0.1
    assert found["random"].width < 0.03
    assert found["singular"].of_tasks == found["singular, unmeasured"].of_tasks == 1
    assert found["singular"].width < 0.01 < found["singular, unmeasured"].width
