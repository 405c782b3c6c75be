"""Decoding what was encoded gives it back bit for bit, under jit and under vmap."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from hypothesis import given, settings
from hypothesis import strategies as st

from pdiff.errors import PdiffError
from pdiff.weights.codec import complete, decode_part, decode_stacked, encode, encode_part, encode_stacked, take
from pdiff.weights.spec import EXACT_DTYPES, flatten, make_spec
from tests.annotations import unchecked
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
        np.ones_like(leaf) if made else leaf for leaf, made in zip(jax.tree.leaves(tree), spec.generated, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def part_of(spec, tree):
    """The generated leaves by path."""
    return dict(flatten(take(spec, tree)))


@pytest.mark.parametrize("name", TREES)
def test_inverse_is_exact(name):
    tree, regex, token_dim = TREES[name]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    rest, part = wreck(spec, tree), take(spec, tree)
    tokens = encode(spec, tree)
    assert tokens.shape == (spec.num_tokens, spec.token_dim) and tokens.dtype == jnp.float32
    assert not np.asarray(tokens)[~spec.mask].any()
    assert_same_bits(tree, complete(spec, decode_part(spec, np.asarray(tokens)), rest))

    # Under jit and vmap at once: a stack of three trees, of which the middle one is this one.
    stack = jax.tree.map(lambda leaf: np.stack([np.ones_like(leaf), leaf, np.zeros_like(leaf)]), part)

    @partial(jax.jit, static_argnums=0)
    def there_and_back(spec, stack):
        tokens = jax.vmap(lambda part: encode(spec, complete(spec, part, rest)))(stack)
        return tokens, jax.vmap(partial(decode_part, spec))(tokens)

    batch, back = there_and_back(spec, stack)
    assert_same_bits(tokens, batch[1])
    assert_same_bits(stack, back)


def test_tokens_hold_the_float32_values():
    """Where element_leaf says that they are."""
    tree, regex, token_dim = TREES["mixed_dtypes"]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    tokens = np.asarray(encode(spec, tree))
    for i, (_, leaf) in enumerate(flatten(tree)):
        np.testing.assert_array_equal(tokens[spec.element_leaf == i], leaf.astype(np.float32).reshape(-1))


def test_whole_trees_under_vmap_with_a_shared_rest():
    spec = make_spec(MLP, generate=".*Dense_1.*")
    stack = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, -leaf]), MLP)
    tokens = jax.jit(jax.vmap(partial(encode, spec)))(stack)
    back = jax.jit(jax.vmap(lambda t: complete(spec, decode_part(spec, t), MLP)))(tokens)
    assert_same_bits(back["params"]["Dense_1"], stack["params"]["Dense_1"])
    for j in range(3):
        assert_same_bits(jax.tree.map(lambda leaf, j=j: leaf[j], back["params"]["Dense_0"]), MLP["params"]["Dense_0"])


def test_encode_is_linear_and_decode_its_transpose():
    """A reshape with padding: the gradient of <decode(t), v> is encode(v)."""
    spec = make_spec(MLP)
    v = jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape), MLP)

    def inner(tokens):
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, decode_part(spec, tokens), v)))

    gradient = jax.grad(inner)(jnp.zeros((spec.num_tokens, spec.token_dim)))
    np.testing.assert_array_equal(gradient, encode(spec, v))


def test_samples_are_brought_into_range():
    tree = {"b": np.zeros(3, bool), "i": np.zeros(4, np.int8), "u": np.zeros(4, np.uint16)}
    spec = make_spec(tree, token_dim=16)
    tokens = np.full((1, 16), 7e9, np.float32)
    tokens[0, :11] = [0.5, 0.51, -3, 1e20, -1e20, 1.6, -0.4, -1, 65535.4, 70000, 2.5]
    out = decode_part(spec, tokens)
    assert out["b"].tolist() == [False, True, False]
    assert out["i"].tolist() == [127, -128, 2, 0] and out["u"].tolist() == [0, 65535, 65535, 2]


def test_rest_passes_through():
    tree, regex, token_dim = TREES["subset"]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    out = complete(spec, take(spec, tree), tree)
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
        complete(part, take(part, MLP), changed(kernel=kernel.T))
    with unchecked(), pytest.raises(PdiffError, match=r"shape \(3, 10, 256\).*vmap"):
        decode_part(spec, np.zeros((3, 10, 256), np.float32))
    with pytest.raises(PdiffError, match="'params/Dense_1/bias' is missing"):
        complete(part, {"params/Dense_1/kernel": MLP["params"]["Dense_1"]["kernel"]}, MLP)


@pytest.mark.parametrize("name", TREES)
def test_stacked_trees_in_numpy_are_those_of_the_devices(name):
    tree, regex, token_dim = TREES[name]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    part = take(spec, tree)
    stack = jax.tree.map(lambda leaf: np.stack([np.ones_like(leaf), leaf, np.zeros_like(leaf)]), part)
    tokens = encode_stacked(spec, stack)
    assert type(tokens) is np.ndarray
    assert_same_bits(tokens, jax.vmap(partial(encode_part, spec))(stack))
    assert_same_bits(decode_stacked(spec, tokens), stack)
    random = np.random.default_rng(0).normal(0, 3e5, tokens.shape).astype(np.float32)  # beyond the ranges of most types
    assert_same_bits(decode_stacked(spec, random), jax.vmap(partial(decode_part, spec))(random))


def test_float32_trees_are_views_of_their_tokens():
    spec = make_spec(MLP)
    tokens = encode_stacked(spec, jax.tree.map(lambda leaf: np.stack([leaf, -leaf]), MLP))
    assert all(np.shares_memory(leaf, tokens) for leaf in jax.tree.leaves(decode_stacked(spec, tokens)))


@unchecked()
def test_stacks_that_do_not_fit_are_refused():
    spec = make_spec(MLP)
    stack = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), MLP)
    stack["params"]["Dense_1"] = jax.tree.map(lambda leaf: np.stack([leaf] * 3), MLP["params"]["Dense_1"])
    with pytest.raises(PdiffError, match=r"'params/Dense_1/bias' of part has shape \(3, 10\), the spec has \(2, 10\)"):
        encode_stacked(spec, stack)
    with pytest.raises(PdiffError, match="tokens have shape"):
        decode_stacked(spec, np.zeros((2, 1, 256), np.float32))
    for nothing in ({}, {"params": {"Dense_0": 1.0}}):
        with pytest.raises(PdiffError, match="'params/Dense_0"):
            encode_stacked(spec, nothing)


# --- properties, of trees that hypothesis makes up ---------------------------------------------------

WIDER = ("float64", "int32", "uint32", "complex64")  # which float32 cannot hold
keys = st.sampled_from(["kernel", "bias", "scale", "w", "a.b", "0", "é", "params"])
shapes = st.lists(st.integers(0, 4), max_size=5).map(tuple).filter(lambda s: np.prod(s) <= 300)
leaves = st.tuples(shapes, st.sampled_from([*EXACT_DTYPES, *EXACT_DTYPES, "float32", "float32", *WIDER]))
structures = st.recursive(
    st.builds(lambda leaf: ("leaf", *leaf), leaves),
    lambda inner: st.dictionaries(keys, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@st.composite
def cases(draw):
    """A tree of random bits, and the arguments of its spec: its width and what is generated."""
    structure, seed = draw(structures), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)

    def filled(node):
        if isinstance(node, dict):
            return {k: filled(v) for k, v in node.items()}
        if isinstance(node, list):
            return [filled(v) for v in node]
        _, shape, dtype = node
        if dtype == "bool":
            return random.random(shape) < 0.5
        bits = random.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
        values = bits.view(dtype).reshape(shape)
        # Any bits are a float32, the many NaN with their payloads too, which conversions between widths do not keep.
        return values if dtype == "float32" else np.where(values == values, values, np.ones_like(values))

    tree = filled(structure)
    paths = [path for path, _ in flatten(tree)]
    some = "|".join(map(re.escape, draw(st.lists(st.sampled_from(paths), unique=True)))) if paths else "nothing"
    regex = draw(st.sampled_from([".*", some, ".*kernel", ".*(bias|scale)", "(?!.*w).*"]))
    return tree, {"generate": regex, "token_dim": draw(st.integers(1, 70))}


def spec_of(tree, arguments):
    """Its spec; None where one is refused, after a look at whether it has to be."""
    chosen = [leaf for path, leaf in flatten(tree) if re.fullmatch(arguments["generate"], path)]
    try:
        return make_spec(tree, **arguments)
    except PdiffError as e:
        assert not sum(leaf.size for leaf in chosen) or any(str(leaf.dtype) in WIDER for leaf in chosen), e
        assert "\n" not in str(e) and "target.generate" in str(e)


@given(cases())
def test_property_any_tree_comes_back_bit_for_bit(case):
    tree, arguments = case
    spec = spec_of(tree, arguments)
    if spec is None:
        return
    flat = part_of(spec, tree)
    stack = {path: np.stack([leaf, np.zeros_like(leaf)]) for path, leaf in flat.items()}
    tokens = encode_stacked(spec, stack)
    assert tokens.shape == (2, spec.num_tokens, spec.token_dim) and tokens.dtype == np.float32
    assert not tokens[:, ~spec.mask].view(np.uint32).any() and not tokens[1].any()
    assert_same_bits(encode_stacked(spec, {p: v[:1] for p, v in stack.items()}), tokens[:1])
    tokens[:, ~spec.mask] = np.nan  # padding is not read
    back = dict(flatten(decode_stacked(spec, tokens)))
    assert_same_bits(back, stack)
    assert_same_bits(complete(spec, {path: leaf[0] for path, leaf in back.items()}, wreck(spec, tree)), tree)


@given(cases())
def test_property_a_spec_is_a_function_of_shapes_alone(case):
    tree, arguments = case
    spec = spec_of(tree, arguments)
    if spec is None:
        return
    shapes_of = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    described = [(leaf.path, leaf.shape, leaf.dtype) for leaf in spec.all_leaves]
    assert described == [(path, leaf.shape, str(leaf.dtype)) for path, leaf in flatten(tree)]
    same = make_spec(jax.tree.map(np.zeros_like, tree), **arguments)
    assert spec == same and hash(spec) == hash(same)
    if not any(str(leaf.dtype) in ("float64",) for leaf in jax.tree.leaves(tree)):  # which JAX has only where asked to
        assert make_spec(shapes_of, **arguments) == spec


@given(cases(), st.randoms(use_true_random=False))
def test_property_another_tree_is_refused_by_the_name_of_its_leaf(case, random):
    tree, arguments = case
    spec = spec_of(tree, arguments)
    if spec is None:
        return
    flat = part_of(spec, tree)
    path = random.choice(sorted(flat))
    value = flat[path]
    changes = [
        {**flat, path: np.zeros((*value.shape, 2), value.dtype)},
        {**flat, path: np.zeros(value.shape, np.float64)},
        {**flat, path: np.zeros(value.shape, np.int16 if value.dtype != np.int16 else np.int8)},
        {p: v for p, v in flat.items() if p != path},
    ]
    for changed in changes:
        with pytest.raises(PdiffError, match=re.escape(repr(path))) as error:
            encode_stacked(spec, {p: v[None] for p, v in changed.items()})
        assert "\n" not in str(error.value)
    with pytest.raises(PdiffError, match="'z z' is not generated"):
        encode_stacked(spec, {p: v[None] for p, v in {**flat, "z z": value}.items()})
    with pytest.raises(PdiffError, match="tokens have shape"):
        decode_stacked(spec, np.zeros((1, spec.num_tokens + 1, spec.token_dim), np.float32))


@settings(max_examples=15)  # JAX compiles for every new shape
@given(cases())
def test_property_devices_encode_as_numpy_does(case):
    tree, arguments = case
    spec = spec_of(tree, arguments)
    if spec is None:
        return
    flat = {path: np.where(leaf == leaf, leaf, np.ones_like(leaf)) for path, leaf in part_of(spec, tree).items()}
    tokens = encode_part(spec, flat)
    assert_same_bits(np.asarray(tokens), encode_stacked(spec, {p: v[None] for p, v in flat.items()})[0])
    assert_same_bits(dict(flatten(decode_part(spec, tokens))), flat)


# Found missing by mutation testing: messages word for word, and what the base is read for.


def test_messages_name_the_leaf_what_it_is_and_what_is_allowed():
    tree, regex, token_dim = TREES["subset"]
    spec = make_spec(tree, generate=regex, token_dim=token_dim)
    tokens, part = encode(spec, tree), part_of(spec, tree)
    kernel = part["head/kernel"]
    number = tree | {"head": tree["head"] | {"bias": 3.0}}
    wide = {"head": {"bias": kernel, "kernel": kernel}}
    for call, message in [
        (lambda: complete(spec, part | {"head/other": kernel}, tree), "leaf 'head/other' is not generated"),
        (lambda: complete(spec, part | {"head/bias": kernel}, tree),
         "leaf 'head/bias' of part has shape (4, 3), the spec has (3,)"),
        (lambda: encode_part(spec, wide), "leaf 'head/bias' of part has shape (4, 3), the spec has (3,)"),
        (lambda: encode_part(spec, {"head": {"kernel": kernel}}), "leaf 'head/bias' is missing"),
        (lambda: complete(spec, part | {"head/kernel": kernel.astype(np.float16)}, tree),
         "leaf 'head/kernel' of part is float16, the spec has float32"),
        (lambda: take(spec, number), "leaf 'head/bias' of params has shape (), the spec has (3,)"),
        (lambda: take(spec, {"base": tree["base"]}),
         "params is not the tree that the spec describes: leaf 'head/bias' is missing"),
        (lambda: complete(spec, part, tree | {"more": kernel}),
         "rest is not the tree that the spec describes: leaf 'more' is not in the spec"),
        (lambda: decode_part(spec, tokens[:1]),
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
    out = complete(spec, take(spec, tree), halves)
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
