"""Describe a task, get a network: diffusion over the weights of neural networks.

import pdiff

generator = pdiff.load("runs/interp")           # without an argument, the one that comes with the package
networks = generator.sample(prompt="digits rotated by 75 degrees", num_samples=8)
print(generator.expect(prompt="digits rotated by 75 degrees"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pdiff.ask.api import LoadedGenerator

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(workdir: str | Path | None = None) -> LoadedGenerator:
    """A trained generator: of a run's workdir, of a published folder, or, without either, of the package.

    See `pdiff.ask.api.LoadedGenerator` for what it does. Imports JAX only when called.

    Raises:
      PdiffError: there is none, or it is damaged.
    """
    from pdiff.ask import api

    return api.load(workdir)
