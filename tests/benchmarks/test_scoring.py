"""PyTorch finds the accuracies that pdiff finds, where the two are timed."""

import pytest

from benchmarks import context, scoring


def test_the_rival_finds_the_same_accuracies():
    pytest.importorskip("torch")
    scoring.check(context.make())
