"""Reordered hidden units: the same function for every target, and the best order found."""

import functools
import itertools

import jax
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.weights import codec, matching, permutations
from pdiff.weights.permutations import PermutationSpec, Units
from pdiff.weights.spec import flatten, make_spec
from tests.targets.make import make_target
from tests.weights.orders import random_orders, stacked_orders

TARGETS = {
    "mlp": {"name": "mlp", "widths": (7, 5)},
    "cnn": {"name": "cnn", "widths": (8, 12)},
    "resnet": {"name": "resnet", "widths": (4, 4)},
    "vit": {"name": "vit", "widths": (8, 8)},
}


@functools.cache
def target_of(name):
    return make_target(**TARGETS[name])


def network(target, seed=0):
    """Random leaves, positive as a running variance must be, so that nothing is the same by being 0 or 1."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: random.uniform(-0.5, 1, a.shape).astype(np.float32) + 0.5 * (a.ndim == 1), target.abstract()
    )


def orders(units):
    """All that are allowed."""
    size = units.size // units.groups
    return [
        p for p in itertools.permutations(range(units.size))
        if all(len({j // size for j in p[g : g + size]}) == 1 for g in range(0, units.size, size))
    ]  # fmt: skip


def inner(a, b):
    return sum(float(np.vdot(np.float64(x), np.float64(y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", TARGETS)
def test_reordered_networks_compute_the_same(name):
    """Each permutation alone and all of them; under vmap, every network by its own."""
    target = target_of(name)
    spec, tree = target.permutations, network(target)
    x = jax.random.uniform(jax.random.key(1), (16, 64))
    drawn = stacked_orders(spec, 3)
    alone = [{n: drawn[n][0] if n == name else np.arange(u.size) for n, u in spec.units.items()} for name in spec.units]
    identity = {n: np.arange(u.size) for n, u in spec.units.items()}
    stacked = {n: np.stack([*(a[n] for a in alone), *drawn[n], identity[n]]) for n in spec.units}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def reorder(order, tree):
        moved = permutations.apply_permutation(spec, order, tree)
        return moved, target.apply(moved, x)

    moved, logits = reorder(stacked, tree)
    assert np.ptp(logits[-1], 0).min() > 1e-3  # it does depend on x
    np.testing.assert_allclose(logits, np.broadcast_to(logits[-1], logits.shape), rtol=1e-4, atol=1e-5)
    for i, name in enumerate(spec.units):  # and each of them does move something
        touched = [p for p, names in spec.axes.items() if name in names]
        before, after = dict(flatten(tree)), dict(flatten(jax.tree.map(lambda a, i=i: a[i], moved)))
        for path in before:
            assert np.array_equal(before[path], after[path]) == (path not in touched), (name, path)


def test_training_mode_of_batch_norm_moves_with_the_units_too():
    target = target_of("resnet")
    tree, x = network(target), jax.random.uniform(jax.random.key(1), (16, 64))
    drawn = random_orders(target.permutations, 0)
    reorder = functools.partial(permutations.apply_permutation, target.permutations, drawn)
    train = jax.jit(target.apply_train)
    logits, updated = train(tree, x)
    moved_logits, moved = train(reorder(tree), x)
    np.testing.assert_allclose(moved_logits, logits, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, reorder(updated))


def test_moving_a_channel_to_another_group_changes_a_group_norm():
    """Why the channels of a cnn do not move freely."""
    target = target_of("cnn")
    free = PermutationSpec(target.permutations.axes, {n: Units(u.size) for n, u in target.permutations.units.items()})
    order = {"channels_0": np.array([2, 1, 0, 3, 4, 5, 6, 7]), "channels_1": np.arange(12)}
    tree, x = network(target), jax.random.uniform(jax.random.key(1), (16, 64))
    moved = permutations.apply_permutation(free, order, tree)
    apply = jax.jit(target.apply)
    assert np.abs(apply(moved, x) - apply(tree, x)).max() > 1e-2


@pytest.mark.parametrize("name", TARGETS)
def test_matching_finds_a_planted_order_in_spite_of_noise(name):
    target = target_of(name)
    spec, tree = target.permutations, jax.tree.map(np.asarray, network(target))
    drawn = random_orders(spec, 3)
    random = np.random.default_rng(0)
    noisy = jax.tree.map(lambda a: a + 0.02 * random.normal(size=a.shape).astype(np.float32), tree)
    found = matching.weight_matching(spec, tree, permutations.apply_permutation(spec, drawn, noisy))
    for name, order in drawn.items():
        np.testing.assert_array_equal(order[found.permutations[name]], np.arange(len(order)), name)


@pytest.mark.parametrize("name", TARGETS)
def test_the_objective_is_the_inner_product_and_rises_to_where_no_permutation_improves_it(name):
    target = target_of(name)
    spec, reference, tree = target.permutations, network(target, 1), network(target, 2)
    found = matching.weight_matching(spec, reference, tree)
    moved = permutations.apply_permutation(spec, found.permutations, tree)
    np.testing.assert_allclose(found.objective[0], inner(reference, tree), rtol=1e-9)
    np.testing.assert_allclose(found.objective[-1], inner(reference, moved), rtol=1e-9)
    assert len(found.objective) > 1 and (np.diff(found.objective) > 0).all()
    for draw in range(20):  # any one permutation more cannot raise it
        drawn = random_orders(spec, draw)
        for name in spec.units:
            one = {n: drawn[n] if n == name else np.arange(u.size) for n, u in spec.units.items()}
            worse = permutations.apply_permutation(spec, one, moved)
            assert inner(reference, worse) <= found.objective[-1] + 1e-6 * abs(found.objective[-1])


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_assignments_are_the_best_of_all_allowed(groups):
    gain = np.random.default_rng(groups).normal(size=(6, 6))
    best = max(orders(Units(6, groups)), key=lambda p: sum(gain[i, j] for i, j in enumerate(p)))
    np.testing.assert_array_equal(matching._assign(gain, groups), best)


def test_a_zoo_of_one_function_in_many_orders_becomes_one_network():
    target = target_of("mlp")
    spec, tree = target.permutations, network(target)
    zoo = jax.vmap(functools.partial(permutations.apply_permutation, spec), (0, None))(stacked_orders(spec, 12), tree)
    zoo = jax.tree.map(np.asarray, zoo)
    aligned, mean = matching.align_to_mean(spec, zoo)
    first = jax.tree.map(lambda a: a[0], zoo)
    jax.tree.map(lambda a, f: np.testing.assert_array_equal(a, np.broadcast_to(f, a.shape)), aligned, first)
    jax.tree.map(lambda m, f: np.testing.assert_allclose(m, f, rtol=1e-6), mean, first)


def test_matching_to_the_mean_only_narrows_a_zoo():
    target = target_of("mlp")
    spec = target.permutations
    zoo = jax.tree.map(np.asarray, jax.vmap(target.init)(jax.random.split(jax.random.key(0), 16)))

    def width(networks):
        return sum(float(np.square(a - a.mean(0)).sum()) for a in jax.tree.leaves(networks))

    once = matching.align(spec, zoo, jax.tree.map(lambda a: a[0], zoo))
    settled, mean = matching.align_to_mean(spec, zoo)
    assert width(settled) < width(once) < width(zoo)
    assert_equal(matching.align(spec, settled, mean), settled)


# --- what has a symmetry, and what a specification may say ------------------------------------------


def test_only_permutations_of_generated_leaves_alone_are_left():
    """The first hidden layer of three reads Dense_0, which stays the base's; the second is free."""
    target = make_target("mlp", widths=(7, 5), generate=r"params/Dense_[12]/.*")
    spec = target.generated_permutations("f")
    assert set(spec.units) == {"hidden_1"} and spec.axes["params/Dense_1/kernel"] == (None, "hidden_1")
    tree, x = network(target), jax.random.uniform(jax.random.key(1), (16, 64))
    generated = make_spec(tree, generate=target.generate)
    part = codec.take(generated, tree)
    permutations.check(spec, part)
    drawn = random_orders(spec, 0)
    moved = codec.complete(generated, permutations.apply_permutation(spec, drawn, part), tree)
    np.testing.assert_allclose(target.apply(moved, x), target.apply(tree, x), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(moved["params"]["Dense_1"]["kernel"], tree["params"]["Dense_1"]["kernel"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"generate": "params/Dense_1/.*"}, "f: target.generate is 'params/Dense_1/.*', and none of hidden_0"),
        ({"lora_rank": 2, "generate": "lora/.*"}, "f: needs hidden units .* low-rank adapters"),
        ({"lora_rank": 2, "generate": ".*"}, "f: needs hidden units .* low-rank adapters"),
        ({"name": "resnet", "widths": (4,), "generate": "batch_stats/.*"}, "none of stream_0, hidden_0"),
    ],
)
def test_where_nothing_can_be_reordered_is_refused(fields, message):
    with pytest.raises(PdiffError, match=message):
        make_target(**fields).generated_permutations("f")


@pytest.mark.parametrize(
    "axes, units, message",
    [
        ({"a": ("u", None)}, {"u": Units(2)}, "leaf 'b' is not covered"),
        ({"a": ("u", None), "b": (None,), "c": (None,)}, {"u": Units(2)}, "leaf 'c' is not in the tree"),
        ({"a": ("u",), "b": (None,)}, {"u": Units(2)}, "'a' has 1 axes in the specification, and shape"),
        ({"a": ("u", "u"), "b": (None,)}, {"u": Units(2)}, "'a' has .* allowed: each name once"),
        ({"a": ("w", None), "b": ("u",)}, {"u": Units(3)}, "'a' names 'w'; allowed: u"),
        ({"a": (None, "u"), "b": ("u",)}, {"u": Units(2)}, "'u' has 2 units, axis 0 of 'b' has 3"),
        ({"a": (None, None), "b": (None,)}, {"u": Units(2)}, "'u' acts on no leaf"),
        ({"a": ("u", None), "b": (None,)}, {"u": Units(2, 3)}, "'u' has 2 units, not 3 equal groups"),
    ],
)
def test_what_a_specification_may_not_say(axes, units, message):
    tree = {"a": np.zeros((2, 2)), "b": np.zeros(3)}
    with pytest.raises(PdiffError, match=message):
        permutations.check(PermutationSpec(axes, units), tree)


def test_another_tree_is_not_reordered():
    spec = PermutationSpec({"a": ("u",)}, {"u": Units(2)})
    with pytest.raises(PdiffError, match="leaf 'b' is not covered"):
        permutations.apply_permutation(spec, {"u": np.arange(2)}, {"a": np.zeros(2), "b": np.zeros(2)})
