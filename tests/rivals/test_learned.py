"""Rivals that are trained, on a zoo whose answer is known: tasks lie to one or the other side of the origin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.generator.generator import make_generator
from pdiff.rivals import ddpm, pca_flow, trained
from pdiff.rivals.autoencoder import Autoencoder
from pdiff.rivals.learned import TrainingZoo, normal
from pdiff.system.stopping import StopSignal
from pdiff.weights import stats

STEPS = {"latent_unet": 300, "p_diff": 60, "g_pt": 150, "pca_flow": 100, "latent_kde": 60}


@pytest.fixture(scope="module")
def sides(tiny, tiny_zoo, mesh):
    """Tokens of the last layer, +-direction by the parity of the task, and a little noise; tasks are told by ids."""
    config = tiny.config.copy_and_resolve_references()
    with config.unlocked():
        config.target.generate = "params/Dense_1/.*"
        config.condition.update(dict(use=("id",), drop_id=0.0, drop_all=0.0))
        config.sample.condition = ("id",)
        config.train.batch_size = 16
        config.sample.batch_size = 16
        config.train.ema_decay = 0.95
    target = dataclasses.replace(tiny.target, generate=config.target.generate)
    last = {"params": {"Dense_1": tiny_zoo["seen"].params["params"]["Dense_1"]}}
    networks = tiny_zoo | {"seen": dataclasses.replace(tiny_zoo["seen"], params=last)}
    generator = make_generator(config.lock(), tiny.family, target, networks)
    random = np.random.default_rng(0)
    task = np.repeat([t.id for t in tiny.family.split("seen")], 8).astype(np.int32)
    varying = np.asarray(stats.varying(generator.stats))
    direction = np.where(varying, random.standard_normal(varying.shape), 0).astype(np.float32)
    x0 = sign(task)[:, None, None] * direction + 0.1 * random.standard_normal((len(task), *varying.shape))
    x0 = np.where(varying, x0, 0).astype(np.float32)
    with StopSignal() as stop:
        yield TrainingZoo(generator, x0, task, mesh, stop, 0.0), direction


def sign(task):
    return np.where(np.asarray(task) % 2, 1.0, -1.0).astype(np.float32)


def projections(zoo, direction, rival, count=4):
    """Of samples for each seen task on the direction: 1 is the side of odd tasks."""
    tasks = zoo.generator.family.split("seen")
    raw = rival.sample(tasks, count, np.random.default_rng(0))
    z = np.asarray(stats.normalize(zoo.generator.stats, raw))
    return (z * direction).sum((-2, -1)) / (direction**2).sum(), sign([t.id for t in tasks])


@pytest.mark.parametrize("name", [n for n in STEPS if n != "p_diff"])
def test_a_conditional_rival_draws_the_tasks_own_side(sides, name):
    zoo, direction = sides
    rival = trained.LEARNED[name].fit(dataclasses.replace(zoo, steps=STEPS[name]))
    found, side = projections(zoo, direction, rival)
    assert (np.sign(found) == side[:, None]).mean() > 0.9
    assert 0.15 < np.abs(found).mean() < 1.5  # most are not trained to the end


def test_p_diff_draws_both_sides_whatever_it_is_asked_for(sides):
    zoo, direction = sides
    rival = trained.LEARNED["p_diff"].fit(dataclasses.replace(zoo, steps=STEPS["p_diff"]))
    found, side = projections(zoo, direction, rival, count=1)
    assert 0.2 < (np.sign(found) == side[:, None]).mean() < 0.8
    assert np.abs(found).mean() > 0.15


def test_the_schedule_is_ddpms():
    beta = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - beta)
    levels = np.asarray(ddpm.levels())
    assert len(levels) == 1001 and levels[-1] == 0 and (np.diff(levels) < 0).all()
    np.testing.assert_allclose(1 / (1 + levels[:-1] ** 2), kept[::-1], rtol=2e-3)
    assert len(ddpm.levels(100)) == 101 and ddpm.levels(100)[0] == levels[0]


def test_a_network_that_knows_the_noise_gives_back_the_data():
    x0, eps = jax.random.normal(jax.random.key(0), (2, 6, 5))
    s = jnp.linspace(0.1, 9.0, 6)
    z = x0 + s[:, None] * eps
    seen = []
    denoise = ddpm.predicts_noise(lambda x, c: (seen.append((x, c)), eps)[1])
    np.testing.assert_allclose(denoise(z, s), x0, atol=1e-5)
    np.testing.assert_allclose(seen[0][0], z / np.sqrt(1 + s**2)[:, None], rtol=1e-5)
    np.testing.assert_allclose(np.exp(4 * seen[0][1]), s, rtol=1e-5)
    error = ddpm.squared_error(denoise(z, s) + 0.5 * s[:, None], x0, s)  # half a unit of noise too many
    assert error == pytest.approx(0.25, rel=1e-4)


def test_components_explain_the_variance_and_no_more_than_needed():
    random = np.random.default_rng(0)
    flat = random.standard_normal((200, 3)) * [5, 2, 1] @ random.standard_normal((3, 40)) + 7
    mean, basis = pca_flow.components((flat + 1e-4 * random.standard_normal(flat.shape)).astype(np.float32))
    assert len(basis) <= 3
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-4)
    left = flat - mean - (flat - mean) @ basis.T @ basis
    assert left.var() < 0.0101 * flat.var(0).mean()


def test_noise_of_a_key_does_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(0), 5)
    np.testing.assert_array_equal(normal(keys, (3,))[2:], normal(keys[2:], (3,)))


def test_the_auto_encoder_restores_what_it_was_trained_on(sides):
    zoo, _ = sides
    ae = Autoencoder(zoo.generator)
    params, latents = ae.fit(dataclasses.replace(zoo, steps=100), "ae", 1.0)
    np.testing.assert_allclose(latents.std(0)[params["scale"] > 1e-3], 1, atol=1e-3)
    restored = np.asarray(ae.decode_standardised(*jax.tree.map(jnp.asarray, (params, latents))))
    assert ((restored - zoo.x0) ** 2).mean() < 0.1 * (zoo.x0**2).mean()
    assert not restored[:, ~np.asarray(stats.varying(zoo.generator.stats))].any()


def test_time_decides_the_updates_unless_they_are_given(sides):
    zoo, _ = sides

    def reached(seconds, steps):
        def loss(params, x, told, keys):
            return (params["a"] ** 2).sum() + 0 * x.sum()

        timed = dataclasses.replace(zoo, seconds=seconds, steps=steps)
        return float(timed.fit("count", loss, {"a": jnp.ones((2, 2))}, zoo.x0)["a"].mean())

    # The average moves with every update towards a minimum, so it tells how many there were.
    assert reached(0.0, 30) > reached(0.0, 200) > reached(3.0, 0)
