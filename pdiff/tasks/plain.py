"""Texts in a normal form: one character, one digit, one dash and one way to write a number, however people typed them.

`plain` changes characters only, so it suits any text in any language: descriptions that a tokenizer is trained on, and
prompts. `figures` also turns English number words into figures, for readers that know the words of a family.
"""

import re
import unicodedata

LARGEST = 1e9  # of numbers: beyond it, angles and the like have no digits left
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+(?![^\W_]))?")

_DASHES = re.compile("[\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d]")
_PAUSE = re.compile(
    r"(?<!\d)(?<!°)(?<!degrees)(?<!percent)\s[\u2013\u2014\u2015]\s"
)  # a long dash between spaces, which is no sign
_QUOTES = str.maketrans("\u2018\u2019\u201b\u02bc\u201c\u201d\u201e\u00ab\u00bb", "''''" + '"' * 5)
_DEGREE = str.maketrans("\u00ba\u02da", "\u00b0\u00b0")  # what compatibility forms would make a letter of
_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")
# Before a sign: no number, with its unit or without, and no letter.
_SPACED = r"(?<!\d)(?<!\d )(?<!° )(?<!degrees )(?<!percent )(?<![^\W_])"
_RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070-\u208e]")
_THOUSANDS = re.compile(r"(?<![\d.,])(?<!\d )\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])(?! \d)")


def plain(text: str, decimal_comma: bool = True) -> str:
    """The text in lower case and compatibility characters (Unicode's NFKC), with ASCII digits, dashes and quotes.

    Numbers are written as in "-0.5 percent": their sign is attached, a comma or nothing before the decimals is a point.
    A dash between two numbers stands between spaces; one after a letter is a space if a number follows.

    Args:
      decimal_comma: whether "3,5" is a number. Else it is two.
    """
    if not text.isascii():
        text = _PAUSE.sub(", ", text.translate(_DEGREE))
        text = _FRACTION.sub(lambda m: f"{unicodedata.numeric(m.group()):g}", text)
        text = _RAISED.sub("^", text)  # which compatibility forms would make a digit of the number before
        text = _DASHES.sub("-", unicodedata.normalize("NFKC", text).translate(_QUOTES))
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = text.lower()
    text = " ".join(text.replace("_", " ").split())
    if decimal_comma:
        text = re.sub(r"(?<![\d.,])(\d+),(\d+)(?![\d,.]\d)(?!\d)", _point, text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<=[\d°]) ?- ?(?=\.?\d)", " - ", text)
    text = re.sub(rf"{_SPACED}- ?(?=\d)", "-", text)
    text = re.sub(r"(?<=[^\W\d_])(?<!\de)-(?=\d)", " ", text)
    return " ".join(re.sub(r" ?%", " percent", text).split())


def figures(text: str) -> str:
    """A plain text with English number words as figures, "minus" as a sign, and no separators of thousands."""
    from text_to_num import alpha2digit  # its data are of no use to runs, which start many processes

    text = _THOUSANDS.sub(lambda m: re.sub("[ ,]", "", m.group()), text)
    text = alpha2digit(text, "en", threshold=0)
    return re.sub(rf"{_SPACED}\b(?:minus|negative) (?=\d)", "-", text)


def numbers(text: str) -> list[float]:
    """The numbers in a plain text, with their signs."""
    return [float(n) for n in NUMBER.findall(text)]


def _point(match: re.Match) -> str:
    """A comma as a point, but for what could be thousands."""
    whole, decimals = match.groups()
    return match.group() if len(decimals) == 3 and 0 < len(whole) <= 3 and whole != "0" else f"{whole}.{decimals}"
