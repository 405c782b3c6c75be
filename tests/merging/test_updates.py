"""Factors against the matrices that they stand for."""

import numpy as np
import pytest

from pdiff.merging import updates
from pdiff.merging.updates import Factors


def factors(seed, out=5, inputs=7, rank=2):
    random = np.random.default_rng(seed)
    return Factors(random.standard_normal((out, rank)), random.standard_normal((rank, inputs)))


def test_weighted_sums_have_ranks_that_add_up():
    a, b = factors(0, rank=2), factors(1, rank=1)
    total = updates.weighted([a, b], [0.25, -2.0])
    assert total.b.shape == (5, 3) and total.a.shape == (3, 7)
    np.testing.assert_allclose(total.b @ total.a, 0.25 * a.b @ a.a - 2 * b.b @ b.a)


@pytest.mark.parametrize("multiplied", [False, True])
def test_inner_products_are_those_of_matrices(multiplied):
    a, several = factors(0, rank=4), [factors(s) for s in (1, 2, 3)]
    matrix = a.b @ a.a
    found = updates.inner(
        matrix if multiplied else a, np.stack([f.b for f in several]), np.stack([f.a for f in several])
    )
    np.testing.assert_allclose(found, [(matrix * (f.b @ f.a)).sum() for f in several])
    assert updates.square(matrix if multiplied else a) == pytest.approx((matrix**2).sum())


@pytest.mark.parametrize("multiplied", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (9, 4)])
def test_cut_off_is_the_nearest_of_its_rank(shape, multiplied):
    """Eckart and Young: what is left is the root of the other squared singular values."""
    a = factors(0, *shape, rank=4)
    matrix = a.b @ a.a
    singular = np.linalg.svd(matrix, compute_uv=False)
    near = updates.truncated(matrix if multiplied else a, 2)
    assert near.b.shape == (shape[0], 2) and near.a.shape == (2, shape[1])
    assert np.linalg.norm(matrix - near.b @ near.a) == pytest.approx(np.sqrt((singular[2:] ** 2).sum()))
    np.testing.assert_allclose(near.b.T @ near.b, near.a @ near.a.T, atol=1e-12)  # split evenly


def test_a_diagonal_by_hand():
    """Of diag(4, -9, 1) the nearest of rank 1 is -9 in the middle, as 3 and -3 or -3 and 3."""
    near = updates.truncated(np.diag([4.0, -9.0, 1.0]), 1)
    np.testing.assert_allclose(near.b @ near.a, np.diag([0, -9.0, 0]), atol=1e-12)
    assert np.abs(near.b).max() == pytest.approx(3)


@pytest.mark.parametrize("multiplied", [False, True])
def test_a_rank_beyond_the_matrix_s_is_exact_and_filled_up_with_zeros(multiplied):
    a = factors(0, out=3, inputs=7, rank=2)
    near = updates.truncated(a.b @ a.a if multiplied else a, 5)
    assert near.b.shape == (3, 5) and near.a.shape == (5, 7)
    np.testing.assert_allclose(near.b @ near.a, a.b @ a.a, atol=1e-12)


def test_large_matrices_are_cut_off_by_the_same_rule():
    """Above FEW rows and columns by another algorithm, the same each time."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((updates.FEW + 8, updates.FEW + 40))
    singular = np.linalg.svd(matrix, compute_uv=False)
    near, again = (updates.truncated(matrix, 3) for _ in range(2))
    np.testing.assert_array_equal(near.b, again.b)
    rest = np.linalg.norm(matrix - near.b @ near.a)
    assert rest == pytest.approx(np.sqrt((singular[3:] ** 2).sum()), rel=1e-9)
    np.testing.assert_allclose(np.linalg.norm(near.b, axis=0) ** 2, singular[:3], rtol=1e-6)
