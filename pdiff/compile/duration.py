"""How long a run will take, told before it starts, and what would make it shorter.

One thing is measured: a step of the mean's training, in the very program that the run then trains with and finds
compiled, on zeros. Everything else follows from counts of products, at the rate that this step shows, and from
constants that were fitted to a few runs on 2 cores: an order of magnitude is what to expect of it. Runs that took 4 to
7 minutes (interp, camera_trap, folders of 16 x 16 images) were told 5 to 6. Many processes are told nothing.
"""

import dataclasses
import math
import os
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pdiff.compile import aot
from pdiff.errors import PdiffError, in_words
from pdiff.generator import large
from pdiff.generator.generator import Generator, abstract
from pdiff.targets import Target, get_target
from pdiff.tasks import Family
from pdiff.tasks.base import FITTED_SPLITS
from pdiff.weights.spec import make_spec

REPEATS = 3  # measured steps, of which the fastest counts
LONG_S = 15 * 60  # a run that takes longer is told what makes it shorter
FIXED_S = 140.0  # of compiling, studies and the report, which hardly depend on sizes
DENSER = 4.0  # so many times the products a second in fine-tuning and in the prior's steps as in the mean's
STATE_COPIES = 4  # of parameters in training: themselves, their average and two of the optimizer's
SHORTER = 1.3  # times as short, from which a change is told
SMALL_SIDE = 16  # of images that take minutes
COMPARED = 12  # networks that each task's generated ones are compared with in evaluation
PLACES = 41  # tasks that a network of a vague description is scored on, where their images differ
IMAGES = 64  # in the batch that a network's products are counted for


@dataclasses.dataclass(frozen=True)
class Work:
    """Products of a run's parts, in FLOPs; of the mean those of a step without its encoders, which know no weights."""

    zoo: float
    mean_step: float
    prior: float
    evaluation: float


@dataclasses.dataclass(frozen=True)
class Duration:
    """Seconds of a run's parts."""

    zoo: float
    training: float
    rest: float

    @property
    def total(self) -> float:
        return self.zoo + self.training + self.rest

    def __str__(self) -> str:
        """In words."""
        zoo, training, rest = (in_words(getattr(self, f.name)) for f in dataclasses.fields(self))
        parts = f"zoo {zoo}, training {training}, evaluation and compiling {rest}"
        return f"about {in_words(self.total)} if this machine stays as busy as it is ({parts})"


def lines(config: ConfigDict, family: Family, target: Target, mesh: Mesh, imported: int = 0) -> Iterator[str]:
    """What a run is about to do, how long that takes, and, where it is long, what makes it shorter.

    Args:
      imported: how many networks were imported, where none are fine-tuned.

    Raises:
      PdiffError: the mean does not fit into memory.
    """
    generator = abstract(config, family, target)
    networks, weights = imported or count_networks(config, family), generator.spec.num_params
    verb = "read" if imported else "fine-tune"
    yield (
        f"to do: {verb} {networks:,} networks of {weights:,} generated weights, train for {config.mean.steps:,} and "
        f"{config.train.steps:,} steps, and score what is generated"
    )
    check_memory(generator)
    seconds, flops = measure_step(generator, mesh)
    prior_step = aot.analytic_flops(generator, "train")
    work = count_work(config, family, target, family.image_shape, prior_step)
    work = dataclasses.replace(work, zoo=0.0) if imported else work
    encoders = max(flops - work.mean_step, 0.0)
    rate = (encoders + work.mean_step) / seconds
    duration = estimate(config, work, encoders, rate)
    yield f"time: {duration}; a step of the mean's training takes {seconds:.2g} s"
    if duration.total > LONG_S:
        for flags, changed, shape in smaller(config, family):
            other = get_target(changed.target, shape, family.num_classes)
            less = estimate(changed, count_work(changed, family, other, shape, prior_step), encoders, rate)
            if less.total * SHORTER < duration.total:
                yield f"shorter, about {in_words(less.total)}: {flags}"


def count_answers(config: ConfigDict, family: Family) -> float:
    """How many images networks answer in evaluation."""
    scored = sum(min(len(family.split(s)), config.eval.max_tasks) for s in FITTED_SPLITS)
    compared = (len(config.sample.samplers) + COMPARED) * config.eval.samples_per_task * scored
    places = 1 if family.same_images else PLACES
    return len(family.data["test"].y) * (compared + config.eval.vague_samples * len(config.eval.vague_prompts) * places)


def count_networks(config: ConfigDict, family: Family) -> int:
    """How many networks are fine-tuned for tasks."""
    seen, fitted = len(family.split("seen")), sum(len(family.split(s)) for s in FITTED_SPLITS)
    return seen * config.zoo.seeds_per_task + (fitted - seen) * config.zoo.reference_seeds


def check_memory(generator: Generator) -> None:
    """Raises PdiffError if training the mean takes more memory than a machine without accelerators has."""
    shapes = jax.eval_shape(generator.init_mean, jax.random.key(0))
    needed = STATE_COPIES * sum(4 * s.size for s in jax.tree.leaves(shapes))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if jax.default_backend() == "cpu" and needed > there:
        raise PdiffError(
            f"training the mean for {generator.spec.num_params:,} generated weights takes {needed / 1e9:,.0f} GB of "
            f"memory, and this machine has {there / 1e9:,.0f}; allowed: fewer weights, by smaller images (of a folder: "
            f"--config.tasks.image_side={SMALL_SIDE}), fewer --config.target.widths, or adapters "
            "(--config.target.lora_rank=2 --config.target.generate='lora/.*')"
        )


def measure_step(generator: Generator, mesh: Mesh) -> tuple[float, float]:
    """Seconds and FLOPs of a step of the mean's training."""
    program = aot.program(generator, mesh, "mean")
    lowered = program.step.lower(*program.arguments)
    compiled = lowered.compile()
    layouts, _ = compiled.input_shardings
    place = lambda shape, layout: jax.device_put(jnp.zeros(shape.shape, shape.dtype), layout)  # noqa: E731
    state, *rest = jax.tree.map(place, program.arguments, layouts)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, *rest))
        times.append(time.perf_counter() - start)
    return min(times), float((lowered.cost_analysis() or {}).get("flops", 0.0))


def count_work(config: ConfigDict, family: Family, target: Target, shape: tuple[int, ...], prior_step: float) -> Work:
    """The products of a run whose images have that shape, where a step of the prior has `prior_step` FLOPs."""
    zoo, mean = config.zoo, config.mean
    weights = make_spec(target.abstract(), generate=target.generate).num_params
    image = 3 * _forward(target, math.prod(shape)) if family.data else 0.0  # and gradients
    networks = count_networks(config, family) + zoo.reference_seeds  # these are task-blind
    drawn = mean.functional_images if mean.functional_weight else 0
    seen = large.count_seen(config, family)
    outputs = large.spanning(config, seen) if large.suits(config, weights, seen) else weights  # of the mean
    return Work(
        zoo=image * zoo.batch_size * (networks * zoo.steps + zoo.pretrain_steps),
        mean_step=mean.batch_size * (image * drawn + 6 * mean.width * outputs),
        prior=config.train.steps * prior_step,
        evaluation=image / 3 * count_answers(config, family) if family.data else 0.0,
    )


def estimate(config: ConfigDict, work: Work, encoders: float, rate: float) -> Duration:
    """The seconds of a run.

    Args:
      encoders: FLOPs of the encoders in a step of the mean.
      rate: FLOPs a second in such a step.
    """
    training = config.mean.steps * (encoders + work.mean_step) + work.prior / DENSER
    return Duration(work.zoo / DENSER / rate, training / rate, work.evaluation / rate + FIXED_S)


def smaller(config: ConfigDict, family: Family) -> Iterator[tuple[str, ConfigDict, tuple[int, ...]]]:
    """Flags that make a run shorter, with the config and the images' shape that they lead to."""
    shape, target = family.image_shape, config.target
    last = f"params/Dense_{len(target.widths)}/.*"
    widths = tuple(-(-w // 4) for w in target.widths)
    changes: dict[str, dict[str, object]] = {}
    if family.name == "folder" and max(shape[:2]) > SMALL_SIDE:
        changes[f"--config.tasks.image_side={SMALL_SIDE}"] = {"tasks.image_side": SMALL_SIDE}
    if target.generate == ".*" and not target.lora_rank:
        changes[f"--config.target.widths='({', '.join(map(str, widths))},)'"] = {"target.widths": widths}
        changes["--config.target.lora_rank=2 --config.target.generate='lora/.*'"] = {
            "target.lora_rank": 2, "target.generate": "lora/.*"
        }  # fmt: skip
        if target.name == "mlp":
            changes[f"--config.target.generate='{last}', the last layer alone"] = {"target.generate": last}
    steps = {f"{part}.steps": -(-config[part].steps // 4) for part in ("zoo", "mean", "train")}
    changes[" ".join(f"--config.{name}={count}" for name, count in steps.items())] = steps
    for flags, change in changes.items():
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.update_from_flattened_dict(change)
        yield flags, changed, (SMALL_SIDE, SMALL_SIDE, *shape[2:]) if "tasks.image_side" in change else shape


def _forward(target: Target, features: int) -> float:
    """FLOPs of a network for one image."""
    images = jax.ShapeDtypeStruct((IMAGES, features), jnp.float32)
    cost = jax.jit(target.apply).lower(target.abstract(), images).cost_analysis()
    return float((cost or {}).get("flops", 0.0)) / IMAGES
