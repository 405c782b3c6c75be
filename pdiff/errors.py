"""The one exception that a user is meant to see, how its message may look, and what messages have in common."""

import sys
from collections.abc import Iterable, Iterator

EXAMPLES = 3  # in a line that stands for many
AGAIN = "run the same command again"
RERUN = "run the run's command again"  # where the message is of another command than the run's own


def printable(text: str) -> str:
    """`text` with escapes for what a terminal would obey: names in files and folders of others end up in messages."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 80) -> str:
    """The text in quotes, on one line, cut off after `most` characters."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def some(items: Iterable[str], most: int = EXAMPLES, separator: str = ", ") -> str:
    """The first of the items, and how many there are besides."""
    items = list(items)
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + rest


def in_words(seconds: float) -> str:
    """Seconds, minutes or hours, to two digits or less."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{int(unit == 'hours')}f} {unit}"
    return f"{seconds:.0f} seconds"


def complain(message: str) -> None:
    """Prints a message on stderr as pdiff's."""
    print(f"pdiff: error: {printable(message)}", file=sys.stderr, flush=True)


class PdiffError(Exception):
    """Input or state that the user can mend.

    Its message names the field or file, its value, and what is allowed. `pdiff.main` prints it on one line, without a
    traceback, and exits with a non-zero code.
    """


class Faults(PdiffError):
    """Several faults at once, a line for each; the message has at most `MOST` of them.

    Args:
      where: what was read, as the user named it.
      lines: one fault each, with its file.
    """

    MOST = 20

    def __init__(self, where: str, lines: list[str]):
        self.lines = [" ".join(line.split()) for line in lines]
        told = list(_joined(self.lines))
        more = [f"and {len(told) - self.MOST} more"] if len(told) > self.MOST else []
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n  ".join([f"{where}: {count}, nothing was written", *told[: self.MOST], *more]))


def _joined(lines: list[str]) -> Iterator[str]:
    """The lines, with files that have the same fault in one; each begins with its file and a colon."""
    files: dict[str, list[str]] = {}
    for line in lines:
        file, _, fault = line.partition(": ")
        files.setdefault(fault, []).append(file)
    for fault, names in files.items():
        yield f"{some(names)}: {fault}" if fault else some(names)
