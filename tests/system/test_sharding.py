"""The layout of training: every parameter has its row, and no layout changes what is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pdiff.errors import PdiffError
from pdiff.system import dist, sharding
from pdiff.training import stages
from pdiff.training import train as train_lib

LAYOUTS = [(stages.PRIOR, 2, False), (stages.PRIOR, 1, True), (stages.PRIOR, 2, True), (stages.MEAN, 2, True)]
SPLIT = {stages.PRIOR: ("block_0", "mlp", "up", "kernel"), stages.MEAN: ("weights", "kernel")}  # over both axes


@pytest.fixture(scope="module")
def trained(make_stage):
    """(stage, mesh.model, mesh.fsdp, microbatches) -> metrics of each of three steps, state on four devices."""

    def train(name, model=1, fsdp=False, microbatches=1):
        mesh = dist.make_mesh(model=model)
        layout = dict(mesh__model=model, mesh__fsdp=fsdp, train__microbatches=microbatches)
        stage = make_stage(name, mesh, **layout, mean__zoo_weight=0.5)
        state, size, metrics = train_lib.fresh_state(stage, mesh), stage.settings.batch_size, []
        step, constants = train_lib.make_step(stage, mesh), dist.replicate(stage.constants, mesh)
        rows = dist.local_rows(size, mesh)
        place = lambda batch: dist.from_local(batch, rows, size, mesh)  # noqa: E731
        for batch in stage.batches(start=0, stop=3, rows=rows, place=place):
            state, values = step(state, batch, constants)
            metrics.append({name: float(v) for name, v in values.items() if name != train_lib.NORMS})
        return metrics, state

    return train


@pytest.fixture(scope="module")
def replicated(trained):
    """The same without a split, by stage."""
    return {name: (metrics, dist.fetch(state)) for name in SPLIT for metrics, state in [trained(name)]}


@pytest.mark.parametrize("name", SPLIT)
def test_every_parameter_and_everything_that_the_optimizer_keeps_has_one_row(name, make_stage, mesh4):
    stage = make_stage(name, mesh4)
    state = train_lib.abstract_state(stage)
    shardings = jax.tree.leaves(sharding.state_shardings(state, mesh4, stage.config.mesh))
    assert len(shardings) == len(jax.tree.leaves(state))


@pytest.mark.parametrize("path", ["block_0/attention/q/kernel", "somewhere/else", "my_in/kernel"])
def test_a_parameter_without_a_row_is_refused(path, mesh4):
    with pytest.raises(PdiffError, match=f"0 rows match the parameter {path}"):
        sharding.partition(path, (4, 4), mesh4, True)


def test_rows_are_read_as_megatron_and_zero_have_it():
    mesh = dist.make_mesh(model=2)
    of = lambda name, shape, fsdp: sharding.partition(f"opt_state/1/0/mu/{name}", shape, mesh, fsdp)  # noqa: E731
    assert of("block_0/attention/qkv/kernel", (8, 24), False) == P(None, "model")
    assert of("block_0/attention/out/kernel", (8, 8), False) == P("model", None)
    assert of("block_3/mlp/up/kernel", (8, 32), True) == P("data", "model")
    assert of("block_3/mlp/down/kernel", (32, 8), True) == P("model", "data")
    assert of("block_3/mlp/up/bias", (32,), True) == P("model")
    assert of("block_3/mlp/up/bias", (31,), True) == P(None)  # 2 does not divide it
    assert of("weights/kernel", (8, 32), True) == P("data", "model")
    assert of("conditions/encoders_text/Attention_0/qkv/kernel", (8, 24), True) == P(None, None)
    assert of("count", (), True) == P()


@pytest.mark.parametrize("name, model, fsdp", LAYOUTS)
def test_any_layout_trains_as_the_replicated_one(name, model, fsdp, trained, replicated):
    """Losses and gradient norms of each step, and the parameters after them, to 1e-5.

    AdamW makes steps of full size of gradients that are nothing but rounding, as those of a softmax's bias are, so
    single parameters may differ by more: they are compared by the norm of all.
    """
    metrics, state = trained(name, model, fsdp)
    for ours, theirs in zip(metrics, replicated[name][0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (np.concatenate([a.ravel() for a in jax.tree.leaves(s)]) for s in
                    (dist.fetch(state.params), replicated[name][1].params))  # fmt: skip
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    split = state.params
    for key in SPLIT[name]:
        split = split[key]
    assert split.addressable_shards[0].data.size == split.size // model // (4 // model if fsdp else 1)


@pytest.mark.parametrize("name", SPLIT)
def test_microbatches_give_the_same_step(name, trained, replicated):
    metrics, _ = trained(name, microbatches=2)
    for ours, theirs in zip(metrics, replicated[name][0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("field", ["mean.batch_size", "train.batch_size"])
def test_batches_that_do_not_divide_are_refused(field, tiny_config, mesh4):
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.train.microbatches = 2
        config[field.split(".")[0]].batch_size = 12
    with pytest.raises(PdiffError, match=f"{field}: got 12, which does not divide over 8"):
        sharding.check(config, mesh4)


@pytest.mark.parametrize(("together", "alive"), [(1, 1), (3, 2), (4, 4), (9, 4)])
def test_parts_of_a_batch_stay_on_their_devices(mesh4, together, alive):
    """And give what the whole batch gives, gradients included."""
    x, y = (np.random.default_rng(i).standard_normal((16, 3)).astype(np.float32) for i in range(2))
    seen = []

    def each(x, y):
        seen.append(len(x))
        return (x**2 * y).sum(1), y[:, 0]

    def loss(x, y, together):
        with jax.sharding.use_abstract_mesh(mesh4.abstract_mesh):
            first, second = sharding.in_parts(each, (x, y), together)
        return (first * jnp.arange(16.0)).sum() + second.sum(), (first, second)

    args = dist.shard((x, y), mesh4)
    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    found = run(*args, together)
    assert set(seen) == {4 * alive}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(run(x, y, 16)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    text = run.lower(*args, together).compile().as_text()
    assert not any(f" {name}(" in text for name in ("all-gather", "all-to-all", "collective-permute"))
