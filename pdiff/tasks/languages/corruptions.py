"""How corruptions are described: "digits under blur of severity 40 percent", and in many other words.

One task is one kind at one severity; an occlusion is one only with the place of its block. Vague descriptions leave
open kinds, severities or places. A number without "percent" is a share if it is at most 1.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from lark import Transformer

from pdiff.tasks import grammar
from pdiff.tasks.grammar import Grammar, Values
from pdiff.tasks.language import Language, Nonsense, TaskSet, terminals

WORDINGS = (
    "{what} under {kind} of severity {severity} percent{place}",
    "{what} with {severity} percent {kind}{place}",
    "recognise {what} after {kind} of {severity} percent{place}",
    "images of {what}, {kind} at {severity} percent{place}",
    "{kind} of severity {severity} percent{place} on {what}",
    "a classifier for {what} under {severity} percent {kind}{place}",
    "{what} corrupted by {kind}, {severity}%{place}",
    "a network for images of {what} that have {severity} percent of {kind}{place}",
)
HELD_OUT_WORDINGS = (
    "{what} after {severity} percent {kind}{place}",
    "recognise {what} under {kind} at {severity} percent{place}",
    "images of {what} with {kind} of severity {severity} percent{place}",
)
PLACE = " at {} across, {} down"

FRAMES = (  # of vague descriptions: training ones, then held-out ones
    ("{what} under {}", "{what} with {}", "recognise {what} after {}", "a classifier for {what} under {}"),
    ("{what} after {}", "images of {what} with {}"),
)
ABOUT, LISTED = 5.0, 0.5  # percent of severity that "about" and a list's numbers may be off either way
THIRDS = {"MILD": (0.0, 33.0), "MODERATE": (33.0, 67.0), "STRONG": (67.0, 100.0)}
SYNONYMS = {
    "contrast": "low contrast | reduced contrast | contrast loss | loss of contrast | faded | contrast reduction",
    "blur": "blurred | blurry | blurring | blurriness | gaussian blur | out of focus",
    "inversion": "inverted | inverse | inverting | colour inversion | color inversion",
    "noise": "noisy | gaussian noise | white noise | random noise | additive noise",
    "occlusion": "occluded | an occluding block | occluding block | grey block | gray block | block | occlusions",
    "shear": "sheared | shearing | sheer | slanted | slant",
    "scale": "scaled | scaling | shrunk | shrunken | scaled down | shrinking",
}

Factors = Callable[..., tuple[float, ...]]


def describe(factors: tuple[float, ...], *, kinds: Sequence[str], what: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings for factors of one kind, numbers in percent, severities to a hundredth of one."""
    kind = kinds[int(np.argmax(factors[1 : 1 + len(kinds)]))]
    place = PLACE.format(*(f"{100 * f:.0f}" for f in factors[-2:])) if kind == "occlusion" else ""
    words = {"what": what, "kind": kind, "severity": f"{round(100 * factors[0], 2):g}", "place": place}
    return tuple(w.format(**words) for w in WORDINGS), tuple(w.format(**words) for w in HELD_OUT_WORDINGS)


def tasks_of(
    kinds: Sequence[str], *chosen: str, bands: Sequence[tuple[float, float]] = ((0.0, 100.0),), said: str = ""
) -> TaskSet:
    """Those of a chosen one of the `kinds`, or of any if none is, in one of the bands, in percent."""
    columns = [1 + kinds.index(k) for k in dict.fromkeys(chosen or kinds)]
    parts = list(dict.fromkeys(grammar.interval(*band, "percent") for band in bands))
    where = " or ".join(f"{a:g} to {b:g}" for a, b in parts)
    width = f"{len(columns)} of {len(kinds)} kinds, {sum(b - a for a, b in parts):g} of 100 percent"
    what = said or " or ".join(dict.fromkeys(chosen)) or "any corruption"

    def contains(factors):
        severe = np.any([grammar.between(100 * factors[:, 0], *part) for part in parts], axis=0)
        return (factors[:, columns] > 0.5).any(1) & severe

    return TaskSet(f"{what} of severity {where} percent ({width})", contains)


def around(margin: float, *percents: float) -> list[tuple[float, float]]:
    """A band of `margin` either way around each, in percent."""
    return [(p - margin, p + margin) for p in percents]


_WORDS = r"""
    PERCENT.3: percent | per cent | % | percents | percentage
    SEVERITY.2: severity | severities | strength | strengths | level | levels | amount | amounts | degree | intensity
        | corruption level | a severity | an amount
    ABOUT.3: about | around | approximately | approx | roughly | circa | ca | nearly | almost | near | close to | ≈
    BETWEEN.3: between | from | anywhere between | somewhere between | in the range
    TO.3: to | through | until | till
    UP_TO.6: up to
    UNDER.3: under
    AND.3: and | & | as well as | plus | then | together with
    OR.3: or | or else | or instead
    EITHER.3: either | one of
    BELOW.5: less than | below | at most | no more than | not more than | or less | maximum | < | ≤
    ABOVE.5: more than | above | over | at least | no less than | not less than | or more | minimum | exceeding | > | ≥
    MILD.3: mild | mildly | slight | slightly | light | lightly | weak | weakly | a little | a bit of | low severity
    MODERATE.3: moderate | moderately | medium | some what | somewhat
    STRONG.3: strong | strongly | heavy | heavily | severe | severely | extreme | extremely | a lot of | very | much
    FULL.3: full | fully | complete | completely | total | totally | maximal
    HALF.3: half
    ANY.3: any | some | whatever | arbitrary | unknown | random | a certain | certain
    CORRUPTION.3: corruption | corruptions | kind of corruption | distortion | corrupted | distorted | any kind
    BUT.4: anything but | everything but | but | except | except for | other than | apart from | excluding | but not
        | all but | any but | rather than
    NOT.3: not | no | without | never | free of | isn't | aren't
    CLEAN.3: clean | uncorrupted | undistorted | unmodified | original | intact | undamaged
    CORRUPTED.6: corrupted by | distorted by | corrupted with | distorted with | degraded by | damaged by
    ACROSS.3: across
    DOWN.3: down
"""
_RULES = r"""
    start: UNDER? meaning
    ?meaning: kinds severity place? -> together
        | severity kinds place? -> together
        | kinds place? severity? -> together
        | kinds UNDER limit -> together
        | severity UNDER kinds place? -> together
        | severity -> together
        | CLEAN NOT? CORRUPTION? -> clean
        | NOT CORRUPTION -> clean
        | NOT kind -> missing
        | kind (AND kind)+ severity? -> several
        | severity kind AND severity? kind -> several
        | kind severity AND kind severity? -> several
    ?kinds: kind -> one_kind
        | EITHER? kind (OR kind)+ -> listed_kinds
        | any? CORRUPTION -> all_kinds
        | any? CORRUPTION? BUT kind (OR kind)* -> other_kinds
        | any kind -> one_kind
        | any kind OR kind -> listed_kinds
    any: ANY
    limit: amount -> below
    ?kind: KIND
    ?severity: amount -> exact
        | ABOUT amount -> about
        | BETWEEN amount (TO | DASH | AND) amount -> band
        | amount (TO | DASH) amount -> band
        | EITHER? amount (OR amount)+ -> listed
        | amount (AND amount)+ -> listed
        | (BELOW | UP_TO) amount -> below
        | amount BELOW -> below
        | ABOVE amount -> above
        | amount ABOVE -> above
        | MILD -> third
        | MODERATE -> third
        | STRONG -> third
        | any -> open
    ?amount: NUMBER PERCENT -> percent
        | NUMBER -> bare
        | FULL -> full
        | HALF -> half
    place: NUMBER PERCENT? ACROSS AND? NUMBER PERCENT? DOWN
    %ignore SEVERITY
    %ignore CORRUPTED
"""
_SILENT = (
    "digit", "digits", "numeral", "numerals", "numbers", "handwritten", "degraded", "damaged", "affected",
    "that have", "subject to", "objects", "things", "clothes", "clothing", "characters", "through", "set to", "applied",
    "added", "value", "values", "block of",
)  # fmt: skip


class _Meaning(Transformer):
    """The task or the set of tasks that a tree says, and the words for it.

    Args:
      factors_of: (kind, percent, place in percent or nothing) -> the factors of that task.
    """

    def __init__(self, kinds: Sequence[str], factors_of: Factors):
        super().__init__()
        self._kinds, self._factors_of = kinds, factors_of
        self._kind_of = {" ".join(s.split()): k for k in kinds for s in (k, *SYNONYMS[k].split("|"))}

    def start(self, children):
        return children[-1]

    def KIND(self, token):
        return ("kind", self._kind_of[" ".join(token.replace("-", " ").split())])

    def percent(self, children):
        return float(children[0])

    def bare(self, children):
        return _Bare(children[0])

    def full(self, _):
        return _Worded(100.0)

    def half(self, _):
        return _Worded(50.0)

    @staticmethod
    def _amount(percent):
        if not 0 <= percent <= 100:
            raise Nonsense(f"says {percent:g} percent; allowed: 0 to 100")
        return round(percent, 2)

    def _amounts(self, children) -> list[float]:
        amounts = [c for c in children if isinstance(c, float)]
        shares = all(isinstance(a, _Bare) for a in amounts) and max(map(abs, amounts)) <= 1
        return [self._amount(100 * a if shares else float(a)) for a in amounts]

    def one_kind(self, children):
        return ("kinds", _kinds(children), "")

    listed_kinds = one_kind

    def all_kinds(self, _):
        return ("kinds", (), "")

    def other_kinds(self, children):
        out = _kinds(children)
        return ("kinds", tuple(k for k in self._kinds if k not in out), f"any corruption but {' or '.join(out)}")

    def exact(self, children):
        return ("exact", *self._amounts(children), isinstance(children[0], _Worded))

    def about(self, children):
        return ("bands", around(ABOUT, *self._amounts(children)))

    def band(self, children):
        return ("bands", [tuple(self._amounts(children))])

    def listed(self, children):
        return ("bands", around(LISTED, *self._amounts(children)))

    def below(self, children):
        return ("bands", [(0.0, *self._amounts(children))])

    def above(self, children):
        return ("bands", [(*self._amounts(children), 100.0)])

    def third(self, children):
        return ("bands", [THIRDS[children[0].type]], str(children[0]))

    def open(self, _):
        return ("bands", [(0.0, 100.0)])

    def place(self, children):
        across, down = (float(c) for c in children if c.type == "NUMBER")
        if not (0 <= across <= 100 and 0 <= down <= 100):
            raise Nonsense(f"says {across:g} across and {down:g} down; allowed: 0 to 100 percent")
        return ("place", across, down)

    def together(self, children):
        parts = {c[0]: c[1:] for c in children if isinstance(c, tuple)}
        chosen, said = parts.get("kinds", ((), ""))
        if "contrast" in chosen and (len(parts.get("bands", ())) > 1 or parts.get("exact", (0, False))[1]):
            raise Nonsense("says in words how much contrast, which may mean much of it or little; allowed: percent")
        place = parts.get("place")
        if place and chosen != ("occlusion",):
            raise Nonsense("says a place; allowed: with an occlusion alone")
        if "exact" in parts and len(chosen) == 1 and (place or chosen != ("occlusion",)):
            percent = parts["exact"][0]
            where = f" at {place[0]:g} across, {place[1]:g} down" if place else ""
            return self._factors_of(
                chosen[0], percent, *place or ()
            ), f"{chosen[0]} of severity {percent:g} percent{where}"
        if place:
            raise Nonsense("says a place without a severity; allowed: both, or no place")
        bands = around(LISTED, parts["exact"][0]) if "exact" in parts else parts.get("bands", ([(0.0, 100.0)],))[0]
        if bands == [(0.0, 0.0)]:
            bands = around(LISTED, 0.0)
        tasks = tasks_of(self._kinds, *chosen, bands=bands, said=said)
        return tasks, tasks.said

    def clean(self, _):
        return self._factors_of(self._kinds[0], 0.0), f"clean images: {self._kinds[0]} of severity 0 percent"

    def missing(self, children):
        raise Nonsense(f"says what is not there, {children[-1][1]}, but not what is")

    def several(self, children):
        raise Nonsense(f"says several corruptions at once, {' and '.join(_kinds(children))}; allowed: one of them")


def _kinds(children) -> tuple[str, ...]:
    return tuple(c[1] for c in children if isinstance(c, tuple) and c[0] == "kind")


class _Worded(float):
    """An amount in percent that is said without a number."""


class _Bare(float):
    """A number without a unit: a share if it is at most 1, unless another number beside it has a percent sign."""


def _check(terminals_in_text: frozenset[str]) -> str:
    needed = {"KIND", "CORRUPTION", "CLEAN", "PERCENT", "SEVERITY"}
    return "does not say a corruption" if terminals_in_text.isdisjoint(needed) else ""


@functools.cache
def _language(kinds: tuple[str, ...], what: str, factors_of: Factors) -> Language:
    kind_words = "KIND.4: " + " | ".join(f"{kind} | {SYNONYMS[kind]}" for kind in kinds)
    silent = (*_SILENT, *what.split(), what)
    return Language(
        _RULES + terminals(_WORDS) + terminals(kind_words),
        _Meaning(kinds, factors_of),
        "a corruption",
        silent,
        check=_check,
    )


def make_grammar(kinds: tuple[str, ...], what: str, factors_of: Factors) -> Grammar:
    """Vague descriptions: of kinds and of severities. They leave open where a block lies.

    Args:
      kinds: those in use.
      what: what the images show.
      factors_of: (kind, severity in percent, across and down in percent or nothing) -> factors.
    """
    frames = tuple(tuple(f.replace("{what}", what) for f in fs) for fs in FRAMES)
    tasks = functools.partial(tasks_of, kinds)

    def draw(*slots: str, kind: Sequence[str] = ("kind",)) -> Callable[[np.random.Generator], Values]:
        def values(random: np.random.Generator) -> Values:
            drawn = grammar.pick(random, kinds, *kind)
            return drawn | grammar.numbers(random, **{slot: random.uniform(1, 99) for slot in slots})

        return values

    def ends(random: np.random.Generator) -> Values:
        width = grammar.log_uniform(random, 5, 60)
        start = random.uniform(0, 100 - width)
        return grammar.pick(random, kinds, "kind") | grammar.numbers(random, a=start, b=start + width)

    constructions = [
        ("kind", ("some {kind}", "{kind} of any severity", "any amount of {kind}"),
         ("{kind}", "{kind} at some severity"), draw(), lambda kind: tasks(kind)),
        ("severity", ("some corruption of severity {a} percent", "{a} percent of some corruption"),
         ("any corruption at {a} percent",), draw("a", kind=()), lambda a: tasks(bands=around(LISTED, a))),
        ("range", ("{kind} between {a} and {b} percent", "{a} to {b} percent {kind}"),
         ("{kind} of severity {a} to {b} percent",), ends, lambda kind, a, b: tasks(kind, bands=[(a, b)])),
        ("about", ("about {a} percent {kind}", "{kind} of about {a} percent"),
         ("{kind} at around {a} percent",), draw("a"), lambda kind, a: tasks(kind, bands=around(ABOUT, a))),
        ("two severities", ("either {a} or {b} percent {kind}", "{kind} of {a} or {b} percent"),
         ("{kind} at either {a} percent or {b} percent",), draw("a", "b"),
         lambda kind, a, b: tasks(kind, bands=around(LISTED, a, b))),
        ("any", ("some corruption", "any corruption"),
         ("whatever corruption",), draw(kind=()), lambda: tasks()),
    ]  # fmt: skip
    if len(kinds) > 1:
        constructions += [
            ("two kinds", ("either {kind} or {other}", "some {kind} or {other}"),
             ("{kind} or else {other}",), draw(kind=("kind", "other")), lambda kind, other: tasks(kind, other)),
            ("not a kind", ("any corruption but {kind}", "some corruption other than {kind}"),
             ("any corruption apart from {kind}",), draw(),
             lambda kind: tasks(*(k for k in kinds if k != kind), said=f"any corruption but {kind}")),
        ]  # fmt: skip

    def grid(count: int) -> Float[np.ndarray, "tasks factors"]:
        each = max(1, count // len(kinds))
        percents = np.round((np.arange(each) + 0.5) * 100 / each, 2)
        return np.array([factors_of(kind, float(p)) for kind in kinds for p in percents][:count])

    made = tuple(grammar.construction(name, frames, *rest) for name, *rest in constructions)
    return Grammar(
        made, frozenset("ab"), grid, _language(kinds, what, factors_of), f"{what} with 40 percent {kinds[0]}"
    )
