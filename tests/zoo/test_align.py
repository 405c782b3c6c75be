"""Zoos of random initialisations: what decides them, and that aligning them changes their order alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import rng
from pdiff.errors import PdiffError
from pdiff.system.stopping import StopSignal
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.tasks.base import SPLITS
from pdiff.weights import matching, permutations
from pdiff.zoo import build, finetune, score
from tests.weights.orders import stacked_orders


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in fields.items():
            part, field = name.split("__")
            config[part][field] = value
    return config


@pytest.fixture(scope="module")
def aligned(tiny_config, mesh, tmp_path_factory):
    """Few tasks: the family, the target, and a zoo of random initialisations that was aligned."""
    config = changed(tiny_config, zoo__init="random", zoo__align="weight_matching", tasks__num_seen=6)
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    where = tmp_path_factory.mktemp("aligned")
    return family, target, build.build(family, target, config, where, mesh, StopSignal())


def test_aligned_zoos_hold_the_networks_that_were_scored(aligned):
    """Accuracies are measured before networks are aligned; what is stored must still have them, in every split."""
    family, target, zoo = aligned
    images = family.data["test"]
    for split in (s for s in SPLITS if s in zoo):
        networks = zoo[split]
        own = jax.tree.map(lambda v, t=networks.task: v[t], family.variables)
        right = jax.jit(
            jax.vmap(lambda n, o: score.right(target.apply, family.labelled, n, o, images.x, images.y).mean())
        )
        accuracy = np.asarray(right(networks.params, own))
        assert np.abs(accuracy - networks.test_accuracy).max() < 2 / len(images.y), split  # a tie may turn
        assert np.ptp(networks.test_accuracy) > 0.01


def test_aligned_zoos_are_settled_and_narrower_than_in_any_other_order(aligned):
    _, target, zoo = aligned
    symmetry = target.generated_permutations("f")
    seen = zoo["seen"].params
    mean = jax.tree.map(lambda a: a.mean(0, dtype=np.float64), seen)
    for split in (s for s in SPLITS if s in zoo):
        networks = zoo[split].params
        jax.tree.map(np.testing.assert_array_equal, networks, matching.align(symmetry, networks, mean))

    def width(networks):
        return sum(float(np.square(a - a.mean(0)).sum()) for a in jax.tree.leaves(networks))

    shuffle = jax.jit(jax.vmap(functools.partial(permutations.apply_permutation, symmetry)))
    mixed = shuffle(stacked_orders(symmetry, len(zoo["seen"])), seen)
    assert width(seen) < 0.99 * width(jax.tree.map(np.asarray, mixed))


def test_every_network_starts_from_its_own_initialisation(tiny_config):
    """With a learning rate of next to nothing a network stays where it starts; what is not generated is the base's."""
    config = changed(tiny_config, zoo__init="random", zoo__learning_rate=1e-12, zoo__steps=1)
    target = dataclasses.replace(get_target(config.target, (8, 8), 10), generate="params/Dense_1/.*")
    base = target.init(jax.random.key(9))
    x, y = jnp.zeros((4, 64)), jnp.zeros(4, jnp.int32)
    seeds, task = jnp.array([0, 1, 0, 0]), jnp.array([0, 0, 1, 0])

    @jax.jit
    def start(task, seeds):
        no_rows, same = lambda key: (), lambda own, rows: (x, y)
        return finetune.finetune(target, base, no_rows, same, seeds, seeds, config.zoo, 0, task)

    nets = start(task, seeds)["params"]
    assert set(nets) == {"Dense_1"}
    kernels = np.asarray(nets["Dense_1"]["kernel"])[:, 0]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(kernels[i] - kernels[j]).max() > 0.1
    np.testing.assert_array_equal(kernels[0], kernels[3])
    for kernel, t, s in zip(kernels, task, seeds, strict=True):
        own = jax.random.fold_in(jax.random.fold_in(rng.stream(0, "zoo/init"), t), s)
        np.testing.assert_allclose(kernel, target.init(own)["params"]["Dense_1"]["kernel"], atol=1e-7)


def test_what_cannot_be_aligned_is_refused_before_any_work(tiny_config):
    family = get_family(tiny_config.tasks)
    head = changed(tiny_config, target__generate="params/Dense_1/.*", zoo__align="weight_matching")
    target = get_target(head.target, family.image_shape, family.num_classes)
    with pytest.raises(PdiffError, match="zoo.align: got 'weight_matching': target.generate is 'params/Dense_1/"):
        finetune.check(target, head.zoo)
