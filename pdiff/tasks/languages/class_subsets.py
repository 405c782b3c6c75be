"""How subsets of the classes are described: "recognise just two, five and seven", and in many other words.

One task is a subset of 2 to 5 classes; "all but two" is one of more, and refused. Vague descriptions leave open which
other classes there are, or which of two subsets.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from lark import Transformer

from pdiff.tasks.grammar import Grammar, Values, construction, pick
from pdiff.tasks.language import Language, Nonsense, TaskSet, one_of, terminals
from pdiff.tasks.plain import figures

SIZES = (2, 3, 4, 5)  # classes in a subset

# No frame may hold a class's name, which rules out "one" and its like.
_FRAMES = (
    "recognise just {}", "tell images of {} from all others", "does an image show {}", "a detector of {}",
    "{} against the rest", "say yes to {}, no to every other kind", "a network that knows {}, and nothing else",
    "is this image {}, or something else", "I need a classifier that spots {}", "only {}", "find images of {}",
    "a model which answers yes to {}", "the classes {}", "is it {}", "detect {}",
    "recognising {} as against everything else", "does this picture show {} in it", "can a model recognise {}",
    "pictures of {}, and of nothing else", "tell {} from all other kinds",
)  # fmt: skip
# A wording, the word before the last class, and the order of the classes: see `_listed`. Each frame has two of them.
_WAYS = (("and", "forward"), ("and", "backward"), ("or", "turned"), ("and", "inside out"), ("or", "backward"),
         ("or", "forward"), ("and", "turned"), ("or", "inside out"))  # fmt: skip
WORDINGS = tuple((f, *_WAYS[(i + j) % len(_WAYS)]) for j in (0, 3) for i, f in enumerate(_FRAMES))
HELD_OUT_WORDINGS = (
    ("tell {} from everything else", "and", "turned"),
    ("does a network recognise {} in an image", "or", "inside out"),
    ("images of {}, and no others", "and", "backward"),
)
FRAMES = (  # of vague descriptions, as above: training ones, then held-out ones
    ("recognise {}", "tell images of {} from all others", "does an image show {}", "a detector of {}"),
    ("tell {} from everything else", "does a network recognise {} in an image"),
)
NUMBER_WORDS = dict(zip(("two", "three", "four", "five"), SIZES, strict=True))


def describe(factors: tuple[float, ...], class_names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out wordings for a subset: the classes whose factor is above a half, "nothing" if none is."""
    chosen = [name for name, factor in zip(class_names, factors, strict=True) if factor > 0.5] or ["nothing"]

    def filled(wordings):
        return tuple(wording.format(listed(chosen, last, order)) for wording, last, order in wordings)

    return filled(WORDINGS), filled(HELD_OUT_WORDINGS)


def listed(names: Sequence[str], last: str = "and", order: str = "forward") -> str:
    """'two, five and seven' with the names forward, backward, turned by one place, or from the inside out."""
    middle = len(names) // 2
    ordered = {
        "forward": names,
        "backward": names[::-1],
        "turned": names[1:] + names[:1],
        "inside out": names[middle:] + names[:middle][::-1],
    }[order]
    return f" {last} ".join(filter(None, (", ".join(ordered[:-1]), ordered[-1])))


class Subsets:
    """Sets of subsets, of some sizes, of the classes with these names; `one` and `many` are what a class is called."""

    def __init__(self, names: tuple[str, ...], sizes: Sequence[int] = SIZES, one: str = "class", many: str = "classes"):
        self.names, self.sizes, self.one, self.many = names, sizes, one, many
        self.total = sum(math.comb(len(names), size) for size in sizes)

    def subsets(
        self, have: Sequence[str] = (), lack: Sequence[str] = (), sizes: Sequence[int] | None = None
    ) -> TaskSet:
        """Those of these sizes, by default any, that have all classes of `have` and none of `lack`."""
        sizes = sizes or self.sizes
        if both := sorted({*have} & {*lack}):
            raise Nonsense(f"says {both[0]} both as a {self.one} to have and as one to lack; allowed: one of them")
        inside, outside = ([self.names.index(n) for n in dict.fromkeys(wanted)] for wanted in (have, lack))
        free = len(self.names) - len(inside) - len(outside)
        width = sum(math.comb(free, size - len(inside)) for size in sizes if size >= len(inside))
        if not width:
            raise Nonsense(
                f"says a set without a subset of {sizes[0]} to {sizes[-1]} {self.many}; allowed: fewer conditions"
            )
        limits = [f"{word} {listed([*those])}" for word, those in (("with", have), ("without", lack)) if those]
        size = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"

        def contains(factors):
            chosen = factors > 0.5
            fits = chosen[:, inside].all(1) & ~chosen[:, outside].any(1)
            return fits & np.isin(chosen.sum(1), sizes)

        return TaskSet(" ".join(["any", size, self.many, *limits, f"({width} of {self.total} subsets)"]), contains)

    def factors(self, those: Sequence[str]) -> tuple[float, ...]:
        """Of the one subset with these classes."""
        there = [n for n in self.names if n in those]
        if len(there) not in self.sizes:
            few = f"one {self.one}" if len(there) == 1 else f"{len(there)} {self.many}"
            hint = "; its complement can be described, and answers the other way round"
            hint = hint if len(there) > self.sizes[-1] else ""
            raise Nonsense(f"names {few}, {listed(there)}; allowed: {self.sizes[0]} to {self.sizes[-1]} of them{hint}")
        return tuple(float(n in there) for n in self.names)

    def either(self, *lists: Sequence[str]) -> TaskSet:
        """One of the listed subsets, exactly."""
        rows = [np.array(self.factors(those)) > 0.5 for those in lists]
        said = " or ".join(listed([*dict.fromkeys(those)]) for those in lists)
        return TaskSet(
            f"either {said} ({len(np.unique(rows, axis=0))} of {self.total} subsets)",
            lambda factors: np.any([((factors > 0.5) == row).all(1) for row in rows], axis=0),
        )


_WORDS = r"""
    CLASSES.3: classes | class | digits | digit | numbers | numerals | categories | category | items | of any kind
    CLASSES_WITH.5: classes with | digits with | classes that include | classes including | classes containing
    ANY.3: any | some | a few | several | arbitrary | whatever | random
    OTHERS.6: and some other classes | some other classes | among other classes | and a few more | a few more
        | together with some more classes | and more | and some others | and some more | with or without others
        | and whatever else | and other classes | and others | among others | plus others | and some other
        | and some other digits | and other digits | and possibly others | together with others | and a few others
    AT_LEAST.4: at least | including | among other things | which include
    WITHOUT.5: without | that leave out | leaving out | with no | lacking | that lack | not including | excluding
        | but without | but no | but not
    NOT.3: not | no | never | but | isn't | don't | doesn't | rather than
    ALL_BUT.6: all but | everything but | anything but | everything except | all except | anything except | except
        | everything other than | anything other than | all other than | that are not | other than | neither
        | apart from | everything apart from | anything apart from | everything that is not
    EITHER.3: either
    OR_ELSE.4: or else | or instead | , or else | , or instead
    AND.3: and | & | as well as | plus | together with | and also
    OR.4: or | and/or | nor
    TO.3: to | through | until | till
    UP_TO.6: up to
    BETWEEN.3: between
    ALL_CLASSES.6: all digits | all the digits | every digit | all classes | all the classes | every class
        | all ten digits | all numbers | all the numbers
    REST.6: from all other kinds | in it | and of nothing else
        | and no to everything else | and no to all others | and no to the rest | and no to any other
        | from all other digits | from the other digits | from other digits | against all other digits
        | from all others | from everything else | as against everything else | against the rest
        | against all others | no to every other kind | no to all others | and no others | and nothing else
        | and no other | from the rest | versus the rest | vs the rest | from all other classes | no others
        | nothing else | alone | or something else | from the others | from other images | among them
        | from any other | no to everything else | no to the rest | and no more | and only those
        | and only these | from anything else | against everything else | or not | from all the others
    ABOVE.5: greater than | larger than | bigger than | more than | above | over | exceeding
    BELOW.5: less than | smaller than | lower than | below | under | fewer than
    OR_MORE.5: or more | or above | and above | or larger | and up | or greater | and larger
    OR_LESS.5: or less | or below | and below | or smaller | and down | or fewer | and smaller
"""
_RULES = r"""
    start: meaning
    ?meaning: list -> one
        | list AND? (NOT | WITHOUT) list -> one
        | list OTHERS -> with_others
        | AT_LEAST list -> at_least
        | list OTHERS (WITHOUT | NOT) list -> with_without
        | any? CLASSES_WITH list AND? (WITHOUT | NOT) list -> with_without
        | any? CLASSES_WITH list -> with_others
        | any? CLASSES (WITHOUT | NOT) list -> without
        | any CLASSES ALL_BUT list -> without
        | CLASSES ALL_BUT list -> complement
        | ALL_CLASSES (WITHOUT | NOT | ALL_BUT) list -> complement
        | any? CLASSES_WITH NOT list -> without
        | any CLASSES -> anything
        | size
        | (NOT | ALL_BUT | WITHOUT) list -> complement
        | part (ALL_BUT | WITHOUT) list -> one
        | EITHER both OR both -> either
        | both OR_ELSE both -> either
    any: ANY
    size.2: any? NUMBER CLASSES CLASSES?
    both.2: item (COMMA item)* COMMA? AND item
    list: CLASSES? EITHER? part ((AND | OR | COMMA | COMMA AND | COMMA OR) part)*
    ?part: item -> single
        | item (TO | DASH) item -> span
        | BETWEEN item AND item -> span
    ?item: NUMBER -> number | CLASS -> named
    %ignore REST
"""
_RULES_OF_DIGITS = r"""
    ODD.4: /(odd|uneven)(?![^\W_])/
    EVEN.4: /even(?![^\W_])/
    PRIME.4: /(primes|prime)(?![^\W_])/
    %extend part: ODD CLASSES? -> odd | EVEN CLASSES? -> even | PRIME CLASSES? -> prime
        | ABOVE item -> above | BELOW item -> below | UP_TO item -> up_to
        | item OR_MORE -> upwards | item OR_LESS -> downwards
"""
_SILENT = (
    "just", "only", "exactly", "say", "says", "yes", "yes to", "say yes to", "answer yes to", "answers yes to",
    "something", "both", "knows", "know", "distinguish", "distinguishes", "tell apart", "separate", "separates", "spot",
    "spots", "contain", "contains", "figures", "figure", "from", "handwritten", "whether", "them", "one of",
    "anything", "among",
)  # fmt: skip


class _Meaning(Transformer):
    """The subset or the set of subsets that a tree says, and the words for it."""

    def __init__(self, subsets: Subsets, known: dict[str, str]):
        super().__init__()
        self._subsets, self._known = subsets, known  # classes by what they are called in a plain text
        self._digits = "0" in known

    def start(self, children):
        return children[0]

    def number(self, children):
        return self._class(str(children[0]))

    def named(self, children):
        return self._class(" ".join(children[0].replace("-", " ").split()))

    def _class(self, called):
        if called not in self._known:
            raise Nonsense(f"says {called!r}, which is no class; allowed: {', '.join(self._subsets.names)}")
        return self._known[called]

    def single(self, children):
        return [children[0]]

    def list(self, children):
        parts, joined = _lists(children), {getattr(c, "type", "") for c in children} & {"AND", "OR"}
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(p, _Property) for p in parts) and joined != {"OR"}:  # even and above 3
            return _Property(n for n in parts[0] if all(n in p for p in parts))
        return [name for part in parts for name in part]

    def both(self, children):
        return [name for name in children if name in self._subsets.names]

    def span(self, children):
        names = self._subsets.names
        first, last = (names.index(c) for c in children if c in names)
        if first >= last:
            raise Nonsense(f"says {names[first]} to {names[last]}; allowed: the earlier class first")
        return _Property(names[first : last + 1])

    def odd(self, _):
        return _Property(self._subsets.names[1::2])

    def even(self, _):
        return _Property(self._subsets.names[::2])

    def prime(self, _):
        return _Property(self._subsets.names[i] for i in (2, 3, 5, 7))

    def above(self, children):
        return self._side(children[-1], 1, None)

    def below(self, children):
        return self._side(children[-1], None, 0)

    def up_to(self, children):
        return self._side(children[-1], None, 1)

    def upwards(self, children):
        return self._side(children[0], 0, None)

    def downwards(self, children):
        return self._side(children[0], None, 1)

    def _side(self, name, start, stop):
        names, at = self._subsets.names, self._subsets.names.index(name)
        chosen = names[at + start :] if stop is None else names[: at + stop]
        if not chosen:
            raise Nonsense(f"says a side of {name} on which no class is")
        return _Property(chosen)

    def one(self, children):
        those, *others = _lists(children)
        if isinstance(those, _Property):  # even ones but not 4
            return self._exactly([n for n in those if not any(n in other for other in others)])
        if lost := sorted({*those} & {n for other in others for n in other}):
            raise Nonsense(f"says {lost[0]} both as a class to have and as one to lack; allowed: one of them")
        return self._exactly(those)

    def complement(self, children):
        (those,) = _lists(children)
        return self._exactly([n for n in self._subsets.names if n not in those])

    def _exactly(self, those):
        factors = self._subsets.factors(those)
        there = [n for n, f in zip(self._subsets.names, factors, strict=True) if f]
        return factors, f"the {len(there)} classes {listed(there)}, and no others"

    def at_least(self, children):
        those = _lists(children)[0]
        if self._digits and len(those) == 1:  # five or more
            return self._exactly(self._side(those[0], 0, None))
        return _set(self._subsets.subsets(those))

    def with_others(self, children):
        return _set(self._subsets.subsets(_lists(children)[0]))

    def with_without(self, children):
        return _set(self._subsets.subsets(*_lists(children)))

    def without(self, children):
        return _set(self._subsets.subsets(lack=_lists(children)[0]))

    def anything(self, _):
        return _set(self._subsets.subsets())

    def size(self, children):
        size = next(float(c) for c in children if getattr(c, "type", "") == "NUMBER")
        if size not in SIZES:
            raise Nonsense(f"says {size:g} classes; allowed: {SIZES[0]} to {SIZES[-1]}")
        return _set(self._subsets.subsets(sizes=(int(size),)))

    def either(self, children):
        return _set(self._subsets.either(*_lists(children)))


class _Property(list):
    """The classes with a property, such as the even ones."""


def _lists(children) -> list[list[str]]:
    return [c for c in children if isinstance(c, list)]


def _set(tasks: TaskSet):
    return tasks, tasks.said


def _language(subsets: Subsets) -> Language:
    """Reads what is said of these classes. Names that are number words are read as figures as well."""
    names = subsets.names
    known = {figures(name).replace("-", " "): name for name in names}
    digits = list(known) == [str(i) for i in range(10)]
    ends = ("", "s", "es")
    numerals = {f"{i}s": name for i, name in enumerate(names)} if digits else {}
    phrases = [name.replace("-", "~") + end for name in names for end in ends]
    known |= {f"{name.replace('-', ' ')}{end}": name for name in names for end in ends}
    phrases += numerals
    known |= numerals
    item = r"(?=\s*(?:(?:and|or) )?(?:(?:an?|the) )?(?:\d|" + one_of(phrases).strip("/") + "))"
    classes = f"CLASS.7: {one_of(phrases)}\nCOMMA.3: /,{item}/\n"
    rules = _RULES + terminals(_WORDS) + classes + (_RULES_OF_DIGITS if digits else "")
    return Language(rules, _Meaning(subsets, known), "classes", _SILENT, decimal_comma=False)


def make_grammar(names: tuple[str, ...]) -> Grammar:
    """Vague descriptions: of classes that are in the subset or not, of its size, and of two subsets."""
    sets = Subsets(names)

    def lists(random: np.random.Generator) -> Values:
        sizes = random.choice(SIZES, 2)
        drawn = [list(pick(random, names, *map(str, range(size))).values()) for size in sizes]
        return {slot: listed(those) for slot, those in zip(("a", "b"), drawn, strict=True)}

    def parts(text: str) -> list[str]:
        return text.replace(" and ", ", ").split(", ")

    def draw(*slots: str) -> Callable[[np.random.Generator], Values]:
        return lambda random: pick(random, names, *slots)

    def grid(count: int) -> Float[np.ndarray, "tasks factors"]:
        # Not the order of the splits, whose first ones are held out.
        every = every_subset(len(names))
        chosen = [every[i] for i in np.random.RandomState(1).permutation(len(every))[:count]]
        return np.array([[float(c in subset) for c in range(len(names))] for subset in chosen])

    constructions = [
        ("with", ("{name} and some other classes", "{name} among other classes", "{name} and a few more"),
         ("{name} together with some more classes",), draw("name"), lambda name: sets.subsets([name])),
        ("with two", ("{name} and {other} with or without others", "at least {name} and {other}"),
         ("{name} and {other} and whatever else",), draw("name", "other"),
         lambda name, other: sets.subsets([name, other])),
        ("without", ("classes without {name}", "classes that leave out {name}", "some classes, not {name}"),
         ("classes with no {name} among them",), draw("name"), lambda name: sets.subsets(lack=[name])),
        ("with and without", ("{name} and some other classes without {other}", "classes with {name} and no {other}"),
         ("{name} and a few more, not {other}",), draw("name", "other"),
         lambda name, other: sets.subsets([name], [other])),
        ("size", ("any {size} classes", "{size} classes of any kind"),
         ("just any {size} classes",), lambda random: pick(random, tuple(NUMBER_WORDS), "size"),
         lambda size: sets.subsets(sizes=(NUMBER_WORDS[size],))),
        ("any", ("some classes", "any classes"), ("a few classes",), draw(), sets.subsets),
        ("either", ("either {a} or {b}", "{a} or else {b}"), ("{a} or instead {b}",), lists,
         lambda a, b: sets.either(parts(a), parts(b))),
    ]  # fmt: skip
    made = tuple(construction(name, FRAMES, *rest) for name, *rest in constructions)
    return Grammar(made, frozenset(), grid, _language(sets), f"recognise just {listed(names[2:5])}")


def every_subset(num_classes: int, sizes: Sequence[int] = SIZES) -> list[frozenset[int]]:
    """All subsets of so many classes."""
    return [frozenset(s) for size in sizes for s in itertools.combinations(range(num_classes), size)]
