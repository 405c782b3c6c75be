"""Targets for tests: the defaults of configs/common.py with a few fields changed."""

from configs import common
from pdiff.targets import Target, get_target


def make_target(name: str = "mlp", image_shape: tuple[int, ...] = (8, 8), num_classes: int = 10, **fields) -> Target:
    """The target `name` for images of `image_shape`; `fields` are those of the config's `target` part."""
    config = common.get_config().target
    config.update(dict(name=name, **fields))
    return get_target(config, image_shape, num_classes)
