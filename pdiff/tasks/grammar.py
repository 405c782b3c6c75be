"""A family's language, both ways: it writes descriptions of sets of tasks, and reads what anyone has written.

Sentences that it writes, such as "digits rotated by between 60 and 90 degrees", come with their set, for training and
for tests. Descriptions of one task are written by `Family.describe`. Both, and much else, are read by a `Language`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from pdiff.tasks.language import Language, Nonsense, Reading, TaskSet

CLOSE = 0.005  # half of the last digit of a description, so that the ends of a range belong to it

Values = dict[str, float | str]  # by slot: a number, or words in lower case


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
      slots: those of constructions that are numbers.
      grid: about so many, and at most so many, rows of factors, evenly from all tasks that can be described, whatever
        split they are in; the same ones every time.
      language: reads descriptions.
      example: a description of one task.
    """

    constructions: tuple[Construction, ...]
    slots: frozenset[str]
    grid: Callable[[int], Float[np.ndarray, "tasks factors"]]
    language: Language
    example: str

    def sentence(self, random: np.random.Generator, held_out: bool = False) -> tuple[str, TaskSet]:
        """A random sentence, in a training or a held-out wording, and what it says."""
        chosen = self.constructions[random.integers(len(self.constructions))]
        wordings = chosen.held_out if held_out else chosen.wordings
        wording, texts = wordings[random.integers(len(wordings))], _texts(chosen, random)
        return wording.format(**texts), chosen.region(self._values(texts))

    def read(self, text: str) -> Reading:
        """What a description says: a task, or a set of them.

        Raises:
          Unreadable: it has words that mean nothing here, says too little, or a set without tasks.
        """
        return self.language.read(text, self._hints)

    def examples(self, count: int = 2) -> list[str]:
        """A short sentence of each of the first constructions, always the same ones."""
        each = [[(c, np.random.default_rng(seed)) for seed in range(8)] for c in self.constructions[:count]]
        return [min((c.wordings[0].format(**_texts(c, random)) for c, random in some), key=len) for some in each]

    @functools.cached_property
    def _hints(self) -> tuple[str, ...]:
        """What a refused text is told to be like: one task, and a set of them."""
        return self.example, *self.examples(1)

    def _values(self, texts: dict[str, str]) -> Values:
        return {slot: float(t) if slot in self.slots else t for slot, t in texts.items()}


def _texts(chosen: Construction, random: np.random.Generator) -> dict[str, str]:
    """Random values of the slots as they are written."""
    return {s: v if isinstance(v, str) else f"{round(v, 2):g}" for s, v in chosen.draw(random).items()}


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
      Nonsense: nothing is, or b is not above a.
    """
    low, high = max(a, whole[0]), min(b, whole[1])
    if low >= high:
        raise Nonsense(
            f"says from {a:g} to {b:g} {unit}, where no task is; allowed: a range between {whole[0]:g} and "
            f"{whole[1]:g}, the smaller number first"
        )
    return low, high
