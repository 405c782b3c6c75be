"""Digits rotated by an angle: a family with one continuous factor that wraps.

The circle of angles is cut into arcs, the regions of `pdiff/tasks/regions.py`, before any task is made.

Counter-clockwise as displayed, by `scipy.ndimage.rotate(image, angle, reshape=False, order=1)`.
That is linear in the image, so a task's only variable is one (64, 64) matrix.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks import grammar
from pdiff.tasks.base import SPLITS, Family, Task
from pdiff.tasks.data import images
from pdiff.tasks.grammar import Grammar, TaskSet, Values
from pdiff.tasks.regions import Range, spread

ANGLES = Range(360.0, "degrees", wraps=True)
RIGHT_ANGLES = (0.0, 90.0, 180.0, 270.0)  # all pixels at an image's border are kept; at any other, some fall outside

WORDINGS = (
    "digits rotated by {} degrees",
    "handwritten digits turned {} degrees counter-clockwise",
    "8x8 images of digits at an angle of {} degrees",
    "recognise digits after a rotation of {} degrees",
    "rotate every digit by {} degrees",
    "a digit classifier for images rotated {} degrees",
)
HELD_OUT_WORDINGS = (
    "digits turned by {} degrees",
    "recognise handwritten digits rotated counter-clockwise by {} degrees",
    "a classifier for digits at {} degrees",
)

# Of vague descriptions: training frames, then held-out ones. Only "p" is a letter that precise ones lack.
TURNED = (
    ("digits rotated {}", "handwritten digits turned {} counter-clockwise", "a digit classifier for images rotated {}"),
    ("digits turned {}", "recognise handwritten digits rotated counter-clockwise {}"),
)
STANDING = (
    ("digits {}", "digits that are {}", "recognise handwritten digits that are {}", "images of digits which are {}"),
    ("a classifier for digits which are {}", "recognise digits when they are {}"),
)
ABOUT, LISTED, UPRIGHT = 10.0, 0.5, 45.0  # degrees that an angle may be off either way


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


def describe(factors: tuple[float, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings for an angle, to a hundredth of a degree."""
    number = f"{round(factors[0], 2):g}"
    return tuple(w.format(number) for w in WORDINGS), tuple(w.format(number) for w in HELD_OUT_WORDINGS)


def _arc(start: float, width: float, said: str) -> TaskSet:
    """The angles from `start` to `width` degrees counter-clockwise of it."""

    def contains(factors):  # an angle that rounding has put just before the start is not a whole turn after it
        return grammar.between((factors[:, 0] - start + grammar.CLOSE) % 360 - grammar.CLOSE, 0, width)

    return TaskSet(f"any angle {said} ({width:g} of 360)", contains)


def _range(a: float, b: float) -> TaskSet:
    """From a to b, over 0 if b is the smaller."""
    if b <= a and (b - a) % 360 == 0:
        raise PdiffError(f"prompt: got from {a:g} to {b:g} degrees, where no task is; allowed: two different angles")
    return _arc(a, 360.0 if b - a >= 360 else (b - a) % 360, f"from {a:g} to {b:g} degrees")


def _around(angle: float, margin: float) -> TaskSet:
    return _arc(angle - margin, 2 * margin, f"within {margin:g} degrees of {angle:g}")


def _listed(**angles: float) -> TaskSet:
    each = [_around(angle, LISTED) for angle in angles.values()]
    said = " or ".join(f"{angle:g}" for angle in angles.values())
    width = 2 * LISTED * len({angle % 360 for angle in angles.values()})
    said = f"any angle within {LISTED:g} degrees of {said} ({width:g} of 360)"
    return TaskSet(said, lambda factors: np.any([one.contains(factors) for one in each], axis=0))


def _side(low: float = 0.0, high: float = 360.0) -> TaskSet:
    return _range(*grammar.interval(low, high, "degrees", (0.0, 360.0)))


def _rest() -> TaskSet:
    down = _around(180.0, UPRIGHT)
    said = f"any angle but those within {UPRIGHT:g} degrees of 180 ({360 - 2 * UPRIGHT:g} of 360)"
    return TaskSet(said, lambda factors: ~down.contains(factors))


def _angles(*slots: str) -> Callable[[np.random.Generator], Values]:
    return lambda random: grammar.numbers(random, **dict(zip(slots, random.uniform(1, 359, len(slots)), strict=True)))


def _ends(random: np.random.Generator) -> Values:
    start = random.uniform(0, 360)
    drawn = grammar.numbers(random, a=start, b=start + grammar.log_uniform(random, 10, 180))
    return {slot: round(angle % 360, 2) for slot, angle in drawn.items()}


_CONSTRUCTIONS = (
    ("range", TURNED, ("by between {a} and {b} degrees", "from {a} to {b} degrees", "by {a} up to {b} degrees"),
     ("between {a} and {b} degrees", "by {a} to {b} degrees"), _ends, _range),
    ("two", TURNED, ("by either {a} or {b} degrees", "by {a} or {b} degrees"),
     ("by {a} degrees or else {b} degrees",), _angles("a", "b"), _listed),
    ("three", TURNED, ("by either {a} or {b} or {c} degrees", "by {a} or {b} or {c} degrees"),
     ("by {a} degrees or {b} degrees or {c} degrees",), _angles("a", "b", "c"), _listed),
    ("about", TURNED, ("by about {a} degrees", "by around {a} degrees", "by approximately {a} degrees"),
     ("by roughly {a} degrees", "about {a} degrees"), _angles("a"), lambda a: _around(a, ABOUT)),
    ("below", TURNED, ("by less than {a} degrees", "by up to {a} degrees"),
     ("by no more than {a} degrees",), _angles("a"), lambda a: _side(high=a)),
    ("above", TURNED, ("by more than {a} degrees", "by at least {a} degrees"),
     ("by no less than {a} degrees",), _angles("a"), lambda a: _side(low=a)),
    ("any", TURNED, ("by some angle", "by any angle"),
     ("no matter how much",), _angles(), lambda: _arc(0.0, 360.0, "at all")),
    ("upright", STANDING, ("roughly upright", "upright more or less"),
     ("about upright",), _angles(), lambda: _around(0.0, UPRIGHT)),
    ("upside down", STANDING, ("upside down", "roughly upside down"),
     ("more or less upside down",), _angles(), lambda: _around(180.0, UPRIGHT)),
    ("not upside down", STANDING, ("not upside down", "by no means upside down"),
     ("never upside down",), _angles(), _rest),
)  # fmt: skip
GRAMMAR = Grammar(
    tuple(grammar.construction(*parts) for parts in _CONSTRUCTIONS),
    dict.fromkeys("abc", grammar.NUMBER),
    lambda count: np.linspace(0, 360, count, endpoint=False)[:, None],
)


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
