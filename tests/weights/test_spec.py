"""A layout is a partition of the generated elements, and its indices say where each one went."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdiff.errors import PdiffError
from pdiff.weights.layout import LAYOUTS, pack, unpack
from pdiff.weights.spec import make_spec
from tests.weights.trees import MLP, TREES, floats


def identities(spec):
    """Every generated element's own number, 0 to num_params - 1, where the spec puts it; -1 is padding."""
    sizes = [leaf.size for leaf in spec.leaves]
    starts = np.cumsum([0, *sizes])
    numbers = [
        start + np.arange(leaf.size).reshape(leaf.shape)
        for start, leaf in zip(starts, spec.leaves, strict=False)
    ]
    return pack(spec.blocks, spec.token_dim, numbers, xp=np, fill=-1), numbers


def assert_partition(spec):
    placed, numbers = identities(spec)
    assert placed.shape == (spec.num_tokens, spec.token_dim)
    np.testing.assert_array_equal(np.sort(placed[spec.mask]), np.arange(spec.num_params))
    assert (placed[~spec.mask] == -1).all()
    assert spec.mask.sum() == spec.num_params == sum(leaf.size for leaf in spec.leaves)
    assert spec.mask.dtype == bool and spec.element_leaf.dtype == np.int32
    counts = np.bincount(spec.element_leaf[spec.mask], minlength=len(spec.leaves))
    assert counts.tolist() == [leaf.size for leaf in spec.leaves]
    ends = np.cumsum(counts)
    np.testing.assert_array_equal(
        spec.element_leaf[spec.mask], np.searchsorted(ends, placed[spec.mask], side="right")
    )
    for number, back in zip(numbers, unpack(spec.blocks, spec.leaves, placed), strict=True):
        np.testing.assert_array_equal(number, back)
    # Padding is at the end of a token, and no token is all padding.
    assert spec.mask[:, 0].all() and (np.diff(spec.mask.astype(int), axis=1) <= 0).all()
    np.testing.assert_array_equal(spec.token_leaf, spec.element_leaf[:, 0])
    assert [spec.kinds[k] for k in spec.token_kind] == [spec.leaves[i].kind for i in spec.token_leaf]
    pairs = set(zip(spec.token_leaf.tolist(), spec.token_position.tolist(), strict=True))
    assert len(pairs) == spec.num_tokens
    for leaf in set(spec.token_leaf.tolist()):
        positions = spec.token_position[spec.token_leaf == leaf]
        np.testing.assert_array_equal(positions, np.arange(len(positions)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TREES)
def test_layout_is_a_partition(name, layout):
    tree, regex, token_dim = TREES[name]
    spec = make_spec(tree, generate=regex, layout=layout, token_dim=token_dim)
    assert_partition(spec)
    if layout == "chunk":
        assert spec.token_dim == token_dim
        assert (~spec.mask).sum() == -spec.num_params % token_dim  # only the last token is padded
        assert spec.mask[:-1].all()


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
modules = st.dictionaries(st.sampled_from(["kernel", "bias", "scale", "w"]), shapes, min_size=1)


@given(
    st.dictionaries(st.sampled_from("abcd"), modules, min_size=1),
    st.sampled_from(LAYOUTS),
    st.integers(1, 40),
)
def test_any_tree_is_partitioned(shapes, layout, token_dim):
    tree = {
        module: {kind: jax.ShapeDtypeStruct(shape, jnp.float32) for kind, shape in leaves.items()}
        for module, leaves in shapes.items()
    } | {"one": jax.ShapeDtypeStruct((), jnp.float32)}
    spec = make_spec(tree, layout=layout, token_dim=token_dim)
    assert_partition(spec)
    if layout == "neuron":  # a token never mixes modules
        names = [leaf.module for leaf in spec.leaves]
        for row in spec.element_leaf:
            assert len({names[i] for i in row if i >= 0}) == 1


def test_chunks_are_the_concatenation():
    spec = make_spec(MLP, token_dim=256)
    assert (spec.num_params, spec.num_tokens, spec.token_dim) == (2410, 10, 256)
    placed, _ = identities(spec)
    np.testing.assert_array_equal(placed[spec.mask], np.arange(2410))


def test_a_neuron_token_is_a_column_and_its_bias():
    spec = make_spec(MLP, layout="neuron")
    assert (spec.num_tokens, spec.token_dim, spec.num_params) == (42, 65, 2410)
    placed, numbers = identities(spec)
    by_path = dict(zip([leaf.path for leaf in spec.leaves], numbers, strict=True))
    for j in range(10):
        column = [*by_path["params/Dense_1/kernel"][:, j], by_path["params/Dense_1/bias"][j]]
        assert placed[32 + j].tolist() == column + [-1] * 32
    assert {spec.leaves[i].kind for i in spec.token_leaf} == {"kernel"}
    assert spec.token_position.tolist() == [*range(32), *range(10)]


def test_neurons_of_convolutions_attention_and_norms():
    tree, _, _ = TREES["conv_and_attention"]
    spec = make_spec(tree, layout="neuron")
    counts = {spec.leaves[leaf].path: int((spec.token_leaf == leaf).sum()) for leaf in set(spec.token_leaf)}
    # conv: 4 outputs of 3*3*2 + 1; query: 2 heads of 3, each 4 + 1; norm: 8 numbers in one token.
    assert counts == {
        "conv/kernel": 4,
        "query/kernel": 6,
        "out/kernel": 4,
        "norm/bias": 1,
        "pos_embedding": 4,
    }
    assert spec.token_dim == 19


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
        ({"layout": "rows"}, ["'rows'", "chunk, neuron"]),
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
