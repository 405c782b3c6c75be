"""Some of many, evenly chosen."""

import numpy as np
from jaxtyping import Int


def evenly(count: int, most: int) -> Int[np.ndarray, " chosen"]:
    """At most `most` of the numbers 0 … count - 1, the first and the last among them, in order."""
    return np.linspace(0, count - 1, max(0, min(most, count))).round().astype(int)
