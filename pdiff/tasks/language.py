"""Reading descriptions by a context-free grammar of the words that mean something to a family.

A family's language lists those words as Lark terminals and how they go together as Lark rules. Words that mean nothing
to any task, such as articles, are passed over; a word that no list has is never passed over: the text is refused, and
the message names it. So what is read is what was written, or nothing is.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable

import lark
import numpy as np
from jaxtyping import Bool, Float

from pdiff.errors import PdiffError, shortened
from pdiff.tasks.plain import LARGEST, figures, plain

FORCE = "--force (force=True) gives the text to the model as it is"

_PLUS_MINUS = re.compile(r"\b(?:plus (?:or )?minus|give or take)\b|\+/-")

# Passed over without a word: they connect, address or introduce.
FUNCTION_WORDS = (
    "a", "an", "the", "of", "by", "at", "in", "on", "for", "with", "that", "which", "who", "when", "where", "is",
    "are", "was", "were", "be", "been", "being", "has", "have", "had", "having", "it", "its", "they", "their",
    "them", "this", "these", "those", "can", "could", "would", "should", "will", "you", "i", "i'd", "i'm", "i've",
    "we", "me", "my", "us", "our", "your", "want", "wants", "need", "needs", "like", "give", "gives", "given",
    "make", "build", "create", "show", "shows", "find", "get", "tell", "tells", "does", "do", "please", "hi",
    "hello", "thanks", "as", "so", "there", "here", "after", "case", "cases", "if", "every", "each", "all",
    "kind", "kinds", "sort", "network", "networks", "net", "nets", "neural", "model", "models", "classifier",
    "classifiers", "recogniser", "recognizer", "detector", "recognise", "recognize", "recognises", "recognizes",
    "recognising", "recognizing", "recognition", "classify", "classifies", "classifying", "classification", "read",
    "reads", "reading", "identify", "identifies", "detect", "detects", "detecting", "see", "sees", "handle",
    "handles", "understand", "understands", "works", "work", "working", "trained", "image", "images", "picture",
    "pictures", "photo", "photos",
)  # fmt: skip
# Passed over as well, but said: whoever wrote them may have meant something by them.
IDLE_WORDS = (
    "kindly", "just", "exactly", "precisely", "scanned", "scan", "scans", "document", "documents", "page", "pages",
    "paper", "mistake", "accident", "camera", "photographed", "written", "by hand", "sheet", "sheets", "form",
    "forms", "scanner", "been told", "grey", "gray", "black and white", "actually", "really", "simply",
    "only", "mnist", "arabic", "my own", "own", "good", "best", "accurate", "inclusive", "inclusively", "ideally",
    "preferably", "again",
)  # fmt: skip


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
class Reading:
    """What a description was read as: one task, a set of them, or a text that the model is given.

    Attributes:
      said: in words, as in "285 degrees counter-clockwise (75 clockwise)".
      factors: of the one task, as in `Task.factors`; None if that is not known.
      tasks: the set; None if it names one task.
      ignored: words that changed nothing, in their order.
      text: the description that the model reads; "" for a set.
      doubt: what speaks against the reading; "" if nothing does.
    """

    said: str
    factors: tuple[float, ...] | None = None
    tasks: TaskSet | None = None
    ignored: tuple[str, ...] = ()
    text: str = ""
    doubt: str = ""


class Unreadable(PdiffError):
    """A prompt that cannot be read, for a `reason`.

    Args:
      examples: texts that can be.
    """

    def __init__(self, prompt: str, reason: str, examples: Iterable[str]):
        super().__init__(
            f"prompt: {shortened(prompt)} {reason}; for example: {' or '.join(map(repr, examples))}. {FORCE}"
        )
        self.reason = reason


class Nonsense(Exception):
    """What a rule means is impossible, for the reason that is its text. The reader makes one error of it."""


@dataclasses.dataclass(frozen=True)
class Language:
    """How the descriptions of a family are read.

    Attributes:
      rules: a Lark grammar without its common terminals. It may use NUMBER, and ignored ones need no mention.
      meaning: turns its tree into a `TaskSet`, or into factors and the words for them. Rules raise `Nonsense`.
      about: what the family's descriptions have to say, as in "an angle", for messages.
      silent: words of the family that are passed over without a word.
      decimal_comma: whether "3,5" is a number.
      check: the terminals in a text, ignored ones too -> '' or why it is refused whatever they say together.
    """

    rules: str
    meaning: lark.Transformer
    about: str
    silent: tuple[str, ...]
    decimal_comma: bool = True
    check: Callable[[frozenset[str]], str] = lambda terminals: ""

    @functools.cached_property
    def _lark(self) -> lark.Lark:
        common = f"""
            unknown: WORD | HEDGE
            NUMBER.6: /[+-]?\\d+(\\.\\d+)?(e[+-]?\\d+(?![^\\W_]))?/
            SILENT.1: {one_of((*FUNCTION_WORDS, *self.silent))}
            DASH.4: /(?<= )-(?= )/
            IDLE.0: {one_of(IDLE_WORDS)}
            SIZE.8: /\\d+ ?[x×] ?\\d+(?![^\\W_])( pixels?)?/
            %ignore SIZE
            WORD.-5: /[^\\W_][\\w'-]*|[^\\s\\w]/
            HEDGE.9: /(?:not (?:only|just|quite|exactly|really)|hardly|barely|multiples? of)(?![^\\W_])/
                | /(?:percent|half|third|quarter|3rd) of (?:the |all )?(?:images|digits|pictures|pixels)(?![^\\W_])/
                | /every(?= -?\\d)/ | /(?<=\\d)['"]/
            PUNCTUATION.2: /[.,;:!?'"()…]+|(?<! )-|\\s+/
            %ignore SILENT
            %ignore IDLE
            %ignore PUNCTUATION
        """
        return lark.Lark(
            self.rules + common, start=["start", "unknown"], parser="earley", lexer="basic", maybe_placeholders=False
        )

    def read(self, text: str, examples: Iterable[str]) -> Reading:
        """What a text says.

        Args:
          examples: texts that can be read, for the message.

        Raises:
          Unreadable: it has a word that means nothing here, says too little, too much, or what cannot be.
        """
        refused = functools.partial(Unreadable, text, examples=examples)
        normal = _PLUS_MINUS.sub("±", plain(text, self.decimal_comma)).replace("~", "≈")
        normal = figures(re.sub(r"(?<=[a-z])-(?=[a-z])", " ", normal))
        tokens = list(self._lark.lex(normal, dont_ignore=True))
        if unknown := list(dict.fromkeys(str(t) for t in tokens if t.type in ("WORD", "HEDGE"))):
            words = ", ".join(map(repr, unknown[:8]))
            foreign = len(unknown) > max(2, len(normal.split()) / 2) or not "".join(unknown).isascii()
            raise refused(
                f"has words that mean nothing here: {words}" + (", and English is expected" if foreign else "")
            )
        spoken = [t for t in tokens if t.type not in self._lark.ignore_tokens]
        for token in spoken:
            if token.type == "NUMBER" and not abs(float(token)) <= LARGEST:
                raise refused(f"has the number {token}, which is too large; allowed: up to {LARGEST:g}")
        if not spoken:
            raise refused(f"does not say {self.about}")
        if reason := self.check(frozenset(t.type for t in tokens)):
            raise refused(reason)
        try:
            factors_or_set, said = self.meaning.transform(self._lark.parse(normal, "start"))
        except lark.exceptions.VisitError as e:
            if isinstance(e.orig_exc, Nonsense):
                raise refused(str(e.orig_exc)) from None
            raise
        except lark.exceptions.UnexpectedInput:
            said = " ".join(spoken)
            raise refused(f"says {said!r}, of which {self.about} cannot be made") from None
        idle = tuple(str(t) for t in tokens if t.type == "IDLE")
        if isinstance(factors_or_set, TaskSet):
            return Reading(said, None, factors_or_set, idle)
        return Reading(said, factors_or_set, None, idle)


def terminals(table: str) -> str:
    """Lark terminals from lines such as "OR.3: or | or else", whose number is the priority.

    Each matches one of the phrases, as whole words; a line may go on below. A space stands for spaces or a hyphen, "~"
    for these or nothing.
    """
    lines = (line.split(": ", 1) for line in re.sub(r"\n\s+\|", " |", table).strip().splitlines())
    return "".join(f"{name.strip()}: {one_of(phrases.split(' | '))}\n" for name, phrases in lines)


def one_of(phrases: Iterable[str]) -> str:
    """A Lark pattern that matches any of the phrases, as whole words. A space stands for spaces or a hyphen, "~" for
    these or nothing."""

    def pattern(phrase: str) -> str:
        parts = (re.escape(part).replace("/", "\\/") for part in re.split("([ ~])", phrase))
        spaced = "".join({"\\ ": "(?: +|-)", "\\~": "(?: +|-)?", "~": "(?: +|-)?"}.get(p, p) for p in parts)
        return spaced + (r"(?![^\W_])" if phrase[-1].isalnum() else "")

    return "/" + "|".join(map(pattern, sorted({p.strip() for p in phrases}, key=len, reverse=True))) + "/"
