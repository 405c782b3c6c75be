"""Reading angles: "75 degrees clockwise", "a quarter turn", "between 60 and 90", "not upside down", and many more.

Angles are counter-clockwise. What a description says is read as one angle in [0, 360), to a hundredth of a degree, or
as a set of angles (`angle_sets`).
"""

import dataclasses
import math

from lark import Transformer, v_args

from pdiff.tasks.language import Language, Nonsense, terminals
from pdiff.tasks.languages import angle_sets


@dataclasses.dataclass(frozen=True)
class _Spin:
    """An amount, its unit in degrees and its direction, +1 for counter-clockwise; None as long as they are not said."""

    amount: float
    unit: float | None = None
    direction: int | None = None

    @property
    def degrees(self) -> float:
        return self.amount * (self.unit or 1.0) * (self.direction or 1)

    def like(self, other: "_Spin") -> "_Spin":
        """The same with what it does not say taken from another."""
        unit = other.unit if self.unit is None else self.unit
        return _Spin(self.amount, unit, self.direction or other.direction)


_WORDS = r"""
    MINUS.3: minus | negative
    FULL.3: full | whole | complete
    DEGREE.3: degrees | degree | deg | degs | ° | arc degrees
    MINUTE.3: minutes | minute | arc minutes | arcmin
    RADIAN.3: radians | radian | rad | rads
    GRADIAN.3: gradians | gradian | gon
    TURN.4: full rotation | full turn | full circle | whole turn | turns | turn
        | revolutions | revolution | circles | circle
    PI.3: pi | π
    SLASH.3: / | over | divided by
    PERCENT.3: percent | per cent
    HALF.3: half a | half
    QUARTER.3: quarters of a | quarter of a | quarters | quarter
    THIRD.7: thirds of a | third of a | thirds | third | 3rds of a | 3rd of a | 3rds | 3rd
    EIGHTH.7: eighths of a | eighth of a | eighths | eighth | 8ths of a | 8th of a | 8ths | 8th
    RIGHT_ANGLE.6: right angle | right angles
    STRAIGHT_ANGLE.6: straight angle
    HALVES.6: half of
    TWICE.3: twice | double
    TIMES.3: times
    CLOCKWISE.4: clockwise | cw | to the right | rightwards | rightward | right
    COUNTER.4: counter clock wise | counter~clockwise
        | anti~clockwise | contra~clockwise | ccw | acw | to the left | leftwards | leftward
        | left | widdershins
    BOTH_WAYS.6: in either direction | either direction | either way | in both directions | both ways | to either side
        | either side | to both sides | left or right | right or left | clockwise or counter~clockwise
        | clockwise or anti~clockwise
    ABOUT.6: just over | just under | just above | just below | a little over | a little under
        | slightly over | slightly under | about | around | approximately | approx | roughly | circa | ca | nearly
        | almost | close to | near
        | more or less | or so | somewhat | ≈
    PLUSMINUS.4: ± | +/- | plus or minus | plus minus | give or take
    WITHIN.3: within
    BETWEEN.3: between | from | anywhere between | anywhere from | somewhere between | in between | in the range
    UP_TO.6: up to
    TO.3: to | through to | until | till
    AND.3: and | & | as well as
    OR.3: or | or else | or by | or instead
    EITHER.3: either | one of
    BELOW.5: less than | below | under | at most | no more than | not more than | not over | fewer than | smaller than
        | or less | at the most | a maximum of | maximum | < | <= | ≤
    ABOVE.5: more than | above | over | at least | no less than | not less than | larger than | greater than | or more
        | beyond | exceeding | a minimum of | minimum | > | >= | ≥
    ANY.3: any | some | arbitrary | random | unknown | whatever | at all | no matter how much | however much
        | no matter how | arbitrarily | randomly
    ANY_ANGLE.4: any angle | some angle | every angle | all angles | arbitrary angle | arbitrary angles | random angle
        | random angles | unknown angle | whatever angle | various angles | any rotation | some rotation | all rotations
        | arbitrary rotation | random rotation | random rotations | any orientation | some orientation | any amount
        | some amount | any tilt | all possible angles | unknown rotation | any number of degrees
    NOT.3: not | never | no | without | isn't | aren't | don't | rather than
    BUT.3: but | except | except for | other than | apart from | excluding | but not | all but | anything but
        | everything but
    THEN.3: then | and then | followed by | and then by another | and then another | plus | and another
        | then by another | and then by
    UPRIGHT.5: upright | unrotated | right way up | right side up | straight | straight up
    DOWN.4: upside down | on its head | on their head | on their heads | head down | bottom up
    SIDEWAYS.3: sideways | on their side | on its side | on their sides | lying on their side | lying on its side
    TURNED.2: rotated | rotate | rotates | rotating | rotation | turned | turning | spun | spin | spinning
        | angle | an angle of | angle of | at an angle of | at an angle | orientation | off upright
        | from upright | from vertical | relative to upright | away from upright | tilted | tilt
        | twisted | leaning | inclined | oriented
"""
_RULES = r"""
    start: TURN? meaning
    ?meaning: spin -> one
        | EITHER? spin NOT spin -> first
        | NOT spin BUT spin -> last
        | spin THEN spin -> both
        | any? way? ABOUT spin -> about
        | spin ABOUT -> about
        | any? (ABOUT | WITHIN)? spin PLUSMINUS spin -> within
        | any? WITHIN spin spin -> within_of
        | any? WITHIN spin place -> within_of_place
        | any? way? BETWEEN spin (_to | UP_TO | AND) spin -> range
        | any? spin (_to | UP_TO) spin -> range
        | any? way? EITHER? spin ((OR | COMMA OR?) spin)+ -> listed
        | spin ((AND | COMMA AND?) spin)+ -> joined
        | ABOVE spin (BUT | AND)? BELOW spin -> range
        | ABOUT spin (_to | UP_TO) spin -> range
        | any? way? (BELOW | UP_TO) spin -> below
        | spin BELOW DEGREE -> below
        | spin BELOW -> below
        | any? way? ABOVE spin -> above
        | spin ABOVE DEGREE -> above
        | spin ABOVE -> above
        | any? (BELOW | UP_TO | WITHIN) spin BOTH_WAYS -> around
        | spin BOTH_WAYS -> either_way
        | way? any way? -> anything
        | (NOT | BUT) spin -> but
        | any (NOT | BUT) spin -> but
        | NOT -> still
        | NOT any -> still
        | place -> there
        | place NOT any? -> there
        | ABOUT place -> near
        | place ABOUT -> near
        | (NOT | BUT) ABOUT? place -> far
        | any (NOT | BUT) place -> far
        | SIDEWAYS -> sideways
        | EITHER? place (OR place)+ -> places
    ?place: UPRIGHT -> upright | DOWN -> down
    spin: way? size way?
    way: CLOCKWISE -> clockwise | COUNTER -> counter
    ?size.2: NUMBER -> bare
        | MINUS size -> minus
        | NUMBER DEGREE TURN? (NOT (RADIAN | DEGREE))? -> degrees
        | NUMBER DEGREE NUMBER MINUTE -> minutes
        | NUMBER RADIAN (NOT (RADIAN | DEGREE))? -> radians
        | NUMBER? PI (SLASH NUMBER)? RADIAN? -> of_pi
        | NUMBER GRADIAN -> gradians
        | NUMBER TURN -> turns
        | FULL? TURN -> one_turn
        | fraction TURN? -> part_turn
        | mixed
        | NUMBER SLASH NUMBER TURN -> divided
        | NUMBER PERCENT size -> percent
        | TWICE size -> twice
        | NUMBER TIMES size -> times
        | NUMBER? RIGHT_ANGLE -> right_angle
        | STRAIGHT_ANGLE -> straight_angle
        | HALVES size -> halved
    mixed.9: NUMBER AND fraction TURN | FULL? TURN AND fraction
    ?fraction: HALF -> half | NUMBER? QUARTER -> quarters | NUMBER? THIRD -> thirds | NUMBER? EIGHTH -> eighths
    any: ANY | ANY_ANGLE
    _to: TO | DASH

    COMMA.4: /(?:(?<=\d)|(?<=°)|(?<=degrees)),(?= ?-?\d)/
    %ignore TURNED
"""

_SILENT = (
    "digit", "digits", "numeral", "numerals", "numbers", "figures", "handwritten", "hand written", "handwriting",
    "characters", "glyphs", "through", "whole",
)  # fmt: skip


@v_args(inline=True)
class _Meaning(Transformer):
    """The angle or the set of angles that a tree says, and the words for it."""

    def start(self, *children):
        if len(children) > 1 and str(children[0]) != "turn":  # the verb
            raise Nonsense(f"says {str(children[0])!r} where nothing is counted")
        return children[-1]

    def bare(self, number):
        return _Spin(float(number))

    def degrees(self, number, *_):
        return _Spin(float(number), 1.0)

    def minutes(self, number, _, minutes, __):
        return _Spin(float(number) + math.copysign(float(minutes) / 60, float(number)), 1.0)

    def radians(self, number, *_):
        return _Spin(float(number), 180 / math.pi)

    def of_pi(self, *parts):
        numbers = [float(p) for p in parts if p.type == "NUMBER"]
        below = numbers.pop() if any(p.type == "SLASH" for p in parts) else 1.0
        if not below:
            raise Nonsense("says a division by 0")
        return _Spin((numbers or [1.0])[0] / below, 180.0)

    def turns(self, number, _):
        return _Spin(float(number), 360.0)

    def part_turn(self, fraction, *_):
        return _Spin(fraction, 360.0)

    def mixed(self, *parts):
        whole = next((float(p) for p in parts if getattr(p, "type", "") == "NUMBER"), 1.0)
        return _Spin(whole + next(p for p in parts if isinstance(p, float)), 360.0)

    def divided(self, above, _, below, __):
        if not float(below):
            raise Nonsense("says a division by 0")
        return _Spin(float(above) / float(below), 360.0)

    def percent(self, number, _, of):
        return dataclasses.replace(of, amount=of.amount * float(number) / 100)

    def minus(self, _, of):
        return dataclasses.replace(of, amount=-of.amount)

    def gradians(self, number, _):
        return _Spin(float(number), 0.9)

    def one_turn(self, *_):
        return _Spin(1.0, 360.0)

    def twice(self, _, of):
        return dataclasses.replace(of, amount=2 * of.amount)

    def times(self, number, _, of):
        return dataclasses.replace(of, amount=float(number) * of.amount)

    def right_angle(self, *parts):
        return _Spin(90.0 * (float(parts[0]) if len(parts) > 1 else 1.0), 1.0)

    def straight_angle(self, _):
        return _Spin(180.0, 1.0)

    def halved(self, _, of):
        return dataclasses.replace(of, amount=of.amount / 2)

    def half(self, _):
        return 0.5

    def quarters(self, *parts):
        return self._parts(parts, 4)

    def thirds(self, *parts):
        return self._parts(parts, 3)

    def eighths(self, *parts):
        return self._parts(parts, 8)

    @staticmethod
    def _parts(parts, of):
        return (float(parts[0]) if len(parts) > 1 else 1.0) / of

    def clockwise(self, _):
        return -1

    def counter(self, _):
        return 1

    def upright(self, _):
        return 0.0

    def down(self, _):
        return 180.0

    def spin(self, *parts):
        ways = {p for p in parts if isinstance(p, int)}
        (size,) = (p for p in parts if isinstance(p, _Spin))
        if len(ways) > 1:
            raise Nonsense("says both clockwise and counter-clockwise")
        return dataclasses.replace(size, direction=next(iter(ways), None))

    def one(self, spin):
        return self._angle(spin.degrees)

    def first(self, *parts):
        return self.one(_spins(parts)[0])

    def last(self, _, wrong, __, right):
        return self.one(right.like(wrong))

    def both(self, a, _, b):
        return self._angle(a.like(b).degrees + b.like(a).degrees)

    def about(self, *parts):
        return self._set(angle_sets.around(_spins(parts)[0].degrees, angle_sets.ABOUT))

    def within(self, *parts):
        middle, margin = _spins(parts)
        return self._margin(middle.like(margin), margin.like(middle))

    def within_of(self, _, margin, middle):
        return self._margin(middle, margin.like(middle))

    def within_of_place(self, _, margin, place):
        return self._margin(_Spin(place, 1.0), margin)

    def _margin(self, middle, margin):
        if not 0 < abs(margin.degrees) <= 180:
            raise Nonsense(f"says within {abs(margin.degrees):g} degrees; allowed: above 0 and up to 180")
        return self._set(angle_sets.around(middle.degrees, abs(margin.degrees)))

    def range(self, *parts):
        a, b = _spins(parts)
        return self._set(angle_sets.range_of(a.like(b).degrees, b.like(a).degrees))

    def listed(self, *parts):
        spins = _spins(parts)
        return self._set(angle_sets.listed(*(s.like(spins[-1]).degrees for s in spins)))

    def joined(self, *parts):
        if len({s.unit for s in _spins(parts) if s.unit}) > 1:
            raise Nonsense("says amounts of different units together, which could be a sum or a list")
        return self.listed(*parts)

    def below(self, *parts):
        return self._set(angle_sets.below(_spins(parts)[0].degrees))

    def above(self, *parts):
        return self._set(angle_sets.above(_spins(parts)[0].degrees))

    def around(self, *parts):
        return self._margin(_Spin(0.0, 1.0), _spins(parts)[0])

    def either_way(self, spin, _):
        return self._set(angle_sets.listed(spin.degrees, -spin.degrees))

    def anything(self, *_):
        return self._set(angle_sets.anything())

    def but(self, *parts):
        return self._set(angle_sets.but(_spins(parts)[0].degrees, angle_sets.ABOUT))

    def still(self, *_):
        return self._angle(0.0)

    def there(self, place, *_):
        return self._angle(place)

    def near(self, *parts):
        return self._set(angle_sets.around(_places(parts)[0], angle_sets.UPRIGHT))

    def far(self, *parts):
        return self._set(angle_sets.but(_places(parts)[0], angle_sets.UPRIGHT))

    def sideways(self, _):
        return self._set(angle_sets.listed(90.0, 270.0))

    def places(self, *parts):
        return self._set(angle_sets.listed(*_places(parts)))

    @staticmethod
    def _angle(degrees):
        return (round(degrees % 360, 2) % 360,), angle_sets.words_of(degrees)

    @staticmethod
    def _set(tasks):
        return tasks, tasks.said


def _spins(parts) -> list[_Spin]:
    """The amounts among the parts of a rule, each in the direction that is said before all of them, if it says none."""
    ways = [p for p in parts if isinstance(p, int)]
    return [s.like(_Spin(0.0, None, *ways)) for s in parts if isinstance(s, _Spin)]


def _places(parts) -> list[float]:
    return [p for p in parts if isinstance(p, float)]


def _check(terminals: frozenset[str]) -> str:
    units = {
        "DEGREE",
        "RADIAN",
        "GRADIAN",
        "TURN",
        "PI",
        "RIGHT_ANGLE",
        "STRAIGHT_ANGLE",
        "HALF",
        "QUARTER",
        "THIRD",
        "EIGHTH",
    }
    if "NUMBER" in terminals and terminals.isdisjoint(units | {"TURNED", "ANY_ANGLE"}):
        return "has a number, but says neither that it is an angle nor its unit"
    if terminals.isdisjoint(units | {"TURNED", "UPRIGHT", "DOWN", "SIDEWAYS", "ANY", "ANY_ANGLE"}):
        return "does not say an angle"
    return ""


LANGUAGE = Language(_RULES + terminals(_WORDS), _Meaning(), "an angle", _SILENT, check=_check)
