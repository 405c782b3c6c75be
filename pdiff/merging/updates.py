"""Updates of one module: products of factors, multiplied out only where a method asks for single numbers.

How an update is factored has no meaning: (B M) (M^-1 A) is B A for every invertible M. So merges are of updates. The
mean of two adapters' B times the mean of their A is not the mean of what they do.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

FEW = 512  # rows or columns up to which the whole singular value decomposition is quick


@dataclasses.dataclass(frozen=True)
class Factors:
    """The matrix b a (outputs, inputs), of which nothing is multiplied out; k may be more than the matrix's rank."""

    b: Float[np.ndarray, "out k"]
    a: Float[np.ndarray, "k in"]


Matrix = Float[np.ndarray, "out in"]


def dense(update: Factors | Matrix) -> Float[np.ndarray, "out in"]:
    """The matrix itself, float32."""
    return update.b.astype(np.float32) @ update.a.astype(np.float32) if isinstance(update, Factors) else update


def weighted(updates: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The sum of weight times update, exactly and in float64: factors side by side, so that their ranks add up."""
    b = [w * u.b.astype(np.float64) for u, w in zip(updates, weights, strict=True)]
    return Factors(np.concatenate(b, 1), np.concatenate([u.a.astype(np.float64) for u in updates]))


def inner(
    update: Factors | Matrix, b: Float[np.ndarray, "nets out r"], a: Float[np.ndarray, "nets r in"]
) -> Float[np.ndarray, " nets"]:
    """Frobenius inner products <update, b_i a_i>; the rank of `update` may be another than r."""
    return np.fromiter((_inner(update, *pair) for pair in zip(b, a, strict=True)), np.float64, len(b))


def square(update: Factors | Matrix) -> float:
    """The squared Frobenius norm."""
    if isinstance(update, Factors):
        return _inner(update, update.b, update.a)
    return float(np.einsum("ij,ij->", update, update, dtype=np.float64))


def truncated(update: Factors | Matrix, rank: int) -> Factors:
    """The nearest matrix of at most this rank (Eckart and Young 1936), its singular values split evenly; float64.

    The factors have exactly `rank` columns and rows, zeros where the matrix has fewer. Of factors the matrix is not
    multiplied out: its singular values are those of R_b R_a^T, where b = Q_b R_b and a^T = Q_a R_a.
    """
    if isinstance(update, Factors):
        left, inner_left = np.linalg.qr(update.b.astype(np.float64))
        right, inner_right = np.linalg.qr(update.a.astype(np.float64).T)
        u, s, vt = np.linalg.svd(inner_left @ inner_right.T, full_matrices=False)
        u, vt = left @ u, vt @ right.T
    elif min(update.shape) <= max(FEW, 4 * rank):
        u, s, vt = np.linalg.svd(update.astype(np.float64), full_matrices=False)
    else:
        from scipy.sparse.linalg import svds  # takes its time, and adapters that are sampled do without it

        start = np.ones(min(update.shape))  # given, so that the same matrix has the same factors
        u, s, vt = svds(update.astype(np.float64), rank, v0=start)
        order = np.argsort(-s)
        u, s, vt = u[:, order], s[order], vt[order]
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    sign = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
    b, a = u * sign * np.sqrt(s), (vt.T * sign * np.sqrt(s)).T
    missing = rank - len(s)
    return Factors(np.pad(b, ((0, 0), (0, missing))), np.pad(a, ((0, missing), (0, 0))))


def _inner(update: Factors | Matrix, b: Float[np.ndarray, "out r"], a: Float[np.ndarray, "r in"]) -> float:
    b, a = b.astype(np.float64), a.astype(np.float64)
    if isinstance(update, Factors):
        products = (update.b.astype(np.float64).T @ b) * (update.a.astype(np.float64) @ a.T)
    else:
        products = (b.T @ update) * a
    return float(products.sum())
