"""The ResNet against SciPy in both modes, its running statistics in and out of training, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from pdiff.errors import PdiffError
from pdiff.tasks import get_family
from pdiff.weights import codec, permutations
from pdiff.weights.spec import make_spec
from pdiff.zoo import finetune
from tests.targets.make import fit, make_target
from tests.weights.orders import random_orders

EPSILON = 1e-3


def random_tree(target, seed=0):
    """Parameters and running statistics away from their initial values, variances positive."""
    random = np.random.default_rng(seed)
    tree = jax.tree.map(np.asarray, target.init(jax.random.key(seed)))
    return jax.tree.map(lambda a: a + 0.2 * random.random(a.shape, np.float32), tree)


def reference(tree, x, train):
    """Logits of a resnet with widths (4, 6) on 8 x 8 images, and the mean and variance each BatchNorm met."""
    p, seen = tree["params"], {}

    def conv(h, kernel, stride=1):
        size, (k, _, inputs, outputs) = h.shape[-1], kernel.shape
        total = max((-(-size // stride) - 1) * stride + k - size, 0)  # 'SAME': one more after than before, if odd
        h = np.pad(h, ((0, 0), (0, 0), (total // 2, total - total // 2), (total // 2, total - total // 2)))
        one = [
            [sum(correlate2d(i[a], kernel[..., a, b], "valid") for a in range(inputs)) for b in range(outputs)]
            for i in h
        ]
        return np.array(one)[:, :, ::stride, ::stride]

    def norm_relu(h, *path):
        p, running = (functools.reduce(dict.__getitem__, path, tree[k]) for k in ("params", "batch_stats"))
        seen[path] = {"mean": h.mean((0, 2, 3)), "var": h.var((0, 2, 3))}
        by = {k: v[:, None, None] for k, v in (seen[path] if train else running).items()}
        h = (h - by["mean"]) / np.sqrt(by["var"] + EPSILON)
        return np.maximum(h * p["scale"][:, None, None] + p["bias"][:, None, None], 0)

    h = conv(np.asarray(x, np.float64).reshape(-1, 1, 8, 8), p["stem"]["kernel"])
    for name, stride in (("block_0", 1), ("block_1", 2)):
        r = norm_relu(h, name, "BatchNorm_0")
        shortcut = conv(r, p[name]["shortcut"]["kernel"], stride) if stride > 1 else h
        r = norm_relu(conv(r, p[name]["Conv_0"]["kernel"], stride), name, "BatchNorm_1")
        h = shortcut + conv(r, p[name]["Conv_1"]["kernel"])
    h = norm_relu(h, "BatchNorm_0").mean((2, 3))
    return h @ p["head"]["kernel"] + p["head"]["bias"], seen


def assert_momentum_update(before, after, x):
    """running <- 0.9 running + 0.1 of the batch, whose statistics are the reference's."""
    _, seen = reference(before, x, train=True)
    assert len(seen) == 5 and len(jax.tree.leaves(after["batch_stats"])) == 10
    for path, batch in seen.items():
        old, new = (functools.reduce(dict.__getitem__, path, t["batch_stats"]) for t in (before, after))
        for k in ("mean", "var"):
            np.testing.assert_allclose(new[k], 0.9 * old[k] + 0.1 * batch[k], rtol=1e-4, atol=1e-5)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def target():
    return make_target("resnet", widths=(4, 6))


@pytest.fixture(scope="module")
def digits(tiny_config):
    return get_family(tiny_config.tasks).data


def test_both_modes_are_the_reference_and_only_training_updates_the_running_statistics(target):
    tree = random_tree(target)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 64), np.float32))
    np.testing.assert_allclose(target.apply(tree, x), reference(tree, x, train=False)[0], rtol=1e-4, atol=1e-4)
    before = jax.tree.map(np.copy, tree)
    logits, after = target.apply_train(tree, x)
    np.testing.assert_allclose(logits, reference(tree, x, train=True)[0], rtol=1e-4, atol=1e-4)
    assert_momentum_update(before, after, x)
    assert_same(after["params"], before["params"])
    assert_same(tree, before)  # the argument is untouched


def test_in_use_an_image_does_not_depend_on_the_others_and_in_training_it_does(target):
    tree, x = random_tree(target), jnp.asarray(np.random.default_rng(0).standard_normal((6, 64), np.float32))
    np.testing.assert_allclose(target.apply(tree, x)[:2], target.apply(tree, x[:2]), rtol=1e-5, atol=1e-5)
    assert np.abs(target.apply_train(tree, x)[0][:2] - target.apply_train(tree, x[:2])[0]).max() > 1e-2


def test_stages_halve_and_colours_are_channels():
    target = make_target("resnet", (8, 8, 3), num_classes=7, widths=(4, 6, 10, 12))
    shapes = jax.tree.map(lambda a: a.shape, target.abstract())
    assert shapes["params"]["stem"]["kernel"] == (3, 3, 3, 4)
    assert shapes["params"]["block_3"]["shortcut"]["kernel"] == (1, 1, 10, 12)
    assert shapes["batch_stats"]["block_3"]["BatchNorm_1"] == {"mean": (12,), "var": (12,)}
    assert shapes["params"]["head"]["kernel"] == (12, 7)
    assert target.apply(target.init(jax.random.key(0)), jnp.zeros((5, 192))).shape == (5, 7)


def test_a_resnet_18_has_its_known_number_of_parameters_and_blocks_share_their_stage_s_stream():
    tree = make_target("resnet", (32, 32, 3), 10, widths=(64, 128, 256, 512), blocks=2).abstract()
    stem_norm_head = 27 * 64 + 2 * 512 + 512 * 10 + 10
    stages = [(64, 64), (64, 128), (128, 256), (256, 512)]
    first = sum(9 * i * o + 9 * o * o + (i * o if i != o else 0) + 2 * i + 2 * o for i, o in stages)
    second = sum(18 * o * o + 4 * o for _, o in stages)
    assert sum(p.size for p in jax.tree.leaves(tree["params"])) == stem_norm_head + first + second == 11_172_170

    target = make_target("resnet", widths=(4, 6), blocks=2)
    network, x = random_tree(target), jnp.asarray(np.random.default_rng(1).random((3, 64), np.float32))
    orders = random_orders(target.permutations, 5)
    permuted = permutations.apply_permutation(target.permutations, orders, network)
    assert set(target.permutations.units) == {"stream_0", "stream_2", *(f"hidden_{i}" for i in range(4))}
    np.testing.assert_allclose(target.apply(permuted, x), target.apply(network, x), rtol=1e-4, atol=1e-4)


def test_after_each_training_step_the_running_statistics_are_the_momentum_update(target, digits):
    key, images, base = jax.random.key(3), digits["train"], random_tree(target)
    optimizer = finetune.make_optimizer(1e-2, 10.0, 3, "constant")  # so much decay that it would show
    draw = finetune.minibatches(images.x, images.y, 6)
    kept = finetune.train(target, optimizer, base, draw, key, steps=3, keep_last=3)
    trees = [base, *(jax.tree.map(lambda a, i=i: np.asarray(a[i]), kept) for i in range(3))]
    for step in range(3):
        rows = jax.random.randint(jax.random.fold_in(key, step), (6,), 0, len(images.y))
        assert_momentum_update(trees[step], trees[step + 1], np.asarray(images.x)[rows])
    assert np.abs(trees[3]["params"]["stem"]["kernel"] - base["params"]["stem"]["kernel"]).max() > 1e-2


def test_no_gradient_reaches_running_statistics(target, digits):
    def loss(tree):
        return target.apply_train(tree, jnp.asarray(digits["train"].x[:8]))[0].var()

    grads = jax.grad(loss)(random_tree(target))
    assert not any(g.any() for g in jax.tree.leaves(grads["batch_stats"]))
    assert all(g.any() for g in jax.tree.leaves(grads["params"]["block_1"]))


def test_the_whole_tree_survives_encoding(target):
    tree = random_tree(target)
    spec = make_spec(target.abstract(), token_dim=32)
    assert spec.num_params == sum(a.size for a in jax.tree.leaves(tree))
    assert_same(codec.decode_part(spec, codec.encode(spec, tree)), tree)


def test_a_negative_running_variance_counts_as_zero(target):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64), np.float32))
    tree, zero = random_tree(target), random_tree(target)
    tree["batch_stats"]["block_1"]["BatchNorm_0"]["var"][:2] = [-0.5, -7.0]
    zero["batch_stats"]["block_1"]["BatchNorm_0"]["var"][:2] = 0
    assert np.isfinite(target.apply(tree, x)).all()
    assert_same(target.apply(tree, x), target.apply(zero, x))
    assert_same(target.apply_train(tree, x), target.apply_train(zero, x))
    grads = jax.grad(lambda t: target.apply(t, x).var())(tree)  # the functional loss takes these
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(("generate", "frozen"), [("lora/.*", True), ("(lora|batch_stats)/.*", False)])
def test_adapters_leave_parameters_and_update_running_statistics_if_told(tiny_config, digits, generate, frozen):
    target = make_target("resnet", widths=(4, 6), lora_rank=1, lora_modules="block_1/.*", generate=generate)
    base = random_tree(target)
    x, y = jnp.asarray(digits["train"].x), jnp.asarray(digits["train"].y)
    merged = {k: v for k, v in base.items() if k != "lora"}
    merged["params"] = jax.tree.map(np.copy, base["params"])
    for name, ab in base["lora"]["block_1"].items():  # alpha / rank is 8
        kernel = merged["params"]["block_1"][name]["kernel"]
        kernel += 8 * (ab["kernel"]["a"] @ ab["kernel"]["b"]).reshape(kernel.shape)
    logits, after = target.apply_train(base, x[:6])
    np.testing.assert_allclose(logits, reference(merged, x[:6], train=True)[0], rtol=1e-3, atol=1e-3)
    assert_momentum_update(merged, after, x[:6])
    assert_same({k: after[k] for k in ("params", "lora")}, {k: base[k] for k in ("params", "lora")})

    net = jax.tree.map(lambda a: a[0, 0], fit(target, base, x[None], y[None], [0], tiny_config.zoo))
    assert set(net) == ({"lora"} if frozen else {"lora", "batch_stats"})
    if not frozen:
        moved = jax.tree.map(lambda a, b: bool((a != b).all()), net["batch_stats"], base["batch_stats"])
        assert all(jax.tree.leaves(moved))
    assert (
        np.abs(net["lora"]["block_1"]["Conv_0"]["kernel"]["b"] - base["lora"]["block_1"]["Conv_0"]["kernel"]["b"]).max()
        > 1e-3
    )


@pytest.mark.parametrize("widths", [(), (4,) * 5])
def test_sizes_that_do_not_fit_are_refused(widths):
    with pytest.raises(PdiffError, match="target.widths"):
        make_target("resnet", widths=widths)


def test_a_regex_that_splits_running_statistics_is_refused_and_one_that_does_not_is_not(target):
    with pytest.raises(PdiffError, match=r"target.generate: got '\.\*block_1\.\*', which matches 4 of 10 running"):
        make_target("resnet", widths=(4, 6), generate=".*block_1.*")
    assert target.updates_running()
    assert not dataclasses.replace(target, generate="params/block_1/.*").updates_running()
    assert not make_target("cnn", widths=(4,)).updates_running()
