"""Describe a task, get a network: diffusion over the weights of neural networks.

`pdiff.load(workdir)` gives a trained generator.
"""

__version__ = "0.1.0"


def load(workdir):
    """The generator of a finished run; see `pdiff.api.load`. Imports JAX only when called."""
    from pdiff import api

    return api.load(workdir)
