"""Random orders of hidden units."""

import numpy as np


def random_orders(spec, seed):
    """One of all allowed orders for each permutation of a PermutationSpec, uniformly and independently."""
    random = np.random.default_rng(seed)

    def order(units):
        runs = random.permuted(np.arange(units.size).reshape(units.groups, -1), axis=1)
        return random.permutation(runs).reshape(-1)

    return {name: order(units) for name, units in spec.units.items()}


def stacked_orders(spec, count):
    """`count` of them, stacked: seed by seed."""
    drawn = [random_orders(spec, seed) for seed in range(count)]
    return {name: np.stack([d[name] for d in drawn]) for name in spec.units}
