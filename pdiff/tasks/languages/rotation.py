"""How angles are described: "digits rotated by 75 degrees", in many wordings; `angle_reading` reads them back."""

from collections.abc import Callable

import numpy as np

from pdiff.tasks import grammar
from pdiff.tasks.grammar import Grammar, Values
from pdiff.tasks.language import TaskSet
from pdiff.tasks.languages import angle_sets
from pdiff.tasks.languages.angle_reading import LANGUAGE

# Of one angle: frames with a phrase in the place of {}, and phrases with the angle, counter-clockwise.
FRAMES = (
    "digits rotated by {}", "handwritten digits turned {}", "8x8 images of digits at an angle of {}",
    "recognise digits after a rotation of {}", "rotate every digit by {}", "a digit classifier for images rotated {}",
    "a network for numerals that are rotated {}", "digits, {} off upright",
)  # fmt: skip
HELD_OUT_FRAMES = (
    "digits turned by {}", "recognise handwritten digits rotated through {}", "a classifier for digits at {}",
    "images of numbers that have been turned by {}",
)  # fmt: skip
PHRASES = ("{} degrees", "{} degrees counter-clockwise", "{}°", "{} deg")
HELD_OUT_PHRASES = ("{} degrees to the left", "{} degrees anticlockwise")

# Of sets of angles: training frames, then held-out ones.
TURNED = (
    ("digits rotated {}", "handwritten digits turned {} counter-clockwise", "a digit classifier for images rotated {}"),
    ("digits turned {}", "recognise handwritten digits rotated counter-clockwise {}"),
)
STANDING = (
    ("digits {}", "digits that are {}", "recognise handwritten digits that are {}", "images of digits which are {}"),
    ("a classifier for digits which are {}", "recognise digits when they are {}"),
)


def describe(factors: tuple[float, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings for an angle, to a hundredth of a degree. A wording is held out if its frame or
    its phrase is."""
    angle = f"{round(factors[0], 2):g}"

    def filled(frames, phrases):
        return tuple(frame.format(phrase.format(angle)) for phrase in phrases for frame in frames)

    held_out = filled(HELD_OUT_FRAMES, PHRASES + HELD_OUT_PHRASES) + filled(FRAMES, HELD_OUT_PHRASES)
    return filled(FRAMES, PHRASES), held_out


def _angles(*slots: str) -> Callable[[np.random.Generator], Values]:
    return lambda random: grammar.numbers(random, **dict(zip(slots, random.uniform(1, 359, len(slots)), strict=True)))


def _ends(random: np.random.Generator) -> Values:
    start = random.uniform(0, 360)
    drawn = grammar.numbers(random, a=start, b=start + grammar.log_uniform(random, 10, 180))
    return {slot: round(angle % 360, 2) for slot, angle in drawn.items()}


def _list(**angles: float) -> TaskSet:
    return angle_sets.listed(*angles.values())


_CONSTRUCTIONS = (
    ("range", TURNED, ("by between {a} and {b} degrees", "from {a} to {b} degrees", "by {a} up to {b} degrees"),
     ("between {a} and {b} degrees", "by {a} to {b} degrees"), _ends, angle_sets.range_of),
    ("two", TURNED, ("by either {a} or {b} degrees", "by {a} or {b} degrees"),
     ("by {a} degrees or else {b} degrees",), _angles("a", "b"), _list),
    ("three", TURNED, ("by either {a} or {b} or {c} degrees", "by {a} or {b} or {c} degrees"),
     ("by {a} degrees or {b} degrees or {c} degrees",), _angles("a", "b", "c"), _list),
    ("about", TURNED, ("by about {a} degrees", "by around {a} degrees", "by approximately {a} degrees"),
     ("by roughly {a} degrees", "about {a} degrees"), _angles("a"), lambda a: angle_sets.around(a, angle_sets.ABOUT)),
    ("below", TURNED, ("by less than {a} degrees", "by up to {a} degrees"),
     ("by no more than {a} degrees",), _angles("a"), lambda a: angle_sets.below(a)),
    ("above", TURNED, ("by more than {a} degrees", "by at least {a} degrees"),
     ("by no less than {a} degrees",), _angles("a"), lambda a: angle_sets.above(a)),
    ("any", TURNED, ("by some angle", "by any angle"),
     ("no matter how much",), _angles(), angle_sets.anything),
    ("upright", STANDING, ("roughly upright", "upright more or less"),
     ("about upright",), _angles(), lambda: angle_sets.around(0.0, angle_sets.UPRIGHT)),
    ("upside down", STANDING, ("roughly upside down", "upside down more or less"),
     ("nearly upside down",), _angles(), lambda: angle_sets.around(180.0, angle_sets.UPRIGHT)),
    ("not upside down", STANDING, ("not upside down", "anything but upside down"),
     ("never upside down",), _angles(), lambda: angle_sets.but(180.0, angle_sets.UPRIGHT)),
)  # fmt: skip
GRAMMAR = Grammar(
    tuple(grammar.construction(*parts) for parts in _CONSTRUCTIONS),
    frozenset("abc"),
    lambda count: np.linspace(0, 360, count, endpoint=False)[:, None],
    LANGUAGE,
    "digits rotated by 75 degrees",
)
