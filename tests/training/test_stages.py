"""The losses of the mean and of the prior by hand, the examples that they are of, and what is measured meanwhile."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.diffusion import losses
from pdiff.generator.conditioning import training_condition
from pdiff.generator.generator import MEMBERS, RefinedZoo
from pdiff.generator.refined import mean_networks
from pdiff.generator.sample import Samplers
from pdiff.measures.accuracy import Scorer
from pdiff.training import stages
from pdiff.weights import stats
from tests.noise import noised

KEYS = jax.random.split(jax.random.key(5), 16)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (2.0, 0.0), (2.0, 0.5)])
def test_the_mean_s_loss_by_hand(weights, make_stage, tiny_start, mesh):
    """Of the networks that the model makes of the very conditions that training draws."""
    functional, zoo = weights
    fields = dict(functional_weight=functional, zoo_weight=zoo, functional_images=10, base_penalty=0.01)
    stage = make_stage(stages.MEAN, mesh, **{f"mean__{k}": v for k, v in fields.items()}, condition__drop_id=0.5)
    batch, constants = jax.tree.map(jnp.asarray, (next(stage.batches(start=0, stop=1)), stage.constants))
    params = noised(jax.jit(stage.init)(jax.random.key(0)), 0.05)
    loss, parts = jax.jit(stage.loss)(params, batch, constants, KEYS)
    config = stage.config.copy_and_resolve_references()
    made = dataclasses.replace(tiny_start, config=config, mean_params=params)
    family, streams = made.family, jax.vmap(lambda k: jax.random.split(k, 2))(KEYS)

    @jax.jit
    def drawn(streams):
        told = training_condition(made, constants, batch["task"], batch["wording"], streams[:, 0], drop_all=0.0)
        images = jax.vmap(lambda k: jax.random.randint(k, (10,), 0, len(constants["y"])))(streams[:, 1])
        return told, images, made.mean_tokens(told)

    told, images, z = jax.device_get(drawn(streams))
    assert 0 < told["id"]["keep"].sum() < 16 and told["text"]["keep"].all()
    expected = 0.0
    assert set(parts) == {"loss"} | ({"zoo_loss"} if zoo else set()) | (
        {"functional_loss", "base_distance"} if functional else set()
    )
    if zoo:
        varying = np.asarray(stats.varying(made.stats))
        x0 = np.asarray(made.normalize(batch["params"]))
        error = np.square(z - x0)[:, varying].mean(1)
        assert parts["zoo_loss"] == pytest.approx(error.mean(), rel=1e-4)
        expected += zoo * error.mean()
    if functional:
        networks, nats, distance = made.denormalize(z), [], []
        for i, task in enumerate(batch["task"]):
            network = jax.tree.map(lambda a, i=i: a[i], networks)
            own = jax.tree.map(lambda v, t=task: v[t], family.variables)
            data = family.data["train"]
            x, y = family.labelled(own, data.x[images[i]], data.y[images[i]])
            logits = np.asarray(made.target.apply(network, x), np.float64)
            nats.append((np.log(np.exp(logits).sum(-1)) - logits[np.arange(10), y]).mean())
            pairs = zip(jax.tree.leaves(network), jax.tree.leaves(made.base), strict=True)
            distance.append(sum(np.square(np.asarray(a) - np.asarray(b)).sum() for a, b in pairs))
        assert parts["functional_loss"] == pytest.approx(np.mean(nats), rel=1e-4)
        assert parts["base_distance"] == pytest.approx(np.mean(distance), rel=1e-4)
        expected += functional * (np.mean(nats) + 0.01 * np.mean(distance))
    assert loss == parts["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_prior_s_loss_by_hand(make_stage, tiny, mesh):
    stage = make_stage(stages.PRIOR, mesh)
    constants = jax.tree.map(jnp.asarray, stage.constants)
    params = noised(jax.jit(stage.init)(jax.random.key(0)), 0.1)
    loss, parts = jax.jit(stage.loss)(params, {}, constants, KEYS)
    streams = jax.vmap(lambda k: jax.random.split(k, 3))(KEYS)
    chosen, members = jax.vmap(lambda k: stages._draw_set(stage.config, constants, k))(streams[:, 0])
    x0 = np.asarray(tiny.refined.coefficients)[chosen].reshape(16, *tiny.shape)
    diffusion = stage.config.diffusion
    sigma = np.asarray(
        losses.training_noise_ratios(tiny.path, streams[:, 1], diffusion.sigma_max, diffusion.at_sigma_max)
    )
    noise = np.stack([jax.random.normal(k, tiny.shape) for k in streams[:, 2]])
    s = sigma[:, None, None]
    z = x0 + s * noise
    f = np.asarray(jax.jit(tiny.dit.apply)({"params": params}, z / np.sqrt(s**2 + 1), np.log(sigma) / 4, members))
    target = (x0 - z / (s**2 + 1)) * np.sqrt(s**2 + 1) / s  # of the network itself, where the loss has no weights
    assert loss == parts["denoising_loss"] == pytest.approx(np.square(f - target).mean(), rel=1e-3)


def test_the_prior_s_examples_are_of_one_task_of_a_set_and_of_all(make_stage, mesh):
    """By their shares; a set's members are all in it, and so is the network, which is none of the members."""
    config = make_stage(stages.PRIOR, mesh, refined__vague=0.3, condition__drop_all=0.2).config
    count, rows = 4000, 640
    numbered = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], (rows, 2))
    networks = RefinedZoo(-numbered, numbered, numbered[:, :1])
    half = MEMBERS
    named = np.stack([np.arange(2 * half), 100 + np.arange(2 * half)])
    constants = jax.tree.map(jnp.asarray, {"refined": networks, "sets": named})
    draw = jax.jit(jax.vmap(lambda k: stages._draw_set(config, constants, k)))
    row, members = jax.device_get(draw(jax.random.split(jax.random.key(0), count)))
    assert members.shape == (count, half, 2)
    members = members[..., 0]
    single = (members == members[:, :1]).all(1)
    assert (members[single, 0] == row[single]).all() and len(set(row[single])) > rows / 2
    within = np.array([np.isin(members, s).all(1) & np.isin(row, s) for s in named]) & ~single
    assert (within.sum(1) > 0.4 * within.sum()).all()
    assert (members[within.any(0)] != row[within.any(0), None]).all()
    assert len(set(row[within[0]])) == 2 * half  # each of the set is the network at some time
    every = ~single & ~within.any(0)
    assert (np.ptp(members[every], 1) > rows / 2).all()
    shares = single.mean(), within.any(0).mean(), every.mean()
    np.testing.assert_allclose(shares, (0.5, 0.3, 0.2), atol=0.03)


@pytest.mark.parametrize("name", [stages.MEAN, stages.PRIOR])
def test_validation_is_the_accuracy_of_one_network_for_each_validation_task(name, make_stage, tiny_start, tiny, mesh):
    stage = make_stage(name, mesh, sample__samplers=("posterior_mean", "ddim"))
    tasks = tiny.family.split("validation")
    params = noised(jax.jit(stage.init)(jax.random.key(0)), 0.05)
    found = stage.validate(params)
    assert stage.tasks == tasks and set(found) == ({"mean"} if name == stages.MEAN else {"posterior_mean", "ddim"})
    made = tiny_start if name == stages.MEAN else tiny
    condition = made.condition(tasks, given=("text",))
    if name == stages.MEAN:
        networks = mean_networks(dataclasses.replace(made, mean_params=params), condition, mesh)
    else:
        key = stages.rng.stream(stage.config.seed, "train/validation")
        networks = Samplers(made, mesh).networks(params, "posterior_mean", condition, key)
    score = Scorer(made, "validation", mesh)(networks, np.array([t.id for t in tasks]))
    np.testing.assert_allclose(next(iter(found.values())), score)
    assert score.shape == (len(tasks),) and score.std() > 0


def test_without_images_nothing_is_measured(tiny_start, tiny, tiny_zoo, mesh):
    blind = dataclasses.replace(tiny.family, data={})
    assert stages.prior(dataclasses.replace(tiny, family=blind), "zoo", mesh).validate is None


def test_the_mean_reads_networks_only_where_it_learns_from_them(make_stage, mesh):
    told = [set(next(make_stage(stages.MEAN, mesh, mean__zoo_weight=w).batches(start=0, stop=1))) for w in (0.0, 1.0)]
    assert told == [{"task", "wording", "index"}, {"task", "wording", "index", "params", "fitted"}]


def test_settings_are_those_of_training_with_the_stage_s_own(make_stage, mesh):
    ours = dict(mean__steps=2, mean__batch_size=4, mean__learning_rate=0.5, train__grad_clip=7.0)
    mean, prior = (make_stage(name, mesh, **ours) for name in (stages.MEAN, stages.PRIOR))
    assert (mean.settings.steps, mean.settings.batch_size, mean.settings.learning_rate) == (2, 4, 0.5)
    assert mean.settings.warmup_steps == 1 < prior.settings.warmup_steps  # less than there are steps
    assert prior.settings == prior.config.train and prior.before == 2 and mean.before == 0
    assert mean.settings.grad_clip == prior.settings.grad_clip == 7.0
