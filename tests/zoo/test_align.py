"""Zoos of random initialisations: what decides them, and that aligning them changes their order alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import generator as generator_lib
from pdiff import rng
from pdiff import train as train_lib
from pdiff.errors import PdiffError
from pdiff.stopping import StopSignal
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.tasks.base import SPLITS
from pdiff.weights import codec, permutations, stats
from pdiff.weights.spec import make_spec
from pdiff.zoo import build, finetune, score


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in fields.items():
            part, field = name.split("__")
            config[part][field] = value
    return config


def build_zoo(config, mesh, where):
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    return family, target, build.build(family, target, config, where, mesh, StopSignal())


@pytest.fixture(scope="module")
def random_config(tiny_config):
    return changed(tiny_config, zoo__init="random")


@pytest.fixture(scope="module")
def plain(random_config, mesh, tmp_path_factory):
    return build_zoo(random_config, mesh, tmp_path_factory.mktemp("plain"))[2]


@pytest.fixture(scope="module")
def aligned(random_config, mesh, tmp_path_factory):
    config = changed(random_config, zoo__align="weight_matching")
    return build_zoo(config, mesh, tmp_path_factory.mktemp("aligned"))


def width(networks):
    return sum(float(np.square(a - a.mean(0)).sum()) for a in jax.tree.leaves(networks.params))


def test_aligned_networks_are_the_same_ones_in_another_order(plain, aligned):
    family, target, zoo = aligned
    x = family.data["test"].x[:50]
    moved = []
    apply = jax.jit(jax.vmap(target.apply, (0, None)))
    for split in (s for s in SPLITS if s in plain):
        a, b = plain[split], zoo[split]
        for field in ("task", "seed", "step", "validation_accuracy", "test_accuracy"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        logits = [apply(n.params, x) for n in (a, b)]
        np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)
        kernels = [n.params["params"]["Dense_0"]["kernel"] for n in (a, b)]
        moved.extend(np.abs(kernels[0] - kernels[1]).max((1, 2)) > 0)
        np.testing.assert_array_equal(*(np.sort(k[:, 0]) for k in kernels))
        assert width(b) < width(a)
    assert np.mean(moved) > 0.8
    jax.tree.map(np.testing.assert_array_equal, plain["base"].params, zoo["base"].params)


def test_every_network_starts_from_its_own_initialisation(tiny_config):
    """With a learning rate of next to nothing a network stays where it starts."""
    config = changed(tiny_config, zoo__init="random", zoo__learning_rate=1e-12, zoo__steps=1)
    target = get_target(config.target, (8, 8), 10)
    base = target.init(jax.random.key(9))
    half = dataclasses.replace(target, generate="params/Dense_1/.*")
    x, y = jnp.zeros((4, 64)), jnp.zeros(4, jnp.int32)

    def draw(own, key):
        return x, y

    def start(target, task, seeds):
        fit = jax.jit(lambda s, t: finetune.finetune(target, base, draw, jnp.zeros(len(s)), s, config.zoo, 0, t))
        return fit(jnp.array(seeds), task)

    nets = start(target, jnp.array([0, 0, 1, 0]), [0, 1, 0, 0])["params"]["Dense_0"]["kernel"][:, 0]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(nets[i] - nets[j]).max() > 0.1
    np.testing.assert_array_equal(nets[0], nets[3])
    own = jax.random.fold_in(jax.random.fold_in(rng.stream(0, "zoo/init"), 1), 0)
    np.testing.assert_allclose(nets[2], target.init(own)["params"]["Dense_0"]["kernel"], atol=1e-9)
    part = start(half, jnp.array([1]), [0])
    assert set(part["params"]) == {"Dense_1"}
    spec = make_spec(base, generate=half.generate)
    expected = codec.take(spec, target.init(own))["params"]["Dense_1"]["kernel"]
    np.testing.assert_allclose(part["params"]["Dense_1"]["kernel"][0, 0], expected, atol=1e-9)


def test_what_cannot_be_aligned_or_permuted_is_refused_before_any_work(tiny_config):
    family = get_family(tiny_config.tasks)
    head = changed(
        tiny_config, target__generate="params/Dense_1/.*", zoo__align="weight_matching", weights__permute=True
    )
    target = get_target(head.target, family.image_shape, family.num_classes)
    with pytest.raises(PdiffError, match="zoo.align: got 'weight_matching': target.generate is 'params/Dense_1/"):
        finetune.check(target, head.zoo)
    with pytest.raises(PdiffError, match="weights.permute: got True: target.generate is 'params/Dense_1/"):
        generator_lib.check(head, family, target)


def test_training_with_permutations_sees_every_order_and_no_other_change(tiny_config, tiny_zoo):
    """A pure function of the keys; networks compute the same; and what it sees is normalised over all orders."""
    plain = changed(tiny_config, diffusion__functional_weight=0.0)
    config = changed(plain, weights__permute=True)
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    made = generator_lib.make_generator(config, family, target, tiny_zoo)
    params = tiny_zoo["seen"].params
    count = len(tiny_zoo["seen"])
    permute = jax.jit(made.permute)
    keys = jax.random.split(jax.random.key(0), count)
    moved = permute(params, keys)
    jax.tree.map(np.testing.assert_array_equal, moved, permute(params, keys))
    x = family.data["test"].x[:50]
    apply = jax.jit(jax.vmap(target.apply, (0, None)))
    np.testing.assert_allclose(apply(moved, x), apply(params, x), rtol=1e-4, atol=1e-4)
    assert not np.array_equal(moved["params"]["Dense_0"]["bias"], params["params"]["Dense_0"]["bias"])

    on = np.asarray(stats.varying(made.stats))
    orbit = permutations.orbits(target.generated_permutations("f"), made.spec)
    seen = jax.jit(lambda key: made.encode(made.permute(params, jax.random.split(key, count))))
    z = np.stack([seen(jax.random.key(i)) for i in range(100)]).reshape(-1, *on.shape)
    total, square = z.mean(0), np.square(z).mean(0)
    assert np.abs(total[on]).max() < 0.25  # each orbit's mean is 0
    assert len(np.unique(made.stats.center[on])) == len(np.unique(orbit[on]))
    np.testing.assert_allclose(np.sqrt(square[on].mean()), 1, atol=0.02)

    # The loss of a step is that of the permuted batch.
    rows = np.arange(4)
    batch = {"params": tiny_zoo["seen"][rows].params, "task": tiny_zoo["seen"].task[rows], "wording": np.zeros(4, int)}
    init = jax.jit(made.init)(jax.random.key(0))
    constants = jax.tree.map(jnp.asarray, train_lib.make_constants(made))
    keys = jax.random.split(jax.random.key(5), 4)

    def loss_of(generator):
        return jax.jit(lambda batch: train_lib.loss_fn(init, generator, batch, constants, keys)[0])

    still = loss_of(dataclasses.replace(made, config=plain))
    by_hand = batch | {"params": permute(batch["params"], jax.vmap(lambda k: jax.random.fold_in(k, 4))(keys))}
    loss = loss_of(made)(batch)
    np.testing.assert_allclose(loss, still(by_hand), rtol=1e-5)
    assert abs(loss - still(batch)) > 1e-4


def test_stored_accuracies_are_those_of_the_aligned_networks(aligned):
    family, target, zoo = aligned
    seen = zoo["seen"][:3]
    images = family.data["test"]
    for i in range(3):
        own = jax.tree.map(lambda v, i=i: v[seen.task[i]], family.variables)
        network = jax.tree.map(lambda a, i=i: a[i], seen.params)
        right = score.right(target.apply, family, network, own, images.x, images.y)
        assert abs(float(right.mean()) - seen.test_accuracy[i]) < 2 / len(images.y)
