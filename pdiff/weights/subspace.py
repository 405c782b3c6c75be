"""The subspace that the prior works in: principal components of normalised weights, and their coefficients.

Networks of one family lie near a surface of few dimensions, so a few dozen principal components describe them, whatever
their size. The components come from the networks' Gram matrix (Turk & Pentland 1991), whose size is the number of
networks and not of weights: networks are read in blocks, and no more than two blocks, the Gram matrix and the
components are in memory at a time. Weights are normalised leaf by leaf before (`stats`), which is the scaling here.
"""

from collections.abc import Callable, Iterator

import flax.struct
import numpy as np
from jaxtyping import Array, Float

from pdiff.errors import PdiffError

Either = Array | np.ndarray
Blocks = Callable[[], Iterator[Float[np.ndarray, "some tokens dim"]]]  # the same networks every time, in order

LEAST_SHARE = 1e-10  # of the variance: components below it are rounding


@flax.struct.dataclass
class Subspace:
    """x = center + scale * (coefficients @ basis), in normalised weights; padded components have a basis of zero.

    Attributes:
      center: mean of the networks that it was fitted to.
      basis: orthonormal rows, the first having the most variance.
      scale: root mean square of those networks' coefficients before scaling, over all components: the coefficients
        then have sigma_data = 1, as EDM's preconditioning takes them to have (Karras et al. 2022, table 1).
    """

    center: Float[Either, "tokens dim"]
    basis: Float[Either, "components tokens dim"]
    scale: Float[Either, ""]

    def project(self, x: Float[Either, "batch tokens dim"]) -> Float[Either, "batch components"]:
        """Coefficients of the nearest networks in the subspace; exact for those inside it."""
        flat = (x - self.center).reshape(len(x), -1)
        return flat @ self.basis.reshape(len(self.basis), -1).T / self.scale

    def reconstruct(self, coefficients: Float[Either, "batch components"]) -> Float[Either, "batch tokens dim"]:
        """The networks of these coefficients, as normalised weights."""
        flat = self.scale * coefficients @ self.basis.reshape(len(self.basis), -1)
        return self.center + flat.reshape(len(coefficients), *self.center.shape)


def fit(fitted: Blocks, held_out: Blocks, *, most: int, explained: float, multiple: int = 1) -> Subspace:
    """The subspace of `fitted` networks.

    Args:
      fitted: normalised weights, block by block. It is read once for each block, and once more.
      held_out: others, on which the number of components is chosen: the fewest that leave no more than a share
        1 - `explained` of their variance (around the center) unexplained, or `most` if none does.
      most: components at most; there are no more than networks less one.
      multiple: the number of components is made a multiple of it, with components of zero at the end if need be.

    Raises:
      PdiffError: there are fewer than two networks, or they are all the same.
    """
    import scipy.linalg  # slow to import, and sampling does not need it

    gram, center = _gram(fitted)
    if len(gram) < 2:
        raise PdiffError(f"subspace: got {len(gram)} network; allowed: at least 2, which a subspace can go through")
    count = min(most, len(gram) - 1)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=[len(gram) - count, len(gram) - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    if not values[0] > 0:
        raise PdiffError(
            "subspace: all networks are the same; there is no distribution to learn; with a single seen task, "
            "--config.refined.of=zoo learns from the zoo itself"
        )
    real = values > LEAST_SHARE * np.trace(gram)
    values, vectors = values[real], vectors[:, real]
    basis, start = np.zeros((len(values), center.size)), 0
    for block in fitted():
        x = block.reshape(len(block), -1) - center
        basis += (vectors[start : start + len(x)] / np.sqrt(values)).T @ x
        start += len(x)
    count = _enough(basis, center, held_out, explained)
    count = min(-(-count // multiple) * multiple, most)
    padded = np.zeros((-(-count // multiple) * multiple, center.size), np.float32)
    components = basis[:count].astype(np.float32)
    padded[: len(components)] = components
    scale = np.sqrt(values[:count].sum() / len(gram) / len(components))
    shape = next(fitted()).shape[1:]
    return Subspace(center.reshape(shape).astype(np.float32), padded.reshape(-1, *shape), np.asarray(scale, np.float32))


def _gram(blocks: Blocks) -> tuple[Float[np.ndarray, "nets nets"], Float[np.ndarray, " elements"]]:
    """Inner products of the centred networks, and their mean, in float64."""
    total, count = 0.0, 0
    for block in blocks():
        total += block.reshape(len(block), -1).sum(0, dtype=np.float64)
        count += len(block)
    center, gram, row = total / count, np.zeros((count, count)), 0
    for rows in blocks():
        left, column = rows.reshape(len(rows), -1) - center, 0
        for columns in blocks():
            if column + len(columns) > row:  # the half above the diagonal
                right = columns.reshape(len(columns), -1) - center
                gram[row : row + len(left), column : column + len(right)] = left @ right.T
            column += len(columns)
        row += len(left)
    return np.triu(gram) + np.triu(gram, 1).T, center


def _enough(basis: np.ndarray, center: np.ndarray, held_out: Blocks, explained: float) -> int:
    """The fewest components that explain that share of the held-out networks' variance."""
    squares, total = np.zeros(len(basis)), 0.0  # of coefficients by component, and of distances from the center
    for block in held_out():
        x = block.reshape(len(block), -1) - center
        squares += np.square(x @ basis.T).sum(0)
        total += np.square(x).sum()
    if not total:
        return len(basis)
    enough = np.flatnonzero(np.cumsum(squares) >= explained * total)
    return int(enough[0]) + 1 if len(enough) else len(basis)
