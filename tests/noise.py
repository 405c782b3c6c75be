"""Parameters off their zeros."""

import jax
import numpy as np


def noised(params, by, seed=0):
    """With normal noise of that standard deviation on all of them."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + np.float32(by) * random.standard_normal(x.shape, np.float32), params)
