"""How the state of training is laid out over the mesh: two tables.

`AXES` names the axes of both models' parameters, `rules` maps names to axes of the mesh. Column-parallel layers
(`qkv`, `up`) are followed by row-parallel ones (`attention/out`, `down`), so that a block needs one sum over `model`
for its attention and one for its MLP (Shoeybi et al. 2019, Megatron-LM). With `mesh.fsdp` the axis `embed` is split
over `data`: a parameter is gathered where it is used and its gradient is summed and split again (Rajbhandari et al.
2020, ZeRO, stage 3). XLA puts all of that in; nothing else in the code knows of it.
"""

import re
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree, Shaped
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.system.dist import DATA, MODEL, check_divides

# The end of a parameter's path -> a name, or None, for each of its axes. Each path must match one row.
AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"block_\d+/attention/qkv/kernel", ("embed", "heads")),
    (r"block_\d+/attention/qkv/bias", ("heads",)),
    (r"block_\d+/attention/out/kernel", ("heads", "embed")),
    (r"block_\d+/mlp/up/kernel", ("embed", "hidden")),
    (r"block_\d+/mlp/up/bias", ("hidden",)),
    (r"block_\d+/mlp/down/kernel", ("hidden", "embed")),
    (r"block_\d+/(attention/out|mlp/down)/bias", (None,)),
    (r"(block_\d+/modulation|final)/kernel", ("embed", None)),
    (r"(block_\d+/modulation|final)/bias", (None,)),
    (r"in/kernel", (None, "embed")),
    (r"(set|last)/kernel", ("embed", None)),
    (r"(in|set|last)/bias", (None,)),
    (r"(noise|member)/(up|down)/(kernel|bias)", ()),
    (r"token_position", ()),
    (r"inner/kernel", ("embed", None)),  # of the mean
    (r"inner/bias", (None,)),
    (r"weights/kernel", ("embed", "weights")),  # as wide as all generated weights together
    (r"weights/bias", ("weights",)),
    (r"conditions/.*", ()),
)


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises PdiffError unless a run's training batches and chunks of the zoo divide evenly over the mesh."""
    for stage in ("mean", "train"):
        check_divides(config[stage].batch_size, mesh.shape[DATA] * config.train.microbatches, f"{stage}.batch_size")
    check_divides(config.zoo.chunk_size, mesh.devices.size, "zoo.chunk_size")


def rules(fsdp: bool) -> dict[str, str | None]:
    """Axis of the mesh for each name in `AXES`; None is replicated."""
    return {"heads": MODEL, "hidden": MODEL, "weights": MODEL, "embed": DATA if fsdp else None}


def partition(path: str, shape: tuple[int, ...], mesh: Mesh, fsdp: bool) -> P:
    """How the parameter at `path`, or what an optimizer keeps of it, is split.

    An axis that its axis of the mesh does not divide is left whole, and so are scalars.

    Raises:
      PdiffError: not one row of AXES matches.
    """
    if not shape:
        return P()
    rows = [axes for pattern, axes in AXES if re.search(rf"(^|/){pattern}$", path)]
    if len(rows) != 1:
        raise PdiffError(f"sharding.AXES: {len(rows)} rows match the parameter {path}; allowed: one")
    table, split = rules(fsdp), []
    for size, name in zip(shape, rows[0] or (None,) * len(shape), strict=True):
        axis = table[name] if name else None
        split.append(axis if axis and size % mesh.shape[axis] == 0 else None)
    return P(*split)


def state_shardings(state: PyTree, mesh: Mesh, config: ConfigDict) -> PyTree[NamedSharding]:
    """The layout of a training state, or of abstract arrays in its place (`config` is `mesh`)."""

    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition(name, leaf.shape, mesh, config.fsdp))

    return jax.tree_util.tree_map_with_path(one, state)


def by_example(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """`x`, with a hint to XLA, where the mesh in use is its to split over, to split it by example and in no other way.

    Without it, XLA may split activations like the parameters that they meet, and gather the former.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.axis_names or DATA in mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, P(DATA, *[None] * (x.ndim - 1)))


def in_parts(
    f: Callable[..., PyTree[Float[Array, "batch ..."]]], args: PyTree[Shaped[Array, "batch ..."]], together: int
) -> PyTree[Float[Array, "batch ..."]]:
    """`f(*args)`, of at most `together` examples of each device at a time, and again so for its gradients.

    `f` works on each example by itself. Examples stay on the devices that the batch is split over.
    """
    mesh, count = jax.sharding.get_abstract_mesh(), len(jax.tree.leaves(args)[0])
    split = DATA in mesh.axis_names and DATA not in mesh.manual_axes and count % mesh.shape[DATA] == 0
    devices = mesh.shape[DATA] if split else 1
    each = count // devices
    few = next(n for n in range(max(1, min(each, together)), 0, -1) if each % n == 0)
    if few == each:
        return f(*args)

    def swapped(a: Array, first: int, second: int) -> Array:
        """The two leading axes, (first, second) within axis 0, in the other order."""
        return a.reshape(first, second, few, *a.shape[1:]).swapaxes(0, 1)

    def part(args: PyTree) -> PyTree:
        return jax.checkpoint(f)(*jax.tree.map(by_example, args))

    parts = jax.tree.map(
        lambda a: swapped(a, devices, each // few).reshape(each // few, devices * few, *a.shape[1:]), args
    )
    results = jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), jax.lax.map(part, parts))
    return jax.tree.map(lambda a: swapped(a, each // few, devices).reshape(count, *a.shape[1:]), results)
