"""What to expect at a place among measured ones: ordinary kriging, with intervals calibrated on what was measured.

Accuracies of two tasks are taken to be the more alike the nearer their factors are, by exp(-distance / length), so that
steps are as likely as slopes. The length is the one under which every measured value is likeliest given all others.
The standard error is then small beside a measured task, and grows with the distance to the measured ones and with how
few they are; the mean counts among what is not known (Cressie 1993, Statistics for Spatial Data, 3.4). How many
standard errors an interval needs is not assumed: as many as hold that share of the measured values, each predicted from
all others (conformal prediction; Vovk et al. 2005, Algorithmic Learning in a Random World).
"""

import dataclasses

import numpy as np
from jaxtyping import Float

HELD = 0.9  # the share of tasks that an interval is to hold
FEWEST = 3  # measured values from which something can be said
FOR_QUANTILES = 10  # measured values; with fewer, Student's t says how many standard errors are needed
LENGTHS = 12  # that are tried, from the smallest distance to the largest
NETWORKS = 0.003  # share of the variance between tasks that other networks for the same task would have


@dataclasses.dataclass(frozen=True)
class Place:
    """What to expect at a place, how far off it may be either way, and the weight of each measured value in it."""

    mean: float
    margin: float
    weights: Float[np.ndarray, " n"]


class Nearby:
    """Predictions from measured values.

    Args:
      apart: distances between the places where they were measured; at least FEWEST of them.
      values: what was measured there.
    """

    def __init__(self, apart: Float[np.ndarray, "n n"], values: Float[np.ndarray, " n"]):
        apart, self._values = np.asarray(apart, np.float64), np.asarray(values, np.float64)
        some = apart[apart > 0]
        lengths = np.geomspace(some.min(), some.max(), LENGTHS) if len(some) else [1.0]
        fits = [_Fit(apart, self._values, float(length)) for length in lengths]
        self._fit = max(fits, key=lambda f: f.likelihood)
        self._needed = _needed(self._fit.scores)

    def at(self, distance: Float[np.ndarray, " n"]) -> Place:
        """What to expect at the place with these distances to the measured ones."""
        fit = self._fit
        like = np.exp(-np.asarray(distance, np.float64) / fit.length)
        weights = fit.inverse @ like
        lacking = 1 - weights.sum()
        variance = max(0.0, 1 + NETWORKS - weights @ like + lacking**2 / fit.inverse.sum())
        weights = weights + lacking * fit.inverse.sum(0) / fit.inverse.sum()
        return Place(float(weights @ self._values), self._needed * float(np.sqrt(variance)), weights)


class _Fit:
    """The values under one length: the inverse of their covariance, in units of the variance between tasks; what all
    others get wrong of each, in standard errors; and how likely that is."""

    def __init__(self, apart: Float[np.ndarray, "n n"], values: Float[np.ndarray, " n"], length: float):
        self.length, count = length, len(values)
        self.inverse = np.linalg.inv(np.exp(-apart / length) + NETWORKS * np.eye(count))
        sums = self.inverse.sum(0)
        centred = self.inverse - np.outer(sums, sums) / sums.sum()
        variance = 1 / np.diag(centred)
        self.scores = (centred @ values) * np.sqrt(variance)
        scale = max(float((self.scores**2).mean()), 1e-12)
        self.likelihood = -(count * np.log(scale) + np.log(variance).sum()) / 2


def student(count: int) -> float:
    """Standard deviations either way that hold HELD of all values, where `count` known ones gave the deviation."""
    from scipy import special  # slow to import, here and below

    return float(special.stdtrit(count - 1, (1 + HELD) / 2))


def flips(images: int) -> float:
    """The least margin of an accuracy on so many images: the share that may yet change where none was seen to.

    It is the end of Jeffreys' interval for 0 of `images`.
    """
    from scipy import special

    return float(special.betaincinv(0.5, images + 0.5, HELD))


def _needed(scores: Float[np.ndarray, " n"]) -> float:
    """Standard errors either way that hold HELD of new values, if these are as the measured ones."""
    count = len(scores)
    if count < FOR_QUANTILES:
        return student(count) * float(np.sqrt((scores**2).mean()))
    return float(np.quantile(np.abs(scores), min(1.0, HELD * (count + 1) / count)))
