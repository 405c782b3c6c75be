"""One choice of the factors of every low-rank update, so that networks that do the same are also the same numbers.

(B M) (M^-1 A) is B A for every invertible M (r, r): training ends in any of these, by where it started and by chance.
A generator of A and B would have to learn that spread too, and its mean over two adapters that do the same can do
something else. Here each update is split evenly, B^T B = A A^T, which leaves a rotation; and the rotation is the one
that brings the factors nearest to those of a reference (orthogonal Procrustes), itself the mean of the seen networks
so rotated. It moves smoothly with the update where single singular vectors jump. B A stays what it was, but for
rounding.
"""

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pdiff.imports.columns import Columns
from pdiff.merging.updates import Factors, truncated
from pdiff.system.logs import BAR_AFTER_S

ROUNDS = 5  # of the mean and the rotations to it

Arrays = dict[str, Float[np.ndarray, "..."]]
Pairs = tuple[Float[np.ndarray, "nets out r"], Float[np.ndarray, "nets r in"]]


def of_all(columns: Columns, seen: np.ndarray, base: Arrays | None = None) -> Arrays | None:
    """Brings the factors of each module of all adapters into one gauge, in place; the networks `seen` choose it.

    B A stays what it was to the rounding of float32, as the factors of a pair are of one size. One module of all
    networks is in memory at a time.

    Args:
      base: an adapter that all of them started from, by path.

    Returns:
      the base in the same gauge.
    """
    modules = [p[:-2] for p in columns.shapes if p.endswith("/A")]
    base = None if base is None else dict(base)
    # Threads cost more than they bring for matrices of this size, and on a busy machine fifty times as much.
    with threadpool_limits(1):
        for module in tqdm(modules, desc="gauge", unit="module", delay=BAR_AFTER_S):
            factors = {kind: columns.read(f"{module}/{kind}") for kind in "BA"}
            if base is not None:
                factors = {kind: np.concatenate([v, base[f"{module}/{kind}"][None]]) for kind, v in factors.items()}
            turned = canonical(factors["B"], factors["A"], seen)
            for kind, values in zip("BA", turned, strict=True):
                for row, value in enumerate(values[: len(columns)].astype(np.float32)):
                    columns.write(f"{module}/{kind}", row, value)
                if base is not None:
                    base[f"{module}/{kind}"] = values[-1].astype(np.float32)
    return base


def canonical(b: Float[np.ndarray, "nets out r"], a: Float[np.ndarray, "nets r in"], seen: np.ndarray) -> Pairs:
    """The factors of one module of all networks in float64, in a common gauge; `seen` are those that choose it."""
    rank = b.shape[2]  # at which nothing is cut off: the singular values are split evenly, no more
    balanced = [truncated(Factors(*pair), rank) for pair in zip(b, a, strict=True)]
    joined = np.stack([np.concatenate([one.b, one.a.T]) for one in balanced])  # (nets, out + in, r)
    reference = joined[seen[0]]
    for _ in range(ROUNDS):
        reference = np.mean([_turned(joined[i], reference) for i in seen], 0)
    turned = np.stack([_turned(one, reference) for one in joined])
    outputs = b.shape[1]
    return turned[:, :outputs], turned[:, outputs:].swapaxes(1, 2)


def _turned(factors: Float[np.ndarray, "sides r"], reference: Float[np.ndarray, "sides r"]) -> np.ndarray:
    """`factors` times the orthogonal matrix that brings them nearest to `reference` (Schönemann 1966)."""
    u, _, vt = np.linalg.svd(factors.T @ reference)
    return factors @ (u @ vt)
