"""Angles and sets of them in degrees, counter-clockwise, with the words for them."""

import numpy as np

from pdiff.tasks import grammar
from pdiff.tasks.language import Nonsense, TaskSet

ABOUT, LISTED, UPRIGHT = 10.0, 0.5, 45.0  # degrees that an angle may be off either way


def words_of(degrees: float) -> str:
    """An angle, both ways if it was said, or is shorter, the other way."""
    angle = round(degrees % 360, 2) % 360
    back = f" ({round(360 - angle, 2):g} clockwise)" if angle > 180 or degrees < 0 < angle else ""
    return f"{angle:g} degrees counter-clockwise{back}" if angle else "0 degrees, upright"


def arc(start: float, width: float, said: str) -> TaskSet:
    """The angles from `start` to `width` degrees counter-clockwise of it."""

    def contains(factors):  # an angle that rounding has put just before the start is not a whole turn after it
        return grammar.between((factors[:, 0] - start + grammar.CLOSE) % 360 - grammar.CLOSE, 0, width)

    return TaskSet(f"any angle {said} ({width:g} of 360)", contains)


def range_of(a: float, b: float) -> TaskSet:
    """Between a and b: clockwise if neither is positive, over 0 if that is shorter, as from 350 to 10."""
    clockwise = max(a, b) <= 0 and min(a, b) < 0
    over_zero = b < a and not clockwise and (b - a) % 360 < a - b
    start, end = (a, b) if over_zero else (min(a, b), max(a, b))
    width = 360.0 if end - start >= 360 else round((end - start) % 360, 2)
    if not width:
        raise Nonsense(f"says from {a:g} to {b:g} degrees, where no angle is; allowed: two different angles")
    first, last = (-end + 0.0, -start) if clockwise else (start, end)
    plain = not clockwise and -360 <= start <= 360 and -360 <= end <= 360
    as_it_is = "" if plain else f", which is {start % 360:g} to {end % 360:g} counter-clockwise"
    return arc(start, width, f"from {first:g} to {last:g} degrees{' clockwise' * clockwise}{as_it_is}")


def around(angle: float, margin: float) -> TaskSet:
    return arc(angle - margin, min(2 * margin, 360.0), f"within {margin:g} degrees of {round(angle % 360, 2):g}")


def listed(*angles: float) -> TaskSet:
    each = [around(angle, LISTED) for angle in angles]
    said = " or ".join(f"{round(angle % 360, 2):g}" for angle in angles)
    width = 2 * LISTED * len({round(angle % 360, 2) for angle in angles})
    said = f"any angle within {LISTED:g} degrees of {said} ({width:g} of 360)"
    return TaskSet(said, lambda factors: np.any([one.contains(factors) for one in each], axis=0))


def below(degrees: float) -> TaskSet:
    if not 0 < abs(degrees) <= 360:
        raise Nonsense(f"says less than {degrees:g} degrees, where no angle is; allowed: a bound above 0 and up to 360")
    return range_of(0.0, degrees)


def above(degrees: float) -> TaskSet:
    if not abs(degrees) < 360:
        raise Nonsense(f"says more than {degrees:g} degrees, where no angle is; allowed: a bound below 360")
    return range_of(degrees, 360.0 if degrees >= 0 else -360.0)


def but(angle: float, margin: float) -> TaskSet:
    out = around(angle, margin)
    said = f"any angle but those within {margin:g} degrees of {round(angle % 360, 2):g} ({360 - 2 * margin:g} of 360)"
    return TaskSet(said, lambda factors: ~out.contains(factors))


def anything() -> TaskSet:
    return arc(0.0, 360.0, "at all")
