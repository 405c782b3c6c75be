"""The one place where steps are mapped over devices.

A step is written for one device, with an explicit `lax.pmean` over the axis `'data'`, and
mapped here by `jax.jit(jax.shard_map(…))` over a mesh of all devices. `check_vma=False` makes
that the same computation as `jax.pmap` of the step (a test holds it to the same numbers); with
shard_map's default the gradient of a replicated parameter is already summed over the axis, and
a `pmean` after it would leave it too large by the number of devices.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from pdiff.errors import PdiffError

DATA = "data"
REPLICATED, SHARDED = P(), P(DATA)


def make_mesh(devices: list | None = None) -> Mesh:
    """A one-axis mesh over `devices`, by default all of them."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def data_parallel(step: Callable, mesh: Mesh, in_specs, out_specs, donate_argnums=()) -> Callable:
    """Jits `step`, written for one device, over the mesh.

    `in_specs` and `out_specs` hold `REPLICATED` or `SHARDED` (over the leading axis) for each
    argument and result. Donated arguments must not be used again.
    """
    mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate_argnums)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts the whole of `tree` on every device."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
    """Splits the leading axis of every leaf, this process's part of the global batch, over the devices."""
    sharding = NamedSharding(mesh, SHARDED)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def check_divides(size: int, mesh: Mesh, field: str) -> None:
    """Raises PdiffError, naming the config's `field`, unless `size` divides evenly over the devices."""
    count = mesh.devices.size
    if size % count:
        raise PdiffError(
            f"{field}: got {size}, which does not divide over {count} devices; allowed: multiples of {count}"
        )


def round_up(size: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that is at least `size`."""
    count = mesh.devices.size
    return -(-size // count) * count


def map_chunks(fn: Callable, args: PyTree, size: int, chunk: int) -> PyTree:
    """`fn` over the leading axis (of length `size`) of the NumPy arrays `args`, `chunk` rows at a time.

    The last chunk is padded by repeating its last row, so that `fn` compiles once, and the
    padding is cut off again. The results are NumPy arrays.
    """
    results = []
    for start in range(0, size, chunk):
        rows = np.minimum(np.arange(start, start + chunk), size - 1)
        out = fn(jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], args))
        kept = min(chunk, size - start)
        results.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[:kept], out))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *results)
