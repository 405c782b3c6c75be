"""The mesh of all devices, and the one place where arrays are laid out and steps are mapped over it.

The mesh has two axes. Batches are split over `data`; `model` splits the blocks of the transformer (`sharding`), and
is of size 1 by default. There are two ways to use it:

- Sampling, scoring and zoo building are written for one device and mapped over all of them by `data_parallel`, that is
  `jax.jit(jax.shard_map(…))`; rows go over both axes. `check_vma=False` makes it the same computation as `jax.pmap` of
  the step; with shard_map's default the gradient of a replicated parameter is already summed over the axis, and
  a `pmean` after it would leave it too large by the number of devices.
- The training step is written for the whole batch, and `jax.jit` splits it as its arguments are laid out
  (`sharding.state_shardings`). So one program serves replicated, sharded and tensor-parallel training.

With many processes each has the devices of one host. All run the same code on the same arguments in the same order,
and place only what their own devices hold; what comes back is fetched by all (`fetch`).
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, PyTree

from pdiff.errors import PdiffError

DATA, MODEL = "data", "model"
ALL = (DATA, MODEL)
REPLICATED, SHARDED, BATCH = P(), P(ALL), P(DATA)  # rows over all devices; rows of a training batch


def make_mesh(devices: list | None = None, model: int = 1) -> Mesh:
    """A (data, model) mesh over `devices`, by default all of all processes.

    Raises:
      PdiffError: `model` does not divide their number.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % model:
        raise PdiffError(f"mesh.model: got {model}; allowed: a divisor of the {len(devices)} devices")
    shape = (len(devices) // model, model)
    return jax.make_mesh(shape, ALL, axis_types=(AxisType.Auto,) * 2, devices=devices)


def data_parallel(step: Callable, mesh: Mesh, in_specs, out_specs, donate_argnums=()) -> Callable:
    """Jits `step`, written for one device, over the mesh.

    `in_specs` and `out_specs` hold `REPLICATED` or `SHARDED` (over the leading axis) for each
    argument and result. Donated arguments must not be used again.
    """
    mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate_argnums)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts the whole of `tree` on every device."""
    return place(tree, NamedSharding(mesh, REPLICATED))


def shard(tree: PyTree, mesh: Mesh, spec: P = SHARDED) -> PyTree:
    """Splits the leading axis of every leaf, which all processes hold whole, over the devices."""
    return place(tree, NamedSharding(mesh, spec))


def place(tree: PyTree, shardings: NamedSharding | PyTree[NamedSharding]) -> PyTree:
    """Lays out `tree`, which all processes hold whole, by `shardings`: one for all leaves, or a tree of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_place, tree, shardings)


def _place(x, sharding: NamedSharding) -> jax.Array:
    """Without `device_put`'s check that all processes hold the same, which moves all of it between them."""
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(x), sharding))
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def local_rows(size: int, mesh: Mesh, spec: P = BATCH) -> Int[np.ndarray, " rows"]:
    """Which of `size` rows lie on devices of this process, ascending."""
    slices = NamedSharding(mesh, spec).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[s] for s in slices]))


def from_local(
    tree: PyTree, rows: Int[np.ndarray, " rows"], size: int, mesh: Mesh, spec: P = BATCH
) -> PyTree[jax.Array]:
    """Global arrays of `size` rows from those, `rows`, that this process holds (`local_rows`)."""
    sharding = NamedSharding(mesh, spec)

    def assemble(x):
        def held(index):
            return x[np.searchsorted(rows, np.arange(size)[index[0]])]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, held)

    return jax.tree.map(assemble, tree)


def fetch(tree: PyTree) -> PyTree[np.ndarray]:
    """NumPy arrays of the whole of `tree`, on every process; views of what is in this host's memory already."""

    def whole(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return x

    # `device_get` and not `asarray` alone: an explicit transfer, which `jax.transfer_guard` lets pass.
    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(whole, tree)))


def check_divides(size: int, count: int, field: str) -> None:
    """Raises PdiffError, naming the config's `field`, unless `size` divides evenly over `count` devices."""
    if size % count:
        raise PdiffError(
            f"{field}: got {size}, which does not divide over {count} devices; allowed: multiples of {count}"
        )


def round_up(size: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that is at least `size`."""
    count = mesh.devices.size
    return -(-size // count) * count


def chunks(fn: Callable, args: PyTree, size: int, chunk: int) -> Iterator[PyTree[np.ndarray]]:
    """Results of `fn` for the NumPy arrays `args`, whose leading axis has length `size`, `chunk` rows at a time.

    The last chunk is padded by repeating its last row, so that `fn` compiles once, and the padding is cut off again.
    Each chunk is started before the one before it is fetched, so that devices and host work at the same time, and two
    are in memory. The results, on every process, may be views of what `fn` returned.
    """
    args, started = jax.tree.map(np.asarray, args), None
    for start in range(0, size, chunk):
        result = fn(jax.tree.map(lambda x, start=start: _rows(x, start, chunk), args))
        if started is not None:
            yield fetch(started)
        started = result
    if started is not None:
        yield jax.tree.map(lambda x: x[: size - start], fetch(started))


def _rows(x: np.ndarray, start: int, count: int) -> np.ndarray:
    """`count` rows from `start`: a view, unless they run out and the last is repeated."""
    rows = x[start : start + count]
    missing = count - len(rows)
    return np.concatenate([rows, np.broadcast_to(rows[-1:], (missing, *x.shape[1:]))]) if missing else rows


def join(parts: Iterator[PyTree[np.ndarray]], size: int) -> PyTree[np.ndarray]:
    """The parts, `size` rows in all, as one; only one part at a time is in memory beside it."""
    start = 0
    for part in parts:
        if start == 0:
            whole = jax.tree.map(lambda x: np.empty((size, *x.shape[1:]), x.dtype), part)
        end = start + len(jax.tree.leaves(part)[0])
        jax.tree.map(lambda w, x, rows=slice(start, end): np.copyto(w[rows], x), whole, part)
        start = end
        del part  # before the next comes
    return whole


def map_chunks(fn: Callable, args: PyTree, size: int, chunk: int) -> PyTree[np.ndarray]:
    """`chunks`, joined: NumPy arrays of their own."""
    return join(chunks(fn, args, size, chunk), size)
