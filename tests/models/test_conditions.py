"""Contexts: null where nothing is given, and mixed exactly."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pdiff.models.conditions import (
    BackgroundCondition,
    Conditions,
    Context,
    FactorsCondition,
    IdCondition,
    SentenceCondition,
    TextCondition,
    factor_units,
    fourier,
    lerp,
    mix,
    number_period,
    slerp,
)
from pdiff.tasks.base import Task
from tests.annotations import unchecked


@pytest.fixture(scope="module")
def module():
    encoders = {"factors": FactorsCondition(8, 2, (360.0,)), "background": BackgroundCondition(8)}
    return Conditions(encoders, 8)


def condition(factors=True, background=True):
    return {
        "factors": {"inputs": jnp.array([[10.0], [200.0]]), "keep": jnp.full(2, factors)},
        "background": {"inputs": jax.random.normal(jax.random.key(3), (2, 5)), "keep": jnp.full(2, background)},
    }


@pytest.fixture(scope="module")
def encode(module):
    params = module.init(jax.random.key(0), condition())
    return lambda c: module.apply(params, c)


def test_pooled_is_the_mean_of_what_is_given(encode):
    both, factors = encode(condition()), encode(condition(background=False))
    background = encode(condition(factors=False))
    np.testing.assert_allclose(factors.pooled, both.tokens[:, 0], atol=1e-6)
    np.testing.assert_allclose(background.pooled, both.tokens[:, 1], atol=1e-6)
    np.testing.assert_allclose(both.pooled, both.tokens.mean(1), atol=1e-6)
    nothing = encode(condition(False, False))
    np.testing.assert_array_equal(nothing.pooled[0], nothing.pooled[1])
    np.testing.assert_array_equal(nothing.tokens[0], nothing.tokens[1])


def test_each_of_all_conditions_has_its_own_token_and_its_own_null():
    encoders = {
        "id": IdCondition(8, 5),
        "factors": FactorsCondition(8, 2, (360.0,)),
        "text": TextCondition(8, 8, 1, 20, 16, 2, 360.0),
        "sentence": SentenceCondition(8),
        "background": BackgroundCondition(8),
    }
    ids = jnp.array([[3, 4, 0], [5, 2, 0]])
    inputs = {name: given["inputs"] for name, given in condition().items()} | {
        "id": jnp.array([0, 3]),
        "text": {"ids": ids, "values": jnp.where(ids == 2, 75.0, 0), "is_number": ids == 2},
        "sentence": jax.random.normal(jax.random.key(2), (2, 6)),
    }
    module = Conditions(encoders, 8)

    def given(dropped=()):
        return {n: {"inputs": inputs[n], "keep": jnp.full(2, n not in dropped)} for n in encoders}

    variables = module.init(jax.random.key(0), given())
    encode = jax.jit(lambda dropped: module.apply(variables, dropped))
    whole = encode(given())
    for i, name in enumerate(encoders):
        without = encode(given({name}))
        others = [j for j in range(len(encoders)) if j != i]
        null = variables["params"][f"null_{name}"][0]
        np.testing.assert_array_equal(without.tokens[:, i], jnp.broadcast_to(null, (2, 8)))
        np.testing.assert_array_equal(without.tokens[:, jnp.array(others)], whole.tokens[:, jnp.array(others)])
        np.testing.assert_allclose(without.pooled, whole.tokens[:, jnp.array(others)].mean(1), atol=1e-6)
        alone = encode(given(set(encoders) - {name}))
        np.testing.assert_allclose(alone.pooled, whole.tokens[:, i], atol=1e-6)
        assert jnp.abs(whole.tokens[0, i] - whole.tokens[1, i]).max() > 1e-3  # it tells two tasks apart
    nulls = [variables["params"][f"null_{name}"] for name in encoders]
    assert all(jnp.abs(a - b).max() > 1e-3 for a in nulls for b in nulls if a is not b)


def test_the_padding_of_a_text_is_not_seen():
    module = TextCondition(8, 8, 1, 20, 16, 2, 360.0)
    ids = jnp.array([[3, 4, 2, 5], [5, 2, 0, 0]])
    text = {"ids": ids, "values": jnp.where(ids == 2, 75.0, 0), "is_number": ids == 2}
    padded = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 12))), text)
    params = module.init(jax.random.key(0), text)
    same = module.init(jax.random.key(0), padded)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    np.testing.assert_allclose(module.apply(params, padded), module.apply(params, text), atol=1e-6)


def test_fourier_features_wrap():
    x = jnp.array([0.0, 45.0, 359.0])
    np.testing.assert_allclose(fourier(x, 4, 360.0), fourier(x + 360, 4, 360.0), atol=1e-4)
    assert fourier(x, 4, 360.0).shape == (3, 8)


def test_lerp_and_slerp():
    a, b = jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 4.0], [3.0, 3.0]])
    half = jnp.full(2, 0.5)
    np.testing.assert_allclose(lerp(a, b, half), [[1, 2], [2, 2]])
    root = np.sqrt(0.5)
    np.testing.assert_allclose(slerp(a, b, half), [[3 * root, 3 * root], [2, 2]], rtol=1e-6)  # the second is parallel
    for f in (lerp, slerp):
        np.testing.assert_allclose(f(a, b, jnp.array([0.0, 1.0])), [a[0], b[1]], atol=1e-6)


def test_mixing_is_per_example():
    a, b = (Context(jnp.full((2, 1, 3), v), jnp.full((2, 3), v)) for v in (1.0, 3.0))
    mixed = mix(a, b, jnp.array([0.25, 1.0]))
    np.testing.assert_allclose(mixed.pooled[:, 0], [1.5, 3.0])
    np.testing.assert_allclose(mixed.tokens[:, 0, 0], [1.5, 3.0])


@unchecked()  # the family has no more than what is read of it here
def test_periods_that_the_config_leaves_open_follow_the_seen_tasks():
    def task(i, split, x, y):
        return Task(f"t{i}", i, split, (x, y), (f"at {x:g} and {y:g}",), ())

    tasks = (task(0, "seen", 1, 30), task(1, "seen", 3, 10), task(2, "unseen", 90, 90))
    family = SimpleNamespace(
        factor_names=("x", "y"), units=(1.0, 1.0), tasks=tasks,
        split=lambda name: [t for t in tasks if t.split == name],
        factors=lambda some: np.array([t.factors for t in some], np.float32),
    )  # fmt: skip
    opened, said = (ConfigDict({"number_period": p}) for p in (0.0, 360.0))
    assert number_period(opened, family) == 2 * (30 - 1)  # held-out tasks choose nothing
    assert number_period(said, family) == 360 and factor_units(said, family) == (1.0, 1.0)
    units = factor_units(opened, family)
    np.testing.assert_allclose(np.array(units) * number_period(opened, family), [2 * 2, 2 * 20])
