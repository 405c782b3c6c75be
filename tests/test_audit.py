"""Planted copiers, averagers and noisers against an honest generator, on real zoos of small digit MLPs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from pdiff import audit as audit_lib
from pdiff.evaluators import novelty
from pdiff.evaluators.accuracy import Answers
from pdiff.targets import get_target
from pdiff.tasks import images
from pdiff.weights import codec
from pdiff.weights.spec import make_spec
from pdiff.zoo import finetune

ZOO, FRESH, STEPS = 100, 24, 400
CONFIG = common.get_config()
TARGET = get_target(CONFIG.target, (8, 8), 10)
SPEC = make_spec(TARGET.abstract(), token_dim=250)  # 2,410 parameters and some padding
DATA = images.digits(CONFIG.tasks).parts
MEAN = 9.0  # of k networks


def fine_tuned(starts, seeds, steps=STEPS, keep_last=1):
    """Tokens (nets * kept, tokens, dim) of networks trained from `starts` by AdamW with their seeds' minibatches."""
    optimizer = finetune.make_optimizer(1e-2, 1e-2, steps, "cosine")
    draw = finetune.minibatches(DATA["train"].x, DATA["train"].y, 64)

    def one(start, seed):
        key = jax.random.fold_in(jax.random.key(1), seed)
        return finetune.train(TARGET, optimizer, start, draw, key, steps=steps, keep_last=keep_last)

    kept = jax.jit(jax.vmap(one))(starts, jnp.asarray(seeds))
    made = jax.vmap(jax.vmap(lambda p: codec.encode_part(SPEC, p)))(kept)
    return np.asarray(made).reshape(-1, *made.shape[2:])


@jax.jit
def logits(tokens):
    return jax.vmap(lambda t: TARGET.apply(codec.decode_part(SPEC, t), DATA["test"].x))(tokens)


def ask(tokens, task):
    said = np.asarray(logits(jnp.asarray(tokens)))
    predicted = said.argmax(-1)
    return Answers(predicted, predicted == DATA["test"].y, np.asarray(jax.nn.softmax(said[:, :200])))


@functools.cache
def zoo(kind):
    """(zoo of one task, fresh networks): of random initialisations, or all from one base as a run makes them."""
    seeds = np.arange(ZOO + FRESH)
    if kind == "independent":
        starts = jax.vmap(TARGET.init)(jax.vmap(jax.random.key)(seeds))
    else:
        base = TARGET.init(jax.random.key(99))
        base = codec.decode_part(SPEC, fine_tuned(jax.tree.map(lambda a: a[None], base), [999])[0])
        starts = jax.tree.map(lambda a: jnp.repeat(a[None], len(seeds), 0), base)
    made = fine_tuned(starts, seeds)
    return made[:ZOO], made[ZOO:]


ONE_TASK = {0: novelty.Compared(np.arange(ZOO), ZOO, np.arange(ZOO))}


def audit(tokens, of, **options):
    return audit_lib.audit({0: tokens}, of, ONE_TASK, ask, SPEC, **options)


def noised(of, scale):
    rms = np.sqrt((of**2).sum() / len(of) / SPEC.num_params)
    noise = np.random.default_rng(5).standard_normal((FRESH, *of.shape[1:]))
    return (of[:FRESH] + scale * rms * noise * SPEC.mask).astype(np.float32)


def averaged(of, count):
    random = np.random.default_rng(6)
    return np.stack([of[random.choice(ZOO, count, replace=False)].mean(0) for _ in range(FRESH)])


PLANTED = {
    "copies": lambda of, fresh: of[::4][:FRESH],
    "noised copies 0.05": lambda of, fresh: noised(of, 0.05),
    "noised copies 0.2": lambda of, fresh: noised(of, 0.2),
    "averages 2": lambda of, fresh: averaged(of, 2),
    "averages 16": lambda of, fresh: averaged(of, 16),
    "new": lambda of, fresh: fresh,
}


@functools.cache
def audited(kind, planted):
    return audit(PLANTED[planted](*zoo(kind)), zoo(kind)[0])


@pytest.mark.parametrize("kind", ["independent", "shared base"])
@pytest.mark.parametrize("planted", PLANTED)
def test_what_was_planted_is_found(kind, planted):
    found = audited(kind, planted)["verdict"]
    wanted = planted.rstrip("0.12356789 ")
    assert found["kind"] == wanted, found
    assert found["shares"]["generated"][wanted] > 0.9 and found["shares"]["zoo"]["new"] > 0.9
