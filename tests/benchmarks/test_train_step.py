"""What the benchmark of a training step says of a trace and of a program, and that its own set-up is the main job's."""

import itertools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import thunks, train_step
from benchmarks.thunks import Event, Operation
from pdiff.compile import hlo
from pdiff.targets import get_target
from pdiff.zoo.networks import tree_bytes


def test_an_operation_alone_has_the_whole_machine_and_two_at_once_half_each():
    events = [Event("a", 1, 0.0, 4.0), Event("b", 2, 1.0, 3.0), Event("b", 2, 6.0, 7.0)]
    spent = thunks.seconds(events)
    assert spent == pytest.approx({"a": 1 + 2 / 2 + 1, "b": 2 / 2 + 1, thunks.IDLE: 2})
    assert sum(spent.values()) == pytest.approx(7)  # the span


def test_time_inside_a_loop_is_that_of_the_operations_in_it():
    events = [Event("while", 1, 0.0, 10.0), Event("x", 1, 2.0, 5.0), Event("y", 1, 5.0, 6.0), Event("z", 1, 10.0, 11.0)]
    assert thunks.seconds(events) == pytest.approx({"while": 6, "x": 3, "y": 1, "z": 1})


def test_seconds_are_those_of_a_simulation():
    """Random runs on three threads against counting in small steps of time."""
    random, events = np.random.default_rng(0), []
    for thread in range(3):
        edges = np.sort(random.choice(1000, 20, replace=False))
        events += [Event(f"op{random.integers(4)}", thread, a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    counted: dict[str, float] = {}
    for moment in range(int(min(e.start for e in events)), int(max(e.end for e in events))):
        active = [e.name for e in events if e.start <= moment < e.end] or [thunks.IDLE]
        for name in active:
            counted[name] = counted.get(name, 0) + 1 / len(active)
    assert thunks.seconds(events) == pytest.approx(counted)


@pytest.fixture(scope="module")
def compiled():
    """A program with a product, a product in a loop, and what is none."""

    def run(a, b):
        product = jnp.dot(a, b)
        looped = jax.lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ b), product)
        return looped.T, jnp.sin(a)

    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    return jax.jit(run).lower(shape, shape).compile()


def test_a_trace_joins_with_its_program(compiled):
    text, x = compiled.as_text(), jnp.ones((64, 64)) / 64
    known, spent = thunks.operations(text), thunks.seconds(thunks.trace(lambda: compiled(x, x), 2, text))
    names = set(spent) - {thunks.IDLE}
    assert names and names <= set(known)
    assert any(known[n].is_matmul for n in names) and not all(known[n].is_matmul for n in names)


def test_products_are_told_from_what_only_holds_them(compiled):
    text = compiled.as_text()
    known, (computations, _) = thunks.operations(text), hlo.parse(text)
    opcodes = {i.name: i.opcode for i in itertools.chain.from_iterable(computations.values())}
    for name, operation in known.items():
        if opcodes[name] == "while":
            assert not operation.is_matmul
        if opcodes[name] == "dot":
            assert operation.is_matmul and not operation.only_moves
        if opcodes[name] in ("copy", "transpose"):
            assert operation.only_moves
    assert any(o.is_matmul for o in known.values())


@pytest.mark.parametrize(
    "source, moves, part",
    [
        ("jit(step)/jvp(vmap(jit(_normal)))/jit(_uniform)/add", False, "random numbers"),
        ("jit(step)/transpose(jvp(DiT))/block_1/attention/qkv/dot_general", False, "attention"),
        ("jit(step)/jvp(DiT)/block_0/mlp/up/dot_general", False, "MLP"),
        ("jit(step)/jvp(DiT)/member/up/dot_general", False, "members"),
        ("jit(step)/jvp(DiT)/last/dot_general", False, "rest of the transformer"),
        ("jit(step)/jvp(MeanNetwork.encode)/conditions/encoders_text/Attention_0/out/dot_general", False,
         "text encoder and conditions"),
        ("jit(step)/transpose(jvp(MeanNetwork.decode))/weights/dot_general", False, "rest of the mean"),
        ("jit(step)/transpose(jvp(vmap(MLP)))/Dense_1/transpose", False, "functional and denoising loss"),
        ("jit(step)/add", False, "optimizer and EMA"),
        ("jit(step)/add", True, "copies"),
        ("", False, "other"),
    ],
)  # fmt: skip
def test_parts_of_a_step(source, moves, part):
    assert train_step.group(Operation(source, False, moves)) == part


def test_the_table_adds_up():
    known = {"a": Operation("jit(step)/add", False, False), "b": Operation("jit(step)/jvp(x)/dot_general", True, False)}
    table = train_step.profile_table({"a": 1e-3, "b": 2e-3, thunks.IDLE: 1e-3}, known)
    assert "| functional and denoising loss | 2.0 | 50.0% | 50.0% |" in table
    assert "| optimizer and EMA | 1.0 | 25.0% | 0.0% |" in table
    assert table.splitlines()[-1] == "| all | 4.0 | 100.0% | 50.0% |"


def test_flops_of_products_are_those_of_the_whole_program(compiled):
    """The product in the loop runs three times and is one operation."""
    text, x = compiled.as_text(), jnp.ones((64, 64))
    known, events = thunks.operations(text), thunks.trace(lambda: compiled(x, x), 1, text)
    ran = {event.name for event in events}
    assert sum(known[name].flops for name in ran) == pytest.approx(hlo.analyse(text).matmul_flops_once)


def test_the_slowest_product_comes_first():
    known = {"a": Operation("jit(step)/x", True, False, 2e6), "b": Operation("jit(step)/y", True, False, 1e6)}
    table = train_step.matmul_table({"a": 1e-3, "b": 2e-3, thunks.IDLE: 1.0}, known, peak=4e9).splitlines()
    assert table[2:] == ["| y | 2.00 | 1 | 12% |", "| x | 1.00 | 2 | 50% |", "| all 2 | 3.0 | 3 | 25% |"]


def test_made_up_networks_have_the_shapes_and_tasks_of_a_zoo(tiny_config, tiny, tiny_zoo):
    target = get_target(tiny_config.target, tiny.family.image_shape, tiny.family.num_classes)
    made, real = train_step.seen(target, tiny_config), tiny_zoo["seen"]
    assert len(made) == len(real)
    assert made.params_bytes == real.params_bytes == len(real) * tree_bytes(target.abstract())
    assert jax.tree.map(lambda a: a.dtype, made.params) == jax.tree.map(lambda a: a.dtype, real.params)
    np.testing.assert_array_equal(np.unique(made.task), np.unique(real.task))


@pytest.mark.parametrize("name", ["init", "init_mean"])
def test_random_parameters_fit_the_model(tiny, name):
    shapes = jax.eval_shape(getattr(tiny, name), jax.random.key(0))
    made = train_step.random_parameters(getattr(tiny, name))
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), made)
    assert all(a.any() for a in jax.tree.leaves(made))


def test_what_takes_too_long_is_stopped():
    with pytest.raises(TimeoutError, match="not done after"), train_step._time_limit(0.05):
        while True:
            pass
    with train_step._time_limit(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
