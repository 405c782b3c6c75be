"""Trees of parameters to tokens and back, against `ravel_pytree`, PyTorch's vectors, and a plain copy of as many bytes.

    python -m benchmarks.codec

Both ways are pure copies, so memory bandwidth bounds them: encoding reads the parameters and writes the tokens with
their padding, decoding does the opposite. On the devices trees come in batches, as in sampling and training: buffers
that are much larger are new pages from the system every time, and zeroing those would take longer than the copy.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from benchmarks.timing import Row, copy_bandwidth, peak_memory, take_turns
from pdiff.system import dist
from pdiff.weights import codec
from pdiff.weights.spec import Spec, make_spec

TREES, RIVAL_TREES = 1000, 50
WIDTHS = ((64, 32, 10), (64, 256, 256, 64, 10))  # the main job's target, and one of 10^5 parameters
BATCH_BYTES = 8 << 20
COPY_BYTES = 256 << 20  # more than caches hold
GOAL = 0.5


def mlp(widths: tuple[int, ...]) -> PyTree[jax.ShapeDtypeStruct]:
    """The parameters of an MLP, abstractly."""
    layers = [
        {"kernel": jax.ShapeDtypeStruct((a, b), np.float32), "bias": jax.ShapeDtypeStruct((b,), np.float32)}
        for a, b in zip(widths[:-1], widths[1:], strict=True)
    ]
    return {"params": {f"Dense_{i}": layer for i, layer in enumerate(layers)}}


def stacked(shapes: PyTree[jax.ShapeDtypeStruct], count: int) -> PyTree[np.ndarray]:
    """`count` trees of random numbers."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda s: random.standard_normal((count, *s.shape), s.dtype), shapes)


def on_devices(spec: Spec, trees: PyTree[np.ndarray], batch: int) -> Callable[[], object]:
    """Encodes and decodes all `trees`, which lie on the devices, as `dist.chunks` does: one batch is ahead."""
    mesh = dist.make_mesh()
    encode, decode = (
        dist.data_parallel(jax.vmap(partial(f, spec)), mesh, (dist.SHARDED,), dist.SHARDED)
        for f in (codec.encode_part, codec.decode_part)
    )
    count = len(jax.tree.leaves(trees)[0])
    parts = [dist.shard(jax.tree.map(lambda x, i=i: x[i : i + batch], trees), mesh) for i in range(0, count, batch)]

    def run():
        started = None
        for part in parts:
            made = decode(encode(part))
            jax.block_until_ready(started)
            started = made
        return started

    return run


def on_host(spec: Spec, trees: PyTree[np.ndarray], batch: int) -> Callable[[], object]:
    """The same in NumPy, where decoded trees are views."""
    count = len(jax.tree.leaves(trees)[0])
    parts = [jax.tree.map(lambda x, i=i: x[i : i + batch], trees) for i in range(0, count, batch)]

    def run():
        for part in parts:
            codec.decode_stacked(spec, codec.encode_stacked(spec, part))

    return run


def with_ravel(trees: PyTree[np.ndarray], count: int) -> Callable[[], object]:
    """`ravel_pytree` and its inverse, tree by tree."""
    each = [jax.device_put(jax.tree.map(lambda x, i=i: x[i], trees)) for i in range(count)]

    def run():
        made = []
        for tree in each:
            vector, back = ravel_pytree(tree)
            made.append(back(vector))
        return made

    return run


def with_torch(trees: PyTree[np.ndarray], count: int) -> Callable[[], object]:
    """`parameters_to_vector` and `vector_to_parameters`, tree by tree."""
    import torch
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    each = [[torch.nn.Parameter(torch.from_numpy(x[i].copy())) for x in jax.tree.leaves(trees)] for i in range(count)]

    def run():
        with torch.no_grad():
            for parameters in each:
                vector_to_parameters(parameters_to_vector(parameters), parameters)

    return run


def measure(effort: float = 1.0) -> list[Row]:
    """Two rows for each target: on the devices, and in NumPy. Seconds of 1,000 trees."""
    limit = f"memory bandwidth, {copy_bandwidth(turns=4) / 1e9:.1f} GB/s; bytes read and written count once each"
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    rows = []
    for widths in WIDTHS:
        spec = make_spec(mlp(widths))
        trees, size = stacked(mlp(widths), TREES), 4 * spec.num_tokens * spec.token_dim
        batch = dist.round_up(min(TREES, BATCH_BYTES // size), dist.make_mesh())
        batch = next(b for b in range(batch, 0, -1) if TREES % b == 0 and b % jax.device_count() == 0)
        ways = {"devices": on_devices(spec, trees, batch), "NumPy": on_host(spec, trees, batch)}
        rivals = {"ravel_pytree": with_ravel(trees, RIVAL_TREES)}
        if importlib.util.find_spec("torch"):
            rivals["torch vectors"] = with_torch(trees, RIVAL_TREES)
        moved = TREES * 2 * (4 * spec.num_params + size)
        copy = {"memcpy": partial(np.copyto, target, source)}
        work = {"memcpy": 2 * COPY_BYTES / moved} | dict.fromkeys(rivals, RIVAL_TREES / TREES)
        with peak_memory() as peak:
            turns = take_turns(ways | rivals | copy, max(3, round(8 * effort)), work)
        for name in ways:
            share = turns.ratio("memcpy", name)
            rows.append(
                Row(
                    path="codec",
                    what=f"encode and decode trees of {spec.num_params:,} parameters, {name}, {batch} at a time",
                    unit=f"{TREES:,} trees",
                    **turns.against(name, rivals),
                    limit=limit,
                    share=share,
                    goals={f">= {GOAL:.0%} of memcpy": share.median >= GOAL},
                    peak_mb=peak[0] if peak else None,
                    bounded_by="sample.batch_size" if name == "devices" else "",
                    notes="" if "torch vectors" in rivals else "for PyTorch: pip install -e '.[bench]'",
                )
            )
    return rows


if __name__ == "__main__":
    print(*measure(), sep="\n")
