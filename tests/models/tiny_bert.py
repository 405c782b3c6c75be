"""A random BERT of two layers, 24 wide, in the files of a published one, and its forward pass in NumPy."""

import json
import string

import numpy as np
import safetensors.numpy
from scipy.special import erf

WIDTH, HIDDEN, DEPTH, HEADS, EPSILON = 24, 40, 2, 3, 1e-5
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PIECES += [p + c for c in string.ascii_lowercase + string.digits + ".,-°" for p in ("", "##")]
PIECES += ["digits", "rotated", "degrees", ":"]


def write(folder) -> None:
    """config.json, model.safetensors and tokenizer.json."""
    import tokenizers

    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(0, 0.5, shape).astype(np.float32)

    arrays = {
        "embeddings.word_embeddings.weight": normal(len(PIECES), WIDTH),
        "embeddings.position_embeddings.weight": normal(300, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
        "embeddings.position_ids": np.arange(300)[None],
        "pooler.dense.weight": normal(WIDTH, WIDTH),
    }
    dense = {f"attention.self.{n}": (WIDTH, WIDTH) for n in ("query", "key", "value")}
    dense |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (HIDDEN, WIDTH)}
    dense |= {"output.dense": (WIDTH, HIDDEN)}
    norms = ["embeddings.LayerNorm"]
    for i in range(DEPTH):
        for name, shape in dense.items():
            arrays[f"encoder.layer.{i}.{name}.weight"] = normal(*shape)
            arrays[f"encoder.layer.{i}.{name}.bias"] = normal(shape[0])
        norms += [f"encoder.layer.{i}.{n}.LayerNorm" for n in ("attention.output", "output")]
    for name in norms:
        arrays |= {f"{name}.weight": 1 + normal(WIDTH), f"{name}.bias": normal(WIDTH)}
    arrays["pooler.dense.bias"] = normal(WIDTH)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    config = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": DEPTH, "layer_norm_eps": EPSILON}
    (folder / "config.json").write_text(json.dumps(config))

    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_padding(length=128)  # as in the published file
    made.enable_truncation(128)
    made.save(str(folder / "tokenizer.json"))


def forward(folder, ids: list[int]) -> np.ndarray:
    """The vector of one text in float64, a head and a token at a time."""
    w = {n: a.astype(np.float64) for n, a in safetensors.numpy.load_file(folder / "model.safetensors").items()}

    def norm(name, x):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        return scaled * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    tables = [w[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type")]
    x = norm("embeddings", np.array([tables[0][t] + tables[1][i] + tables[2][0] for i, t in enumerate(ids)]))
    for i in range(DEPTH):
        here = f"encoder.layer.{i}"
        q, k, v = (linear(f"{here}.attention.self.{n}", x) for n in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        size = WIDTH // HEADS
        for h in range(HEADS):
            own = slice(h * size, (h + 1) * size)
            for t in range(len(ids)):
                weights = np.exp(k[:, own] @ q[t, own] / np.sqrt(size))
                mixed[t, own] = weights @ v[:, own] / weights.sum()
        x = norm(f"{here}.attention.output", x + linear(f"{here}.attention.output.dense", mixed))
        h = linear(f"{here}.intermediate.dense", x)
        x = norm(f"{here}.output", x + linear(f"{here}.output.dense", h * (1 + erf(h / np.sqrt(2))) / 2))
    mean = x.mean(0)
    return mean / np.sqrt((mean**2).sum())
