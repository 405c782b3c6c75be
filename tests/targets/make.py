"""Targets for tests: the default config with a few fields changed, and what is done with them."""

import jax.numpy as jnp

from pdiff.config.fields import defaults
from pdiff.targets import Target, get_target
from pdiff.zoo import finetune


def make_target(name: str = "mlp", image_shape: tuple[int, ...] = (8, 8), num_classes: int = 10, **fields) -> Target:
    """The target `name` for images of `image_shape`; `fields` are those of the config's `target` part."""
    config = defaults().target
    config.update(dict(name=name, **fields))
    return get_target(config, image_shape, num_classes)


def fit(target, base, x, y, seeds, zoo):
    """Fine-tuning on images of its own for each network: generated parts, (networks, kept, …)."""

    def rows(key):
        return finetune.draw_rows(key, y.shape[1], zoo.batch_size)

    def take(own, rows):
        return own[0][rows], own[1][rows]

    return finetune.finetune(target, base, rows, take, (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(seeds), zoo, 0)


def accuracy(tree, target, x, y):
    return (target.apply(tree, jnp.asarray(x)).argmax(-1) == y).mean()
