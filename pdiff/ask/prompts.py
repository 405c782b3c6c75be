"""Is a prompt one of the descriptions that a generator knows, and which task does it ask for?

A generator answers anything: asked for a cat it gives some network all the same. So a prompt is compared with the
training descriptions of the seen tasks, word by word. It is refused if it is too far from the nearest of them, or if it
has nothing that tells one task from another: no class, no kind, no number with a unit that descriptions have.

A number is a word that any other number matches; with the word after it, its unit, it is another. Words weigh by how
rare they are among descriptions (inverse document frequency), those of no description most. The distance between two
texts is 1 - 2 common / (one + other), in weights: Dice's.
"""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from pdiff.errors import PdiffError
from pdiff.tasks.base import Family, Task

ALLOWED = 0.65  # distance: held-out wordings reach 0.61, other families' descriptions begin at 0.75 (test_prompts.py)
MOST_CHARACTERS = 1000
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"#|[^\W\d_]+(?:-[^\W\d_]+)*")
_COMMON = 0.5  # weight of a word that all descriptions have
_CLOSE = 0.006  # numbers in descriptions are rounded to a hundredth


@dataclasses.dataclass(frozen=True)
class Match:
    """What a prompt is nearest to.

    Attributes:
      distance: 0 (the same words) to 1 (none in common).
      description: the nearest training description, with the nearest numbers.
      task: the seen task that it describes.
      tells: whether the prompt has something that tells tasks apart.
    """

    distance: float
    description: str
    task: Task
    tells: bool

    @property
    def known(self) -> bool:
        """Whether the prompt counts as a description of the family."""
        return self.tells and self.distance <= ALLOWED


def check_length(prompt: str) -> None:
    """Raises PdiffError for what is too long to be worth reading, or no text: half of a character, as JSON may hold."""
    if len(prompt) > MOST_CHARACTERS:
        raise PdiffError(f"prompt: got {len(prompt)} characters; allowed: at most {MOST_CHARACTERS}")
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise PdiffError(f"prompt: {shortened(prompt)} is no text in Unicode; allowed: whole characters")


def words(text: str) -> list[str]:
    """Lower-case words; a number is '#', followed by '# UNIT', the unit being the word after it or nothing."""
    plain = _WORD.findall(_NUMBER.sub(" # ", text.lower()))
    following = [*plain[1:], ""]
    pairs = zip(plain, following, strict=True)
    return [w for word, after in pairs for w in ((word, f"# {after}") if word == "#" else (word,))]


def numbers(text: str) -> list[float]:
    """The numbers in a text."""
    return [float(n) for n in _NUMBER.findall(text)]


class Descriptions:
    """The training descriptions of a family's seen tasks, to compare prompts with."""

    def __init__(self, family: Family):
        self._family = family
        self._tasks = {self._plain(d): t for t in family.tasks for d in (*t.descriptions, *t.held_out_descriptions)}
        self._like: dict[tuple[str, ...], list[tuple[str, Task]]] = {}  # by words, descriptions that differ in numbers
        for task in family.split("seen"):
            for description in task.descriptions:
                self._like.setdefault(tuple(sorted(words(description))), []).append((description, task))
        bags = [collections.Counter(bag) for bag in self._like]
        count = collections.Counter(w for bag in bags for w in bag)
        self._index = {w: i for i, w in enumerate(sorted(count))}
        self._rarity = {w: _COMMON + math.log((len(bags) + 1) / (n + 1)) for w, n in count.items()}
        self._unknown = _COMMON + math.log(len(bags) + 1)
        self._table = np.zeros((len(bags), len(count)))
        for row, bag in zip(self._table, bags, strict=True):
            for word, times in bag.items():
                row[self._index[word]] = times * self._rarity[word]

    @functools.cached_property
    def telling(self) -> frozenset[str]:
        """Words that some seen tasks have and others do not, and numbers with their units if these differ."""
        seen = self._family.split("seen")
        by_task = [{w for d in t.descriptions for w in words(d)} for t in seen]
        varying = set().union(*by_task) - set.intersection(*by_task)
        if len({tuple(numbers(t.descriptions[0])) for t in seen}) > 1:
            # One at the end of a prompt may have any unit.
            varying |= {"# "} | {w for w in set().union(*by_task) if w.startswith("# ")}
        return frozenset(varying - {"#"})

    def match(self, prompt: str) -> Match:
        """The nearest training description."""
        bag = collections.Counter(words(prompt))
        weights = np.zeros(len(self._index))
        for word in bag.keys() & self._index.keys():
            weights[self._index[word]] = bag[word] * self._rarity[word]
        strange = self._unknown * sum(n for w, n in bag.items() if w not in self._index)
        total = self._table.sum(1) + weights.sum() + strange
        distance = 1 - 2 * np.minimum(self._table, weights).sum(1) / np.maximum(total, 1e-9)
        like, wanted = list(self._like.values())[int(distance.argmin())], numbers(prompt)
        apart = [sum(abs(a - b) for a, b in zip(numbers(text), wanted, strict=False)) for text, _ in like]
        description, task = like[int(np.argmin(apart))]
        tells = not self.telling or not self.telling.isdisjoint(bag)
        return Match(float(distance.min()), description, task, tells)

    def beyond(self, prompt: str, match: Match) -> str:
        """'' or, for a number outside of what descriptions in the words of `found` have, a warning that says so."""
        like = self._like[tuple(sorted(words(match.description)))]
        columns = zip(numbers(prompt), zip(*(numbers(d) for d, _ in like), strict=False), strict=False)
        for value, known in columns:
            if not min(known) <= value <= max(known):
                return f"{value:g} lies beyond the numbers that it was trained on, {min(known):g} to {max(known):g}"
        return ""

    def check(self, prompt: str) -> Match:
        """`match`, if the prompt is a description of the family.

        Raises:
          PdiffError: it is like none of the descriptions.
        """
        match = self.match(prompt)
        if not match.known:
            raise PdiffError(f"prompt: {shortened(prompt)} {self.doubt(match)}; --force (force=True) samples anyway")
        return match

    def doubt(self, match: Match) -> str:
        """Why a prompt that is not `known` is doubted."""
        said = (
            f"looks like none of this generator's descriptions (nearest: '{match.description}', distance "
            f"{match.distance:.2f}; allowed: at most {ALLOWED:g}"
        )
        if match.tells:
            return f"{said})"
        examples = [w for w in words(match.description) if w in self.telling]
        example = examples[0].replace("# ", "a number and ").removesuffix(" and ") if examples else "those in it"
        return f"{said}, and something that tells its tasks apart, such as '{example}')"

    def task(self, prompt: str) -> Task | None:
        """The task of the family, seen or not, of which the prompt is a wording, if there is one."""
        return self._tasks.get(self._plain(prompt))

    def factors(self, prompt: str) -> tuple[float, ...] | None:
        """The factors that the prompt asks for; None if they cannot be told, or the family has none.

        They are those of the nearest description, with the prompt's numbers in place of its own; or, where a family's
        factors are whether something is there, such as a class, those whose names are in the prompt.
        """
        if (exact := self.task(prompt)) is not None:
            return exact.factors or None
        match, family = self.match(prompt), self._family
        names = [{w for w in words(t) if w in self.telling and w[0] != "#"} for t in (prompt, match.description)]
        wanted, there = numbers(prompt), numbers(match.description)
        if not match.known or not family.factor_names or family.describe is None:
            return None
        if set(family.factors().flat) <= {0, 1}:
            return self._named(prompt, names[0])
        if names[0] != names[1] or len(wanted) != len(there):
            return None
        factors = list(match.task.factors)
        for value, old in zip(wanted, there, strict=True):
            close = [i for i, u in enumerate(family.units) if u and abs(match.task.factors[i] - u * old) < u * _CLOSE]
            if not close:
                return None
            factors[close[0]] = value * family.units[close[0]]
        which = match.task.descriptions.index(match.description)
        again = numbers(family.describe(tuple(factors))[0][which])
        return tuple(factors) if np.allclose(sorted(again), sorted(wanted), atol=_CLOSE) else None

    def _named(self, prompt: str, telling: set[str]) -> tuple[float, ...] | None:
        """1 for each factor whose name is in the prompt, if the description of these has the same telling words."""
        there, family = set(words(prompt)), self._family
        factors = tuple(float(there.issuperset(words(name))) for name in family.factor_names)
        if sum(factors) not in family.factors().sum(1):  # with fewer than any task, some name was not understood
            return None
        return factors if telling == self.telling.intersection(words(family.describe(factors)[0][0])) else None

    @staticmethod
    def _plain(text: str) -> str:
        return " ".join(text.lower().split())


def shortened(text: str, most: int = 80) -> str:
    """The text in quotes, on one line, cut off after `most` characters."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")
