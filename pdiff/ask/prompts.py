"""What a prompt is read as: by the family's grammar, or where it has none, as a training description that it is like.

A generator answers anything: asked for a cat it gives some network all the same. A family without a grammar, such as a
folder of images or imported networks, has the names and descriptions of its tasks alone. So a prompt is compared with
those of the seen tasks, word by word. It is refused if it is too far from the nearest of them, or if it has nothing
that tells one task from another: no class, no kind, no number with a unit that descriptions have.

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

from pdiff.errors import PdiffError, shortened
from pdiff.tasks.base import Family, Task
from pdiff.tasks.language import FORCE, Reading, Unreadable
from pdiff.tasks.plain import LARGEST, NUMBER, figures, numbers, plain

ALLOWED = 0.65  # distance: held-out wordings reach 0.61, other families' descriptions begin at 0.75 (test_prompts.py)
MOST_CHARACTERS = 1000
_WORD = re.compile(r"#|[^\W\d_]+(?:-[^\W\d_]+)*")
_TURNING = {"not", "no", "never", "without", "except", "neither", "nor", "but", "or", "either"}  # what others mean
_COMMON = 0.5  # weight of a word that all descriptions have
_PERCENT = re.compile(rf"({NUMBER.pattern}) percent(?![^\W_])")


@dataclasses.dataclass(frozen=True)
class Match:
    """What a prompt is nearest to.

    Attributes:
      distance: 0 (the same words) to 1 (none in common).
      description: the nearest training description, with the nearest numbers.
      tells: whether the prompt has something that tells tasks apart.
    """

    distance: float
    description: str
    tells: bool

    @property
    def known(self) -> bool:
        """Whether the prompt counts as a description of the family."""
        return self.tells and self.distance <= ALLOWED


def read(family: Family, descriptions: "Descriptions | None", prompt: str, force: bool) -> Reading:
    """What a prompt says to a generator.

    Args:
      descriptions: of a family without a grammar.
      force: take a prompt that cannot be read as it is.

    Raises:
      PdiffError: it is too long, no text, or cannot be read.
    """
    if not isinstance(prompt, str):
        raise PdiffError(f"prompt: got {prompt!r}; allowed: a text, such as {example_of(family)!r}")
    if len(prompt) > MOST_CHARACTERS:
        raise PdiffError(f"prompt: got {len(prompt)} characters; allowed: at most {MOST_CHARACTERS}")
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise PdiffError(f"prompt: {shortened(prompt)} is no text in Unicode; allowed: whole characters")
    if not prompt.strip():
        raise PdiffError(f"prompt: got an empty text; describe the task, as in {example_of(family)!r}")
    if family.grammar is None:
        return descriptions.read(prompt, force)
    try:
        reading = family.grammar.read(prompt)
    except Unreadable as e:
        if not force:
            raise
        return Reading("a text that cannot be read, as it is", text=prompt, doubt=e.reason)
    if reading.factors is not None:
        reading = dataclasses.replace(reading, text=family.describe(reading.factors)[0][0])
    return reading


def example_of(family: Family) -> str:
    """A prompt that works."""
    seen = family.split("seen")
    return seen[len(seen) // 2].descriptions[0]


def words(text: str) -> list[str]:
    """Lower-case words; a number is '#', followed by '# UNIT', the unit being the word after it or nothing."""
    found = _WORD.findall(NUMBER.sub(" # ", plain(text)))
    pairs = zip(found, [*found[1:], ""], strict=True)
    return [w for word, after in pairs for w in ((word, f"# {after}") if word == "#" else (word,))]


class Descriptions:
    """The training descriptions of a family's seen tasks, to compare prompts with."""

    def __init__(self, family: Family):
        self._family = family
        wordings = [(d, t) for t in family.tasks for d in (*t.descriptions, *t.held_out_descriptions, t.name)]
        self._tasks = {plain(d): t for d, t in reversed(wordings)}
        self._like: dict[tuple[str, ...], dict[str, list[float]]] = {}  # by words, descriptions with their numbers
        for task in family.split("seen"):
            for description in task.descriptions:
                same = self._like.setdefault(tuple(sorted(words(description))), {})
                same[description] = numbers(plain(description))
        bags = [collections.Counter(bag) for bag in self._like]
        count = collections.Counter(w for bag in bags for w in bag)
        self._index = {w: i for i, w in enumerate(sorted(count))}
        self._rarity = {w: _COMMON + math.log((len(bags) + 1) / (n + 1)) for w, n in count.items()}
        self._unknown = _COMMON + math.log(len(bags) + 1)
        self._table = np.zeros((len(bags), len(count)))
        for row, bag in zip(self._table, bags, strict=True):
            for word, times in bag.items():
                row[self._index[word]] = times * self._rarity[word]

    def read(self, prompt: str, force: bool = False) -> Reading:
        """What a prompt is like, with its numbers written as descriptions write theirs.

        Raises:
          PdiffError: it is like no description, and not forced.
        """
        text = self._normal(prompt)
        if (task := self.task(text)) is not None:
            return Reading(f"the {task.split} task {task.name}", task.factors or None, text=task.descriptions[0])
        if any(not abs(n) <= LARGEST for n in numbers(text)):
            raise PdiffError(f"prompt: {shortened(prompt)} has a number that is too large; allowed: up to {LARGEST:g}")
        match = self.match(text)
        doubt = "" if match.known else self.doubt(match)
        if turned := sorted(_TURNING & {*words(text)} - self._index.keys()):
            doubt = f"says {', '.join(map(repr, turned))}, which no description has, so that what is meant is not known"
        if doubt and not force:
            raise PdiffError(f"prompt: {shortened(prompt)} {doubt}. {FORCE}")
        strange = tuple(dict.fromkeys(w for w in words(text) if w not in self._index and w[0] != "#"))
        said = f"{text!r}, which is like {match.description!r}"
        return Reading(said, ignored=strange, text=text, doubt=doubt or self._beyond(text, match))

    def _normal(self, prompt: str) -> str:
        """The prompt with number words as figures where descriptions have figures, and a percentage as a share where
        none has a percentage."""
        text = plain(prompt)
        if any(w[0] == "#" for w in self._index):
            unknown = [w for w in words(text) if w not in self._index]
            text = figures(text) if unknown else text
            if "percent" not in self._index:
                text = _PERCENT.sub(lambda m: f"{float(m.group(1)) / 100:g}", text)
        return text

    def task(self, text: str) -> Task | None:
        """The task of the family, seen or not, of which the text is a wording or the name, if there is one."""
        return self._tasks.get(plain(text))

    @functools.cached_property
    def telling(self) -> frozenset[str]:
        """Words that some seen tasks have and others do not, and numbers with their units if these differ."""
        seen = self._family.split("seen")
        by_task = [{w for d in t.descriptions for w in words(d)} for t in seen]
        varying = set().union(*by_task) - set.intersection(*by_task)
        if len({tuple(numbers(plain(t.descriptions[0]))) for t in seen}) > 1:
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
        like, wanted = list(self._like.values())[int(distance.argmin())], numbers(plain(prompt))
        description = min(like, key=lambda d: sum(abs(a - b) for a, b in zip(like[d], wanted, strict=False)))
        tells = not self.telling or not self.telling.isdisjoint(bag)
        return Match(float(distance.min()), description, tells)

    def _beyond(self, text: str, match: Match) -> str:
        """'' or, for a number outside of what descriptions in the words of the match have, a warning that says so."""
        like = self._like[tuple(sorted(words(match.description)))]
        columns = zip(numbers(text), zip(*like.values(), strict=False), strict=False)
        for value, known in columns:
            if not min(known) <= value <= max(known):
                return f"{value:g} lies beyond the numbers that it was trained on, {min(known):g} to {max(known):g}"
        return ""

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
