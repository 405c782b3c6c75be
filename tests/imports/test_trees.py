"""Trees as Flax and Orbax save them: whole numbers, lists, names with slashes, random states."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state

from pdiff.errors import PdiffError
from pdiff.imports import arrays


def read(path, megabytes=1.0):
    return arrays.read(path, arrays.Budget(megabytes))


def msgpack(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def orbax(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)
    return path


KERNEL, BIAS = np.ones((3, 2), np.float32), np.zeros(2, np.float32)


@pytest.mark.parametrize("module", ["linear", "mlp/~/linear_0", "a/b"])
def test_haiku_has_slashes_in_its_keys(tmp_path, module):
    tree = {module: {"w": KERNEL, "b": BIAS}, "other": {"w": 2 * KERNEL}}
    found = read(msgpack(tmp_path / "a.msgpack", tree)).arrays
    assert sorted(found) == sorted([f"{module}/w", f"{module}/b", "other/w"])
    arrays.check_floats(found)


def test_keys_may_be_whole_numbers_but_name_one_array(tmp_path):
    found = read(msgpack(tmp_path / "a.msgpack", {0: {"w": KERNEL}, 12: {"w": BIAS}})).arrays
    assert list(found) == ["0/w", "12/w"]
    for tree in ({"a/1": KERNEL, "a": {1: BIAS}}, {"a/b": KERNEL, "a": {"b": BIAS}}):
        with pytest.raises(PdiffError, match="is the name of two arrays"):
            read(msgpack(tmp_path / "b.msgpack", tree))


def test_a_train_state_has_numbers_beside_the_arrays(tmp_path):
    params = {"Dense_0": {"kernel": jnp.asarray(KERNEL), "bias": jnp.asarray(BIAS)}}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes(state))
    found = read(tmp_path / "a.msgpack").arrays
    assert found["step"].shape == () and found["step"].dtype == np.int64
    assert found["opt_state/0/count"].dtype == np.int32
    arrays.check_floats({n: a for n, a in found.items() if n.startswith("params/")})


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(7, "int64"), (True, "bool"), (1.5, "float32"), (np.int32(3), "int32"), (np.float16(1), "float16")],
)
def test_numbers_are_arrays_without_axes(tmp_path, value, dtype):
    file = read(msgpack(tmp_path / "a.msgpack", {"w": KERNEL, "x": value, "none": None}))
    assert set(file.arrays) == {"w", "x"}
    assert file.arrays["x"].shape == () and str(file.arrays["x"].dtype) == dtype and file.arrays["x"] == value
    assert file.notes == (
        ("float64 is taken as float32 (1 arrays)",) if isinstance(value, float) and dtype == "float32" else ()
    )


@pytest.mark.parametrize("value", ["text", b"bytes", 1 + 2j, [1, 2]])
def test_what_is_no_number_is_refused_only_where_it_is_used(tmp_path, value):
    found = read(msgpack(tmp_path / "a.msgpack", {"w": KERNEL, "x": value})).arrays
    arrays.check_floats({"w": found["w"]})
    with pytest.raises(PdiffError, match="^'x' is "):
        arrays.check_floats(found)


def test_orbax_with_lists_numbers_and_slashes(tmp_path):
    tree = {
        "layers": [{"w": KERNEL}, {"w": 2 * KERNEL}],
        "step": 7,
        "lr": 0.5,
        "t": (BIAS,),
        "m/~/l": BIAS,
        "none": None,
    }
    file = read(orbax(tmp_path / "a", tree))
    assert sorted(file.arrays) == ["layers/0/w", "layers/1/w", "lr", "m/~/l", "step", "t/0"]
    np.testing.assert_array_equal(file.arrays["layers/1/w"], 2 * KERNEL)
    assert file.arrays["step"] == 7 and file.arrays["step"].shape == () and file.arrays["lr"].dtype == np.float32
    assert file.notes == ("float64 is taken as float32 (1 arrays)",)


def test_texts_in_orbax_are_refused_only_where_they_are_used(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "a").absolute(), {"note": "hello", "w": jnp.asarray(KERNEL)})
    found = read(tmp_path / "a").arrays
    np.testing.assert_array_equal(found["w"], KERNEL)
    with pytest.raises(PdiffError, match="'note' is a text, no array"):
        arrays.check_floats(found)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


@pytest.mark.parametrize("pure", [False, True])
def test_nnx_states_have_random_states_which_are_known_as_such(tmp_path, pure):
    state = nnx.state(Net(nnx.Rngs(0, dropout=1)))
    found = read(orbax(tmp_path / "a", nnx.to_pure_dict(state) if pure else state)).arrays
    random = sorted(n for n, a in found.items() if arrays.is_random_state(n, a))
    value = "" if pure else "/value"
    assert random == [f"dropout/rngs/count{value}", f"dropout/rngs/key{value}"]
    weights = {n: a for n, a in found.items() if n not in random}
    assert f"layers/0/kernel{value}" in weights and len(weights) == 4
    arrays.check_floats(weights)


def test_what_is_no_random_state():
    assert not arrays.is_random_state("rngs/kernel", KERNEL)
    assert not arrays.is_random_state("layers/0/count", np.zeros((), np.int32))
    assert arrays.is_random_state("layers/dropout/seed_generator/vars/0", np.zeros(2, np.uint32))


def test_keys_of_jax_come_as_their_whole_numbers(tmp_path):
    found = read(orbax(tmp_path / "a", {"w": KERNEL, "rng": jax.random.key(3)})).arrays
    np.testing.assert_array_equal(found["rng"], jax.random.key_data(jax.random.key(3)))
    assert arrays.is_random_state("rng", found["rng"])
