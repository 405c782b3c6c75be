"""The training steps in PyTorch are pdiff's: the same losses, gradients and updates for the same draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import torch_dit  # noqa: E402  needs torch
from benchmarks.train_step import random_parameters  # noqa: E402
from pdiff import rng  # noqa: E402
from pdiff.diffusion import losses  # noqa: E402
from pdiff.errors import PdiffError  # noqa: E402
from pdiff.generator import conditioning  # noqa: E402
from pdiff.generator.generator import MEMBERS  # noqa: E402
from pdiff.training import stages, train  # noqa: E402
from pdiff.training.state import init_state  # noqa: E402

STEPS = 3
BOTH = pytest.mark.parametrize("name", [stages.MEAN, stages.PRIOR])
# What shifts all logits of a softmax alike changes nothing, and a null token is read where nothing is given: gradients
# of these are rounding alone, or there are none.
NO_GRADIENT = ("conditions.encoders_text.Dense.0.bias", "conditions.encoders_text.LayerNorm.2.bias",
               "conditions.null", "conditions.null_id", "conditions.null_text")  # fmt: skip


@pytest.fixture(scope="module")
def parts(make_stage, tiny_start, tiny, mesh):
    """By stage the generator, the stage, its batches, and parameters that let gradients through everywhere.

    The learning rate is there at once, and gradients are clipped.
    """
    found = {}
    for name, made in ((stages.MEAN, tiny_start), (stages.PRIOR, tiny)):
        stage = make_stage(name, mesh, train__warmup_steps=1, train__grad_clip=0.01, condition__drop_id=0.5)
        params = random_parameters(made.init if name == stages.PRIOR else made.init_mean)
        made = dataclasses.replace(made, config=stage.config)
        found[name] = made, stage, list(stage.batches(start=0, stop=STEPS)), params
    return found


@pytest.fixture(scope="module")
def ran(parts):
    """By stage, state and metrics after each of pdiff's own steps, and the gradients of the first."""
    found = {}
    for name, (_, stage, batches, params) in parts.items():
        step, constants = jax.jit(train.train_step(stage)), jax.tree.map(jnp.asarray, stage.constants)
        keys = rng.per_example(rng.stream(stage.config.seed, f"{name}/step"), batches[0]["index"])
        first = jax.jit(jax.grad(stage.loss, has_aux=True))(params, batches[0], constants, keys)[0]
        state, states = init_state(params, stage.optimizer), []
        for batch in batches:
            states.append(step(state, batch, constants))
            state = states[-1][0]
        found[name] = states, first
    return found


def draws_of(generator, stage, batch, step):
    """What `pdiff.training.train.train_step` draws in a step, for PyTorch."""
    config, constants = generator.config, jax.tree.map(jnp.asarray, stage.constants)
    keys = rng.per_example(rng.stream(config.seed, f"{stage.name}/step", step), batch["index"])
    if stage.name == stages.MEAN:
        streams = jax.vmap(lambda k: jax.random.split(k, 2))(keys)
        told = conditioning.training_condition(
            generator, constants, batch["task"], batch["wording"], streams[:, 0], drop_all=0.0
        )
        count = config.mean.functional_images
        rows = jax.vmap(lambda k: jax.random.randint(k, (count,), 0, len(constants["y"])))(streams[:, 1])
        return torch_dit.MeanDraws(*jax.tree.map(torch_dit.to_torch, (told, rows)))
    streams, diffusion = jax.vmap(lambda k: jax.random.split(k, 3))(keys), config.diffusion
    drawn = jax.vmap(lambda k: stages._draw_set(config, constants, k))(streams[:, 0])
    sigma = losses.training_noise_ratios(generator.path, streams[:, 1], diffusion.sigma_max, diffusion.at_sigma_max)
    noise = jax.vmap(lambda k: jax.random.normal(k, generator.shape))(streams[:, 2])
    return torch_dit.PriorDraws(*jax.tree.map(torch_dit.to_torch, (*drawn, sigma, noise)))


@BOTH
def test_losses_and_gradients_are_those_of_pdiff(name, parts, ran):
    made, stage, (batch, *_), params = parts[name]
    ((_, ours), *_), gradients = ran[name]
    loss = torch_dit.LOSSES[name](made, stage.constants, params)
    total, theirs = loss(torch_dit.torch_batch(batch), draws_of(made, stage, batch, 0))
    total.backward()
    assert {*theirs, "grad_norm", train.NORMS} == set(ours)
    for part, value in theirs.items():
        assert value.item() == pytest.approx(float(ours[part]), rel=1e-5), part
    found = dict(loss.model.named_parameters())
    wanted = torch_dit.flax_arrays(gradients)
    assert set(found) == set(wanted)
    for leaf in NO_GRADIENT if name == stages.MEAN else ():
        left = found.pop(leaf).grad
        assert left is None or left.norm() < 1e-6 * ours["grad_norm"].item()
        assert wanted[leaf].norm() < 1e-6 * ours["grad_norm"].item()
    for leaf, parameter in found.items():
        size = wanted[leaf].norm()
        assert size > 1e-6 * ours["grad_norm"].item(), f"{leaf}: a gradient of zero would test nothing"
        most = 1e-3 if leaf.startswith("member") else 1e-4  # rounding weighs in a deviation of nearly equal ones
        assert (parameter.grad - wanted[leaf]).norm() <= most * size, leaf


@BOTH
def test_updates_and_averages_are_those_of_pdiff(name, parts, ran):
    made, stage, batches, params = parts[name]
    states, _ = ran[name]
    trainer = torch_dit.Trainer(made, stage, params)
    for i, (batch, (_, ours)) in enumerate(zip(batches, states, strict=True)):
        theirs = trainer.step(torch_dit.torch_batch(batch), draws_of(made, stage, batch, i))
        assert theirs["grad_norm"].item() == pytest.approx(float(ours["grad_norm"]), rel=1e-3)
        assert float(ours["grad_norm"]) > stage.settings.grad_clip, "nothing would be clipped"
    state, start = states[-1][0], torch_dit.flax_arrays(params)
    names = [n for n, p in trainer.loss.model.named_parameters() if p.grad is not None]
    kept = [i for i, p in enumerate(trainer.parameters) if p.grad is not None]
    for tree, found in ((state.params, trainer.parameters), (state.ema, trainer.ema)):
        wanted, found = torch_dit.flax_arrays(tree), [found[i] for i in kept]
        moved = sum((wanted[n] - start[n]).square().sum() for n in names).sqrt()
        off = sum((wanted[n] - f.detach()).square().sum() for n, f in zip(names, found, strict=True)).sqrt()
        assert moved > 0 and off < 0.01 * moved


def many_of(stage, batch):
    many = jax.tree.map(lambda x: np.concatenate([x] * 250), batch)
    return many | {"index": np.arange(len(many["index"]), dtype=np.int32)}


def test_draws_of_the_mean_have_the_distributions_of_pdiff(parts):
    made, stage, (batch, *_), params = parts[stages.MEAN]
    many = many_of(stage, batch)
    ours = draws_of(made, stage, many, 0)
    trainer = torch_dit.Trainer(made, stage, params)
    theirs = trainer.loss.draw(torch_dit.torch_batch(many), trainer.random)
    for name in made.config.condition.use:
        a, b = (d.condition[name]["keep"].float().mean().item() for d in (ours, theirs))
        assert a == pytest.approx(b, abs=0.03)
    is_number = theirs.condition["text"]["inputs"]["is_number"]
    values = [d.condition["text"]["inputs"]["values"][is_number] for d in (ours, theirs)]
    assert values[0].std().item() == pytest.approx(values[1].std().item(), rel=0.05)
    assert not theirs.condition["text"]["inputs"]["values"][~is_number].any()
    assert theirs.rows.shape == ours.rows.shape
    assert theirs.rows.min() >= 0 and theirs.rows.max() == len(stage.constants["y"]) - 1


def test_draws_of_the_prior_have_the_distributions_of_pdiff(parts):
    made, stage, (batch, *_), params = parts[stages.PRIOR]
    many = many_of(stage, batch)
    ours = draws_of(made, stage, many, 0)
    trainer = torch_dit.Trainer(made, stage, params)
    theirs = trainer.loss.draw(torch_dit.torch_batch(many), trainer.random)
    for level in (0.1, 0.3, 0.5):
        a, b = (torch.quantile(d.sigma, level).log().item() for d in (ours, theirs))
        assert a == pytest.approx(b, abs=0.3)
    top = made.config.diffusion.sigma_max
    assert (theirs.sigma == top).float().mean() == pytest.approx((ours.sigma == top).float().mean().item(), abs=0.02)
    assert theirs.noise.std().item() == pytest.approx(1, abs=0.02) and theirs.noise.shape == ours.noise.shape
    assert theirs.members.shape == ours.members.shape == (len(many["index"]), MEMBERS, made.shape[0] * made.shape[1])
    spreads = [d.members.std(1).norm(dim=-1) for d in (ours, theirs)]  # how far members lie from each other
    assert spreads[0].mean().item() == pytest.approx(spreads[1].mean().item(), rel=0.05)
    single = [(s < 1e-5).float().mean().item() for s in spreads]
    assert single[0] == pytest.approx(single[1], abs=0.03) and 0.37 < single[0] < 0.6
    x0 = torch.tensor(np.asarray(made.refined.coefficients))
    gaps = [(x0[d.row] - d.members.mean(1)).norm(dim=-1).mean().item() for d in (ours, theirs)]
    assert gaps[0] == pytest.approx(gaps[1], rel=0.05)
    assert theirs.row.min() >= 0 and theirs.row.max() < len(x0) and len(theirs.row.unique()) > len(x0) / 2


def test_a_shorter_text_takes_the_first_rows_of_the_position_table(parts):
    """Padding says nothing: without it the token of a text is the same."""
    made, stage, (batch, *_), params = parts[stages.MEAN]
    encoder = torch_dit.MeanLoss(made, stage.constants, params).model.conditions.encoders_text
    table = stage.constants["text"]
    text = {k: torch_dit.to_torch(v[batch["task"], batch["wording"]]) for k, v in table.items()}
    length = int((text["ids"] > 0).sum(-1).max())
    padded = {k: torch.nn.functional.pad(v, (0, encoder.position.shape[0] - v.shape[-1])) for k, v in text.items()}
    short = {k: v[:, :length] for k, v in text.items()}
    torch.testing.assert_close(encoder(short), encoder(padded), rtol=1e-5, atol=1e-6)


def test_another_model_is_refused(parts):
    made, stage, _, params = parts[stages.MEAN]
    with made.config.copy_and_resolve_references().unlocked() as config:
        config.condition.use = ("id", "factors")
    with pytest.raises(PdiffError, match="condition.use"):
        torch_dit.MeanLoss(dataclasses.replace(made, config=config), stage.constants, params)
    made, stage, _, params = parts[stages.PRIOR]
    broken = params | {"last": params["last"] | {"bias": jnp.zeros(3)}}
    with pytest.raises(PdiffError, match="last.bias"):
        torch_dit.PriorLoss(made, stage.constants, broken)
    with made.config.copy_and_resolve_references().unlocked() as config:
        config.diffusion.path = "vp"
    with pytest.raises(PdiffError, match="diffusion.path"):
        torch_dit.PriorLoss(dataclasses.replace(made, config=config), stage.constants, params)
