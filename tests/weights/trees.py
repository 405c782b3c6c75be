"""Awkward parameter trees that the codec must carry bit for bit."""

import ml_dtypes
import numpy as np

SPECIAL = [-0.0, 0.0, 1e-40, -6e-8, 1.0, -1.5, 3.14159, 65504.0]


def floats(shape, dtype=np.float32, seed=0):
    """Normal numbers with -0, subnormals and the largest float16 among them."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32).reshape(-1)
    count = min(len(SPECIAL), max(0, values.size - 1))
    values[:count] = SPECIAL[:count]
    return values.reshape(shape).astype(dtype)


def integers(shape, dtype, seed=0):
    info = np.iinfo(dtype)
    values = np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)
    values.reshape(-1)[:2] = (info.min, info.max)
    return values


def dense(rows, columns, seed=0):
    return {"kernel": floats((rows, columns), seed=seed), "bias": floats((columns,), seed=seed + 1)}


BF16 = ml_dtypes.bfloat16
MLP = {"params": {"Dense_0": dense(64, 32), "Dense_1": dense(32, 10, 2)}}

# name -> (tree, regex, token_dim)
TREES = {
    "mlp": (MLP, ".*", 256),
    "one_element": ({"a": floats((1,))}, ".*", 7),
    "root_is_a_leaf": (floats((5, 3)), ".*", 4),
    "scalars": ({"a": floats(()), "b": {"c": floats((), seed=3)}, "kernel": floats((2, 3))}, ".*", 4),
    "empty_subtrees": ({"a": {}, "b": None, "c": [(), dense(3, 2)], "d": ()}, ".*", 5),
    "mixed_dtypes": (
        {
            "bf16": dense(3, 2) | {"bias": floats((2,), BF16)},
            "f16": {"kernel": floats((4, 5), np.float16), "scale": floats((7,), BF16)},
            "ints": {"i8": integers((9,), np.int8), "u8": integers((3, 3), np.uint8)},
            "more": {"i16": integers((2, 5), np.int16), "u16": integers((4,), np.uint16)},
            "flags": np.array([True, False, True]),
        },
        ".*",
        8,
    ),
    "lists_and_tuples": ([dense(2, 3), (floats((4,)), [floats((3, 3)), dense(3, 1)])], ".*", 6),
    "size_zero": (
        {
            "a": {"kernel": floats((0, 3)), "bias": floats((3,))},
            "b": floats((4, 0)),
            "c": {"kernel": floats((2, 3)), "bias": floats((0, 3))},
        },
        ".*",
        2,
    ),
    "conv_and_attention": (
        {
            "conv": {"kernel": floats((3, 3, 2, 4)), "bias": floats((4,))},
            "norm": {"scale": floats((4,), seed=5), "bias": floats((4,), seed=6)},
            "query": {"kernel": floats((4, 2, 3)), "bias": floats((2, 3))},
            "out": {"kernel": floats((2, 3, 4)), "bias": floats((4,))},
            "pos_embedding": floats((1, 5, 4)),
        },
        ".*",
        16,
    ),
    "deep_and_wide": ({"a": {"b": {"c": {"d": {"e": dense(40, 11)}}}}, "z": floats((100,))}, ".*", 32),
    "subset": (
        {
            "base": dense(4, 4) | {"count": np.int32(3), "wide": floats((2,)).astype(np.float64)},
            "head": {**dense(4, 3), "other": floats((2, 2))},
        },
        "head/(kernel|bias)",
        4,
    ),
    "bias_without_kernel": (MLP, ".*bias", 9),
}
