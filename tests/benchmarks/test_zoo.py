"""PyTorch does what pdiff does where the two are timed: building a zoo."""

import pytest

from benchmarks import context, zoo


def test_rivals_train_the_same_networks():
    pytest.importorskip("torch")
    zoo.check(context.make())
