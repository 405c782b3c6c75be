"""What normalisation promises: unit rms where something varies, and the exact value where nothing does."""

import functools
import tracemalloc
import weakref

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdiff.errors import PdiffError
from pdiff.weights import stats as stats_module
from pdiff.weights.spec import make_spec
from pdiff.weights.stats import CENTERS, SCALES, denormalize, fit, normalize, varying
from tests.annotations import unchecked

TREE = {
    "a": {"kernel": np.zeros((5, 3), np.float32), "bias": np.zeros(3, np.float32)},
    "b": {"kernel": np.zeros((3, 2), np.float32)},
}
SPEC = make_spec(TREE, token_dim=7)
SHAPE = (SPEC.num_tokens, SPEC.token_dim)


def zoo(n=40, seed=0):
    """Leaves of very different widths around centers that are far from zero, zero in the padding."""
    rng = np.random.default_rng(seed)
    width = np.array([1e-3, 1.0, 30.0])[SPEC.element_leaf] * rng.uniform(0.5, 2, SHAPE)
    tokens = 5 * rng.normal(size=SHAPE) + width * rng.normal(size=(n, *SHAPE))
    return np.where(SPEC.mask, tokens, 0).astype(np.float32)


def base(seed=1):
    return np.where(SPEC.mask, np.random.default_rng(seed).normal(size=SHAPE), 0).astype(np.float32)


def rms(z, where):
    return np.sqrt(np.square(np.asarray(z, np.float64))[:, where].mean())


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("scale", SCALES)
def test_normalised_rms_is_one(center, scale):
    tokens = zoo()
    tokens[:, 0, 2] = 0.25  # a constant must not dilute its leaf's scale
    stats = fit(SPEC, tokens, center=center, scale=scale, base_tokens=base())
    on = np.asarray(varying(stats))
    assert on.sum() == SPEC.num_params - 1 and not on[0, 2] and not on[~SPEC.mask].any()
    z = np.asarray(normalize(stats, tokens))
    # 1e-4: the narrow leaf varies by 1e-3 around 5, whose float32 spacing is 5e-7.
    assert rms(z, on) == pytest.approx(1, abs=1e-4)
    if scale == "leaf":
        for leaf in range(len(SPEC.leaves)):
            assert rms(z, on & (SPEC.element_leaf == leaf)) == pytest.approx(1, abs=1e-4)
            assert len(np.unique(np.asarray(stats.scale)[on & (SPEC.element_leaf == leaf)])) == 1
    elif scale == "param":
        np.testing.assert_allclose(np.square(z, dtype=np.float64).mean(0)[on], 1, atol=2e-4)
    else:
        assert len(np.unique(np.asarray(stats.scale)[on])) == 1
    if center == "mean":
        np.testing.assert_allclose(np.asarray(stats.center)[on], tokens.mean(0, np.float64)[on], rtol=1e-7)
    else:
        np.testing.assert_array_equal(np.asarray(stats.center)[on], base()[on])
    np.testing.assert_allclose(denormalize(stats, z), tokens, rtol=1e-6, atol=1e-6)
    assert not np.asarray(stats.center)[~SPEC.mask].any() and not np.asarray(stats.scale)[~SPEC.mask].any()


@pytest.mark.parametrize("center", CENTERS)
def test_constants_come_back_bit_for_bit(center):
    tokens = zoo()
    constants = np.float32([0.1, -0.0, 0.0, 3e38, 1e-38, -7.7])
    tokens[:, 1, :6] = constants
    stats = fit(SPEC, tokens, center=center, scale="param", base_tokens=base())
    assert not varying(stats)[1, :6].any() and varying(stats)[0].all()
    z = normalize(stats, tokens + 1)
    assert not np.asarray(z)[:, 1, :6].any()
    wild = np.full_like(tokens, np.inf)
    assert np.asarray(denormalize(stats, wild))[3, 1, :6].tobytes() == constants.tobytes()


def test_rounding_is_not_variation():
    tokens = zoo()
    value = np.float32(0.3)
    tokens[:, 0, 0] = np.where(np.arange(40) % 2, value, np.nextafter(value, np.float32(1)))
    tokens[:, 0, 1] = np.linspace(0, 1e-35, 40)
    tokens[:, 0, 2] = value * (1 + np.linspace(0, 1e-4, 40))  # small, yet a thousand roundings wide
    stats = fit(SPEC, tokens, scale="param")
    assert varying(stats)[0, :3].tolist() == [False, False, True]
    assert abs(stats.center[0, 0] - value) <= np.spacing(value)
    assert np.isfinite(np.asarray(normalize(stats, tokens))).all()


def test_float64_accumulation_in_blocks(monkeypatch):
    """A large offset with a small spread defeats float32 sums; blocks must not change the answer."""
    rng = np.random.default_rng(0)
    tokens = (1000 + rng.normal(size=(2000, *SHAPE))).astype(np.float32)
    whole = fit(SPEC, tokens, scale="param")
    monkeypatch.setattr(stats_module, "BLOCK_ELEMENTS", 100)
    parts = fit(SPEC, tokens, scale="param")
    np.testing.assert_allclose(whole.scale, parts.scale, rtol=1e-6)
    np.testing.assert_array_equal(whole.center, parts.center)
    exact = tokens.astype(np.float64).std(0)
    np.testing.assert_allclose(np.asarray(parts.scale)[SPEC.mask], exact[SPEC.mask], rtol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 30), st.sampled_from(SCALES), st.floats(-8, 8))
def test_scale_follows_the_data(seed, n, scale, exponent):
    """fit(2^k x) is 2^k fit(x) exactly, so normalised data do not depend on the weights' units."""
    factor = np.float32(2.0 ** round(exponent))
    tokens = zoo(n, seed)
    one, other = fit(SPEC, tokens, scale=scale), fit(SPEC, factor * tokens, scale=scale)
    np.testing.assert_array_equal(np.asarray(one.scale) * factor, other.scale)
    np.testing.assert_array_equal(normalize(one, tokens), normalize(other, factor * tokens))


def test_stats_are_a_pytree_under_jit():
    tokens = zoo()
    stats = fit(SPEC, tokens)
    assert len(jax.tree.leaves(stats)) == 2
    np.testing.assert_allclose(
        jax.jit(lambda s, x: denormalize(s, normalize(s, x)))(stats, tokens), tokens, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"center": "median"}, ["'median'", "mean, base"]),
        ({"scale": "std"}, ["'std'", "param, leaf, global"]),
        ({"center": "base"}, ["needs base_tokens", "none"]),
        ({"center": "base", "base_tokens": np.zeros((1, 2))}, ["(1, 2)"]),
        ({"center": "base", "base_tokens": np.full(SHAPE, np.nan)}, ["base_tokens", "finite"]),
        ({"tokens": np.zeros((3, 2, 2), np.float32)}, ["(3, 2, 2)"]),
        ({"tokens": np.zeros((0, *SHAPE), np.float32)}, ["n >= 1"]),
        ({"tokens": np.ones((4, *SHAPE), np.float32)}, ["all 24 parameters", "4 networks"]),
    ],
)
def test_errors(change, words):
    with unchecked(), pytest.raises(PdiffError) as error:
        fit(SPEC, **({"tokens": zoo()} | change))
    assert all(word in str(error.value) for word in words)


def test_non_finite_weights_are_named(monkeypatch):
    monkeypatch.setattr(stats_module, "BLOCK_ELEMENTS", 100)
    tokens = zoo()
    tokens[17, 3, 1] = np.inf
    with pytest.raises(PdiffError, match="network 17 of the zoo has inf in 'b/kernel'"):
        fit(SPEC, tokens)


def test_one_pass_holds_one_block_at_a_time():
    """Peak memory does not grow with the zoo: two hundred blocks take what two do, and one is gone before the next."""
    alive, most = weakref.WeakSet(), []

    class Block(np.ndarray):
        """An array that can be referred to weakly, and hashed for that."""

        __hash__ = object.__hash__

    def blocks(count):
        random = np.random.default_rng(0)
        for _ in range(count):
            made = random.normal(size=(200, *SHAPE)).astype(np.float32).view(Block)
            alive.add(made)
            most.append(len(alive))
            yield made
            del made

    peaks = {}
    fit(SPEC, blocks(2))  # what is imported and compiled once
    for count in (2, 200):
        tracemalloc.start()
        fit(SPEC, blocks(count))
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    size = 200 * SPEC.num_tokens * SPEC.token_dim * 4
    assert max(most) <= 2  # JAX may let go of an array a moment after it is done with it
    assert peaks[200] < peaks[2] + 2 * size < 20 * size, peaks


def test_welford_keeps_what_a_huge_mean_hides():
    """Chan's update of float64 blocks against two passes in extended precision; E x^2 - (E x)^2 has no digit left."""
    random = np.random.default_rng(0)
    x = 1e9 + random.normal(size=(5000, 3))
    parts = [stats_module.moments(b) for b in np.array_split(x, [1, 2, 100, 1100, 1103, 4000])]
    whole = functools.reduce(stats_module.merged, parts)
    wide = x.astype(np.longdouble)
    exact = np.square(wide - wide.mean(0)).sum(0)
    naive = np.square(x).sum(0) - len(x) * np.square(x.mean(0))
    assert whole.count == len(x)
    np.testing.assert_allclose(whole.mean, wide.mean(0).astype(float), rtol=4e-15)  # a few roundings
    np.testing.assert_allclose(whole.squares, exact.astype(float), rtol=1e-7)  # the means are known to 1e-7
    assert (np.abs(naive / exact.astype(float) - 1) > 1e-2).all()


def test_blocks_or_an_array():
    tokens = zoo()
    fitted, streamed = fit(SPEC, tokens), fit(SPEC, iter(np.split(tokens, [1, 9, 30])))
    np.testing.assert_allclose(streamed.center, fitted.center, rtol=1e-7)
    np.testing.assert_allclose(streamed.scale, fitted.scale, rtol=1e-6)
