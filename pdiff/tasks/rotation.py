"""Digits rotated by an angle: a family with one continuous factor that wraps.

The circle of angles is cut into regions, once, before any task is made:

  unseen      the arcs of `tasks.unseen`: extrapolation, nothing near their middle is in the zoo
  interp      narrow gaps: the seen neighbours on both sides are `gap_degrees` apart
  validation  gaps of both kinds of width, the only ones that may select anything
  seen        the rest, sampled evenly

Counter-clockwise as displayed, by `scipy.ndimage.rotate(image, angle, reshape=False, order=1)`.
That is linear in the image, so a task's only variable is one (64, 64) matrix.
"""

import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from pdiff.errors import PdiffError
from pdiff.tasks import images
from pdiff.tasks.base import Family, Task

Arc = tuple[float, float]  # [start, end) in degrees, 0 <= start < 360, start < end <= start + 360

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


def parse_arcs(text: str, field: str = "tasks.unseen") -> tuple[Arc, ...]:
    """'60:90,350:10' -> ((60, 90), (350, 370)). An empty string is no arc.

    Raises:
      PdiffError: not of that form, outside [0, 360], empty, or overlapping arcs.
    """
    arcs = []
    for item in filter(None, (s.strip() for s in text.split(","))):
        try:
            start, end = (float(s) for s in item.split(":"))
        except ValueError:
            start = end = np.nan
        if not (0 <= start <= 360 and 0 <= end <= 360 and start != end):
            raise PdiffError(
                f"{field}: got {item!r} in {text!r}; allowed: 'start:end' in degrees from 0 to 360, "
                "start and end different, separated by commas, as in '60:90,216:234'"
            )
        arcs.append((start % 360, end if end > start else end + 360))
        if arcs[-1][0] == 0 and start == 360:
            arcs[-1] = (0.0, end)
    for i, a in enumerate(arcs):
        for b in arcs[i + 1 :]:
            if _inside(b[0], a) or _inside(a[0], b):
                raise PdiffError(f"{field}: the arcs {a} and {b} of {text!r} overlap")
    return tuple(arcs)


def rotation_matrix(degrees: float, side: int = 8) -> Float[np.ndarray, "pixels pixels"]:
    """R such that `image.ravel() @ R` is the flattened `scipy.ndimage.rotate` of the image."""
    from scipy import ndimage

    basis = np.eye(side * side, dtype=np.float64).reshape(-1, side, side)
    # axes=(2, 1) turns each plane of a stack as the default axes=(1, 0) turn one image.
    turned = ndimage.rotate(basis, degrees, axes=(2, 1), reshape=False, order=1)
    return turned.reshape(side * side, side * side).astype(np.float32)


def render(matrix: Float[Array, "pixels pixels"], x: Float[Array, "n pixels"]) -> Float[Array, "n pixels"]:
    """The images `x` turned by the task's angle."""
    return x @ matrix


def describe(factors: tuple[float, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings for an angle, to a hundredth of a degree."""
    number = f"{round(factors[0], 2):g}"
    return tuple(w.format(number) for w in WORDINGS), tuple(w.format(number) for w in HELD_OUT_WORDINGS)


def make_family(config: ConfigDict) -> Family:
    """The family of `config` (the `tasks` part of a run's config).

    Raises:
      PdiffError: the arcs are malformed, or leave no room for the seen tasks.
    """
    arcs = divide_circle(config)
    angles = {
        "seen": _spread(_complement([a for held in arcs.values() for a in held]), config.num_seen),
        "validation": _spread(arcs["validation"], config.num_validation),
        "interp": _spread(arcs["interp"], config.num_interp),
        "unseen": _spread(arcs["unseen"], config.num_unseen),
    }
    data = images.load(config)
    if data.image_shape != (8, 8):
        raise PdiffError(f"tasks.data: got {config.data!r}, images of {data.image_shape}; allowed for rotation: digits")
    tasks = []
    for split, values in angles.items():
        for angle in np.sort(np.round(np.asarray(values) % 360, 2) % 360):
            trained, held_out = describe((float(angle),))
            tasks.append(Task(f"rotation_{angle:g}", len(tasks), split, (float(angle),), trained, held_out))
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
    )


def divide_circle(config: ConfigDict) -> dict[str, tuple[Arc, ...]]:
    """Where the held-out regions lie: `unseen` as typed, the gaps evenly over what is left.

    A gap is moved until it lies inside one seen arc with a margin of a quarter of its width, and
    narrowed where the seen region is small, so that gaps never take more than a third of it.
    """
    unseen = parse_arcs(config.unseen)
    free = _complement(unseen)
    length = sum(b - a for a, b in free)
    widths = [("interp", config.gap_degrees)] * config.num_gaps
    for i, width in enumerate(config.validation_gaps):  # spread among the interp gaps
        widths.insert((2 * i + 1) * (len(widths) + 1) // (2 * len(config.validation_gaps)), ("validation", width))
    if length < 10:
        raise PdiffError(
            f"tasks.unseen: {config.unseen!r} leaves {length:g} of 360 degrees for seen tasks; at least 10 are needed"
        )
    held: dict[str, list[Arc]] = {"unseen": list(unseen), "interp": [], "validation": []}
    shrink = min(1.0, length / 3 / max(sum(w for _, w in widths), 1e-9))
    for i, (split, width) in enumerate(widths):
        gap = _place(free, (i + 0.5) / len(widths) * length, width * shrink)
        held[split].append(gap)
    return {split: tuple(a) for split, a in held.items()}


def _place(free: list[Arc], position: float, width: float) -> Arc:
    """A gap of `width` centred `position` degrees along the free arcs, moved inside the arc it falls in."""
    for start, end in free:
        if position <= end - start:
            width = min(width, (end - start) / 1.5)
            margin = 0.75 * width
            centre = min(max(start + position, start + margin), end - margin)
            return ((centre - width / 2) % 360, (centre - width / 2) % 360 + width)
        position -= end - start
    raise AssertionError("a position lies within the free length")


def _complement(arcs) -> list[Arc]:
    """The arcs between `arcs`; the whole circle when there are none."""
    if not arcs:
        return [(0.0, 360.0)]
    ordered = sorted(arcs)
    ends = [*ordered[1:], (ordered[0][0] + 360, 0.0)]
    free = [(a[1], b[0]) for a, b in zip(ordered, ends, strict=True) if b[0] - a[1] > 1e-9]
    return [(a % 360, a % 360 + (b - a)) for a, b in free]


def _spread(arcs, count: int) -> list[float]:
    """`count` angles strictly inside the arcs, evenly and in proportion to the arcs' lengths."""
    if count == 0 or not arcs:
        return []
    lengths = np.array([end - start for start, end in arcs])
    exact = lengths / lengths.sum() * count
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: count - share.sum()]] += 1  # largest remainders
    return [
        start + (i + 0.5) * (end - start) / n for (start, end), n in zip(arcs, share, strict=True) for i in range(n)
    ]


def _inside(angle: float, arc: Arc) -> bool:
    return (angle - arc[0]) % 360 < arc[1] - arc[0]
