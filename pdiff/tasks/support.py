"""Support sets: a few images of a task itself, with or without labels, that tell a generator which task it is.

They are drawn from the family's *training* images, rendered as the task renders them, so that no test
image ever tells anything.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pdiff.errors import PdiffError
from pdiff.tasks.base import Family, Task

UNKNOWN = -1  # the label of an image without one


@dataclasses.dataclass(frozen=True)
class Support:
    """Support images of a batch of tasks. `real` is false in padding; a label is -1 where it is not given."""

    x: Float[np.ndarray, "batch images features"]
    y: Int[np.ndarray, "batch images"]
    real: Bool[np.ndarray, "batch images"]

    @property
    def tree(self) -> dict[str, np.ndarray]:
        return dataclasses.asdict(self)

    def padded(self, images: int) -> "Support":
        """The same with room for `images`.

        Raises:
          PdiffError: there are more.
        """
        room = images - self.y.shape[1]
        if room < 0:
            raise PdiffError(f"support: got {self.y.shape[1]} images; allowed: at most {images}")
        return Support(
            np.pad(self.x, ((0, 0), (0, room), (0, 0))),
            np.pad(self.y, ((0, 0), (0, room)), constant_values=UNKNOWN),
            np.pad(self.real, ((0, 0), (0, room))),
        )

    def repeat(self, count: int) -> "Support":
        """Each task's support `count` times in a row."""
        return Support(*(np.repeat(a, count, 0) for a in (self.x, self.y, self.real)))


def nothing(batch: int, images: int, features: int) -> Support:
    """Support sets without an image."""
    return Support(
        np.zeros((batch, images, features), np.float32),
        np.full((batch, images), UNKNOWN, np.int32),
        np.zeros((batch, images), bool),
    )


def of_images(
    images: Float[np.ndarray, "images features"],
    labels: Int[np.ndarray, " images"] | None,
    num_classes: int,
    features: int,
) -> Support:
    """One support set from a user's own images; labels from 0 to num_classes - 1, or none.

    Raises:
      PdiffError: the shapes do not fit, images have other than `features` numbers, one of which is not finite, or a
        label is out of range.
    """
    x = np.asarray(images, np.float32)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise PdiffError(f"support: got images of shape {x.shape}; allowed: (images, features), all finite")
    if x.shape[1] != features:
        raise PdiffError(f"support: got images of {x.shape[1]} numbers; allowed: {features}")
    y = np.full(len(x), UNKNOWN) if labels is None else np.asarray(labels)
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or y.max() >= num_classes or y.min() < UNKNOWN:
        span = f" from {y.min()} to {y.max()}" if y.size and y.dtype.kind in "iuf" else ""
        raise PdiffError(
            f"support: got labels of shape {y.shape}, {y.dtype}{span}, for {len(x)} images; allowed: a whole number "
            f"from 0 to {num_classes - 1} for each, {UNKNOWN} where it is not known"
        )
    return Support(x[None], y.astype(np.int32)[None], np.ones((1, len(x)), bool))


def class_rows(labels: Int[np.ndarray, " n"], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """For each class its rows, padded by repeating them, and how many there are."""
    rows = [np.flatnonzero(labels == c) for c in range(num_classes)]
    counts = np.array([len(r) for r in rows], np.int32)
    if not counts.all():
        raise PdiffError(f"support: class {int(counts.argmin())} has no training image")
    table = np.stack([np.resize(r, counts.max()) for r in rows]).astype(np.int32)
    return table, counts


def draw_rows(
    key: PRNGKeyArray, table: Int[Array, "classes most"], counts: Int[Array, " classes"], per_class: int
) -> Int[Array, " images"]:
    """Rows of `per_class` different images of each class (with replacement if it has fewer), class by class in turn."""
    uniform = jax.random.uniform(key, table.shape)
    order = jnp.argsort(jnp.where(jnp.arange(table.shape[1]) < counts[:, None], uniform, 2.0), 1)
    chosen = jnp.take_along_axis(table, order, 1)
    chosen = jnp.take_along_axis(chosen, jnp.arange(per_class)[None] % counts[:, None], 1)
    return chosen.T.reshape(-1)


def draw(family: Family, tasks: Sequence[Task], per_class: int, labelled: bool, key: PRNGKeyArray) -> Support:
    """For every task `per_class` training images of each class of the shared images, drawn for it alone."""
    images = family.data["train"]
    table, counts = class_rows(images.y, family.source_classes)
    keys = jax.random.split(key, len(tasks))
    rows = np.asarray(jax.vmap(lambda k: draw_rows(k, jnp.asarray(table), jnp.asarray(counts), per_class))(keys))
    ids = np.array([t.id for t in tasks])
    variables = jax.tree.map(lambda v: v[ids], family.variables)
    x, y = jax.tree.map(np.asarray, jax.jit(jax.vmap(family.labelled))(variables, images.x[rows], images.y[rows]))
    y = y if labelled else np.full(rows.shape, UNKNOWN)
    return Support(x, y.astype(np.int32), np.ones(rows.shape, bool))
