"""Images under one kind of corruption at one severity: discrete and continuous factors together.

The kinds are those of Hendrycks & Dietterich 2019 that are affine in the pixels but for a clip to [0, 1], so one
`render` serves them all. A severity lies in [0, 1]: 0 is the clean image for every kind, and strength grows with it.
The range of severities is cut into the regions of `pdiff/tasks/regions.py`, in percent and the same for every kind.

A task's seed draws its noise and where its occluding block lies. That place is in two more factors and in the
descriptions; the noise itself can be neither described nor learned, so it is in neither.
"""

import functools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt32
from ml_collections import ConfigDict
from scipy import ndimage

from pdiff import rng
from pdiff.errors import PdiffError
from pdiff.tasks.base import SPLITS, Family, Task
from pdiff.tasks.data import images
from pdiff.tasks.languages.corruptions import describe, make_grammar
from pdiff.tasks.regions import Range, spread

PERCENT = Range(100.0, "percent", wraps=False)

# What severity 1 is.
LEAST_CONTRAST = 0.2  # share of an image's contrast that is left
WIDEST_BLUR = 0.2  # standard deviation, as a share of the image's sides
STRONGEST_NOISE = 0.5  # standard deviation; pixels are in [0, 1]
LARGEST_BLOCK = 0.6  # sides of the occluding block, as shares of the image's
STEEPEST_SHEAR = 1.0  # columns that neighbouring rows move apart
SMALLEST_SCALE = 0.5  # of the object; black surrounds it
GREY = 0.5  # what contrast fades to, and the colour of the block
PLACES = (30, 70)  # percent of the sides between which a block's centre lies, so that it is never cut off

Shape = tuple[int, int]
Variables = dict[str, np.ndarray]


def identity(shape: Shape) -> Variables:
    """The variables of a task that leaves images of `shape` (height, width) as they are.

    An image goes to `rows @ image`, then each of its rows r to `row @ columns[r] + offset[r]`; noise of standard
    deviation `noise` is added, and the whole clipped to [0, 1].
    """
    height, width = shape
    return {
        "rows": np.eye(height),
        "columns": np.tile(np.eye(width), (height, 1, 1)),
        "offset": np.zeros(shape),
        "noise": np.zeros(()),
    }


def contrast(severity: float, shape: Shape) -> Variables:
    """Towards grey."""
    left = 1 - severity * (1 - LEAST_CONTRAST)
    return _blend(np.full(shape, left), np.full(shape, (1 - left) * GREY))


def blur(severity: float, shape: Shape) -> Variables:
    """`scipy.ndimage.gaussian_filter(image, sqrt(severity) * WIDEST_BLUR * shape)`: its variance is linear.

    A standard deviation that is linear would change nothing at low severities, since it has to reach the next pixel.
    """
    sigma = np.sqrt(severity) * WIDEST_BLUR
    rows, columns = (ndimage.gaussian_filter(np.eye(side), (sigma * side, 0)) for side in shape)
    return identity(shape) | {"rows": rows, "columns": np.tile(columns.T, (shape[0], 1, 1))}


def inversion(severity: float, shape: Shape) -> Variables:
    """(1 - s) x + s (1 - x), which at 0.5 is grey everywhere."""
    return _blend(np.full(shape, 1 - 2 * severity), np.full(shape, severity))


def noise(severity: float, shape: Shape) -> Variables:
    """Gaussian noise."""
    return identity(shape) | {"noise": np.asarray(severity * STRONGEST_NOISE)}


def occlusion(severity: float, shape: Shape, across: float = 0.5, down: float = 0.5) -> Variables:
    """A grey block, centred at these shares of the width and the height, covering pixels at its edge in part."""

    def cover(side: int, centre: float) -> Float[np.ndarray, " side"]:
        half, pixels = severity * LARGEST_BLOCK * side / 2, np.arange(side)
        return np.clip(np.minimum(pixels + 1, centre * side + half) - np.maximum(pixels, centre * side - half), 0, 1)

    covered = np.outer(cover(shape[0], down), cover(shape[1], across))
    return _blend(1 - covered, covered * GREY)


def shear(severity: float, shape: Shape) -> Variables:
    """`scipy.ndimage.affine_transform` with the matrix [[1, 0], [slope, 1]] about the centre, linear, black outside."""
    offsets = severity * STEEPEST_SHEAR * (np.arange(shape[0]) - (shape[0] - 1) / 2)
    return identity(shape) | {"columns": np.stack([_resample(shape[1], 1.0, o) for o in offsets])}


def scale(severity: float, shape: Shape) -> Variables:
    """`scipy.ndimage.affine_transform` with the matrix 1 / scale about the centre, linear, black outside."""
    zoom = 1 / (1 - severity * (1 - SMALLEST_SCALE))
    rows, columns = (_resample(side, zoom, (1 - zoom) * (side - 1) / 2) for side in shape)
    return identity(shape) | {"rows": rows.T, "columns": np.tile(columns, (shape[0], 1, 1))}


KINDS: dict[str, Callable[..., Variables]] = {
    f.__name__: f for f in (contrast, blur, inversion, noise, occlusion, shear, scale)
}


def _blend(gain: Float[np.ndarray, "height width"], offset: Float[np.ndarray, "height width"]) -> Variables:
    """gain * image + offset."""
    return identity(gain.shape) | {"columns": np.eye(gain.shape[1]) * gain[:, None, :], "offset": offset}


def _resample(side: int, zoom: float, offset: float) -> Float[np.ndarray, "side side"]:
    """M such that `(line @ M)[i]` is `line` at `zoom * i + offset`, linear between pixels and black outside."""
    # On the basis lines; 'grid-constant' also goes linearly to black at the edges, 'constant' would jump.
    matrix, shift = np.array([1.0, zoom]), np.array([0.0, offset])
    return ndimage.affine_transform(np.eye(side), matrix, shift, order=1, mode="grid-constant")


def render(variables: dict[str, ArrayLike], x: Float[ArrayLike, "n pixels"]) -> Float[Array, "n pixels"]:
    """The images `x` as the task has them. An image looks the same whatever batch it is in."""
    height, width = variables["offset"].shape
    mixed = jnp.einsum("qr,nrc->nqc", variables["rows"], x.reshape(-1, height, width))
    mixed = jnp.einsum("nrc,rcd->nrd", mixed, variables["columns"]) + variables["offset"]
    key = rng.stream(0, "tasks/corruptions/noise", variables["seed"])
    draw = jax.vmap(lambda bits: jax.random.normal(jax.random.fold_in(key, bits), x.shape[1:]))
    return jnp.clip(mixed.reshape(x.shape) + variables["noise"] * draw(hash_images(x)), 0, 1)


def hash_images(x: Float[ArrayLike, "n pixels"]) -> UInt32[Array, " n"]:
    """32 bits of each image's pixels: every pixel's bits, moved by its place, through MurmurHash3's finalizer."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32)
    bits = bits + jnp.arange(x.shape[1], dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return (bits ^ (bits >> 16)).sum(1, dtype=jnp.uint32)


def factor_names(kinds: Sequence[str]) -> tuple[str, ...]:
    """The severity first; an indicator for each kind; where the block's centre is, 0 for all other kinds."""
    return ("severity", *kinds, *(("across", "down") if "occlusion" in kinds else ()))


def make_family(config: ConfigDict, data: images.DataSet | None = None) -> Family:
    """The family of `config` (the `tasks` part of a run's config), on the images `data`, by default `config.data`.

    Raises:
      PdiffError: the bands are malformed, or leave no room for the seen tasks; or images are not grey.
    """
    kinds, bands = config.corruptions, PERCENT.divide(config)
    regions = {"seen": PERCENT.complement([b for held in bands.values() for b in held]), **bands}
    data = data or images.load(config)
    if len(data.image_shape) != 2:
        got = f"{config.data!r}, images of {data.image_shape}"
        raise PdiffError(f"tasks.data: got {got}; allowed for corruptions: grey images")
    what = config.data.replace("_", " ")
    describe_here = functools.partial(describe, kinds=kinds, what=what)
    vary = functools.partial(variables_of, kinds=kinds, shape=data.image_shape)
    tasks, variables = [], []
    for split in SPLITS:
        # The severities of kind i are laid out from 100 i to 100 i + 100.
        laid_out = [(100 * i + a, 100 * i + b) for i in range(len(kinds)) for a, b in regions[split]]
        for value in np.sort(spread(laid_out, config[f"num_{split}"])):
            kind, percent = kinds[int(value // 100)], round(float(value % 100), 2)
            factors = _factors(kind, percent, kinds)
            tasks.append(Task(f"{kind}_{percent:g}", len(tasks), split, factors, *describe_here(factors)))
            variables.append(vary(factors))
    names = factor_names(kinds)

    def factors_of(kind: str, percent: float, *place: float) -> tuple[float, ...]:
        return _factors(kind, percent, kinds, *place)

    return Family(
        name="corruptions",
        factor_names=names,
        factor_periods=(0.0,) * len(names),
        factor_units=tuple(0.0 if n in kinds else 0.01 for n in names),
        num_classes=len(data.class_names),
        image_shape=data.image_shape,
        data=data.parts,
        tasks=tuple(tasks),
        variables=jax.tree.map(lambda *a: np.stack(a), *variables),
        render=render,
        describe=describe_here,
        vary=vary,
        class_names=data.class_names,
        grammar=make_grammar(tuple(kinds), what, factors_of),
        arcs={split: tuple((a / 100, b / 100) for a, b in held) for split, held in bands.items()},
    )


def _factors(kind: str, percent: float, kinds: Sequence[str], *place: float) -> tuple[float, ...]:
    """The factors of a kind at a severity, and of a place in percent; else a block's is drawn from the task's seed."""
    known = {"severity": percent / 100, kind: 1.0}
    if kind == "occlusion":
        drawn = np.random.default_rng(_seed(kind, percent)).integers(*PLACES, 2, endpoint=True)
        across, down = place or drawn.tolist()
        known |= {"across": across / 100, "down": down / 100}
    return tuple(known.get(n, 0.0) for n in factor_names(kinds))


def _seed(kind: str, percent: float) -> int:
    return zlib.crc32(f"{kind}_{percent:g}".encode())


def variables_of(factors: tuple[float, ...], *, kinds: Sequence[str], shape: Shape) -> Variables:
    """The variables of the task with these factors, of one kind."""
    kind = kinds[int(np.argmax(factors[1 : 1 + len(kinds)]))]
    place = {"across": factors[-2], "down": factors[-1]} if kind == "occlusion" else {}
    variables = jax.tree.map(np.float32, KINDS[kind](factors[0], shape, **place))
    return variables | {"seed": np.uint32(_seed(kind, round(100 * factors[0], 2)))}
