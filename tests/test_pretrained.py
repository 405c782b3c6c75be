"""The generator that comes with the package: whole, small, and as good as its results say."""

import numpy as np
import pytest

import pdiff
from pdiff import files, published
from pdiff.report import results as results_lib


def test_it_is_whole_and_small():
    files.verify_manifest(published.EMBEDDED, published.KIND, "get a whole copy")
    assert sum(p.stat().st_size for p in published.EMBEDDED.rglob("*")) < 5e6


def test_it_makes_the_networks_that_its_results_promise():
    """Takes 15 s."""
    generator, results = pdiff.load(), results_lib.read(published.EMBEDDED / "results.json")
    for split in ("seen", "unseen"):
        row = results["splits"][split]["per_task"][0]
        networks = generator.sample(task_id=row["task"], num_samples=3)
        promised = row["generated"][generator.default_sampler]
        mean = promised["mean"] if isinstance(promised, dict) else promised
        assert np.mean(generator.accuracy(networks, row["task"])) == pytest.approx(mean, abs=0.02)
    assert str(generator.expect(prompt="digits rotated by 75 degrees")).startswith("expect 0.9")
