"""What the benchmarks of the main job share: its config, its parts, and a zoo of it that is built at once."""

import dataclasses
import tempfile
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import interp
from pdiff.generator import generator
from pdiff.generator.generator import Generator
from pdiff.system import dist
from pdiff.system.stopping import StopSignal
from pdiff.targets import Target, get_target
from pdiff.tasks import Family, get_family
from pdiff.zoo import build
from pdiff.zoo.networks import Networks

SHORT_ZOO = dict(steps=20, pretrain_steps=20, seeds_per_task=1)  # weights like those of a zoo, made in seconds


@dataclasses.dataclass(frozen=True)
class Context:
    """The main job's parts; its zoo has the right shapes, but networks that are hardly trained."""

    config: ConfigDict
    family: Family
    target: Target
    mesh: Mesh
    networks: dict[str, Networks]
    generator: Generator


def make(config: ConfigDict | None = None) -> Context:
    """The parts of `config`, by default the main job's, with a zoo trained for a few steps."""
    config = (config or interp.get_config()).copy_and_resolve_references()
    with config.unlocked():
        config.zoo.update(SHORT_ZOO)
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    mesh = dist.make_mesh()
    with StopSignal() as stop, tempfile.TemporaryDirectory() as where:
        networks = build.store.in_memory(build.build(family, target, config, Path(where), mesh, stop))
    return Context(config, family, target, mesh, networks, generator.make_generator(config, family, target, networks))
