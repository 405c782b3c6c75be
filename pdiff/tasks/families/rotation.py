"""Digits rotated by an angle: a family with one continuous factor that wraps.

The circle of angles is cut into arcs, the regions of `pdiff/tasks/regions.py`, before any task is made.

Counter-clockwise as displayed, by `scipy.ndimage.rotate(image, angle, reshape=False, order=1)`.
That is linear in the image, so a task's only variable is one (64, 64) matrix.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks.base import SPLITS, Family, Task
from pdiff.tasks.data import images
from pdiff.tasks.languages.rotation import GRAMMAR, describe
from pdiff.tasks.regions import Range, spread

ANGLES = Range(360.0, "degrees", wraps=True)
RIGHT_ANGLES = (0.0, 90.0, 180.0, 270.0)  # all pixels at an image's border are kept; at any other, some fall outside


def rotation_matrix(degrees: float, side: int = 8) -> Float[np.ndarray, "pixels pixels"]:
    """R such that `image.ravel() @ R` is the flattened `scipy.ndimage.rotate` of the image."""
    from scipy import ndimage

    basis = np.eye(side * side, dtype=np.float64).reshape(-1, side, side)
    # axes=(2, 1) turns each plane of a stack as the default axes=(1, 0) turn one image.
    turned = ndimage.rotate(basis, degrees, axes=(2, 1), reshape=False, order=1)
    return turned.reshape(side * side, side * side).astype(np.float32)


def render(matrix: Float[ArrayLike, "pixels pixels"], x: Float[ArrayLike, "n pixels"]) -> Float[Array, "n pixels"]:
    """The images `x` turned by the task's angle."""
    return jnp.asarray(x) @ matrix


def make_family(config: ConfigDict, data: images.DataSet | None = None) -> Family:
    """The family of `config` (the `tasks` part of a run's config), on the images `data`, by default `config.data`.

    Raises:
      PdiffError: the arcs are malformed, or leave no room for the seen tasks.
    """
    arcs = ANGLES.divide(config)
    regions = {"seen": ANGLES.complement([a for held in arcs.values() for a in held]), **arcs}
    data = data or images.load(config)
    if data.image_shape != (8, 8):
        raise PdiffError(f"tasks.data: got {config.data!r}, images of {data.image_shape}; allowed for rotation: digits")
    tasks = []
    for split in SPLITS:
        angles = np.array(spread(regions[split], config[f"num_{split}"]))
        for angle in np.sort(np.round(angles % 360, 2) % 360).tolist():
            tasks.append(Task(f"rotation_{angle:g}", len(tasks), split, (angle,), *describe((angle,))))
    return Family(
        name="rotation",
        factor_names=("degrees",),
        factor_periods=(360.0,),
        num_classes=len(data.class_names),
        image_shape=data.image_shape,
        data=data.parts,
        tasks=tuple(tasks),
        variables=np.stack([rotation_matrix(t.factors[0]) for t in tasks]),
        render=render,
        describe=describe,
        arcs=arcs,
        vary=lambda factors: rotation_matrix(factors[0]),
        class_names=data.class_names,
        grammar=GRAMMAR,
        singular=RIGHT_ANGLES,
    )
