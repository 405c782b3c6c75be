"""The two trainings of a generator: of the mean, on the zoo, and of the prior, on the refined zoo."""

import functools
import hashlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from ml_collections import ConfigDict

from pdiff import rng
from pdiff.diffusion import losses
from pdiff.generator.conditioning import make_constants, training_condition
from pdiff.generator.generator import MEMBERS, Generator
from pdiff.generator.refined import mean_networks, training_sets
from pdiff.generator.sample import Samplers
from pdiff.measures.accuracy import Scorer
from pdiff.rng import Keys
from pdiff.system import sharding
from pdiff.training import data
from pdiff.training.train import Losses, Stage
from pdiff.weights import codec, stats
from pdiff.zoo.networks import COLUMNS, Networks, StoredNetworks

MEAN, PRIOR = "mean", "prior"  # names; the mean's is that of the folder of its checkpoints too
CHECKPOINTS = "checkpoints"  # of the prior
DECODED = 1 << 22  # weights of large networks that are run on images at a time


def mean(generator: Generator, networks: Networks | StoredNetworks, zoo: str, mesh: Mesh) -> Stage:
    """The mean's training on the seen `networks`; `zoo` is their fingerprint."""
    config, settings = generator.config, _settings(generator.config, "mean")
    wordings = len(generator.family.tasks[0].descriptions)
    practice = np.array([t.id for t in generator.family.split("practice")], np.int32)
    options = {"seed": config.seed, "batch_size": settings.batch_size, "params": bool(config.mean.zoo_weight)}
    options |= {"practice": practice} if config.mean.functional_weight else {}
    if generator.stored is not None:
        networks = _in_coordinates(generator, networks)
    arrays = generator.arrays()
    if not config.mean.functional_weight:  # no network is decoded
        arrays |= {n: None for n in ("base", "basis") if n in arrays}

    def draw(params, condition):
        return mean_networks(generator.bind(generator.arrays() | {"mean_params": params}), condition, mesh)

    return Stage(
        name=MEAN,
        config=config,
        settings=settings,
        folder=MEAN,
        before=0,
        init=generator.init_mean,
        loss=functools.partial(mean_loss, generator),
        constants=make_constants(generator) | {"generator": arrays},
        batches=functools.partial(data.training_batches, networks, wordings, **options),
        identity=data.fingerprint(networks, zoo, config.seed, settings.batch_size),
        **_validation(generator, mesh, **{MEAN: draw}),
    )


def prior(generator: Generator, zoo: str, mesh: Mesh) -> Stage:
    """The prior's training on the refined zoo of a refined generator; `zoo` is the zoo's fingerprint."""
    config, batch_size = generator.config, generator.config.train.batch_size
    coefficients = hashlib.sha256(np.asarray(generator.refined.coefficients).tobytes()).hexdigest()
    samplers = functools.cache(lambda: Samplers(generator, mesh))
    key = rng.stream(config.seed, "train/validation")

    def draw(name: str) -> Callable[[PyTree, dict], PyTree]:
        return lambda params, condition: samplers().networks(params, name, condition, key)

    return Stage(
        name=PRIOR,
        config=config,
        settings=_settings(config, "train"),
        folder=CHECKPOINTS,
        before=config.mean.steps,
        init=generator.init,
        loss=functools.partial(prior_loss, generator),
        constants={"refined": generator.refined, "sets": training_sets(generator)},
        batches=functools.partial(data.numbered_batches, batch_size=batch_size),
        identity={"zoo": zoo, "refined": coefficients, "seed": config.seed, "batch_size": batch_size},
        **_validation(generator, mesh, **{n: draw(n) for n in config.sample.samplers[:2]}),
    )


def mean_loss(generator: Generator, params: PyTree, batch: dict, constants: dict, keys: Keys) -> Losses:
    """Mean over the examples of a batch: what the networks do on images of their tasks, and how far they lie from the
    zoo's networks of the same task, in normalised weights."""
    config = generator.config.mean
    generator = generator.bind(constants["generator"] | {"mean_params": params})
    streams = jax.vmap(lambda k: jax.random.split(k, 2))(keys)
    condition = training_condition(generator, constants, batch["task"], batch["wording"], streams[:, 0], drop_all=0.0)
    z = generator.mean_tokens(condition)
    loss, parts = jnp.zeros(()), {}
    if config.zoo_weight:
        distance, fitted = _distance_from_zoo(generator, z, batch["params"]), batch["fitted"]
        parts["zoo_loss"] = jnp.where(fitted, distance, 0).sum() / jnp.maximum(fitted.sum(dtype=distance.dtype), 1)
        loss += config.zoo_weight * parts["zoo_loss"]
    if config.functional_weight:
        shape, images = (config.functional_images,), len(constants["y"])
        rows = jax.vmap(lambda k: jax.random.randint(k, shape, 0, images))(streams[:, 1])
        variables = jax.tree.map(lambda v: v[batch["task"]], constants["variables"])
        of_tasks = jax.vmap(generator.family.of_task, (0, None, None, 0))
        x, y = of_tasks(variables, constants["x"], constants["y"], rows)
        parts |= _on_images(generator, z, x, y)
        loss += config.functional_weight * (parts["functional_loss"] + config.base_penalty * parts["base_distance"])
    return loss, {"loss": loss, **parts}


def _distance_from_zoo(generator: Generator, z: Array, networks: PyTree) -> Float[Array, " batch"]:
    """Mean squared distance, over weights that vary, of normal forms from networks of the zoo."""
    if generator.coordinates:  # and so are the networks
        return jnp.square(z - networks).mean((1, 2))
    varying = stats.varying(generator.stats)
    error = jnp.square(z - generator.normalize(networks))
    return jnp.where(varying, error, 0).sum((1, 2)) / varying.sum(dtype=error.dtype)


def _on_images(generator: Generator, z: Array, x: Array, y: Array) -> dict[str, Float[Array, ""]]:
    """What the networks of normal forms answer on images, and how far they are from the base; means over them.

    Large networks are decoded a few at a time, and once more for their gradients.
    """
    base = codec.take(generator.spec, generator.base)

    def measured(z: Array, x: Array, y: Array) -> tuple[Array, Array]:
        networks = generator.denormalize(z)
        loss = losses.functional_loss(networks, generator.differentiated, x, y)
        return loss, losses.squared_distance(networks, base)

    loss, distance = sharding.in_parts(measured, (z, x, y), max(1, DECODED // generator.spec.num_params))
    return {"functional_loss": loss.mean(), "base_distance": distance.mean()}


def _in_coordinates(generator: Generator, networks: Networks | StoredNetworks) -> Networks:
    """The seen networks with their coordinates in place of their parameters."""
    columns = {name: getattr(networks, name) for name in COLUMNS}
    return Networks(params=generator.stored.seen[:, None], **columns)


def prior_loss(generator: Generator, params: PyTree, batch: dict, constants: dict, keys: Keys) -> Losses:
    """Denoising score matching on the refined zoo, mean over the examples of a batch.

    An example is a set of tasks and a network of one of them: of all tasks for a share of `condition.drop_all`, of
    those that a vague description names for a share of `refined.vague`, else of a single task.
    """
    config, diffusion = generator.config, generator.config.diffusion
    streams = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
    chosen, members = jax.vmap(lambda k: _draw_set(config, constants, k))(streams[:, 0])
    x0 = constants["refined"].coefficients[chosen].reshape(len(chosen), -1, config.subspace.token_dim)
    top = (diffusion.sigma_max, diffusion.at_sigma_max)
    sigma = losses.training_noise_ratios(generator.path, streams[:, 1], *top)
    noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(streams[:, 2])
    denoised = generator.denoiser(params, members)(x0 + sigma[:, None, None] * noise, sigma)
    loss = losses.denoising_loss(denoised, x0, sigma).mean()
    return loss, {"loss": loss, "denoising_loss": loss}


def _draw_set(
    config: ConfigDict, constants: dict, key: PRNGKeyArray
) -> tuple[Int[Array, ""], Float[Array, "members components"]]:
    """The row of one example's network, and the mean's networks that stand for its set of tasks.

    The row is none of theirs: else the prior would learn to draw from these few alone.
    """
    refined, sets = constants["refined"], constants["sets"]
    kind, which, turn = jax.random.split(key, 3)
    total, share = len(refined.means), jax.random.uniform(kind)
    rows = jnp.broadcast_to(jax.random.randint(which, (), 0, total), (2 * MEMBERS,))
    if len(sets):
        vague = sets[jax.random.randint(which, (), 0, len(sets))]
        vague = jnp.roll(vague, jax.random.randint(turn, (), 0, 2 * MEMBERS))  # other members each time
        rows = jnp.where(share < config.condition.drop_all + config.refined.vague, vague, rows)
    every = jax.random.randint(which, (2 * MEMBERS,), 0, total)
    rows = jnp.where(share < config.condition.drop_all, every, rows)
    return rows[-1], refined.means[rows[:MEMBERS]]


def _settings(config: ConfigDict, part: str) -> ConfigDict:
    """`config.train`, with the steps, batch size and learning rate of that part of the config."""
    settings = config.train.copy_and_resolve_references()
    with settings.unlocked():
        for name in ("steps", "batch_size", "learning_rate"):
            settings[name] = config[part][name]
        settings.warmup_steps = min(settings.warmup_steps, settings.steps - 1)
    return settings


def _validation(generator: Generator, mesh: Mesh, **draw: Callable[[PyTree, dict], PyTree]) -> dict:
    """What a stage measures as it trains: accuracy of one network for each validation task, or where there are none for
    each seen one, on validation images, which nothing was trained on."""
    family = generator.family
    if not family.data:  # without images nothing is scored
        return {}
    tasks = family.split(family.choosing_split)
    ids = np.array([t.id for t in tasks], np.int32)
    score = functools.cache(lambda: Scorer(generator, "validation", mesh))

    def validate(params: PyTree) -> dict[str, Float[np.ndarray, " tasks"]]:
        condition = generator.condition(tasks, given=generator.config.sample.condition)
        return {name: score()(networks(params, condition), ids) for name, networks in draw.items()}

    return {"validate": validate, "tasks": tasks, "factor_names": family.factor_names}
