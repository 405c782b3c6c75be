"""The subspace against NumPy's SVD, and what it holds exactly."""

import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.weights import subspace

SHAPE = (3, 5)


def blocks_of(networks, size=None):
    size = size or max(len(networks), 1)
    return lambda: (networks[i : i + size] for i in range(0, len(networks), size))


def drawn(count, rank, seed=0, noise=0.0):
    """Networks of that many directions around a common centre, the first with the most variance, and some noise."""
    random, fixed = np.random.default_rng(seed), np.random.default_rng(77)
    directions = np.linalg.qr(fixed.standard_normal((15, rank)))[0].T * (0.5 ** np.arange(rank))[:, None]
    flat = 3 + fixed.standard_normal(15) + random.standard_normal((count, rank)) @ directions
    return (flat + noise * random.standard_normal(flat.shape)).reshape(count, *SHAPE).astype(np.float32)


def fit(networks, held_out=None, **how):
    held_out = networks if held_out is None else held_out
    return subspace.fit(blocks_of(networks), blocks_of(held_out), **dict(most=8, explained=1 - 1e-9) | how)


def unexplained(fitted, networks):
    """The share of the networks' variance around the center that the subspace does not hold."""
    off = networks - fitted.reconstruct(fitted.project(networks))
    return np.square(off).sum() / np.square(networks - fitted.center).sum()


def test_networks_inside_come_back_exactly_and_others_as_the_nearest():
    fitted = fit(drawn(40, 4))
    assert fitted.basis.shape == (4, *SHAPE) and fitted.basis.dtype == fitted.center.dtype == np.float32
    others = drawn(9, 4, seed=1)
    np.testing.assert_allclose(fitted.reconstruct(fitted.project(others)), others, atol=1e-5)
    random = np.random.default_rng(2)
    away = others + random.standard_normal(others.shape).astype(np.float32)
    nearest = fitted.reconstruct(fitted.project(away))
    flat = np.asarray(fitted.basis).reshape(4, -1)
    np.testing.assert_allclose((away - nearest).reshape(9, -1) @ flat.T, 0, atol=1e-5)  # what is left is orthogonal
    coefficients = random.standard_normal((6, 4)).astype(np.float32)
    np.testing.assert_allclose(fitted.project(fitted.reconstruct(coefficients)), coefficients, atol=1e-5)


def test_it_is_the_singular_value_decomposition():
    networks = drawn(30, 6, noise=0.05)
    fitted = fit(networks, most=6, explained=1.0)
    flat = networks.reshape(30, -1).astype(np.float64)
    _, values, rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    np.testing.assert_allclose(fitted.center.ravel(), flat.mean(0), rtol=1e-6)
    basis = np.asarray(fitted.basis, np.float64).reshape(6, -1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(np.abs((basis * rows[:6]).sum(1)), 1, atol=1e-5)  # the same, up to sign
    np.testing.assert_allclose(float(fitted.scale), np.sqrt((values[:6] ** 2).sum() / 30 / 6), rtol=1e-5)
    coefficients = fitted.project(networks)
    assert np.square(coefficients).mean() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(np.square(coefficients).sum(0) * fitted.scale**2, values[:6] ** 2, rtol=1e-4)
    left = 1 - (values[:6] ** 2).sum() / (values**2).sum()
    assert unexplained(fitted, networks) == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_blocks_of_any_size_give_the_same(size):
    networks, read = drawn(30, 5, noise=0.1), []

    def blocks():
        for block in blocks_of(networks, size)():
            read.append(len(block))
            yield block

    streamed = subspace.fit(blocks, blocks, most=5, explained=1.0)
    whole = fit(networks, most=5, explained=1.0)
    np.testing.assert_allclose(streamed.center, whole.center, atol=1e-6)
    signs = np.sign((streamed.basis * whole.basis).sum((1, 2)))[:, None, None]
    np.testing.assert_allclose(streamed.basis * signs, whole.basis, atol=1e-4)
    np.testing.assert_allclose(streamed.scale, whole.scale, rtol=1e-5)
    assert max(read) == size


@pytest.mark.parametrize("explained", [0.7, 0.9, 0.99, 0.9999])
def test_components_are_the_fewest_that_explain_held_out_networks(explained):
    networks, held_out = drawn(200, 8, noise=1e-3), drawn(50, 8, seed=5, noise=1e-3)
    fitted = fit(networks, held_out, explained=explained)
    count = len(fitted.basis)
    left = [unexplained(fit(networks, held_out, most=n), held_out) for n in (count - 1, count)]
    assert left[1] <= 1 - explained < left[0]
    assert 1 < count < 8


def test_where_none_explains_enough_there_are_as_many_as_allowed():
    networks, other = drawn(50, 6), np.random.default_rng(3).standard_normal((20, *SHAPE))
    assert len(fit(networks, other, most=4).basis) == 4
    assert len(fit(networks, np.repeat(networks.mean(0, keepdims=True), 2, 0), most=4, explained=0.5).basis) <= 4


def test_components_are_padded_to_a_multiple():
    networks = drawn(40, 3)
    plain, padded = fit(networks), fit(networks, multiple=4)
    assert len(plain.basis) == 3 and padded.basis.shape == (4, *SHAPE)
    assert not padded.basis[3].any()
    np.testing.assert_array_equal(padded.basis[:3], plain.basis)
    np.testing.assert_array_equal(padded.scale, plain.scale)
    np.testing.assert_allclose(padded.reconstruct(padded.project(networks)), networks, atol=1e-5)
    # Real components fill the multiple where there are some.
    real = fit(drawn(40, 6), explained=0.7, multiple=4)
    assert len(real.basis) == 4 and all(row.any() for row in real.basis)


def test_there_are_no_more_components_than_networks_less_one():
    networks = drawn(3, 8)
    fitted = fit(networks)
    assert len(fitted.basis) == 2
    np.testing.assert_allclose(fitted.reconstruct(fitted.project(networks)), networks, atol=1e-5)


def test_rounding_makes_no_components():
    """Two different networks, many times each: one direction."""
    assert len(fit(np.repeat(drawn(2, 8), 20, 0), explained=1.0).basis) == 1


def test_what_has_no_subspace_is_refused():
    with pytest.raises(PdiffError, match="subspace: got 1 network; allowed: at least 2"):
        fit(drawn(1, 4))
    with pytest.raises(PdiffError, match="subspace: all networks are the same"):
        fit(np.repeat(drawn(1, 4), 5, 0))
