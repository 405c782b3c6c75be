"""How rules over kinds of thing are described: "texts about plants or food", and in many other words.

A rule is a set of 1 to 5 of the kinds. Kinds have several names, and some groups of them have names too, so that
"anything alive but not people" is plants and animals. Vague descriptions leave open which other kinds there are, or
which of two rules is meant. A kind that has no name here can be described to the model only as it is: by `--force`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from lark import Transformer

from pdiff.tasks.grammar import Grammar, Values, construction, pick
from pdiff.tasks.language import Language, Nonsense, TaskSet, one_of, terminals
from pdiff.tasks.languages.class_subsets import Subsets, every_subset, listed

SIZES = (1, 2, 3, 4, 5)  # kinds in a rule
KINDS = {  # what each kind is called; the first names it in a canonical description
    "act": ("actions", "deeds", "activities"),
    "animal": ("animals", "creatures", "beasts"),
    "artifact": ("artifacts", "man-made things", "manufactured objects"),
    "attribute": ("qualities", "attributes", "traits"),
    "cognition": ("ideas", "thoughts", "mental concepts"),
    "communication": ("communication", "messages", "language"),
    "event": ("events", "happenings", "occurrences"),
    "food": ("food", "foods and drinks", "things to eat"),
    "group": ("groups", "organizations", "collections"),
    "location": ("places", "locations", "regions"),
    "object": ("natural objects", "landforms", "bodies of nature"),
    "person": ("people", "persons", "human beings"),
    "phenomenon": ("phenomena", "natural phenomena", "forces of nature"),
    "plant": ("plants", "vegetation", "flora"),
    "possession": ("possessions", "property", "money and property"),
    "process": ("processes", "natural processes", "changes in nature"),
    "quantity": ("quantities", "amounts", "units of measure"),
    "relation": ("relations", "relationships", "relations between things"),
    "state": ("states", "conditions", "states of being"),
    "substance": ("substances", "materials", "chemicals"),
}
SINGULAR = {  # read, and never written
    "act": ("action", "deed", "activity", "acts"), "animal": ("animal", "creature", "beast"),
    "artifact": ("artifact", "artefact", "artefacts", "man-made thing"), "attribute": ("quality", "attribute", "trait"),
    "cognition": ("idea", "thought", "mental concept", "concepts"), "communication": ("message", "languages"),
    "event": ("event", "happening", "occurrence"), "food": ("foods", "foods or drinks", "drinks", "something to eat"),
    "group": ("group", "organization", "organisations", "organisation", "collection"),
    "location": ("place", "location", "region"), "object": ("natural object", "landform"),
    "person": ("person", "human being", "humans", "human", "somebody"), "phenomenon": ("phenomenon",),
    "plant": ("plant",), "possession": ("possession", "money"), "process": ("process",),
    "quantity": ("quantity", "amount"), "relation": ("relation", "relationship"), "state": ("state", "condition"),
    "substance": ("substance", "material", "chemical"),
}  # fmt: skip
GROUPS = {  # names of several kinds
    "living things": ("animal", "person", "plant"), "anything alive": ("animal", "person", "plant"),
    "living beings": ("animal", "person", "plant"), "something alive": ("animal", "person", "plant"),
    "things that happen": ("act", "event", "process", "phenomenon"),
    "matter": ("food", "substance"),
    "physical things": ("artifact", "food", "object", "substance"),
}  # fmt: skip

_FRAMES = (
    "is it about {}", "texts about {}", "find definitions of {}", "does a text speak of {}", "recognise {}",
    "a classifier of {}", "tell {} from all other kinds", "is this a text on {}", "which texts mention {}",
    "say yes to {}, no to everything else", "only {}", "is the word for {}", "a filter for {}", "detect {}",
    "words for {}", "keep {}, and drop the rest",
)  # fmt: skip
_WAYS = (("or", 1), ("and", 1), ("or", -1), ("and", -1))  # the word before the last kind, and the kinds' order
WORDINGS = tuple((f, *_WAYS[(i + j) % len(_WAYS)], j) for j in (0, 1) for i, f in enumerate(_FRAMES))
HELD_OUT_WORDINGS = (
    ("does this definition belong to {}", "or", -1, 0),
    ("texts that deal with {}, and no others", "and", 1, 1),
    ("pick out {}", "or", 1, 2),
)
FRAMES = (  # of vague descriptions: training ones, then held-out ones
    ("is it about {}", "texts about {}", "recognise {}", "a classifier of {}"),
    ("does this definition belong to {}", "pick out {}"),
)
NUMBERS = ("one", "two", "three", "four", "five")


def describe(factors: tuple[float, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings for a rule: the kinds whose factor is above a half, "nothing" if none is."""
    chosen = [kind for kind, factor in zip(KINDS, factors, strict=True) if factor > 0.5]

    def filled(wordings):
        said = []
        for frame, last, order, name in wordings:
            names = [KINDS[k][name] for k in chosen][::order] or ["nothing"]
            said.append(frame.format(listed(names, last)))
        return tuple(said)

    return filled(WORDINGS), filled(HELD_OUT_WORDINGS)


_WORDS = """
    OTHERS.6: and some other kinds | among other kinds | and a few more kinds | and whatever else | and others
        | and other kinds | or other kinds | with or without others | and possibly others | and some others
        | and some other kind | and a few more | and more
    AT_LEAST.4: at least | including | among other things
    WITHOUT.5: without | that leave out | leaving out | with no | lacking | excluding | but without | but no
    NOT.4: but not | not | but never | except | except for | other than | but | never | apart from | rather than
    ALL_BUT.6: all but | everything but | anything but | everything except | anything except | all except
        | anything other than
        | everything other than | all kinds but | all kinds except | every kind but
    ALL.6: everything | all kinds | every kind | anything at all | all the kinds | all of them | anything
    NOTHING.6: nothing | no kinds | no kind | none
    EITHER.3: either
    OR_ELSE.5: or else | or instead
    ANY.3: any | some | a few | several | whichever
    KINDS.4: kinds | kind | kinds of thing | kinds of things | topics | topic
    AND.3: and | & | as well as | plus | and also
    OR.3: or | and/or
    COMMA.3: ,
    REST.7: from all other kinds | no to everything else | and drop the rest | and no others | and nothing else
        | from everything else | from the rest | or not | or something else | and no other kinds | alone
"""
_RULES = """
    start: meaning COMMA?
    ?meaning: list -> one
        | list COMMA? AND? (NOT | WITHOUT) list -> one
        | list COMMA? OTHERS -> with_others
        | AT_LEAST list -> with_others
        | list COMMA? OTHERS COMMA? AND? (NOT | WITHOUT) list -> with_others
        | ANY? KINDS COMMA? (WITHOUT | NOT) list -> without
        | ANY? NUMBER KINDS -> size
        | ANY KINDS -> anything
        | EITHER list OR list -> either
        | EITHER? list OR_ELSE list -> either
        | (ALL_BUT | NOT) list -> complement
        | ALL COMMA? (NOT | WITHOUT) list -> complement
        | ALL -> everything
        | NOTHING -> nothing
    list: part ((COMMA | AND | OR | COMMA AND | COMMA OR) part)*
    part: KIND -> kind | GROUP -> group
    %ignore REST
"""
_SILENT = (
    "about", "text", "texts", "definition", "definitions", "define", "defines", "defined", "speak", "speaks", "word",
    "words", "thing", "things", "mention", "mentions", "filter", "tell", "say", "says", "yes", "yes to", "keep",
    "deal", "deals", "deal with", "belong", "belongs", "pick", "pick out", "out", "to", "only", "just", "whether",
    "something", "term", "terms", "refer", "refers", "anyone", "from", "nouns", "noun", "whose", "meaning", "means",
    "entry", "entries", "sentence", "sentences", "topic is", "concerned", "related", "concerning", "one of", "them",
    "label", "rule", "talk", "talks", "talking", "answer", "answers", "adapter",
)  # fmt: skip


class _Meaning(Transformer):
    """The rule or the set of rules that a tree says, and the words for it."""

    def __init__(self, rules: Subsets, known: dict[str, str]):
        super().__init__()
        self._rules, self._known = rules, known

    def start(self, children):
        return children[0]

    def kind(self, children):
        return [self._known[_plain(children[0])]]

    def group(self, children):
        return _Group(KINDS[kind][0] for kind in GROUPS[_plain(children[0])])

    def list(self, children):
        parts = _lists(children)
        return parts[0] if len(parts) == 1 else [kind for part in parts for kind in part]

    def one(self, children):
        those, *others = _lists(children)
        without = {k for other in others for k in other}
        if not isinstance(those, _Group) and (both := sorted({*those} & without)):
            raise Nonsense(f"says {both[0]} both as a kind to have and as one to lack; allowed: one of them")
        return self._exactly([k for k in those if k not in without])

    def complement(self, children):
        (those,) = _lists(children)
        return self._exactly([k for k in self._rules.names if k not in those])

    def everything(self, _):
        return self._exactly(self._rules.names)

    def nothing(self, _):
        return self._exactly([])

    def _exactly(self, those):
        if not those:
            raise Nonsense("names no kind; allowed: 1 to 5 of them")
        factors = self._rules.factors(those)
        there = [n for n, f in zip(self._rules.names, factors, strict=True) if f]
        return factors, f"{listed(there, 'or')}, and nothing else"

    def with_others(self, children):
        return _set(self._rules.subsets(*_lists(children)))

    def without(self, children):
        return _set(self._rules.subsets(lack=_lists(children)[0]))

    def anything(self, _):
        return _set(self._rules.subsets())

    def size(self, children):
        size = next(float(c) for c in children if getattr(c, "type", "") == "NUMBER")
        if size not in SIZES:
            raise Nonsense(f"says {size:g} kinds; allowed: {SIZES[0]} to {SIZES[-1]}")
        return _set(self._rules.subsets(sizes=(int(size),)))

    def either(self, children):
        return _set(self._rules.either(*_lists(children)))


class _Group(list):
    """Kinds with a common name, of which some may be taken away."""


def _plain(token) -> str:
    return " ".join(str(token).replace("-", " ").split())


def _lists(children) -> list[list[str]]:
    return [c for c in children if isinstance(c, list)]


def _set(tasks: TaskSet):
    return tasks, tasks.said


def make_grammar() -> Grammar:
    """Reads rules over KINDS, and writes vague ones: of kinds that are in the rule or not, of how many there are, and
    of two rules."""
    names = tuple(called[0] for called in KINDS.values())
    rules = Subsets(names, SIZES, "kind", "kinds")
    known = {_plain(name): KINDS[kind][0] for kind in KINDS for name in (*KINDS[kind], *SINGULAR[kind])}
    words = f"KIND.8: {one_of(known)}\nGROUP.9: {one_of(GROUPS)}\n"
    language = Language(_RULES + terminals(_WORDS) + words, _Meaning(rules, known), "kinds of thing", _SILENT)

    def lists(random: np.random.Generator) -> Values:
        sizes = random.choice(SIZES[1:3], 2)
        drawn = [list(pick(random, names, *map(str, range(size))).values()) for size in sizes]
        return {slot: listed(those) for slot, those in zip(("a", "b"), drawn, strict=True)}

    def parts(text: str) -> Sequence[str]:
        return text.replace(" and ", ", ").split(", ")

    def draw(*slots: str):
        return lambda random: pick(random, names, *slots)

    def grid(count: int) -> Float[np.ndarray, "tasks factors"]:
        # Not the order of the splits, whose first ones are held out.
        every = every_subset(len(names), SIZES)
        chosen = [every[i] for i in np.random.RandomState(1).permutation(len(every))[:count]]
        return np.array([[float(k in subset) for k in range(len(names))] for subset in chosen])

    constructions = [
        ("with", ("{name} and some other kinds", "{name} among other kinds"), ("{name} and possibly others",),
         draw("name"), lambda name: rules.subsets([name])),
        ("with two", ("{name} and {other}, and whatever else", "at least {name} and {other}"),
         ("{name} and {other} with or without others",), draw("name", "other"),
         lambda name, other: rules.subsets([name, other])),
        ("without", ("some kinds, not {name}", "kinds without {name}"), ("kinds with no {name}",), draw("name"),
         lambda name: rules.subsets(lack=[name])),
        ("with and without", ("{name} and some other kinds without {other}",),
         ("{name} and a few more, but not {other}",), draw("name", "other"),
         lambda name, other: rules.subsets([name], [other])),
        ("size", ("any {size} kinds", "{size} kinds"), ("some {size} kinds",),
         lambda random: pick(random, NUMBERS, "size"), lambda size: rules.subsets(sizes=(1 + NUMBERS.index(size),))),
        ("any", ("some kinds", "any kinds"), ("a few kinds",), draw(), rules.subsets),
        ("either", ("either {a} or {b}", "{a} or else {b}"), ("{a} or instead {b}",), lists,
         lambda a, b: rules.either(parts(a), parts(b))),
    ]  # fmt: skip
    written = tuple(construction(name, FRAMES, *rest) for name, *rest in constructions)
    return Grammar(written, frozenset(), grid, language, "texts about plants or food")
