"""The conditions of tasks: drawn at random in training, and in words, numbers or images when sampling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pdiff import rng
from pdiff.generator.generator import MEMBERS, Generator, Members, Strings
from pdiff.models.conditions import factor_units, number_period
from pdiff.rng import Keys
from pdiff.tasks.base import Task
from pdiff.tasks.language import TaskSet

DESCRIBED = {"text", "sentence", "factors"}  # conditions that a task's factors and descriptions are enough for


def make_constants(generator: Generator) -> dict:
    """The arrays that every step reads: images, task variables, encoded descriptions.

    They are an argument of the step, replicated once, and not baked into its program.
    """
    family, use = generator.family, generator.config.condition.use
    descriptions, count = [d for t in family.tasks for d in t.descriptions], len(family.tasks)
    constants = {"variables": family.variables, "factors": family.factors()}
    if images := family.data.get("train"):
        constants |= {"x": images.x, "y": images.y}
    if "text" in use:
        text = generator.tokenizer.encode_all(descriptions)
        constants["text"] = {k: v.reshape(count, -1, v.shape[-1]) for k, v in text.tree.items()}
    if "sentence" in use:
        vectors = generator.sentences.encode_all(descriptions)
        constants["sentence"] = vectors.reshape(count, -1, vectors.shape[-1])
    if "background" in use:
        constants["backgrounds"] = family.backgrounds
    return constants


def training_condition(
    generator: Generator,
    constants: dict,
    task: Int[Array, " batch"],
    wording: Int[Array, " batch"],
    keys: Keys,
    sigma: Float[Array, " batch"] | None = None,
    drop_all: float | None = None,
) -> dict:
    """The condition of each example, every name dropped with its own probability and all with `drop_all`, by default
    the config's.

    Numbers are moved by `number_noise`, and factors by as much in their own units: the answer for an angle must then
    hold around it, which keeps a generator from a map that is too wiggly to fill in what it has not seen. A denoiser's
    are moved less at low noise `sigma`: its input would tell the angle better than the condition, which it would then
    ignore. A sentence's vector stays as it is: the encoder is frozen, and its numbers are words.
    """
    config, family = generator.config.condition, generator.family
    streams = jax.vmap(lambda k: jax.random.split(k, 4))(keys)
    scale = config.number_noise * (1 if config.number_period else number_period(config, family))
    scale *= 1.0 if sigma is None else sigma**2 / (1 + sigma**2)
    moved = scale * jax.vmap(jax.random.normal)(streams[:, 0])
    inputs = {
        "id": lambda: task,
        "factors": lambda: constants["factors"][task] + moved[:, None] * jnp.asarray(factor_units(config, family)),
        "text": lambda: _moved(jax.tree.map(lambda table: table[task, wording], constants["text"]), moved),
        "sentence": lambda: constants["sentence"][task, wording],
        "background": lambda: _drawn_shot(constants["backgrounds"], task, config.background_noise, streams[:, 3]),
    }
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (len(config.use) + 1,)))(streams[:, 2])
    keep_any = uniform[:, -1] >= (config.drop_all if drop_all is None else drop_all)
    return {
        name: {"inputs": inputs[name](), "keep": keep_any & (uniform[:, i] >= config[f"drop_{name}"])}
        for i, name in enumerate(config.use)
    }


def as_trained(generator: Generator, task: Int[np.ndarray, " rows"], given: Sequence[str]) -> dict:
    """Conditions of tasks as training draws them, with its noise and any of their wordings and images, but each time
    with the names `given` and no others."""
    constants, count, seed = make_constants(generator), len(task), generator.config.seed
    wordings = len(generator.family.tasks[0].descriptions)
    wording = rng.on_host(seed, "conditioning/wording").integers(wordings, size=count, dtype=np.int32)
    keys = jax.random.split(rng.stream(seed, "conditioning/as_trained"), count)
    condition = jax.jit(lambda c, *rows: training_condition(generator, c, *rows))(constants, task, wording, keys)
    condition = jax.tree.map(np.asarray, condition)
    return {n: {"inputs": c["inputs"], "keep": np.full(count, n in given)} for n, c in condition.items()}


def _moved(text: dict[str, Array], by: Float[Array, " batch"]) -> dict[str, Array]:
    """The texts with all numbers of an example moved by the same amount."""
    return text | {"values": jnp.where(text["is_number"], text["values"] + by[:, None], 0)}


def _drawn_shot(
    backgrounds: Float[Array, "tasks shots features"], task: Int[Array, " batch"], noise: float, keys: Keys
) -> Float[Array, "batch features"]:
    """One of each task's empty images, with pixel noise of standard deviation `noise`.

    The noise hides by which pixels seen backgrounds differ, and leaves what new ones share with them.
    """

    def one(task, key):
        which, pixels = jax.random.split(key)
        shot = backgrounds[task, jax.random.randint(which, (), 0, backgrounds.shape[1])]
        return shot + noise * jax.random.normal(pixels, shot.shape)

    return jax.vmap(one)(task, keys)


def sample_condition(
    generator: Generator,
    tasks: Sequence[Task],
    count: int,
    *,
    given: Strings = None,
    texts: Strings = None,
    members: Members = None,
) -> dict:
    """The condition of `count` samples for each task, in task order; sample j is described in the j-th wording.

    `given` is `sample.condition` by default.
    """
    if texts is None:
        texts = [t.descriptions[j % len(t.descriptions)] for t in tasks for j in range(count)]
    given = generator.config.sample.condition if given is None else given
    return generator.condition([t for t in tasks for _ in range(count)], texts, given, members)


def set_condition(generator: Generator, tasks: TaskSet, count: int, random: np.random.Generator) -> dict | None:
    """The condition of `count` networks for a set of tasks; None if no network of the refined zoo is for one of them.

    All have the same members, so that they are draws of one distribution.
    """
    rows = generator.refined.draw(tasks, MEMBERS, random)
    if not len(rows):
        return None
    members = np.repeat(np.asarray(generator.refined.means)[rows][None], count, 0)
    return generator.condition([generator.family.tasks[0]] * count, given=(), members=members)
