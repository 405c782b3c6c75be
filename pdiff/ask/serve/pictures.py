"""Pictures as PNG data URIs: images that networks are asked about, and the weights themselves."""

import base64
import io

import jax
import numpy as np
from jaxtyping import Float, PyTree, UInt8
from PIL import Image

MOST_MAPS = 4  # of one network
MOST_SIDE = 128  # of a heat map, in weights; larger arrays are thinned out
_COOL, _WARM = np.array([33, 102, 172]), np.array([178, 24, 43])  # blue and red of ColorBrewer's RdBu


def data_uri(pixels: UInt8[np.ndarray, "height width *channels"]) -> str:
    """A PNG as `data:image/png;base64,…`."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image(x: Float[np.ndarray, " features"], shape: tuple[int, ...]) -> str:
    """One image of a family; pixels outside [0, 1] are clipped."""
    return data_uri((np.clip(x.reshape(shape), 0, 1) * 255).round().astype(np.uint8))


def heat_map(weights: Float[np.ndarray, "..."]) -> tuple[str, float]:
    """An array as a heat map, its last axis downwards, and the size that the darkest colours stand for.

    Negative is blue, zero white, positive red.
    """
    flat = np.asarray(weights, np.float64).reshape(-1, weights.shape[-1]).T
    rows, columns = (-(-side // MOST_SIDE) for side in flat.shape)
    flat = flat[::rows, ::columns]
    largest = float(np.abs(flat).max()) or 1.0
    strength = (np.abs(flat) / largest)[..., None]
    colour = np.where(flat[..., None] < 0, _COOL, _WARM)
    return data_uri((255 * (1 - strength) + colour * strength).round().astype(np.uint8)), largest


def heat_maps(networks: PyTree[Float[np.ndarray, "samples ..."]]) -> list[dict]:
    """Heat maps of the first network's matrices, the largest first."""
    leaves = jax.tree_util.tree_leaves_with_path(networks)
    kernels = [("/".join(k.key for k in path), leaf[0]) for path, leaf in leaves if leaf.ndim > 2]
    maps = []
    for name, weights in sorted(kernels, key=lambda f: -f[1].size)[:MOST_MAPS]:
        src, largest = heat_map(weights)
        maps.append({"name": name, "shape": list(weights.shape), "src": src, "largest": round(largest, 3)})
    return maps
