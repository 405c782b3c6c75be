"""The spread of weights within a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.weights import stats
from pdiff.weights.spec import make_spec


def zoo_of(tasks, seeds, between, within):
    spec = make_spec({"w": jax.ShapeDtypeStruct((40, 50), jnp.float32)}, token_dim=256)
    random = np.random.default_rng(0)
    means = between * random.standard_normal((tasks, 1, spec.num_params))
    flat = (means + within * random.standard_normal((tasks, seeds, spec.num_params))).reshape(tasks * seeds, -1)
    padded = np.zeros((len(flat), spec.num_tokens * spec.token_dim), np.float32)
    padded[:, : spec.num_params] = flat
    return spec, padded.reshape(len(flat), spec.num_tokens, spec.token_dim), np.repeat(np.arange(tasks), seeds)


@pytest.mark.parametrize("scale", ["leaf", "global", "param"])
def test_it_is_the_share_of_the_standard_deviation_within_tasks(scale):
    spec, tokens, task = zoo_of(200, 3, between=2.0, within=0.5)
    fitted = stats.fit(spec, tokens, scale=scale)
    assert stats.spread_within(fitted, tokens, task) == pytest.approx(0.5 / np.hypot(2.0, 0.5), rel=0.02)


def test_one_network_for_each_task_says_nothing_so_it_is_one():
    spec, tokens, task = zoo_of(50, 1, between=1.0, within=0.1)
    assert stats.spread_within(stats.fit(spec, tokens), tokens, task) == 1.0


def test_copies_do_not_make_it_zero():
    spec, tokens, task = zoo_of(50, 2, between=1.0, within=0.0)
    assert stats.spread_within(stats.fit(spec, tokens), tokens, task) == 0.02
