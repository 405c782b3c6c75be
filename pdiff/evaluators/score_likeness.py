"""Is a denoiser's score that of its training set, or that of something smoother?

The score that minimises the training loss on n networks is that of n deltas convolved with noise, and sampling with it
gives back these networks (Yoon et al. 2023; Scarvelis et al. 2023). A model that generalises departs from it where the
noise no longer hides which network is which (Kadkhodaie et al. 2024). Beside it stands a smooth alternative with the
same mean and spread, a Gaussian. Everything is in float64: at low noise the squared distances are differences of large
numbers, divided by a small one.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from pdiff.evaluators.novelty import l2_distances


def posterior_weights(
    z: Float[np.ndarray, "batch dim"], sigma: float, networks: Float[np.ndarray, "nets dim"]
) -> Float[np.ndarray, "batch nets"]:
    """The probability that z = x + sigma eps came from each network x, all being alike beforehand."""
    return softmax(-0.5 * (l2_distances(z, networks) / sigma) ** 2, axis=1)


def empirical_denoiser(
    z: Float[np.ndarray, "batch dim"], sigma: float, networks: Float[np.ndarray, "nets dim"]
) -> Float[np.ndarray, "batch dim"]:
    """E[x | z] when x is one of `networks`: their mean by `posterior_weights`."""
    return posterior_weights(z, sigma, networks) @ networks.astype(np.float64)


def gaussian_denoiser(
    z: Float[np.ndarray, "batch dim"], sigma: float, mean: Float[np.ndarray, "*batch dim"], spread: float
) -> Float[np.ndarray, "batch dim"]:
    """E[x | z] when x ~ N(mean, spread^2)."""
    return mean + spread**2 / (spread**2 + sigma**2) * (z.astype(np.float64) - mean)


def score(
    denoised: Float[np.ndarray, "batch dim"], z: Float[np.ndarray, "batch dim"], sigma: float
) -> Float[np.ndarray, "batch dim"]:
    """Gradient of the log-density of z = x + sigma eps (Tweedie's formula)."""
    return (denoised.astype(np.float64) - z.astype(np.float64)) / sigma**2


def relative_error(
    found: Float[np.ndarray, "batch dim"], reference: Float[np.ndarray, "batch dim"]
) -> Float[np.ndarray, " batch"]:
    """||found - reference|| / ||reference||: 0 is the same, 1 what a score of 0 has."""
    return np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)


def cosine(
    found: Float[np.ndarray, "batch dim"], reference: Float[np.ndarray, "batch dim"]
) -> Float[np.ndarray, " batch"]:
    """Cosine of the angle between two scores; 0 if one of them is 0."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    return (found * reference).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny)
