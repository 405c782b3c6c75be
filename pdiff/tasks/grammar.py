"""Vague descriptions: sentences that denote a set of tasks, such as "digits rotated by between 60 and 90 degrees".

A family's `Grammar` lists the kinds of such sentences. It writes them, for training and for tests, each with its set,
and reads them back: a prompt that it could have written gives the set, any other None. Precise descriptions, which
denote one task, are none of its sentences.
"""

import dataclasses
import functools
import math
import re
import string
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from pdiff.errors import PdiffError

NUMBER = r"\d+(?:\.\d+)?"  # the pattern of slots that hold numbers
CLOSE = 0.005  # half of the last digit of a description, so that the ends of a range belong to it

Values = dict[str, float | str]  # by slot: a number, or words in lower case


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """The tasks that a description may mean.

    Attributes:
      said: how it was understood and how wide it is, as in "any angle from 60 to 90 degrees (30 of 360)".
      contains: factors of tasks, as in `Family.factors` -> whether each is in the set.
    """

    said: str
    contains: Callable[[Float[np.ndarray, "n factors"]], Bool[np.ndarray, " n"]]


@dataclasses.dataclass(frozen=True)
class Construction:
    """A kind of vague sentence.

    Attributes:
      name: unique in its grammar.
      wordings: training templates, with named slots in braces.
      held_out: other templates of the same slots, never trained on.
      draw: random values of the slots; numbers are written to a hundredth.
      region: values of the slots -> the set. Raises PdiffError, which names the prompt, if no task is in it.
    """

    name: str
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]
    draw: Callable[[np.random.Generator], Values]
    region: Callable[[Values], TaskSet]


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The vague sentences of a family.

    Attributes:
      constructions: the kinds of sentences; no sentence is of two of them.
      slots: the pattern of what may stand in a slot, by its name. `NUMBER` makes it a number, all else are words.
      grid: about so many, and at most so many, rows of factors, evenly from all tasks that can be described, whatever
        split they are in; the same ones every time.
    """

    constructions: tuple[Construction, ...]
    slots: dict[str, str]
    grid: Callable[[int], Float[np.ndarray, "tasks factors"]]

    def sentence(self, random: np.random.Generator, held_out: bool = False) -> tuple[str, TaskSet]:
        """A random sentence, in a training or a held-out wording, and what it says."""
        chosen = self.constructions[random.integers(len(self.constructions))]
        wordings = chosen.held_out if held_out else chosen.wordings
        wording, values = wordings[random.integers(len(wordings))], chosen.draw(random)
        texts = {slot: v if isinstance(v, str) else f"{round(v, 2):g}" for slot, v in values.items()}
        return wording.format(**texts), chosen.region(self._values(texts))

    def read(self, text: str) -> TaskSet | None:
        """What a sentence in any of the wordings says, whatever its case, spaces and last stop; None if it is in none.

        Raises:
          PdiffError: it says a set without tasks.
        """
        plain = " ".join(text.lower().split()).rstrip(" .!?")
        for pattern, region in self._patterns:
            if match := pattern.fullmatch(plain):
                return region(self._values(match.groupdict()))
        return None

    def examples(self, count: int = 2) -> list[str]:
        """A sentence of each of the first constructions, always the same ones."""
        firsts = (dataclasses.replace(self, constructions=(c,)) for c in self.constructions[:count])
        return [one.sentence(np.random.default_rng(0))[0] for one in firsts]

    def _values(self, texts: dict[str, str]) -> Values:
        values = {slot: float(t) if self.slots[slot] == NUMBER else t for slot, t in texts.items()}
        if math.inf in values.values():
            raise PdiffError("prompt: got a number that is too large; allowed: numbers that tasks have")
        return values

    @functools.cached_property
    def _patterns(self) -> list[tuple[re.Pattern, Callable[[Values], TaskSet]]]:
        return [(self._pattern(w), c.region) for c in self.constructions for w in (*c.wordings, *c.held_out)]

    def _pattern(self, template: str) -> re.Pattern:
        parts = [(re.escape(text.lower()), slot) for text, slot, *_ in string.Formatter().parse(template)]
        return re.compile("".join(text + (f"(?P<{slot}>{self.slots[slot]})" if slot else "") for text, slot in parts))


def construction(
    name: str,
    frames: tuple[tuple[str, ...], tuple[str, ...]],
    phrases: tuple[str, ...],
    held_out: tuple[str, ...],
    draw: Callable[[np.random.Generator], Values],
    region: Callable[..., TaskSet],
) -> Construction:
    """The construction whose templates have each phrase in the place of {} of each frame.

    `frames` are (training, held-out) ones. A template is held out if its frame or its phrase is. `region` takes the
    values by name.
    """
    trained = tuple(frame.replace("{}", phrase) for frame in frames[0] for phrase in phrases)
    every = (frame.replace("{}", phrase) for frame in frames[0] + frames[1] for phrase in phrases + held_out)
    return Construction(name, trained, tuple(t for t in every if t not in trained), draw, lambda v: region(**v))


def any_of(names: Iterable[str]) -> str:
    """The pattern of a slot that holds one of the names; a name that begins with another is tried first."""
    return "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True))


def pick(random: np.random.Generator, names: Sequence[str], *slots: str) -> Values:
    """A different one of the names in each slot."""
    return {slot: names[i] for slot, i in zip(slots, random.permutation(len(names)), strict=False)}


def numbers(random: np.random.Generator, **values: float) -> Values:
    """The numbers by slot, all rounded to whole ones, or all to a hundredth."""
    places = int(random.choice((0, 2)))
    return {slot: round(float(v), places) for slot, v in values.items()}


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    """A width from `low` to `high`: narrow ones as often as wide ones."""
    return math.exp(random.uniform(math.log(low), math.log(high)))


def between(values: Float[np.ndarray, " n"], low: float, high: float) -> Bool[np.ndarray, " n"]:
    """Whether each value is in the range, both ends included."""
    return (values >= low - CLOSE) & (values <= high + CLOSE)


def interval(a: float, b: float, unit: str, whole: tuple[float, float] = (0.0, 100.0)) -> tuple[float, float]:
    """The part of the range from a to b that lies in the `whole` one.

    Raises:
      PdiffError: nothing is, or b is not above a.
    """
    low, high = max(a, whole[0]), min(b, whole[1])
    if low >= high:
        raise PdiffError(
            f"prompt: got from {a:g} to {b:g} {unit}, where no task is; allowed: a range between {whole[0]:g} and "
            f"{whole[1]:g}, the smaller number first"
        )
    return low, high
