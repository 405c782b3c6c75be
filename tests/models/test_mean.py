"""The mean: the zoo's centre at initialization, blind to padding and to dropped conditions, sensitive to the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.models.conditions import Mixture
from pdiff.weights import stats
from tests.noise import noised


@pytest.fixture(scope="module")
def fresh(tiny_start):
    return dataclasses.replace(tiny_start, mean_params=jax.jit(tiny_start.init_mean)(jax.random.key(0)))


@pytest.fixture(scope="module")
def made(fresh):
    """A generator whose mean has parameters of which none is zero."""
    return dataclasses.replace(fresh, mean_params=noised(fresh.mean_params, 0.1))


@pytest.fixture(scope="module")
def networks(made):
    return jax.jit(made.mean_tokens)


@pytest.fixture(scope="module")
def condition(made):
    return made.condition(made.family.tasks[:4])


def test_the_centre_of_the_zoo_at_initialization(fresh, condition):
    z = jax.jit(fresh.mean_tokens)(condition)
    assert z.shape == (4, fresh.spec.num_tokens, fresh.spec.token_dim) and not z.any()


def test_examples_do_not_mix(networks, condition):
    alone = networks(jax.tree.map(lambda a: a[2:3], condition))
    np.testing.assert_allclose(networks(condition)[2:3], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["id", "text"])
def test_every_condition_matters_until_it_is_dropped(networks, condition, name):
    def spread(keep):
        out = networks({n: c | {"keep": np.full(4, n in keep)} for n, c in condition.items()})
        return float(jnp.abs(out - out[:1]).max())

    assert spread([name]) > 1e-3
    assert spread([]) == 0


def test_padding_of_the_text_changes_nothing(networks, condition):
    text = condition["text"]["inputs"]
    padding = text["ids"] == 0
    assert padding.any()
    dirty = text | {"values": np.where(padding, 77, text["values"]), "is_number": text["is_number"] | padding}
    changed = condition | {"text": condition["text"] | {"inputs": dirty}}
    np.testing.assert_allclose(networks(condition), networks(changed), atol=1e-5)


def test_padding_and_constants_of_the_weights_are_zero(made, networks, condition):
    still = ~np.asarray(stats.varying(made.stats))
    assert still.any()
    assert not np.asarray(networks(condition))[:, still].any()


def test_a_mixture_goes_from_one_network_to_the_other(networks, condition):
    turned = jax.tree.map(lambda x: x[::-1], condition)
    ends = [networks(Mixture(condition, turned, jnp.full(4, w))) for w in (0.0, 1.0)]
    np.testing.assert_allclose(ends[0], networks(condition), atol=1e-5)
    np.testing.assert_allclose(ends[1], networks(turned), atol=1e-5)
    between = networks(Mixture(condition, turned, jnp.full(4, 0.5)))
    assert jnp.abs(between - ends[0]).max() > 1e-3 < jnp.abs(between - ends[1]).max()
