"""Randomness as a pure function of (seed, name, step).

No key is ever carried from one step to the next: any draw can be repeated from these three, which makes a resumed run
equal to one that never stopped.
"""

import zlib

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Integer, Key, PRNGKeyArray

Keys = Key[Array, " batch"]  # one for each example


def stream(seed: int, name: str, step: Integer[ArrayLike, ""] = 0) -> PRNGKeyArray:
    """The key of the stream `name` at `step`.

    `name` enters through CRC-32, not `hash()`, which changes from one process to the next.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)


def per_example(key: PRNGKeyArray, indices: Int[ArrayLike, " n"]) -> Key[Array, " n"]:
    """One key for each global example index, so that draws do not depend on how a batch is sharded."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def on_host(seed: int, name: str, step: int = 0) -> np.random.Generator:
    """NumPy's generator of the stream `name` at `step`, for draws before anything is on a device."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode()), step])))
