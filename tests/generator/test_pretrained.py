"""The generator that comes with the package: whole, small, and as good as its results say."""

import numpy as np
import pytest

import pdiff
from pdiff import results as results_lib
from pdiff.generator import published
from pdiff.system import files


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
    assert 0.85 < generator.expect(prompt="digits rotated by 75 degrees").mean < 0.95


def test_a_vague_prompt_gives_good_networks_all_over_its_set():
    """Takes 20 s. The held-out arc of `configs/interp.py` is in it."""
    generator, prompt = pdiff.load(), "digits rotated by between 40 and 120 degrees"
    networks = generator.sample(prompt=prompt, num_samples=16)
    found, expected = generator.suited(networks, prompt), generator.expect(prompt=prompt)
    angles = np.array([one.factors[0] for one in found])
    assert angles.min() < 60 and angles.max() > 100
    assert np.mean([one.accuracy for one in found]) > expected.mean - 0.05


def test_a_few_images_of_a_held_out_task_lead_to_what_its_results_promise():
    """Takes 20 s. Four images of each class."""
    generator = pdiff.load()
    family, task = generator.family, generator.family.split("unseen")[4]
    images = family.data["train"]
    rows = np.concatenate([np.flatnonzero(images.y == c)[:4] for c in range(10)])
    x, y = family.labelled(family.variables[task.id], images.x[rows], images.y[rows])
    expected = generator.expect_adapted(np.asarray(y), False)
    network = generator.adapt(np.asarray(x), np.asarray(y))
    assert "4 labelled images of each class" in expected.basis
    assert generator.accuracy(network, task.name)[0] > expected.low - 0.02
