"""What the benchmark of memory says of its sizes, and the exponent that it fits."""

import jax
import pytest

from benchmarks import memory
from pdiff.compile import aot
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.zoo.networks import tree_bytes


def test_each_size_is_within_a_tenth_of_its_name():
    family = get_family(memory.make_config(10_000).tasks)
    for size in memory.SIZES:
        target = get_target(memory.make_config(size).target, family.image_shape, family.num_classes)
        assert tree_bytes(target.abstract()) / 4 == pytest.approx(size, rel=0.1)


def test_the_slope_is_the_exponent_where_memory_is_linear():
    rows = [{"num_params": n, "bytes": 7.0 * n**0.8} for n in memory.SIZES]
    rows[0]["bytes"] = 1e12  # below LINEAR_FROM: not looked at
    assert memory.slope(rows, "bytes") == pytest.approx(0.8)


def test_arguments_are_the_batch_the_state_and_what_the_step_reads_of_the_zoo(mesh):
    """Of the smallest size: nothing that is as large as the target is baked into the step's program."""
    generator = aot.shapes(memory.make_config(10_000))
    state, batch, constants = aot.program(generator, mesh, "mean").arguments
    size = generator.spec.num_params
    padded = generator.spec.num_tokens * generator.spec.token_dim
    assert tree_bytes(batch) == memory.BATCH * (4 * size + 3 * 4 + 1)
    assert tree_bytes(constants["generator"]) == 4 * size + 2 * 4 * padded
    assert tree_bytes((state.ema, state.opt_state)) >= 3 * tree_bytes(state.params)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((state, batch, constants)))
