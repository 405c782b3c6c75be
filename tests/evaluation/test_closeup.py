"""The close look: axes, ways from noise, answers, on an untrained tiny generator."""

import base64
import io

import jax
import numpy as np
import pytest
from PIL import Image

from pdiff import rng
from pdiff.diffusion import samplers
from pdiff.evaluation import closeup
from pdiff.evaluation.bench import Bench
from pdiff.measures.accuracy import Scorer
from pdiff.weights import stats


@pytest.fixture(scope="module")
def bench(tiny, mesh):
    leaves, tree = jax.tree.flatten(tiny.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])
    return Bench(tiny, params, mesh)


@pytest.fixture(scope="module")
def raw(bench):
    return jax.tree.map(lambda p: 0.5 * p, bench.params)


@pytest.fixture(scope="module")
def found(bench, raw, tiny_zoo):
    """Of one sampler, ddim."""
    scores = {
        s: bench.scores("ddim", bench.tasks(s), f"evaluate/{s}/ddim").summary() for s in ("seen", "interp", "unseen")
    }
    splits = {s: {"generated": {"ddim": v}} for s, v in scores.items()}
    validation = bench.scores("ddim", bench.choosing_tasks(), "evaluate/validation/ddim", part="validation").summary()
    return closeup.measure(bench, tiny_zoo, splits, {"sampler": "ddim", "validation": {"ddim": validation}}, raw)


def test_the_main_axes_are_those_of_a_singular_value_decomposition():
    x = np.random.default_rng(0).standard_normal((20, 50)).astype(np.float32) * np.linspace(1, 3, 50, dtype=np.float32)
    center, axes, explained = closeup._main_axes(x)
    _, values, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(axes.T @ rows[:2].T), np.eye(2), atol=1e-3)
    np.testing.assert_allclose(explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(center, x.mean(0))


def test_networks_that_are_all_alike_have_no_plane():
    assert closeup._main_axes(np.ones((5, 4), np.float32))[2] is None
    assert closeup._main_axes(np.eye(2, dtype=np.float32))[2] is None


def test_everything_is_there(found, bench, tiny_zoo):
    assert set(found) == {"prompt", "plane", "averaging", "confusion", "images"}
    assert found["prompt"] == bench.generator.family.split("unseen")[-1].descriptions[0]
    points = found["plane"]["points"]
    count = {k: sum(p["kind"] == k for p in points) for k in ("zoo", "finetuned", "generated")}
    assert count["zoo"] == len(tiny_zoo["seen"])
    assert count["finetuned"] == sum(len(tiny_zoo[s]) for s in ("interp", "unseen"))
    tasks = sum(len(bench.tasks(s, bench.config.eval.closeup_tasks)) for s in ("seen", "interp", "unseen"))
    assert count["generated"] == tasks * bench.config.eval.samples_per_task


def test_a_way_from_noise_is_that_of_the_ddim_sampler(found, bench, tiny_zoo):
    """The same steps from the same noise end where the sampler does."""
    made = bench.generator
    on = np.asarray(stats.varying(made.stats))
    x = np.asarray(stats.normalize(made.stats, bench.encode(tiny_zoo["seen"].params)))[:, on]
    center, axes, _ = closeup._main_axes(x)
    path = found["plane"]["paths"][-1]
    assert path["sigma"][0] == pytest.approx(made.path.sigma_max) and path["sigma"][-1] == 0
    chosen = [bench.tasks(s, bench.config.eval.closeup_tasks) for s in ("seen", "interp", "unseen")]
    chosen = [own[len(own) // 2] for own in chosen for _ in range(closeup.PATHS)]
    assert path["task"] == chosen[-1].name
    noise = jax.random.normal(rng.stream(bench.config.seed, "closeup/paths"), (len(chosen), *made.shape))
    levels = samplers.noise_levels(made.path, bench.config.sample.num_steps, bench.config.sample.rho)

    @jax.jit
    def sample(params, condition, noise):
        denoise = made.denoiser(params, made.members(condition))
        keys = jax.random.split(jax.random.key(0), len(noise))  # which it does not use
        return made.decode(samplers.ddim(denoise, made.path, noise, levels, keys))

    end = bench.encode(jax.tree.map(np.asarray, sample(bench.params, bench.condition(chosen, 1), noise)))
    end = np.asarray(stats.normalize(made.stats, end))[-1][on]
    np.testing.assert_allclose(path["at"][-1], (end - center) @ axes, atol=0.05)
    start = made.subspace.reconstruct(noise[-1:].reshape(1, -1) * levels[0] / np.sqrt(1 + levels[0] ** 2))
    np.testing.assert_allclose(path["at"][0], (np.asarray(start)[0][on] - center) @ axes, atol=0.002)


def test_raw_parameters_are_scored_with_the_same_noise(found, bench, raw):
    for split in ("seen", "unseen"):
        again = bench.with_params(raw).scores("ddim", bench.tasks(split), f"evaluate/{split}/ddim").summary()
        assert found["averaging"][split]["ddim"]["raw"] == pytest.approx(again)


def test_mistakes_are_counted_by_label(found, bench, tiny_zoo, mesh):
    """The diagonal of a confusion matrix is the accuracy, and all of it every answer."""
    tuned = tiny_zoo["unseen"]
    counts = np.array(found["confusion"]["unseen"]["finetuned"])
    right = Scorer(bench.generator, "test", mesh).right(tuned.params, tuned.task)
    assert counts.sum() == right.size and np.trace(counts) == right.sum()
    test = bench.generator.family.data["test"]
    np.testing.assert_array_equal(counts.sum(1), np.bincount(test.y, minlength=10) * len(tuned))


def test_images_are_the_tasks_own_with_their_labels(found, bench):
    family = bench.generator.family
    strip = found["images"][-1]
    task = next(t for t in family.tasks if t.name == strip["task"])
    assert task.split == strip["split"] == "unseen" and len(strip["images"]) == closeup.MOST_IMAGES
    own = jax.tree.map(lambda v: v[task.id], family.variables)
    x, y = map(np.asarray, family.labelled(own, family.data["test"].x, family.data["test"].y))
    for shown in strip["images"]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["png"])))).reshape(-1) / 255
        place = np.abs(x - pixels).max(1)
        assert place.min() < 0.003 and y[place.argmin()] == shown["label"]


def test_images_outside_the_unit_range_are_stretched_into_it():
    pixels = np.array([-1.0, 0.0, 1.0, 3.0]).reshape(1, 2, 2)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(closeup._pngs(pixels)[0]))))
    np.testing.assert_array_equal(shown, [[0, 64], [128, 255]])
    color = np.zeros((2, 4, 3, 3), np.float32)
    assert Image.open(io.BytesIO(base64.b64decode(closeup._pngs(color)[1]))).size == (3, 4)
