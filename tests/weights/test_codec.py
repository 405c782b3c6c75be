"""decode(encode(x)) is x bit for bit, in every layout, under jit and under vmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from pdiff.errors import PdiffError
from pdiff.weights.codec import (
    complete,
    decode,
    decode_flat,
    decode_part,
    decode_stacked,
    encode,
    encode_part,
    encode_stacked,
    merge,
    select,
    take,
)
from pdiff.weights.layout import LAYOUTS
from pdiff.weights.spec import flatten, make_spec
from tests.weights.trees import MLP, TREES


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for (path, a), (_, b) in zip(flatten(tree), flatten(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert a.tobytes() == b.tobytes(), path


def wreck(spec, tree):
    """`tree` with other values in the generated leaves: a base that must not leak into a decoded tree."""
    leaves = [
        np.ones_like(leaf) if made else leaf
        for leaf, made in zip(jax.tree.leaves(tree), spec.generated, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TREES)
def test_inverse_is_exact(name, layout):
    tree, regex, token_dim = TREES[name]
    spec = make_spec(tree, generate=regex, layout=layout, token_dim=token_dim)
    rest = None if all(spec.generated) else wreck(spec, tree)
    chosen = select(spec, tree)

    tokens = encode(spec, tree)
    assert tokens.shape == (spec.num_tokens, spec.token_dim) and tokens.dtype == jnp.float32
    assert not np.asarray(tokens)[~spec.mask].any()
    assert_same_bits(
        tree,
        decode(spec, np.asarray(tokens), rest)
        if rest is None
        else merge(spec, decode_flat(spec, tokens), rest),
    )

    # Under jit and vmap at once: a stack of three trees, of which the middle one is this one.
    stack = {path: np.stack([np.ones_like(leaf), leaf, np.zeros_like(leaf)]) for path, leaf in chosen.items()}

    @partial(jax.jit, static_argnums=0)
    def there_and_back(spec, stack):
        tokens = jax.vmap(lambda flat: encode(spec, merge(spec, flat, rest)))(stack)
        return tokens, jax.vmap(partial(decode_flat, spec))(tokens)

    batch, back = there_and_back(spec, stack)
    assert_same_bits(tokens, batch[1])
    assert_same_bits(stack, {path: back[path] for path in stack})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_hold_the_float32_values(layout):
    """Against a direct reading of element_leaf: the packing of values is the packing of indices."""
    tree, regex, token_dim = TREES["mixed_dtypes"]
    spec = make_spec(tree, generate=regex, layout=layout, token_dim=token_dim)
    tokens = np.asarray(encode(spec, tree))
    for i, leaf in enumerate(select(spec, tree).values()):
        np.testing.assert_array_equal(
            np.sort(tokens[spec.element_leaf == i]), np.sort(np.asarray(leaf).astype(np.float32).reshape(-1))
        )


def test_whole_trees_under_vmap_with_a_shared_rest():
    spec = make_spec(MLP, generate=".*Dense_1.*")
    stack = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, -leaf]), MLP)
    tokens = jax.jit(jax.vmap(partial(encode, spec)))(stack)
    back = jax.jit(jax.vmap(partial(decode, spec, rest=MLP)))(tokens)
    assert_same_bits(back["params"]["Dense_1"], stack["params"]["Dense_1"])
    for j in range(3):
        assert_same_bits(
            jax.tree.map(lambda leaf, j=j: leaf[j], back["params"]["Dense_0"]), MLP["params"]["Dense_0"]
        )


def test_encode_is_linear_and_decode_its_transpose():
    """A permutation with padding: the gradient of <decode(t), v> is encode(v)."""
    for layout in LAYOUTS:
        spec = make_spec(MLP, layout=layout)
        v = jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape), MLP)

        def inner(tokens, spec=spec, v=v):
            products = jax.tree.map(lambda a, b: jnp.vdot(a, b), decode(spec, tokens), v)
            return sum(jax.tree.leaves(products))

        gradient = jax.grad(inner)(jnp.zeros((spec.num_tokens, spec.token_dim)))
        np.testing.assert_array_equal(gradient, encode(spec, v))


def test_samples_are_brought_into_range():
    tree = {"b": np.zeros(3, bool), "i": np.zeros(4, np.int8), "u": np.zeros(4, np.uint16)}
    spec = make_spec(tree, token_dim=16)
    tokens = np.full((1, 16), 7e9, np.float32)
    tokens[0, :11] = [0.5, 0.51, -3, 1e20, -1e20, 1.6, -0.4, -1, 65535.4, 70000, 2.5]
    out = decode(spec, tokens)
    assert out["b"].tolist() == [False, True, False]
    assert out["i"].tolist() == [127, -128, 2, 0] and out["u"].tolist() == [0, 65535, 65535, 2]


def test_rest_is_needed_and_passes_through():
    tree, regex, token_dim = TREES["subset"]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    tokens = encode(spec, tree)
    with pytest.raises(PdiffError, match="'base/bias' is not generated.*rest"):
        decode(spec, tokens)
    out = decode(spec, tokens, tree)
    assert out["base"]["wide"] is tree["base"]["wide"] and out["base"]["count"] is tree["base"]["count"]
    assert spec.mask.sum() == 15


def test_containers_may_differ_but_the_tree_may_not():
    spec = make_spec(MLP)
    assert_same_bits(encode(spec, freeze(MLP)), encode(spec, MLP))
    kernel = MLP["params"]["Dense_0"]["kernel"]

    def changed(**leaves):
        return {"params": MLP["params"] | {"Dense_0": MLP["params"]["Dense_0"] | leaves}}

    for tree, words in [
        (changed(kernel=kernel.T), ["'params/Dense_0/kernel'", "(32, 64)", "(64, 32)"]),
        (changed(kernel=kernel.astype(np.float64)), ["'params/Dense_0/kernel'", "float64", "float32"]),
        (changed(extra=kernel), ["'params/Dense_0/extra'", "not in the spec"]),
        ({"params": {"Dense_0": MLP["params"]["Dense_0"]}}, ["'params/Dense_1/bias'", "missing"]),
    ]:
        with pytest.raises(PdiffError) as error:
            encode(spec, tree)
        assert all(word in str(error.value) for word in words)
    part = make_spec(MLP, generate=".*Dense_1.*")
    with pytest.raises(PdiffError, match="'params/Dense_0/kernel' of rest has shape"):
        decode(part, encode(part, MLP), changed(kernel=kernel.T))
    with pytest.raises(PdiffError, match=r"shape \(3, 10, 256\).*vmap"):
        decode(spec, np.zeros((3, 10, 256), np.float32))
    with pytest.raises(PdiffError, match="'params/Dense_1/bias' is missing"):
        merge(part, {"params/Dense_1/kernel": MLP["params"]["Dense_1"]["kernel"]}, MLP)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TREES)
def test_stacked_trees_in_numpy_are_those_of_the_devices(name, layout):
    tree, regex, token_dim = TREES[name]
    spec = make_spec(tree, generate=regex, layout=layout, token_dim=token_dim)
    part = take(spec, tree)
    stack = jax.tree.map(lambda leaf: np.stack([np.ones_like(leaf), leaf, np.zeros_like(leaf)]), part)
    tokens = encode_stacked(spec, stack)
    assert type(tokens) is np.ndarray
    assert_same_bits(tokens, jax.vmap(partial(encode_part, spec))(stack))
    assert_same_bits(decode_stacked(spec, tokens), stack)
    random = np.random.default_rng(0).normal(0, 3e5, tokens.shape).astype(np.float32)  # beyond the ranges of most types
    assert_same_bits(decode_stacked(spec, random), jax.vmap(partial(decode_part, spec))(random))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_trees_are_views_of_their_tokens(layout):
    spec = make_spec(MLP, layout=layout)
    tokens = encode_stacked(spec, jax.tree.map(lambda leaf: np.stack([leaf, -leaf]), MLP))
    assert all(np.shares_memory(leaf, tokens) for leaf in jax.tree.leaves(decode_stacked(spec, tokens)))


def test_stacks_that_do_not_fit_are_refused():
    spec = make_spec(MLP)
    stack = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), MLP)
    stack["params"]["Dense_1"] = jax.tree.map(lambda leaf: np.stack([leaf] * 3), MLP["params"]["Dense_1"])
    with pytest.raises(PdiffError, match=r"'params/Dense_1/bias' of flat has shape \(3, 10\), the spec has \(2, 10\)"):
        encode_stacked(spec, stack)
    with pytest.raises(PdiffError, match="tokens have shape"):
        decode_stacked(spec, np.zeros((2, 1, 256), np.float32))


# Found missing by mutation testing: messages word for word, and what the base is read for.


def test_messages_name_the_leaf_what_it_is_and_what_is_allowed():
    tree, regex, token_dim = TREES["subset"]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    tokens, part = encode(spec, tree), select(spec, tree)
    kernel = part["head/kernel"]
    number = tree | {"head": tree["head"] | {"bias": 3.0}}
    wide = {"head": {"bias": kernel, "kernel": kernel}}
    for call, message in [
        (lambda: decode(spec, tokens),
         "leaf 'base/bias' is not generated (5 such leaves): give `rest`, the whole tree that supplies them"),
        (lambda: merge(spec, part | {"head/other": kernel}, tree), "leaf 'head/other' is not generated"),
        (lambda: merge(spec, part | {"head/bias": kernel}, tree),
         "leaf 'head/bias' of flat has shape (4, 3), the spec has (3,)"),
        (lambda: encode_part(spec, wide), "leaf 'head/bias' of flat has shape (4, 3), the spec has (3,)"),
        (lambda: encode_part(spec, {"head": {"kernel": kernel}}), "leaf 'head/bias' is missing"),
        (lambda: merge(spec, part | {"head/kernel": kernel.astype(np.float16)}, tree),
         "leaf 'head/kernel' of flat is float16, the spec has float32"),
        (lambda: take(spec, number), "leaf 'head/bias' of params has shape (), the spec has (3,)"),
        (lambda: select(spec, {"base": tree["base"]}),
         "params is not the tree that the spec describes: leaf 'head/bias' is missing"),
        (lambda: decode(spec, tokens, tree | {"more": kernel}),
         "rest is not the tree that the spec describes: leaf 'more' is not in the spec"),
        (lambda: decode(spec, tokens[:1]),
         f"tokens have shape (1, 4), the spec has {(spec.num_tokens, 4)}; use jax.vmap for a batch"),
    ]:  # fmt: skip
        with pytest.raises(PdiffError) as error:
            call()
        assert str(error.value) == message


def test_a_python_number_is_no_leaf_of_an_array_type():
    spec = make_spec({"a": np.float32(1)}, token_dim=1)
    with pytest.raises(PdiffError, match="^leaf 'a' of params is float, the spec has float32$"):
        encode(spec, {"a": 1.0})


def test_rest_may_have_other_dtypes_where_it_is_not_read():
    """Even of generated leaves, which are not read from it."""
    tree, regex, token_dim = TREES["subset"]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    halves = jax.tree.map(lambda leaf: leaf.astype(np.float16), tree)
    out = decode(spec, encode(spec, tree), halves)
    assert out["base"]["kernel"] is halves["base"]["kernel"]
    assert_same_bits(out["head"]["kernel"], tree["head"]["kernel"])


@pytest.mark.filterwarnings("error")
def test_values_beyond_a_narrow_float_are_infinite_without_a_warning():
    spec = make_spec({"a": np.zeros(3, np.float16)}, token_dim=3)
    tokens = np.array([[[1e6, -1e6, 1.0]]], np.float32)
    assert decode_stacked(spec, tokens)["a"].tolist() == [[np.inf, -np.inf, 1.0]]


def test_parts_completed_by_a_base_are_the_tree():
    tree, regex, token_dim = TREES["subset"]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    part = decode_part(spec, encode_part(spec, take(spec, tree)))
    assert_same_bits(complete(spec, part, wreck(spec, tree)), tree)
    with pytest.raises(PdiffError, match="give `rest`"):
        complete(spec, part)
    whole = make_spec(MLP)
    assert_same_bits(complete(whole, take(whole, MLP)), MLP)
