"""Training many small networks at once: `scan` over steps inside `vmap` over networks.

Minibatches are drawn from the seed alone, never from the task. Two networks of one seed then see the same rows in the
same order, so that weights differ between tasks only by the tasks themselves (common random numbers), and between
seeds by everything else.

Running statistics of BatchNorm (Ioffe & Szegedy 2015) are part of a network. Where `target.generate` matches them, as
the default '.*' does, training normalises by the batch and updates them, and they are generated like parameters. Where
it does not, they stay the base's bit for bit, and training normalises by them too, so that training and use agree.
Neither gradients nor weight decay act on them. Pretraining always updates them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree, Shaped
from ml_collections import ConfigDict

from pdiff import rng
from pdiff.errors import PdiffError
from pdiff.targets import Target
from pdiff.targets.base import RUNNING
from pdiff.weights import codec
from pdiff.weights.spec import make_spec

DRAWN_TOGETHER = 128  # steps whose minibatches are drawn at once, where so many divide the number of steps


def make_optimizer(
    learning_rate: float, weight_decay: float, steps: int, schedule: str
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019); `schedule` is constant, or a cosine to a hundredth of the rate.

    Weights decay, running statistics do not.
    """
    rate = learning_rate
    if schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, steps, alpha=0.01)
    return optax.adamw(rate, weight_decay=weight_decay, mask=_decays)


@dataclasses.dataclass(frozen=True)
class Minibatches:
    """Minibatches in two parts, so that what is random in those of many steps is drawn at once.

    Attributes:
      rows: the key of a step -> what is drawn for it, such as rows of images.
      take: that -> the minibatch.
    """

    rows: Callable[[PRNGKeyArray], PyTree[Int[Array, "..."]]]
    take: Callable[[PyTree[Int[Array, "..."]]], tuple[Float[Array, "batch features"], Int[Array, " batch"]]]


def minibatches(x: Float[ArrayLike, "n features"], y: Int[ArrayLike, " n"], batch_size: int) -> Minibatches:
    """Minibatches of labelled images, drawn with replacement."""
    x, y = jnp.asarray(x), jnp.asarray(y)  # a traced index into a NumPy array is an error
    return Minibatches(lambda key: draw_rows(key, len(y), batch_size), lambda rows: (x[rows], y[rows]))


def draw_rows(key: PRNGKeyArray, count: int, batch_size: int) -> Int[Array, " batch"]:
    """Which of `count` images are in a minibatch."""
    return jax.random.randint(key, (batch_size,), 0, count)


def train(
    target: Target,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    batches: Minibatches,
    key: PRNGKeyArray,
    *,
    steps: int,
    keep_last: int = 1,
    keep_every: int = 1,
) -> PyTree[Float[Array, "kept ..."]]:
    """Trains one network from `params` by cross-entropy on `batches`, of a key for each step.

    Returns the parameters after the last `keep_last` multiples of `keep_every` steps before the end, oldest first; the
    last is always the one after `steps` updates.
    """

    def loss(columns, x, y):  # and the parameters with their running statistics updated, if there are any
        params = _transposed(columns)
        logits, params = target.apply_train(params, x) if target.apply_train else (target.apply(params, x), params)
        return cross_entropy(logits, y), _transposed(params)

    def update(carry, rows):
        params, state = carry
        grads, params = jax.grad(loss, has_aux=True)(params, *batches.take(rows))
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(carry, start, count):
        together = max(n for n in range(1, DRAWN_TOGETHER + 1) if count % n == 0)

        def block(carry, first):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(together))
            return jax.lax.scan(update, carry, jax.vmap(batches.rows)(keys), length=together)

        return jax.lax.scan(block, carry, start + jnp.arange(0, count, together))[0]

    def segment(carry, start):
        carry = run(carry, start, keep_every)
        return carry, carry[0]

    burn_in = steps - (keep_last - 1) * keep_every
    columns = _transposed(params)
    carry = run((columns, optimizer.init(columns)), 0, burn_in)
    _, later = jax.lax.scan(segment, carry, burn_in + keep_every * jnp.arange(keep_last - 1))
    checkpoints = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), carry[0], later)
    return jax.vmap(_transposed)(checkpoints)


def _transposed(params: PyTree) -> PyTree:
    """Matrices as a step holds them, and back: with outputs before inputs, as `layers.Dense` multiplies by them."""
    return jax.tree.map(lambda p: jnp.swapaxes(p, -1, -2) if p.ndim == 2 else p, params)


def cross_entropy(logits: Float[Array, "n classes"], y: Int[Array, " n"]) -> Float[Array, ""]:
    """Mean cross-entropy in nats. A mask picks the labels' logits: a gather's gradient would be a slow scatter."""
    columns = logits.T  # examples last, as in `layers.Dense`
    labelled = jnp.where(jnp.arange(len(columns))[:, None] == y, columns, 0).sum(0)
    return (jax.nn.logsumexp(columns, 0) - labelled).mean()


def _decays(params: PyTree) -> PyTree[bool]:
    """Which leaves weight decay acts on: all but running statistics, in a tree or in leaves by path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/").split("/")[0] != RUNNING, params
    )


def check(target: Target, config: ConfigDict) -> None:
    """Raises PdiffError, before any work, where `config` (the `zoo` part) cannot train the target, or align it."""
    if target.apply_train and config.batch_size < 2:
        raise PdiffError(
            f"zoo.batch_size: got {config.batch_size}; allowed for a {target.name}, whose BatchNorm "
            "normalises by the batch: at least 2"
        )
    if config.align != "none":
        target.generated_permutations(f"zoo.align: got {config.align!r}")


def pretrain(
    target: Target, x: Float[Array, "n features"], y: Int[Array, " n"], config: ConfigDict, seed: int
) -> PyTree:
    """The shared base: one network trained on a family's pretraining images, but for what is frozen in it.

    Adapters wait for fine-tuning.

    Raises:
      PdiffError: as `check`.
    """
    check(target, config)
    optimizer = make_optimizer(config.pretrain_learning_rate, config.weight_decay, config.pretrain_steps, "cosine")
    fresh = jax.jit(target.init)(rng.stream(seed, "zoo/base/init"))
    trained = rf"(?!({target.frozen})$)(params|{RUNNING})/.*"
    part, start, whole = _only(dataclasses.replace(target, generate=trained), fresh)

    @jax.jit
    def fit(start, x, y, key):
        batches = minibatches(x, y, config.batch_size)
        return train(part, optimizer, start, batches, key, steps=config.pretrain_steps)

    checkpoints = fit(start, x, y, rng.stream(seed, "zoo/base/batches"))
    return whole(jax.tree.map(lambda p: p[0], checkpoints))


def finetune(
    target: Target,
    base: PyTree,
    rows: Callable[[PRNGKeyArray], PyTree[Int[Array, "..."]]],
    take: Callable[[PyTree, PyTree], tuple[Float[Array, "batch features"], Int[Array, " batch"]]],
    variables: PyTree[Shaped[Array, "nets ..."]],
    seeds: Int[Array, " nets"],
    config: ConfigDict,
    seed: int,
    task: Int[Array, " nets"] | int = -1,
) -> PyTree[Float[Array, "nets kept ..."]]:
    """One network for each row of `variables` and `seeds`. Pure; jit or shard it over `nets`.

    Each starts from `base`, or, where `config.init` is 'random', with the generated leaves of an initialisation of its
    own: another for every seed and `task` id (-1 is none).

    `rows(key)` draws and `take(variables of one network, rows)` makes its minibatches (`Minibatches`). Only the leaves
    that `target.generate` matches are trained, and only they are returned: the generated part (`codec.take`).

    Raises:
      PdiffError: it matches no leaf, or some running statistics only; and as `check`.
    """
    check(target, config)
    part, start, _ = _only(target, base)
    optimizer = make_optimizer(config.learning_rate, config.weight_decay, config.steps, config.schedule)
    keys = rng.per_example(rng.stream(seed, "zoo/batches"), seeds)
    by_task = rng.per_example(rng.stream(seed, "zoo/init"), jnp.broadcast_to(task, seeds.shape))
    spec = make_spec(base, generate=target.generate)
    length = {name: config[name] for name in ("steps", "keep_last", "keep_every")}

    def one(variables, key, init_key):
        first = codec.take(spec, target.init(init_key)) if config.init == "random" else start
        batches = Minibatches(rows, lambda drawn: take(variables, drawn))
        return train(part, optimizer, first, batches, key, **length)

    return jax.vmap(one)(variables, keys, jax.vmap(jax.random.fold_in)(by_task, seeds))


def _only(target: Target, base: PyTree) -> tuple[Target, PyTree, Callable[[PyTree], PyTree]]:
    """The target as functions of its generated part alone, that part of `base`, and the way back to a whole tree.

    It is for training: its `apply` is what is differentiated. `apply_train` is None where running statistics are not in
    that part, so that the base's are used.
    """
    spec = make_spec(base, generate=target.generate)

    def whole(part):
        return codec.complete(spec, part, base)

    def apply_train(part, x):
        logits, tree = target.apply_train(whole(part), x)
        return logits, codec.take(spec, tree)

    of_part = dataclasses.replace(
        target,
        apply=lambda part, x: target.differentiated(whole(part), x),
        apply_train=apply_train if target.updates_running() else None,
    )
    return of_part, codec.take(spec, base), whole
