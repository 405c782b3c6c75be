"""The layout of training: every parameter has its row, and no layout changes what is learned."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pdiff import data, dist, sharding
from pdiff import train as train_lib
from pdiff.conditioning import make_constants
from pdiff.errors import PdiffError
from pdiff.state import make_optimizer

LAYOUTS = [(2, False), (1, True), (2, True)]  # (mesh.model, mesh.fsdp) on 4 devices


def laid_out(generator, model, fsdp, microbatches=1):
    config = generator.config.copy_and_resolve_references()
    with config.unlocked():
        config.mesh.update(dict(model=model, fsdp=fsdp))
        config.train.microbatches = microbatches
    return dataclasses.replace(generator, config=config), dist.make_mesh(model=model)


def trained(generator, zoo, mesh, steps=3):
    """(metrics of each step, state on devices)."""
    optimizer, size = make_optimizer(generator.config.train), generator.config.train.batch_size
    state = train_lib.fresh_state(generator, optimizer, mesh)
    step, constants = train_lib.make_step(generator, optimizer, mesh), dist.replicate(make_constants(generator), mesh)
    rows, metrics = dist.local_rows(size, mesh), []
    wordings = len(generator.family.tasks[0].descriptions)
    for batch in data.training_batches(zoo["seen"], wordings, seed=0, batch_size=size, start=0, stop=steps):
        batch = dist.from_local(batch, rows, size, mesh)
        state, values = step(state, batch, constants)
        metrics.append({name: float(v) for name, v in values.items() if name != train_lib.NORMS})
    return metrics, state


@pytest.fixture(scope="module")
def replicated(tiny, tiny_zoo):
    made, mesh = laid_out(tiny, 1, False)
    metrics, state = trained(made, tiny_zoo, mesh)
    return metrics, dist.fetch(state)


def test_every_parameter_and_everything_that_the_optimizer_keeps_has_one_row(tiny, mesh4):
    state = train_lib.abstract_state(tiny, make_optimizer(tiny.config.train))
    shardings = jax.tree.leaves(sharding.state_shardings(state, mesh4, tiny.config.mesh))
    assert len(shardings) == len(jax.tree.leaves(state))


@pytest.mark.parametrize("path", ["dit/block_0/attention/q/kernel", "somewhere/else"])
def test_a_parameter_without_a_row_is_refused(path, mesh4):
    with pytest.raises(PdiffError, match=f"0 rows match the parameter {path}"):
        sharding.partition(path, (4, 4), mesh4, True)


def test_rows_are_read_as_megatron_and_zero_have_it():
    mesh = dist.make_mesh(model=2)
    of = lambda name, shape, fsdp: sharding.partition(f"opt_state/1/0/mu/dit/{name}", shape, mesh, fsdp)  # noqa: E731
    assert of("block_0/attention/qkv/kernel", (8, 24), False) == P(None, "model")
    assert of("block_0/attention/out/kernel", (8, 8), False) == P("model", None)
    assert of("block_3/mlp/up/kernel", (8, 32), True) == P("data", "model")
    assert of("block_3/mlp/down/kernel", (32, 8), True) == P("model", "data")
    assert of("block_3/mlp/up/bias", (32,), True) == P("model")
    assert of("block_3/mlp/up/bias", (31,), True) == P(None)  # 2 does not divide it
    assert of("count", (), True) == P()


@pytest.mark.parametrize("model, fsdp", LAYOUTS)
def test_any_layout_trains_as_the_replicated_one(model, fsdp, tiny, tiny_zoo, replicated):
    """Losses and gradient norms of each step, and the parameters after them, to 1e-5.

    AdamW makes steps of full size of gradients that are nothing but rounding, as those of a softmax's bias are, so
    single parameters may differ by more: they are compared by the norm of all.
    """
    made, mesh = laid_out(tiny, model, fsdp)
    metrics, state = trained(made, tiny_zoo, mesh)
    for ours, theirs in zip(metrics, replicated[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (np.concatenate([a.ravel() for a in jax.tree.leaves(s)]) for s in
                    (dist.fetch(state.params), replicated[1].params))  # fmt: skip
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    split = state.params["dit"]["block_0"]["mlp"]["up"]["kernel"]
    assert split.addressable_shards[0].data.size == split.size // model // (4 // model if fsdp else 1)


def test_microbatches_give_the_same_step(tiny, tiny_zoo, replicated):
    made, mesh = laid_out(tiny, 1, False, microbatches=2)
    metrics, _ = trained(made, tiny_zoo, mesh)
    for ours, theirs in zip(metrics, replicated[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
