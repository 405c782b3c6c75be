"""Large networks as coordinates on principal components of a zoo's networks, which lie on disk.

    network = center + components @ coordinates,    one matrix product

The components are those that the networks span, all of them: as many as there are networks, less one, however many
weights these have. They come from the networks' Gram matrix, as a `subspace`'s do, in normalised weights; the file
holds them scaled back to weights, so that decoding needs nothing else. It is a safetensors file with an array (weights
of a leaf, components) for each leaf, in their order, and so one matrix, which is read slice by slice: no more than a
few slices are in memory. Where all of it fits, `Basis.load` brings it to the devices for what is differentiated.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Shaped

from pdiff.errors import PdiffError
from pdiff.system import files
from pdiff.weights import codec
from pdiff.weights.spec import Spec, flatten
from pdiff.weights.stats import Stats
from pdiff.weights.subspace import LEAST_SHARE
from pdiff.weights.table import Span, Table, in_order, over, read_into, spans

COMPONENTS, REST = "components.safetensors", "rest.safetensors"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {"float32": "F32", "bfloat16": "BF16"}  # in a safetensors header
READ = 1 << 18  # elements that a thread decodes at a time, which stay in its cache

Parts = PyTree[Shaped[np.ndarray, "nets ..."]]
Given = PyTree[Shaped[ArrayLike, "nets ..."]]


@flax.struct.dataclass
class Loaded:
    """A basis on devices, for use under `jax.jit`; `encode` and `decode` are those of `Basis`.

    Attributes:
      components: by leaf path.
      center: by leaf path, flat.
      weight: by leaf path, what a squared deviation counts by in encoding; 0 where a weight does not vary.
    """

    components: dict[str, Shaped[ArrayLike, "weights components"]]
    center: dict[str, Float[ArrayLike, " weights"]]
    weight: dict[str, Float[ArrayLike, " weights"]]
    spec: Spec = flax.struct.field(pytree_node=False)

    def encode(self, parts: Given) -> Float[Array, "nets coordinates"]:
        total = 0.0
        for path, value in flatten(parts):
            flat = jnp.asarray(value).astype(jnp.float32).reshape(len(value), -1)
            total += ((flat - self.center[path]) * self.weight[path]) @ self.components[path].astype(jnp.float32)
        return total

    def decode(self, coordinates: Float[ArrayLike, "nets coordinates"]) -> PyTree[Shaped[Array, "nets ..."]]:
        part = {}
        for leaf in self.spec.leaves:
            matrix = self.components[leaf.path]
            left = jnp.asarray(coordinates).astype(matrix.dtype)
            moved = jnp.einsum("nk,wk->nw", left, matrix, preferred_element_type=jnp.float32)
            values = (self.center[leaf.path] + moved).reshape(-1, *leaf.shape)
            part[leaf.path] = codec.cast(values, leaf.dtype, jnp)
        return traverse_util.unflatten_dict(part, sep="/")


@dataclasses.dataclass(frozen=True)
class Basis:
    """A basis in the folder `where`, as `fit` writes it.

    Attributes:
      center: what coordinates of zero decode to, flat.
      weight: as `Loaded.weight`, flat.
      seen: coordinates of the zoo's networks; their mean square over those that it was fitted to is 1.
      dtype: of the components.
      start: where they begin in their file, in bytes.
    """

    spec: Spec
    where: Path
    center: Float[np.ndarray, " weights"]
    weight: Float[np.ndarray, " weights"]
    seen: Float[np.ndarray, "nets coordinates"]
    dtype: np.dtype
    start: int

    @property
    def count(self) -> int:
        """How many components there are."""
        return self.seen.shape[1]

    @property
    def nbytes(self) -> int:
        """Size of the components."""
        return self.spec.num_params * self.count * self.dtype.itemsize

    def decode(self, coordinates: Float[ArrayLike, "nets coordinates"]) -> Parts:
        """Networks of these coordinates, as the generated part of their trees; read once for all of them."""
        _refuse_traced(coordinates, self.nbytes)
        right = np.ascontiguousarray(np.asarray(coordinates, np.float32).T)
        flat = {leaf.path: np.empty((right.shape[1], leaf.size), leaf.dtype) for leaf in self.spec.leaves}

        def one(span: Span, matrix: np.ndarray) -> None:
            number, start, stop = span
            leaf, first = self.spec.leaves[number], self.spec.starts[number]
            values = (matrix @ right).T + self.center[start:stop]
            flat[leaf.path][:, start - first : stop - first] = codec.cast(values, leaf.dtype, np)

        for _ in self._over(one):
            pass
        parts = {leaf.path: flat[leaf.path].reshape(-1, *leaf.shape) for leaf in self.spec.leaves}
        return traverse_util.unflatten_dict(parts, sep="/")

    def encode(self, parts: Given) -> Float[np.ndarray, "nets coordinates"]:
        """Coordinates of the nearest networks, in normalised weights, that the components reach."""
        by_path = dict(flatten(parts))
        _refuse_traced(next(iter(by_path.values())), self.nbytes)
        count = len(next(iter(by_path.values())))

        def one(span: Span, matrix: np.ndarray) -> np.ndarray:
            number, start, stop = span
            leaf, first = self.spec.leaves[number], self.spec.starts[number]
            flat = np.asarray(by_path[leaf.path]).reshape(count, -1)[:, start - first : stop - first]
            return ((np.float32(flat) - self.center[start:stop]) * self.weight[start:stop]) @ matrix

        total = np.zeros((count, self.count))
        for part in self._over(one):  # in order, so that it is rounded in the same way each time
            total += part
        return total.astype(np.float32)

    def load(self) -> Loaded:
        """All of it in memory."""
        components = {}
        with open(self.where / COMPONENTS, "rb") as file:
            for leaf, start in zip(self.spec.leaves, self.spec.starts, strict=True):
                values = np.empty((leaf.size, self.count), self.dtype)
                read_into(file.fileno(), values, self._offset(start))
                components[leaf.path] = values
        return Loaded(components, self._by_path(self.center), self._by_path(self.weight), self.spec)

    def copy_to(self, where: Path) -> None:
        """Copies the folder, where it is another."""
        if Path(where).absolute() != self.where.absolute():
            shutil.copytree(self.where, where)

    def _by_path(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        return {leaf.path: flat[s : s + leaf.size] for leaf, s in zip(self.spec.leaves, self.spec.starts, strict=True)}

    def _offset(self, weight: int) -> int:
        return self.start + weight * self.count * self.dtype.itemsize

    def _over(self, one: Callable[[Span, np.ndarray], Any]) -> Iterator:
        """`one(span, float32 components of these weights)` of all weights in order, several slices at a time."""
        with open(self.where / COMPONENTS, "rb") as file:

            def read(span: Span) -> Any:
                values = np.empty((span[2] - span[1], self.count), self.dtype)
                read_into(file.fileno(), values, self._offset(span[1]))
                return one(span, _as_float32(values))

            yield from in_order(read, spans(self.spec, READ // self.count))


def size_on_disk(spec: Spec, networks: int, dtype: str) -> int:
    """Bytes of the basis of so many networks, at most."""
    return spec.num_params * ((networks - 1) * DTYPES[dtype].itemsize + 8)


def fit(
    spec: Spec, table: Table, fitted: Stats, rows: Int[np.ndarray, " some"], where: Path, dtype: str = "float32"
) -> None:
    """Writes the basis of the networks `rows` of a table into the new folder `where`.

    The table is read twice. Coordinates of all its networks are kept, those of other rows as the nearest.

    Args:
      fitted: statistics of the table's networks, by which weights are normalised.
      dtype: of the components, one of DTYPES.

    Raises:
      PdiffError: there are fewer than two networks, or they are all the same, or the disk has no room.
    """
    import scipy.linalg  # slow to import, and sampling does not need it

    if len(rows) < 2:
        raise PdiffError(f"basis: got {len(rows)} network; allowed: at least 2, between which others lie")
    files.require_space(where.parent, size_on_disk(spec, len(rows), dtype), "the basis of the networks")
    center, scale = (np.asarray(x).reshape(-1) for x in (fitted.center, fitted.scale))
    every = len(rows) == len(table)

    inverse = np.divide(1, scale, out=np.zeros(len(scale)), where=scale > 0)
    some = slice(None) if every else rows

    def normalized(span: Span, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised weights less their mean, and that mean, in float64."""
        part = slice(*span[1:])
        z = (x - center[part]) * inverse[part]
        mean = z[some].mean(0)
        z -= mean
        return z, mean

    def products(span: Span, x: np.ndarray) -> np.ndarray:
        z, _ = normalized(span, x)
        return z @ z[some].T

    gram = sum(over(spec, table, products))
    values, vectors = scipy.linalg.eigh(gram if every else gram[rows])
    values, vectors = values[::-1], vectors[:, ::-1]
    real = values > max(LEAST_SHARE * values.sum(), 0)
    real[len(rows) - 1 :] = False
    if not real.any():
        raise PdiffError("basis: all networks are the same; there is no distribution to learn")
    values, vectors = values[real], vectors[:, real]
    unit = np.sqrt(values.sum() / len(rows) / len(values))
    seen = gram @ vectors / np.sqrt(values) / unit
    where.mkdir(parents=True)
    middle, mix = center[: spec.num_params].copy(), np.float32(vectors / np.sqrt(values))

    def components(span: Span, x: np.ndarray) -> memoryview:
        part = slice(*span[1:])
        z, mean = normalized(span, x)
        middle[part] += scale[part] * mean
        in_weights = np.float32(z[some]).T @ mix
        in_weights *= np.float32(unit) * scale[part, None]
        return memoryview(in_weights.astype(DTYPES[dtype]).view(np.uint8).reshape(-1))

    with open(where / COMPONENTS, "wb") as file:
        file.write(_header(spec, len(values), dtype))
        for data in over(spec, table, components):
            file.write(data)
    weight = np.float32(np.square(inverse[: spec.num_params] / unit))
    rest = {"center": middle, "weight": weight, "seen": seen.astype(np.float32)}
    rest |= {f"stats/{n}": np.asarray(v) for n, v in vars(fitted).items()}
    safetensors.numpy.save_file(rest, where / REST)
    shutil.copymode(where / COMPONENTS, where / REST)  # it is made readable by its owner alone


def read(spec: Spec, where: Path) -> tuple[Basis, Stats]:
    """The basis that `fit` wrote, without its components, and the statistics.

    Raises:
      PdiffError: it is of other networks than `spec`'s.
    """
    rest = safetensors.numpy.load_file(where / REST)
    fitted = Stats(center=jnp.asarray(rest["stats/center"]), scale=jnp.asarray(rest["stats/scale"]))
    with open(where / COMPONENTS, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    count = rest["seen"].shape[1]
    dtype = next((name for name in NAMES if _header(spec, count, name) == _as_header(header)), None)
    if dtype is None:
        raise PdiffError(f"{where / COMPONENTS}: of other networks than this target's; allowed: that of the same run")
    fields = {"center": rest["center"], "weight": rest["weight"], "seen": rest["seen"]}
    return Basis(spec, where, **fields, dtype=DTYPES[dtype], start=8 + size), fitted


def abstract(spec: Spec, networks: int, dtype: str) -> Loaded:
    """The shapes of a basis of so many networks."""

    def zeros() -> Loaded:
        vectors = {leaf.path: jnp.zeros(leaf.size) for leaf in spec.leaves}
        matrices = {path: jnp.zeros((len(v), networks - 1), DTYPES[dtype]) for path, v in vectors.items()}
        return Loaded(matrices, vectors, vectors, spec)

    return jax.eval_shape(zeros)


def _header(spec: Spec, count: int, dtype: str) -> bytes:
    """That of a safetensors file with the components of all leaves in order."""
    size, offset, header = DTYPES[dtype].itemsize * count, 0, {}
    for leaf in spec.leaves:
        ends = [offset, offset + leaf.size * size]
        header[leaf.path] = {"dtype": NAMES[dtype], "shape": [leaf.size, count], "data_offsets": ends}
        offset = ends[1]
    return _as_header(header)


def _as_header(header: dict) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _as_float32(values: np.ndarray) -> Float[np.ndarray, "weights components"]:
    """The same as float32. NumPy converts bfloat16 one by one; shifting its bits takes half as long."""
    if values.dtype == np.float32:
        return values
    wide = values.view(np.uint16).astype(np.uint32)
    return np.left_shift(wide, 16, out=wide).view(np.float32)


def _refuse_traced(values: ArrayLike, size: int) -> None:
    if isinstance(values, jax.core.Tracer):
        raise PdiffError(
            f"zoo.memory_mb: the basis of these networks takes {size / 1e6:.0f} MB and stays on disk; allowed for what "
            f"computes networks in a training step, such as mean.functional_weight: at least {np.ceil(size / 1e6):.0f}"
        )
