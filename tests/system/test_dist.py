"""The mesh: rows go where they should, and come back in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.system import dist


@pytest.mark.parametrize("model", [1, 2, 4])
def test_the_mesh_has_all_devices_once(model):
    mesh = dist.make_mesh(model=model)
    assert dict(mesh.shape) == {"data": 4 // model, "model": model}
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}


def test_a_model_axis_that_does_not_fit_is_refused():
    with pytest.raises(PdiffError, match="mesh.model: got 3; allowed: a divisor of the 4 devices"):
        dist.make_mesh(model=3)


def test_rows_go_to_devices_in_order_and_come_back():
    mesh = dist.make_mesh(model=2)
    x = {"a": np.arange(24.0).reshape(8, 3), "b": np.arange(8)}
    over_all, over_data = dist.shard(x, mesh), dist.shard(x, mesh, dist.BATCH)
    assert {s.data.shape for s in over_all["a"].addressable_shards} == {(2, 3)}
    assert {s.data.shape for s in over_data["a"].addressable_shards} == {(4, 3)}
    for y in (over_all, over_data, dist.replicate(x, mesh)):
        jax.tree.map(np.testing.assert_array_equal, dist.fetch(y), x)


def test_keys_can_be_placed(mesh4):
    key = jax.random.key(3)
    assert jax.random.key_data(dist.replicate(key, mesh4)).tolist() == jax.random.key_data(key).tolist()


@pytest.mark.parametrize("spec", [dist.BATCH, dist.SHARDED])
def test_one_process_holds_all_rows_and_hands_them_over(spec):
    mesh = dist.make_mesh(model=2)
    rows = dist.local_rows(8, mesh, spec)
    np.testing.assert_array_equal(rows, np.arange(8))
    x = np.random.default_rng(0).random((8, 3), np.float32)
    whole = dist.from_local({"x": x[rows]}, rows, 8, mesh, spec)["x"]
    assert whole.sharding.spec == spec
    np.testing.assert_array_equal(whole, x)


def test_a_step_for_one_device_is_mapped_over_both_axes():
    mesh = dist.make_mesh(model=2)
    step = dist.data_parallel(
        lambda w, x: (x * w, jax.lax.psum(x.sum(), dist.ALL)),
        mesh, (dist.REPLICATED, dist.SHARDED), (dist.SHARDED, dist.REPLICATED),
    )  # fmt: skip
    x = np.arange(8.0)
    y, total = step(jnp.float32(2), dist.shard(x, mesh))
    np.testing.assert_array_equal(y, 2 * x)
    assert float(total) == x.sum() and {s.data.shape for s in y.addressable_shards} == {(2,)}


def test_chunks_compile_once_and_are_cut_to_size(mesh4):
    step = dist.data_parallel(lambda x: 2 * x, mesh4, (dist.SHARDED,), dist.SHARDED)
    x = np.arange(22.0).reshape(11, 2)
    made = dist.map_chunks(lambda rows: step(dist.shard(rows, mesh4)), x, len(x), 4)
    np.testing.assert_array_equal(made, 2 * x)
    assert step._cache_size() == 1


def test_sizes_are_checked_and_rounded(mesh4):
    assert [dist.round_up(n, mesh4) for n in (1, 4, 5)] == [4, 4, 8]
    dist.check_divides(8, 4, "train.batch_size")
    with pytest.raises(PdiffError, match="train.batch_size: got 6.*over 4 devices.*multiples of 4"):
        dist.check_divides(6, 4, "train.batch_size")
