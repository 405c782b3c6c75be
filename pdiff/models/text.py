"""Descriptions to token ids, with a channel for the values of their numbers.

A sentencepiece BPE model is trained on the family's own descriptions, in the normal form of `tasks.plain`. Its digits
are split, so that any number can be written. What a number *means* comes from a second channel: each of its digits, and
its sign, carries the number's value. Measured on a held-out sector, sentence encoders barely order numbers, so a
generator that reads digits as words cannot interpolate.
"""

import dataclasses
import functools
import io
import string
import unicodedata
from collections.abc import Iterable

import numpy as np
import sentencepiece as spm
from jaxtyping import Bool, Float, Int

from pdiff.errors import PdiffError
from pdiff.tasks.plain import LARGEST, NUMBER, plain

PAD, UNKNOWN, DIGIT = 0, 1, 2  # DIGIT stands for every piece of a number
LENGTH_STEP = 4  # padded lengths are multiples of it
USUAL_SIZE = 400  # of a vocabulary by default, beside a piece for each character
DIGITS = "0123456789.-+e"  # so that prompts may have any number, whatever digits the zoo's tasks have


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokenized descriptions: pieces, the value of the number that each belongs to, and which belong to one."""

    ids: Int[np.ndarray, "*batch length"]
    values: Float[np.ndarray, "*batch length"]
    is_number: Bool[np.ndarray, "*batch length"]

    @property
    def tree(self) -> dict[str, np.ndarray]:
        return dataclasses.asdict(self)


def train_tokenizer(descriptions: Iterable[str], vocab_size: int) -> bytes:
    """A serialized sentencepiece model; the same bytes for the same descriptions.

    With a `vocab_size` of 0 it has as many pieces as the descriptions fill, about USUAL_SIZE at most, and all letters
    and signs of ASCII, which a few descriptions lack.

    Raises:
      PdiffError: the vocabulary is larger than the descriptions can fill, or too small for their characters.
    """
    model = io.BytesIO()
    texts = sorted({plain(d) for d in descriptions})
    required = DIGITS if vocab_size else "".join(sorted({*string.printable.lower().split()[0]}))
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size or USUAL_SIZE + len({*required, *"".join(texts)}),
            hard_vocab_limit=bool(vocab_size),
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["<digit>"],
            character_coverage=1.0,  # the rarest letter too
            byte_fallback=True,
            split_digits=True,
            required_chars=required,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as e:
        reason = str(e).splitlines()[-1].strip()
        raise PdiffError(f"condition.text_vocab_size: {vocab_size} does not suit the descriptions: {reason}") from e
    return model.getvalue()


def usual_length(tokenizer: "Tokenizer", descriptions: Iterable[str]) -> int:
    """The padded length that every one of `descriptions` fits into.

    Raises:
      PdiffError: as `Tokenizer.encode`, of any of them.
    """
    counts = {d: tokenizer.count(d) for d in descriptions}
    longest = max(counts.values())
    if longest > tokenizer.max_length or not min(counts.values()):
        for d in counts:
            tokenizer.encode(d)  # which says what is wrong
    return min(LENGTH_STEP * -(-longest // LENGTH_STEP), tokenizer.max_length)


class Tokenizer:
    """A trained sentencepiece model, and to which lengths texts are padded.

    Padding costs time too. So texts are padded to `usual_length`, what the longest of the family's own descriptions
    needs, and to `max_length` only where one is longer: at most two programs are compiled. By default there is
    `max_length` alone.
    """

    def __init__(self, model: bytes, max_length: int, usual_length: int | None = None):
        self.model, self.max_length, self.usual_length = model, max_length, usual_length or max_length
        self._pieces = spm.SentencePieceProcessor(model_proto=model)
        self._encoded = functools.lru_cache(1 << 16)(self.encode)  # evaluation repeats the same texts many times

    @property
    def vocab_size(self) -> int:
        return self._pieces.vocab_size()

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        """The characters of training descriptions."""
        special = (self._pieces.is_control, self._pieces.is_byte, self._pieces.is_unknown)
        usual = (i for i in range(self.vocab_size) if not any(test(i) for test in special))
        return frozenset(c for i in usual for c in self._pieces.id_to_piece(i)) | {" "}

    def strange(self, text: str) -> list[str]:
        """The characters of a text that no training description has, even without an accent. `encode` drops them."""
        return sorted({c for c in plain(text) if self._like(c) is None})

    def _like(self, character: str) -> str | None:
        """The character, or the one without its accent; None if no training description has either."""
        if character in self._known:
            return character
        bare = unicodedata.normalize("NFKD", character)[0]
        return bare if bare in self._known else None

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self._pieces.encode(self._read(text)))

    def _read(self, text: str) -> str:
        text = plain(text)
        if self._known.issuperset(text):
            return text
        return " ".join("".join(self._like(c) or "" for c in text).split())

    def encode(self, text: str) -> Text:
        """Tokenizes one description, padded to `max_length`.

        Raises:
          PdiffError: it is empty, or of characters that no training description has, or is too long.
        """
        if not text.strip():
            raise PdiffError("prompt: got an empty text; describe the task, as in a training description")
        read = self._read(text)
        if not read:
            raise PdiffError(f"prompt: {text!r} has no character that a training description has")
        proto = self._pieces.encode(read, return_type="proto")
        count, most = len(proto.pieces), self.max_length
        if count > most:
            raise PdiffError(
                f"prompt: {text!r} has {count} tokens; allowed: at most {most} (condition.text_max_length)"
            )
        ids, values, is_number = np.zeros(most, np.int32), np.zeros(most, np.float32), np.zeros(most, bool)
        numbers = [
            (_bytes(read[: m.start()]), _bytes(read[: m.end()]), float(m.group())) for m in NUMBER.finditer(read)
        ]
        for i, piece in enumerate(proto.pieces):
            ids[i] = piece.id
            for start, end, value in numbers:
                # The first digit's piece may begin with the space before it, hence the test on its last byte.
                if start <= piece.end - 1 < end:
                    ids[i], values[i], is_number[i] = DIGIT, np.clip(value, -LARGEST, LARGEST), True
        return Text(ids, values, is_number)

    def encode_all(self, texts: Iterable[str]) -> Text:
        """`encode` stacked, without the padding that all share beyond `usual_length`."""
        encoded = [self._encoded(t) for t in texts]
        stacked = {f.name: np.stack([getattr(e, f.name) for e in encoded]) for f in dataclasses.fields(Text)}
        if (stacked["ids"][:, self.usual_length :] == PAD).all():
            stacked = {name: values[:, : self.usual_length] for name, values in stacked.items()}
        return Text(**stacked)


def _bytes(text: str) -> int:
    """The length of a text in the units of sentencepiece's spans."""
    return len(text.encode())
