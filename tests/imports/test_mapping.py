"""From PyTorch's names and axes to Flax's."""

import time

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from pdiff.errors import PdiffError
from pdiff.imports import mapping

LAYOUT = {
    "leaves": [
        {"from": "net.0.weight", "to": "params/Dense_0/kernel", "transform": "transpose"},
        {"from": "net.0.bias", "to": "params/Dense_0/bias"},
        {"from": "blocks.*.conv.weight", "to": "params/block_*/Conv_0/kernel", "transform": "conv2d"},
    ],
    "ignore": ["*.num_batches_tracked"],
}


def arrays():
    random = np.random.default_rng(0)
    shapes = {
        "net.0.weight": (4, 3),
        "net.0.bias": (4,),
        "blocks.0.conv.weight": (6, 5, 3, 2),
        "bn.num_batches_tracked": (),
    }
    return {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def test_names_and_axes_become_those_of_flax_and_go_back():
    found = arrays()
    tree, places = mapping.apply(mapping.parse(LAYOUT), found)
    assert {p: v.shape for p, v in tree.items()} == {
        "params/Dense_0/kernel": (3, 4), "params/Dense_0/bias": (4,), "params/block_0/Conv_0/kernel": (3, 2, 5, 6),
    }  # fmt: skip
    for path, place in places.items():
        np.testing.assert_array_equal(mapping.inverse(tree[path], place.transform), found[place.name])


def test_a_linear_layer_of_pytorch_computes_the_same_in_flax():
    torch = pytest.importorskip("torch")
    layer, conv = torch.nn.Linear(3, 4), torch.nn.Conv2d(2, 5, (3, 2))
    state = {f"{n}.{k}": v.numpy() for n, m in (("lin", layer), ("conv", conv)) for k, v in m.state_dict().items()}
    rules = [
        {"from": "lin.weight", "to": "lin/kernel", "transform": "transpose"},
        {"from": "conv.weight", "to": "conv/kernel", "transform": "conv2d"},
        {"from": "*.bias", "to": "*/bias"},
    ]
    with torch.no_grad():
        tree, _ = mapping.apply(mapping.parse({"leaves": rules}), {k: np.array(v) for k, v in state.items()})
        x, image = torch.randn(7, 3), torch.randn(1, 2, 8, 9)
        expected, convolved = layer(x).numpy(), conv(image).numpy()
    made = traverse_util.unflatten_dict(tree, sep="/")
    np.testing.assert_allclose(nn.Dense(4).apply({"params": made["lin"]}, x.numpy()), expected, atol=1e-5)
    out = nn.Conv(5, (3, 2), padding="VALID").apply({"params": made["conv"]}, image.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(jax.numpy.transpose(out, (0, 3, 1, 2)), convolved, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"from": "net.0.bias", "to": "other"}, "has 2 rules"),
        ({"from": "extra", "to": "x"}, "has nothing for the rule 'extra'"),
        ({"from": "net.*.bias", "to": "params/*/b"}, "'net.0.bias' has 2 rules"),
        ({"from": "*.0.weight", "to": "w"}, "have not as many"),
        ({"from": "a**b", "to": "x**"}, "at most one '*'"),
        ({"from": "x", "to": "y", "transform": "flip"}, "allowed: none, transpose"),
        ({"from": "x", "to": "y", "transform": ["none"]}, "allowed: none, transpose"),
        ({"from": 3, "to": "y"}, "leaves[3].from"),
        ([], "leaves[3]"),
    ],
)
def test_rules_that_do_not_fit_are_refused(change, words):
    with pytest.raises(PdiffError) as e:
        mapping.apply(mapping.parse({**LAYOUT, "leaves": [*LAYOUT["leaves"], change]}), arrays())
    assert words in str(e.value)


def test_an_array_without_a_rule_and_two_in_one_place_are_refused():
    with pytest.raises(PdiffError, match="'new' has 0 rules"):
        mapping.apply(mapping.parse(LAYOUT), arrays() | {"new": np.ones(2, np.float32)})
    both = {"leaves": [{"from": "a", "to": "x"}, {"from": "b", "to": "x"}]}
    with pytest.raises(PdiffError, match="'b' and 'a' both go to 'x'"):
        mapping.apply(mapping.parse(both), {"a": np.ones(2), "b": np.ones(2)})
    with pytest.raises(PdiffError, match="is for 4 axes"):
        mapping.transformed(np.ones((2, 2)), "conv2d", "a")


def test_what_is_ignored_may_be_of_any_dtype_and_lie_at_any_depth():
    names = ("bn.num_batches_tracked", "layer1.0.bn1.num_batches_tracked", "position_ids", "opt_state/0/count")
    odd = {n: np.array(7, np.int64) for n in names}
    floats = {"layer1.0.bn1.weight": np.ones(3, np.float16), "num_batches_tracked": np.ones(2, np.float32)}
    layout = mapping.parse({"ignore": ["*.num_batches_tracked", "position_ids", "*/count"]})
    tree, places = mapping.apply(layout, odd | floats)
    assert tree.keys() == floats.keys() == places.keys()  # without leaves, the others keep their names
    assert all(tree[n] is v and places[n] == mapping.Place(n) for n, v in floats.items())
    assert tree["layer1.0.bn1.weight"].dtype == np.float16


def test_a_star_within_an_ignore_rule_is_one_part_and_rules_may_overlap():
    found = {n: np.ones(1, np.float32) for n in ("a.b.c.d", "a.x.d", "a.b.c", "keep.c")}
    tree, _ = mapping.apply(mapping.parse({"ignore": ["a.*.d", "*.b.*.d", "*.d", "a.b.c"]}), found)
    assert set(tree) == {"keep.c"}
    with pytest.raises(PdiffError, match=r"has nothing for the rule 'a.\*.z'"):
        mapping.apply(mapping.parse({"ignore": ["a.*.z", "*.d"]}), found)
    with pytest.raises(PdiffError, match="only arrays that layout.json ignores"):
        mapping.apply(mapping.parse({"ignore": ["*.c", "*.d"]}), found)
    both = {"leaves": [{"from": "a.b.c", "to": "x"}], "ignore": ["*.c", "*.d"]}
    with pytest.raises(PdiffError, match=r"'a.b.c' has 2 rules in layout.json \('a.b.c', '\*.c'\); allowed: one"):
        mapping.apply(mapping.parse(both), found)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("layer1.0.bn1.num_batches_tracked", "*.num_batches_tracked"),
        ("step", "step"),
        ("rngs/default/count", "*/count"),
    ],
)
def test_the_rule_that_is_proposed_ignores_the_array(name, rule):
    assert mapping.ignoring(name) == rule
    kept, _ = mapping.apply(mapping.parse({"ignore": [rule]}), {name: np.array(1), "weight": np.ones(2)})
    assert set(kept) == {"weight"}


@pytest.mark.parametrize("layout", [{}, [], {"leaves": 3}, {"ignore": "a"}, {"ignore": [3]}, {"leaves": [], "rest": 1}])
def test_what_is_no_layout_is_refused(layout):
    with pytest.raises(PdiffError):
        mapping.parse(layout)


def test_matching_takes_no_time_that_grows_with_stars():
    rule = ".".join(["*a"] * 100)
    name = ".".join(["a" * 2] * 99 + ["b"])
    start = time.perf_counter()
    assert mapping._match(rule, name) is None
    assert time.perf_counter() - start < 0.1
