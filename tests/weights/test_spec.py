"""Tokens are a partition of the generated elements, and their indices say where each one went."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdiff.errors import PdiffError
from pdiff.weights.spec import make_spec
from tests.weights.trees import MLP, TREES, floats


def assert_partition(spec, token_dim):
    """Every element of a leaf has its place, leaf by leaf in the tree's order, and only the last token is padded."""
    assert spec.token_dim == token_dim
    assert spec.mask.shape == spec.element_leaf.shape == (spec.num_tokens, token_dim)
    assert spec.mask.dtype == bool and spec.element_leaf.dtype == np.int32
    sizes = [leaf.size for leaf in spec.leaves]
    assert spec.num_params == sum(sizes) and (~spec.mask).sum() == -spec.num_params % token_dim
    expected = [i for i, size in enumerate(sizes) for _ in range(size)]
    assert spec.element_leaf.reshape(-1)[: spec.num_params].tolist() == expected
    assert (spec.element_leaf.reshape(-1)[spec.num_params :] == -1).all()
    np.testing.assert_array_equal(spec.mask, spec.element_leaf >= 0)


@pytest.mark.parametrize("name", TREES)
def test_tokens_are_a_partition(name):
    tree, regex, token_dim = TREES[name]
    assert_partition(make_spec(tree, generate=regex, token_dim=token_dim), token_dim)


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
modules = st.dictionaries(st.sampled_from(["kernel", "bias", "scale", "w"]), shapes, min_size=1)


@given(st.dictionaries(st.sampled_from("abcd"), modules, min_size=1), st.integers(1, 40))
def test_any_tree_is_partitioned(shapes, token_dim):
    tree = {
        module: {kind: jax.ShapeDtypeStruct(shape, jnp.float32) for kind, shape in leaves.items()}
        for module, leaves in shapes.items()
    } | {"one": jax.ShapeDtypeStruct((), jnp.float32)}
    assert_partition(make_spec(tree, token_dim=token_dim), token_dim)


def test_the_main_target_has_ten_tokens():
    spec = make_spec(MLP, token_dim=256)
    assert (spec.num_params, spec.num_tokens, spec.token_dim) == (2410, 10, 256)


def test_spec_is_static_and_the_same_from_shapes():
    spec = make_spec(MLP, generate=".*Dense_1.*")
    same = make_spec(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, MLP)), generate=".*Dense_1.*")
    assert spec == same and hash(spec) == hash(same)
    assert spec != make_spec(MLP, generate=".*Dense_0.*")
    traces = []
    size = jax.jit(lambda s, x: (traces.append(1), x * s.num_params)[1], static_argnums=0)
    assert size(spec, 1.0) == size(same, 1.0) == 330 and len(traces) == 1
    assert [leaf.path for leaf in spec.leaves] == ["params/Dense_1/bias", "params/Dense_1/kernel"]
    with pytest.raises(ValueError, match="read-only"):
        spec.mask[0, 0] = False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generate": "Dense_1"}, ["whole path", "matches no leaf"]),
        ({"generate": "nothing"}, ["'nothing'", "matches no leaf", "params/Dense_0/kernel"]),
        ({"generate": "(["}, ["'(['", "not a valid regular expression"]),
        ({"token_dim": 0}, ["token_dim is 0"]),
    ],
)
def test_wrong_arguments(change, words):
    with pytest.raises(PdiffError) as error:
        make_spec(MLP, **change)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (np.zeros(3), "float64"),
        (np.zeros(3, np.int32), "int32"),
        (np.zeros(3, np.complex64), "complex64"),
        (1.5, "a Python float"),
        (jax.random.key(0), "key<fry>"),
    ],
)
def test_inexact_dtypes_are_refused_unless_excluded(leaf, dtype):
    tree = {"a": {"w": floats((3,))}, "b": {"odd": leaf}}
    if not np.shape(leaf) and dtype.startswith("key"):
        tree["b"]["odd"] = jax.random.split(leaf, 2)
    with pytest.raises(PdiffError) as error:
        make_spec(tree)
    assert "'b/odd'" in str(error.value) and dtype in str(error.value) and "exclude it" in str(error.value)
    assert make_spec(tree, generate="a/.*").num_params == 3


def test_ambiguous_and_empty_trees():
    with pytest.raises(PdiffError, match="'a/b' names more than one"):
        make_spec({"a": {"b": floats((1,))}, "a/b": floats((1,))})
    with pytest.raises(PdiffError, match="matches no leaf.*none"):
        make_spec({"a": {}})
    with pytest.raises(PdiffError, match="without elements"):
        make_spec({"a": floats((0, 2))})
