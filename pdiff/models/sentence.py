"""A frozen sentence encoder: descriptions to unit vectors by all-MiniLM-L6-v2 (`pdiff.minilm`).

It reads numbers as words, so that nearby angles need not have nearby vectors; in `models.text` they do.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pdiff import minilm
from pdiff.system import dist

_BATCH, _BUCKET = 32, 8  # texts computed together, and the step of their padded lengths, so that few programs compile


def embed(
    weights: dict[str, dict[str, Array]],
    ids: Int[Array, "batch length"],
    real: Bool[Array, "batch length"],
    sizes: minilm.Sizes,
) -> Float[Array, "batch width"]:
    """Unit vectors of tokenized texts. Each has at least one real token; what padding holds does not matter."""
    return minilm.mean_vector(minilm.hidden(weights, ids, real, sizes), real)


class SentenceEncoder:
    """The encoder in a folder of published files. It reads the weights when first needed, and computes a text once."""

    def __init__(self, folder: Path):
        self._reader = minilm.Reader(folder)
        self.width: int = self._reader.sizes.width
        self._weights = self._reader.weights
        self._embed = jax.jit(functools.partial(embed, sizes=self._reader.sizes))
        self._known: dict[str, Float[np.ndarray, " width"]] = {}

    def tokens(self, text: str) -> list[int]:
        """The ids of a text's word pieces.

        Raises:
          PdiffError: it is empty, too long, or has words that the encoder has no pieces for.
        """
        return self._reader.tokens(text)

    def encode_all(self, texts: Iterable[str]) -> Float[np.ndarray, "texts width"]:
        """A unit vector for each text, float32.

        Raises:
          PdiffError: `tokens` refuses one.
        """
        texts = list(texts)
        fresh = {text: self.tokens(text) for text in texts if text not in self._known}
        # By length, so that a text's vector does not depend on how long the texts beside it are.
        buckets: dict[int, list[str]] = {}
        for text, ids in fresh.items():
            buckets.setdefault(-len(ids) // _BUCKET * -_BUCKET, []).append(text)
        for length, group in buckets.items():
            ids, real = np.zeros((len(group), length), np.int32), np.zeros((len(group), length), bool)
            for i, text in enumerate(group):
                count = len(fresh[text])
                ids[i, :count], real[i, :count] = fresh[text], True
            # Full precision on every kind of device: on some, a matmul's default is less.
            with jax.default_matmul_precision("float32"):
                vectors = dist.map_chunks(lambda a: self._embed(self._weights(), *a), (ids, real), len(group), _BATCH)
            self._known |= zip(group, vectors, strict=True)
        return np.stack([self._known[text] for text in texts])
