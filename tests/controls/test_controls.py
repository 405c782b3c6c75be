"""Baselines against cases whose answer is known."""

import dataclasses

import jax
import numpy as np
import pytest

from pdiff.config.fields import defaults
from pdiff.controls import SeenZoo
from pdiff.controls.blind import Gaussian, Soup
from pdiff.controls.hypernetwork import Hypernetwork
from pdiff.controls.neighbours import LinearInterpolation, Nearest, Noise
from pdiff.controls.rebasin import RebasinMerge
from pdiff.controls.ridge import Ridge
from pdiff.tasks import get_family
from pdiff.weights import codec, permutations, stats
from tests.weights.orders import random_orders

SEEDS = 3


@pytest.fixture(scope="module")
def family():
    config = defaults().tasks
    config.num_seen = 64
    return get_family(config)


@pytest.fixture(scope="module")
def zoo(family):
    """Weights that are exactly two harmonics of the angle, and a different constant for each seed."""
    seen = family.split("seen")
    task = np.repeat([t.id for t in seen], SEEDS)
    seed = np.tile(np.arange(SEEDS), len(seen))
    tokens = weights(family.factors(seen)[:, 0]).repeat(SEEDS, 0)
    return SeenZoo(
        family, tokens + seed[:, None, None].astype(np.float32) - 1, np.zeros((2, 3), np.float32), task, seed
    )


def weights(degrees):
    t = np.deg2rad(degrees)
    columns = [np.cos(t), np.sin(t), np.cos(2 * t), np.sin(2 * t), 1 + 0 * t, 0 * t]
    return np.stack(columns, -1).reshape(-1, 2, 3).astype(np.float32)


def sample(baseline, tasks, count=2):
    return np.asarray(baseline.sample(tasks, count, np.random.default_rng(0)))


def test_ridge_recovers_low_harmonics_at_unseen_angles(family, zoo):
    unseen = family.split("unseen")
    expected = weights(family.factors(unseen)[:, 0])
    made = sample(Ridge.fit(zoo, harmonics=2, penalty=1e-8), unseen)
    np.testing.assert_allclose(made, np.stack([expected] * 2, 1), atol=1e-4)
    poor = sample(Ridge.fit(zoo, harmonics=1, penalty=1e-8), unseen)
    assert np.abs(poor[:, 0] - expected).max() > 0.1


def test_ridge_has_a_curve_for_each_indicator(family):
    """Two kinds whose weights go opposite ways with the severity: no sum of curves of single factors does that."""
    severity, kind = np.tile(np.linspace(0, 1, 20), 2), np.repeat([0.0, 1.0], 20)
    tasks = [
        dataclasses.replace(family.tasks[0], id=i, name=str(i), split="seen", factors=f)
        for i, f in enumerate(zip(severity, kind, 1 - kind, strict=True))
    ]
    several = dataclasses.replace(
        family, tasks=tuple(tasks), factor_names=("severity", "a", "b"), factor_periods=(0.0,) * 3,
        factor_units=(0.01, 0.0, 0.0),
    )  # fmt: skip
    wanted = (np.where(kind > 0, 1, -1) * np.sin(np.pi * severity)).astype(np.float32).reshape(-1, 1, 1)
    zoo = SeenZoo(several, wanted, np.zeros((1, 1)), np.arange(40), np.zeros(40, int))
    made = sample(Ridge.fit(zoo, harmonics=2, penalty=1e-8), tasks, 1)
    np.testing.assert_allclose(made[:, 0], wanted, atol=1e-4)


def test_ridge_shrinks_to_the_base(family, zoo):
    made = sample(Ridge.fit(zoo, harmonics=2, penalty=1e12), family.split("unseen"))
    np.testing.assert_allclose(made, np.broadcast_to(zoo.base, made.shape), atol=1e-5)


def test_ridge_is_selected_by_what_it_is_told(zoo):
    best = Ridge.select(zoo, lambda r: -abs(r.harmonics - 6) - abs(np.log10(r.penalty)))
    assert (best.harmonics, best.penalty) == (6, 1.0)


def test_nearest_is_another_seen_task(family, zoo):
    seen = family.split("seen")
    made = sample(Nearest.fit(zoo), [seen[10]], count=SEEDS)
    angles = family.factors(seen)[:, 0]
    gap = np.abs((angles - angles[10] + 180) % 360 - 180)
    gap[10] = np.inf
    np.testing.assert_array_equal(made[0], zoo.tokens[zoo.rows_of(seen[gap.argmin()].id)])


@pytest.mark.parametrize("split", ["interp", "unseen"])
def test_linear_interpolation_is_exact_on_a_line(family, zoo, split):
    """Weights that are linear in the angle between any two neighbours are restored at any place between them."""
    tasks = [t for t in family.split(split) if 20 < t.factors[0] < 340]
    angles = np.float32([[[family.tasks[i].factors[0]]] for i in zoo.task])
    line = SeenZoo(
        family, angles, np.zeros((1, 1)),
        zoo.task, zoo.seed,
    )  # fmt: skip
    made = sample(LinearInterpolation.fit(line), tasks)
    expected = family.factors(tasks)[:, 0]
    np.testing.assert_allclose(made[:, 0, 0, 0], expected, atol=1e-3)
    np.testing.assert_allclose(made[:, 1, 0, 0], expected, atol=1e-3)


def test_linear_interpolation_joins_networks_of_one_seed(family, zoo):
    made = sample(LinearInterpolation.fit(zoo), family.split("interp"), count=SEEDS)
    np.testing.assert_allclose(made[:, :, 1, 1] - 1, np.broadcast_to(np.arange(SEEDS) - 1.0, made.shape[:2]), atol=1e-6)


def test_soup_and_gaussian_are_the_zoos_moments(family, zoo):
    tasks = family.tasks[:1]
    np.testing.assert_allclose(sample(Soup.fit(zoo), tasks)[0, 0], zoo.tokens.mean(0))
    many = sample(Gaussian.fit(zoo), tasks, 4000)[0]
    np.testing.assert_allclose(many.mean(0), zoo.tokens.mean(0), atol=0.08)
    np.testing.assert_allclose(many.std(0), zoo.tokens.std(0), atol=0.08)


def test_noise_starts_from_the_tasks_own_networks(family, zoo):
    seen, unseen = family.split("seen")[5], family.split("unseen")[0]
    rms = np.sqrt((zoo.tokens**2).mean())
    noise = Noise.fit(zoo, 0.2, num_params=6)
    made = sample(noise, [seen] * 500, SEEDS) - zoo.tokens[zoo.rows_of(seen.id)]
    assert made.std() == pytest.approx(0.2 * rms, rel=0.05) and abs(made.mean()) < 0.02
    still = sample(Noise.fit(zoo, 0.0, num_params=6), [unseen], SEEDS)
    np.testing.assert_array_equal(still, sample(Nearest.fit(zoo), [unseen], SEEDS))


def test_the_hypernetwork_has_the_mean_s_network_for_each_wording(tiny, mesh):
    tasks, count = tiny.family.tasks[:2], len(tiny.family.tasks[0].descriptions) + 1
    made = sample(Hypernetwork(tiny, mesh), tasks, count)
    for own, task in zip(made, tasks, strict=True):
        texts = [task.descriptions[j % (count - 1)] for j in range(count)]
        z = jax.jit(tiny.mean_tokens)(tiny.condition([task] * count, texts, ("text",)))
        np.testing.assert_allclose(own, stats.denormalize(tiny.stats, z), atol=1e-5)
        np.testing.assert_allclose(own[0], own[-1], atol=1e-6)  # no noise: the same wording again
        assert np.abs(own[0] - own[1]).max() > 1e-3
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_a_rebasin_merge_of_a_reordered_network_with_itself_is_that_network(tiny, tiny_zoo):
    """Both neighbours hold one network, the second in another order of its hidden units: their plain mean is not it."""
    seen = tiny_zoo["seen"]
    symmetry = tiny.target.symmetry()
    network = jax.tree.map(lambda p: p[0], seen.params)
    orders = random_orders(symmetry, 0)
    other = permutations.apply_permutation(symmetry, orders, network)
    a, b = (np.asarray(codec.encode_part(tiny.spec, n)) for n in (network, other))
    ids = np.array([t.id for t in tiny.family.split("seen")])
    tokens = np.stack([a if i % 2 else b for i in range(len(ids))])
    zoo = SeenZoo(tiny.family, tokens, 0 * a, ids, 0 * ids)
    made = RebasinMerge.fit(zoo, tiny.spec, symmetry).sample(tiny.family.split("unseen"), 2, np.random.default_rng(0))
    assert np.abs((a + b) / 2 - a).max() > 0.1
    assert all(min(np.abs(m - a).max(), np.abs(m - b).max()) < 1e-6 for m in made.reshape(-1, *a.shape))
