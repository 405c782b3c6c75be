"""How camera traps are described: "a camera trap on grass, light 80 percent, tilted 10 degrees left, …".

A description with a habitat, a light, a tilt and a distance names one camera, up to where in the photograph it stands,
which cannot be said in words. One that leaves some of them open, or gives ranges, names a set.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from lark import Transformer

from pdiff.tasks import grammar
from pdiff.tasks.grammar import Grammar, Values
from pdiff.tasks.language import Language, Nonsense, TaskSet, terminals

WORDINGS = (
    "a camera trap on {habitat}, light {light} percent, tilted {roll} degrees {side}, distance {distance} percent",
    "camera on {habitat} at {light} percent light, distance {distance} percent, tilted {side} by {roll} degrees",
    "{habitat} at distance {distance} percent, tilt {roll} degrees {side}, light {light} percent",
    "animals on {habitat}: distance {distance} percent, {light} percent light, camera tilted {roll} degrees {side}",
)
HELD_OUT_WORDINGS = (
    "a camera tilted {roll} degrees {side} on {habitat}, distance {distance} percent, light {light} percent",
    "light {light} percent, {habitat}, camera trap tilted {side} {roll} degrees at distance {distance} percent",
)
FRAMES = (  # of vague descriptions: training ones, then held-out ones
    ("a camera trap {}", "camera {}", "animals {}", "a classifier for animals {}"),
    ("some camera trap {}", "a camera for animals {}"),
)
HABITAT_STEP = 100.0  # between two habitats in `factors`, so that the nearest location is one of the same habitat
Range = tuple[float, float]


def describe(factors: tuple[float, ...], habitats: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings; numbers to a tenth."""
    roll, light, distance, habitat = (float(f) for f in factors)
    words = {
        "roll": f"{round(abs(roll), 1):g}",
        "side": "left" if roll >= 0 else "right",
        "light": f"{round(light, 1):g}",
        "distance": f"{round(distance, 1):g}",
        "habitat": habitats[round(habitat / HABITAT_STEP)],
    }
    return tuple(w.format(**words) for w in WORDINGS), tuple(w.format(**words) for w in HELD_OUT_WORDINGS)


_WORDS = r"""
    LIGHT.3: light | lighting | illumination | brightness
    DISTANCE.3: distance | away | far
    DEGREE.3: degrees | degree | deg | °
    PERCENT.3: percent | per cent
    LEFT.3: left | to the left | counter~clockwise | anti~clockwise
    RIGHT.3: right | to the right | clockwise
    BETWEEN.3: between | from
    TO.3: to | up to | -
    AND.3: and | &
    OR.3: or | or else | or else on | or on
    EITHER.3: either | one of
    BUT.4: but | except | except for | other than | apart from | anything but | everything but | all but | not
        | any ground but | anywhere but
    ANYWHERE.4: any place | some place | any ground | some ground | anywhere | somewhere | any habitat | some habitat
        | any location | some location
    ANY.3: any | some | whatever
    CAMERA.6: some camera trap | some camera | any camera trap | any camera | each camera
    TILTED.2: tilted | tilt | rolled | roll | rotated
"""
_RULES = r"""
    start: (clause AND?)+
    ?clause: place | light | tilt | distance
    place: EITHER? HABITAT (OR HABITAT)* -> habitats
        | BUT HABITAT (OR HABITAT)* -> other_habitats
        | ANYWHERE -> anywhere
        | ANYWHERE HABITAT -> habitats
    light: LIGHT amount | amount LIGHT | ANY LIGHT
    distance: DISTANCE amount | amount DISTANCE
    tilt: side? NUMBER DEGREE side? | side NUMBER
    side: LEFT -> left | RIGHT -> right
    amount: NUMBER PERCENT? | BETWEEN? NUMBER PERCENT? (TO | AND) NUMBER PERCENT?
    %ignore TILTED
    %ignore CAMERA
"""
_SILENT = ("camera", "cameras", "trap", "traps", "camera trap", "camera traps", "animal", "animals", "location",
           "locations", "place", "places", "ground", "habitat", "by", "scene")  # fmt: skip


class Cameras:
    """Sets of cameras by habitat and light, and within ranges of the other settings.

    Args:
      ranges: of roll in degrees, light and distance in percent, as the family has them.
    """

    def __init__(self, habitats: tuple[str, ...], ranges: dict[str, Range]):
        self.habitats, self.ranges = habitats, ranges

    def cameras(self, *chosen: str, **limits: Range) -> TaskSet:
        """Those in the chosen habitats, by default all, in this light, at this distance, with this roll."""
        places = [self.habitats.index(h) for h in dict.fromkeys(chosen or self.habitats)]
        bounds = {n: grammar.interval(*band, _UNITS[n], self.ranges[n]) for n, band in limits.items()}
        light = bounds.setdefault("light", self.ranges["light"])
        where = f"on {' or '.join(self.habitats[p] for p in places)}" if chosen else "anywhere"
        whole = self.ranges["light"][1] - self.ranges["light"][0]
        rest = "".join(f", {n} {a:g} to {b:g}" for n, (a, b) in bounds.items() if n != "light")
        width = f"{len(places)} of {len(self.habitats)} habitats, {light[1] - light[0]:g} of {whole:g} percent"
        columns = {"roll": 0, "light": 1, "distance": 2}

        def contains(f):
            within = [grammar.between(f[:, columns[n]], *band) for n, band in bounds.items()]
            return np.isin(np.round(f[:, 3] / HABITAT_STEP), places) & np.all(within, axis=0)

        return TaskSet(f"any camera {where}, in {light[0]:g} to {light[1]:g} percent light{rest} ({width})", contains)


_UNITS = {"roll": "degrees of roll", "light": "percent light", "distance": "percent distance"}
_MARGIN = {
    "roll": 2.0,
    "light": 2.0,
    "distance": 2.0,
}  # either way, where others are left open


class _Meaning(Transformer):
    def __init__(self, sets: Cameras):
        super().__init__()
        self._sets = sets

    def start(self, children):
        parts = [c for c in children if isinstance(c, tuple)]
        said = [name for name, _ in parts]
        if twice := [n for n in said if said.count(n) > 1]:
            raise Nonsense(f"says the {twice[0]} twice")
        values = dict(parts)
        habitats = values.pop("habitat", ())
        exact = {n: v[0] for n, v in values.items() if v[0] == v[1]}
        if len(exact) == 3 and len(habitats) == 1:
            for name, value in exact.items():
                grammar.interval(value, value + grammar.CLOSE, _UNITS[name], self._sets.ranges[name])
            at = self._sets.habitats.index(habitats[0])
            side = "left" if exact["roll"] >= 0 else "right"
            tilt = f"tilted {abs(exact['roll']):g} degrees {side}"
            light, distance = exact["light"], exact["distance"]
            words = f"a camera on {habitats[0]}, light {light:g} percent, {tilt}, distance {distance:g} percent"
            return (exact["roll"], exact["light"], exact["distance"], HABITAT_STEP * at), words
        bands = {n: (v - _MARGIN[n], v + _MARGIN[n]) for n, v in exact.items()}
        tasks = self._sets.cameras(*habitats, **(values | bands))
        return tasks, tasks.said

    def habitats(self, children):
        return "habitat", tuple(str(c) for c in children if c.type == "HABITAT")

    def other_habitats(self, children):
        out = {str(c) for c in children if c.type == "HABITAT"}
        return "habitat", tuple(h for h in self._sets.habitats if h not in out)

    def anywhere(self, _):
        return "habitat", ()

    def light(self, children):
        return "light", next((c for c in children if isinstance(c, tuple)), self._sets.ranges["light"])

    def distance(self, children):
        return "distance", next(c for c in children if isinstance(c, tuple))

    def amount(self, children):
        numbers = [float(c) for c in children if c.type == "NUMBER"]
        return numbers[0], numbers[-1]

    def left(self, _):
        return 1.0

    def right(self, _):
        return -1.0

    def tilt(self, children):
        sides = [c for c in children if isinstance(c, float)]
        (number,) = (float(c) for c in children if getattr(c, "type", "") == "NUMBER")
        if not sides and number:
            raise Nonsense("says a tilt, but not to which side; allowed: left or right")
        roll = number * (sides or [1.0])[0]
        return "roll", (roll, roll)


def make_grammar(
    habitats: tuple[str, ...], ranges: dict[str, Range], seen: Float[np.ndarray, "tasks factors"]
) -> Grammar:
    """Vague descriptions: of habitats and of the light.

    The grid is of seen locations alone: factors do not say where in the photograph another one is.
    """
    sets, whole = Cameras(habitats, ranges), ranges["light"]
    cameras = sets.cameras

    def draw(*slots: str, light: bool = False) -> Callable[[np.random.Generator], Values]:
        def values(random: np.random.Generator) -> Values:
            width = grammar.log_uniform(random, 10, 40)
            start = random.uniform(whole[0], whole[1] - width)
            words = grammar.pick(random, habitats, *slots)
            return words | grammar.numbers(random, a=start, b=start + width) if light else words

        return values

    def grid(count: int) -> Float[np.ndarray, "tasks factors"]:
        ordered = seen[np.lexsort((seen[:, 1], seen[:, 3]))]  # as they come, every sixth is of one habitat
        most = min(count, len(seen))
        return ordered[((np.arange(most) + 0.5) * len(seen) / most).astype(int)]

    constructions = (
        ("habitat", ("on {habitat}", "at some place on {habitat}", "on {habitat} in any light"),
         ("at any place on {habitat}",), draw("habitat"), lambda habitat: cameras(habitat)),
        ("two habitats", ("on either {habitat} or {other}", "on {habitat} or {other}"),
         ("on {habitat} or else on {other}",), draw("habitat", "other"),
         lambda habitat, other: cameras(habitat, other)),
        ("light", ("in {a} to {b} percent light", "in light from {a} to {b} percent"),
         ("at a light of {a} to {b} percent",), draw(light=True), lambda a, b: cameras(light=(a, b))),
        ("habitat and light", ("on {habitat} in {a} to {b} percent light", "on {habitat}, light {a} to {b} percent"),
         ("on {habitat} in light from {a} to {b} percent",), draw("habitat", light=True),
         lambda habitat, a, b: cameras(habitat, light=(a, b))),
        ("not a habitat", ("on anything but {habitat}", "not on {habitat}"),
         ("on all but {habitat}",), draw("habitat"), lambda habitat: cameras(*(h for h in habitats if h != habitat))),
        ("any", ("at any place", "on any ground"), ("on some ground",), draw(), cameras),
    )  # fmt: skip
    language = Language(
        _RULES + terminals(_WORDS) + terminals(f"HABITAT.4: {' | '.join(habitats)}"),
        _Meaning(sets),
        "a camera",
        _SILENT,
    )
    made = tuple(grammar.construction(name, FRAMES, *rest) for name, *rest in constructions)
    return Grammar(made, frozenset("ab"), grid, language, describe((10.0, 80.0, 100.0, 0.0), habitats)[0][0])
