"""`pdiff.load` and what it returns, on a published folder: samples, refusals, and imports that cost nothing."""

import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import pdiff
from pdiff import published
from pdiff.errors import PdiffError

PROMPT = "digits rotated by 75 degrees"


def kernel(networks):
    return networks["params"]["Dense_0"]["kernel"]


def test_samples_do_not_depend_on_how_many_are_drawn_and_differ_with_the_prompt(loaded):
    few, many = (kernel(loaded.sample(prompt=PROMPT, num_samples=n, sampler="ddim")) for n in (2, 5))
    np.testing.assert_allclose(many[:2], few, atol=1e-5)
    assert np.abs(few[0] - few[1]).max() > 1e-4
    other = kernel(loaded.sample(prompt="digits rotated by 200 degrees", num_samples=2, sampler="ddim"))
    assert np.abs(other - few).max() > 1e-4


def test_a_task_is_asked_for_as_its_description_is(loaded):
    task = loaded.family.split("seen")[3]
    by_name = kernel(loaded.sample(task_id=task.name))
    np.testing.assert_array_equal(by_name, kernel(loaded.sample(task_id=task.id)))
    np.testing.assert_array_equal(by_name, kernel(loaded.sample(prompt=task.descriptions[0])))


def test_at_its_ends_a_mixture_is_the_task_itself(loaded):
    first, second = (t.name for t in loaded.family.split("seen")[:2])
    for weight, name in ((0.0, first), (1.0, second)):
        mixed = kernel(loaded.sample(between=(first, second, weight)))
        np.testing.assert_allclose(mixed, kernel(loaded.sample(task_id=name)), atol=1e-5)
    assert kernel(loaded.sample(between=(first, second, 0.5), num_samples=3)).shape == (3, 64, 32)


def test_images_of_a_task_ask_for_it_with_and_without_labels(loaded):
    x, y = loaded.family.data["train"].x[:5], loaded.family.data["train"].y[:5]
    without, labelled = (kernel(loaded.sample(support=x, labels=labels)) for labels in (None, y))
    assert np.isfinite(without).all() and np.abs(without - labelled).max() > 1e-6
    assert loaded.expect(support=np.repeat(x, 2, 0), labels=np.repeat(y, 2)).mean < 0.7


def test_expectations_come_with_what_is_asked(loaded):
    assert "unseen" in str(loaded.expect(prompt="digits turned by 75 degrees"))
    seen = loaded.family.split("seen")
    assert loaded.expect(task_id=seen[2].name).mean == pytest.approx(0.902)
    assert loaded.expect(between=(seen[0].name, seen[1].name, 0.5)).mean == 0.85
    assert loaded.expect(prompt="digits") is None


def test_a_prompt_about_something_else_is_taken_by_force_alone(loaded, caplog):
    foreign = "classify the mood of songs"
    with pytest.raises(PdiffError, match=r"looks like none.*--force \(force=True\)"):
        loaded.sample(prompt=foreign)
    loaded.sample(prompt=PROMPT, force=True)
    with pytest.raises(PdiffError, match="looks like none"):
        loaded.sample(prompt="recognise digits after blur of 75 percent")
    assert np.isfinite(kernel(loaded.sample(prompt=foreign, force=True))).all()


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "give one of"),
        ({"prompt": PROMPT, "task_id": 0}, "got prompt, task_id; give one of"),
        ({"prompt": ""}, "empty text"),
        ({"prompt": "drehe die ziffern um 75 grad"}, "looks like none"),
        ({"prompt": "поверни цифры на 75 градусов"}, "looks like none"),
        ({"prompt": "digits rotated by 75 degrees 世"}, "characters that no training description has: 世"),
        ({"prompt": PROMPT + " and by 75 degrees" * 20}, "tokens; allowed: at most"),
        ({"between": (0, 1, 1.5)}, "weight 1.5; allowed: a number from 0 to 1"),
        ({"between": (0, 1, float("nan"))}, "weight nan"),
        ({"between": (0, 1)}, "two tasks and a number"),
        ({"between": (0, "rotation_999", 0.5)}, "'rotation_999'; allowed: an id from 0 to"),
        ({"task_id": 10**6}, "allowed: an id"),
        ({"support": np.zeros((3, 5))}, "images of 5 numbers; allowed: 64"),
        ({"support": np.zeros((300, 64))}, "got 300 images; allowed: at most 20"),
        ({"prompt": PROMPT, "num_samples": 0}, "num_samples: got 0"),
        ({"prompt": PROMPT, "sampler": "huen"}, "allowed: heun"),
    ],
)
def test_bad_requests_are_refused_in_one_line(loaded, given, message):
    with pytest.raises(PdiffError, match=message) as error:
        loaded.sample(**given)
    assert "\n" not in str(error.value)


def test_folders_without_a_generator_are_refused(tmp_path, monkeypatch):
    with pytest.raises(PdiffError, match="no such folder; allowed: the workdir of a run"):
        pdiff.load(tmp_path / "nowhere")
    with pytest.raises(PdiffError, match="no generator here"):
        pdiff.load(tmp_path)
    monkeypatch.setattr(published, "EMBEDDED", tmp_path / "none")
    with pytest.raises(PdiffError, match="comes without a generator"):
        pdiff.load()


def test_importing_pdiff_takes_no_time_and_no_jax():
    code = "import sys; before = set(sys.modules); import pdiff; print(*set(sys.modules) - before)"
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {m.split(".")[0] for m in out} & {"jax", "flax", "numpy", "tqdm", "tensorflow_datasets"}
    assert time.perf_counter() - began < 3  # Python's own start included; measured: 0.003 s for the import


def test_sampling_imports_nothing_that_it_does_not_need():
    code = "import sys; from pdiff import main, request; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"tensorflow_datasets", "grain", "torch", "matplotlib", "sklearn", "orbax", "scipy", "tensorboardX"}
    assert not {m.split(".")[0] for m in out} & heavy


def test_accuracy_is_of_each_network(loaded):
    networks = loaded.sample(task_id=0, num_samples=3)
    assert loaded.accuracy(networks, 0).shape == (3,)
    x = loaded.family.data["test"].x[:7]
    assert jax.vmap(loaded.apply, (0, None))(networks, x).shape == (3, 7, 10)
