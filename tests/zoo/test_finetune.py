"""Fine-tuning many networks at once: what seeds decide, what is kept, and that it equals one at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import rng
from pdiff.errors import PdiffError
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.zoo import finetune


@pytest.fixture(scope="module")
def setting(tiny_config):
    family = get_family(tiny_config.tasks)
    target = get_target(tiny_config.target, family.image_shape, family.num_classes)
    base = target.init(jax.random.key(0))
    x = jnp.stack([family.render(v, family.data["train"].x) for v in family.variables[:2]])
    return target, base, x, family.data["train"].y


def tune(setting, config, x, seeds):
    target, base, _, y = setting
    return finetune.finetune(target, base, x, jnp.tile(y, (len(x), 1)), jnp.asarray(seeds), config.zoo, 0)


def test_seeds_decide_everything_but_the_task(setting, tiny_config):
    x = setting[2]
    nets = tune(setting, tiny_config, jnp.stack([x[0], x[0], x[0]]), [3, 3, 4])
    kernel = np.asarray(nets["params"]["Dense_0"]["kernel"])[:, -1]
    np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.abs(kernel[0] - kernel[2]).max() > 1e-3


def test_all_at_once_equals_one_at_a_time(setting, tiny_config):
    x = setting[2]
    both = tune(setting, tiny_config, x, [0, 1])
    for i in range(2):
        alone = tune(setting, tiny_config, x[i : i + 1], [i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], atol=1e-5), both, alone)


def test_it_learns(setting, tiny_config):
    target, base, x, y = setting
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.zoo.steps = 300
    nets = tune(setting, config, x[:1], [0])
    before = finetune.accuracy(base, target, x[0], y)
    after = finetune.accuracy(jax.tree.map(lambda a: a[0, -1], nets), target, x[0], y)
    assert before < 0.4 and after > 0.85


def test_late_checkpoints_are_those_of_shorter_runs(setting):
    """With a constant rate the network kept k steps before the end is the end of a run k steps shorter."""
    target, base, x, y = setting
    optimizer = finetune.make_optimizer(1e-3, 0.01, 30, "constant")

    def kept(steps, keep_last, keep_every):
        return finetune.train(
            target, optimizer, base, x[0], y, rng.stream(0, "test"),
            steps=steps, batch_size=16, keep_last=keep_last, keep_every=keep_every,
        )  # fmt: skip

    long = kept(30, 3, 7)
    for i, steps in enumerate([16, 23, 30]):
        short = kept(steps, 1, 1)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], atol=1e-6), long, short)


def test_only_generated_leaves_are_trained(setting, tiny_config):
    target, base, x, y = setting
    head = dataclasses.replace(target, generate=".*Dense_1.*")
    nets = finetune.finetune(head, base, x, jnp.stack([y, y]), jnp.arange(2), tiny_config.zoo, 0)["params"]
    for leaf in ("kernel", "bias"):
        kept = np.broadcast_to(base["params"]["Dense_0"][leaf], nets["Dense_0"][leaf].shape)
        np.testing.assert_array_equal(nets["Dense_0"][leaf], kept)
    assert np.abs(nets["Dense_1"]["kernel"] - base["params"]["Dense_1"]["kernel"]).max() > 1e-3


def test_a_regex_without_a_leaf_is_refused(setting, tiny_config):
    target, base, x, y = setting
    with pytest.raises(PdiffError, match="matches no leaf"):
        finetune.finetune(
            dataclasses.replace(target, generate="head"),
            base,
            x,
            jnp.tile(y, (2, 1)),
            jnp.arange(2),
            tiny_config.zoo,
            0,
        )
