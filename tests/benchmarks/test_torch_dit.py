"""The training step in PyTorch is pdiff's: the same losses, gradients and updates for the same draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from benchmarks import torch_dit  # noqa: E402  needs torch
from benchmarks.train_step import random_parameters  # noqa: E402
from pdiff import conditioning, data, rng, train  # noqa: E402
from pdiff.diffusion import losses  # noqa: E402
from pdiff.errors import PdiffError  # noqa: E402
from pdiff.state import init_state, make_optimizer  # noqa: E402

STEPS = 3
# What shifts all logits of a softmax alike changes nothing: such gradients are rounding alone.
NO_GRADIENT = ("conditions.encoders_text.Dense.0.bias", "conditions.encoders_text.LayerNorm.2.bias")


@pytest.fixture(scope="module")
def clipped(tiny):
    """The tiny generator, with a step whose learning rate is there at once and whose gradients are clipped."""
    with tiny.config.copy_and_resolve_references().unlocked() as config:
        config.train.update(dict(warmup_steps=1, grad_clip=0.5))
    return dataclasses.replace(tiny, config=config)


@pytest.fixture(scope="module")
def parts(tiny, tiny_zoo):
    """Constants, batches of the tiny zoo, and parameters that let gradients through everywhere."""
    wordings, size = len(tiny.family.tasks[0].descriptions), tiny.config.train.batch_size
    batches = data.training_batches(tiny_zoo["seen"], wordings, seed=0, batch_size=size, start=0, stop=STEPS)
    constants = jax.tree.map(jnp.asarray, conditioning.make_constants(tiny))
    return constants, list(batches), random_parameters(tiny)


@pytest.fixture(scope="module")
def ran(clipped, parts):
    """State and metrics after each of pdiff's own steps; the optimizer's state begins with the step's gradients."""
    constants, batches, params = parts
    keep = optax.GradientTransformation(lambda p: p, lambda grads, state, params=None: (grads, grads))
    optimizer = optax.chain(keep, make_optimizer(clipped.config.train))
    step, state = jax.jit(train.train_step(clipped, optimizer)), init_state(params, optimizer)
    found = []
    for batch in batches:
        found.append(step(state, batch, constants))
        state = found[-1][0]
    return found


def draws_of(generator, constants, batch, step):
    """What `pdiff.train.train_step` draws in a step, for PyTorch."""
    config = generator.config.diffusion
    keys = rng.per_example(rng.stream(generator.config.seed, "train/step", step), batch["index"])
    streams = jax.vmap(lambda k: jax.random.split(k, 4))(keys)
    sigma = losses.training_noise_ratios(generator.path, streams[:, 1], config.sigma_max, config.at_sigma_max)
    shape = (generator.spec.num_tokens, generator.spec.token_dim)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape))(streams[:, 2])
    told = conditioning.training_condition(generator, constants, batch["task"], batch["wording"], sigma, streams[:, 0])
    draw = jax.vmap(lambda k: jax.random.randint(k, (config.functional_images,), 0, len(constants["y"])))
    arrays = jax.tree.map(torch_dit.to_torch, (sigma, noise, told, draw(streams[:, 3])))
    return torch_dit.Draws(*arrays)


def test_losses_and_gradients_are_those_of_pdiff(clipped, parts, ran):
    constants, (batch, *_), params = parts
    state, ours = ran[0]
    loss = torch_dit.Loss(clipped, constants, torch_dit.from_flax(clipped, params))
    total, theirs = loss(torch_dit.torch_batch(batch), draws_of(clipped, constants, batch, 0))
    total.backward()
    assert {*theirs, "grad_norm", train.NORMS} == set(ours)
    for name, value in theirs.items():
        assert value.item() == pytest.approx(float(ours[name]), rel=1e-5), name
    found = dict(loss.model.named_parameters())
    wanted = torch_dit.flax_arrays(state.opt_state[0])
    assert set(found) == set(wanted)
    for name in NO_GRADIENT:
        assert found.pop(name).grad.norm() < 1e-6 * ours["grad_norm"].item()
    for name, parameter in found.items():
        size = wanted[name].norm()
        assert size > 1e-6 * ours["grad_norm"].item(), f"{name}: a gradient of zero would test nothing"
        assert (parameter.grad - wanted[name]).norm() <= 1e-4 * size, name


def test_updates_and_averages_are_those_of_pdiff(clipped, parts, ran):
    constants, batches, params = parts
    trainer = torch_dit.Trainer(clipped, constants, params)
    for i, (batch, (_, ours)) in enumerate(zip(batches, ran, strict=True)):
        theirs = trainer.step(torch_dit.torch_batch(batch), draws_of(clipped, constants, batch, i))
        assert theirs["grad_norm"].item() == pytest.approx(float(ours["grad_norm"]), rel=1e-3)
        assert float(ours["grad_norm"]) > clipped.config.train.grad_clip, "nothing would be clipped"
    state, start = ran[-1][0], torch_dit.flax_arrays(params)
    names = [n for n, _ in trainer.loss.model.named_parameters()]
    for tree, found in ((state.params, trainer.parameters), (state.ema, trainer.ema)):
        wanted = torch_dit.flax_arrays(tree)
        moved = sum((wanted[n] - start[n]).square().sum() for n in names).sqrt()
        off = sum((wanted[n] - f.detach()).square().sum() for n, f in zip(names, found, strict=True)).sqrt()
        assert moved > 0 and off < 0.01 * moved


def test_draws_have_the_distributions_of_pdiff(tiny, parts):
    constants, (batch, *_), params = parts
    many = jax.tree.map(lambda x: np.concatenate([x] * 250), batch)
    many["index"] = np.arange(len(many["task"]), dtype=np.int32)
    ours = draws_of(tiny, constants, many, 0)
    theirs = torch_dit.Trainer(tiny, constants, params).draw(torch_dit.torch_batch(many))
    for level in (0.1, 0.3, 0.5):
        a, b = (torch.quantile(d.sigma, level).log().item() for d in (ours, theirs))
        assert a == pytest.approx(b, abs=0.3)
    assert (theirs.sigma == tiny.config.diffusion.sigma_max).float().mean() == pytest.approx(0.4, abs=0.05)
    for name in tiny.config.condition.use:
        a, b = (d.condition[name]["keep"].float().mean().item() for d in (ours, theirs))
        assert a == pytest.approx(b, abs=0.03)
    is_number = theirs.condition["text"]["inputs"]["is_number"]
    values = [d.condition["text"]["inputs"]["values"][is_number] for d in (ours, theirs)]
    assert values[0].std().item() == pytest.approx(values[1].std().item(), rel=0.05)
    assert not theirs.condition["text"]["inputs"]["values"][~is_number].any()
    assert theirs.noise.std().item() == pytest.approx(1, abs=0.01)
    assert theirs.rows.min() >= 0 and theirs.rows.max() == len(constants["y"]) - 1


def test_a_shorter_text_takes_the_first_rows_of_the_position_table(tiny, parts):
    """Padding says nothing: without it the token of a text is the same."""
    constants, (batch, *_), params = parts
    encoder = torch_dit.from_flax(tiny, params).conditions.encoders_text
    text = {k: torch_dit.to_torch(v[batch["task"], batch["wording"]]) for k, v in constants["text"].items()}
    length = int((text["ids"] > 0).sum(-1).max())
    padded = {k: torch.nn.functional.pad(v, (0, encoder.position.shape[0] - v.shape[-1])) for k, v in text.items()}
    short = {k: v[:, :length] for k, v in text.items()}
    torch.testing.assert_close(encoder(short), encoder(padded), rtol=1e-5, atol=1e-6)


def test_another_family_is_refused(tiny, parts):
    with tiny.config.copy_and_resolve_references().unlocked() as config:
        config.condition.use = ("id", "factors")
    with pytest.raises(PdiffError, match="condition.use"):
        torch_dit.from_flax(dataclasses.replace(tiny, config=config), parts[2])
    broken = jax.tree.map(lambda x: x, parts[2])
    broken["dit"]["out"]["bias"] = jnp.zeros(3)
    with pytest.raises(PdiffError, match="dit.out.bias"):
        torch_dit.from_flax(tiny, broken)
