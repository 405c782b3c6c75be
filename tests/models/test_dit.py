"""The transformer: zero at initialization, blind to padding and to dropped conditions, sensitive to the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.models.conditions import fourier
from pdiff.models.dit import make_model


def randomized(params, seed=0):
    """Parameters in which nothing is zero any more."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def inputs(tiny):
    tasks = tiny.family.tasks[:4]
    x = jax.random.normal(jax.random.key(1), (4, tiny.spec.num_tokens, tiny.spec.token_dim))
    return x, jnp.linspace(-1, 1, 4), tiny.condition(tasks)


def test_output_is_zero_at_initialization(tiny, inputs):
    params = tiny.init(jax.random.key(0))
    assert not tiny.model.apply({"params": params}, *inputs).any()


def test_examples_do_not_mix(tiny, inputs):
    params = randomized(tiny.init(jax.random.key(0)))
    whole = tiny.model.apply({"params": params}, *inputs)
    alone = tiny.model.apply({"params": params}, *jax.tree.map(lambda a: a[2:3], inputs))
    np.testing.assert_allclose(whole[2:3], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["id", "text"])
def test_every_condition_matters_until_it_is_dropped(tiny, inputs, name):
    params = randomized(tiny.init(jax.random.key(0)))
    x, c_noise, condition = inputs
    # The same x for all, so that only the condition can tell the examples apart.
    x, c_noise = jnp.broadcast_to(x[:1], x.shape), jnp.zeros(4)

    def spread(keep):
        given = {n: c | {"keep": np.full(4, n in keep)} for n, c in condition.items()}
        out = tiny.model.apply({"params": params}, x, c_noise, given)
        return float(jnp.abs(out - out[:1]).max())

    assert spread([name]) > 1e-3
    assert spread([]) == 0


def test_padding_of_the_text_changes_nothing(tiny, inputs):
    params = randomized(tiny.init(jax.random.key(0)))
    x, c_noise, condition = inputs
    text = condition["text"]["inputs"]
    padding = text["ids"] == 0
    assert padding.any()
    dirty = text | {"values": np.where(padding, 77, text["values"]), "is_number": text["is_number"] | padding}
    changed = condition | {"text": condition["text"] | {"inputs": dirty}}
    a = tiny.model.apply({"params": params}, x, c_noise, condition)
    b = tiny.model.apply({"params": params}, x, c_noise, changed)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_padding_and_constants_of_the_weights_change_nothing(tiny, inputs):
    params = randomized(tiny.init(jax.random.key(0)))
    x, _, condition = inputs
    denoise = jax.jit(tiny.denoiser(params, tiny.context(params, condition)))
    still = ~np.asarray(tiny.stats.scale > 0)
    assert still.any()
    sigma = jnp.full(4, 0.7)
    np.testing.assert_array_equal(denoise(x, sigma), denoise(jnp.where(still, 1e3, x), sigma))
    assert not np.asarray(denoise(x, sigma))[:, still].any()


def test_remat_changes_memory_not_numbers(tiny, inputs):
    params = randomized(tiny.init(jax.random.key(0)))
    again = tiny.model.clone(dit=tiny.model.dit.clone(remat=True))
    np.testing.assert_allclose(
        tiny.model.apply({"params": params}, *inputs), again.apply({"params": params}, *inputs), rtol=1e-6, atol=1e-6
    )


def test_bfloat16_activations_stay_close(tiny, inputs):
    params = randomized(tiny.init(jax.random.key(0)))
    exact = tiny.model.apply({"params": params}, *inputs)
    rough = tiny.model.clone(dit=tiny.model.dit.clone(dtype=jnp.bfloat16)).apply({"params": params}, *inputs)
    assert rough.dtype == jnp.float32
    assert float(jnp.abs(exact - rough).max()) < 0.1 * float(jnp.abs(exact).max())


def test_more_tokens_than_fit_are_refused(tiny):
    config = tiny.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.max_tokens = 5
    with pytest.raises(PdiffError, match="model.max_tokens"):
        make_model(config, tiny.spec, tiny.family, 300)


def test_fourier_features_wrap():
    x = jnp.array([0.0, 45.0, 359.0])
    np.testing.assert_allclose(fourier(x, 4, 360.0), fourier(x + 360, 4, 360.0), atol=1e-4)
    assert fourier(x, 4, 360.0).shape == (3, 8)
