"""The one exception that a user is meant to see, and how its message may look."""


def printable(text: str) -> str:
    """`text` with escapes for what a terminal would obey: names in files and folders of others end up in messages."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class PdiffError(Exception):
    """Input or state that the user can mend.

    Its message names the field or file, the value found, and what is allowed. `pdiff.main`
    prints it on one line, without a traceback, and exits with a non-zero code.
    """


class Faults(PdiffError):
    """Several things that are wrong at once, a line for each; at most `MOST` of them are told.

    Args:
      where: what was read, as the user named it.
      lines: one fault each, with the file that has it.
    """

    MOST = 20

    def __init__(self, where: str, lines: list[str]):
        self.lines = [" ".join(line.split()) for line in lines]
        more = [f"and {len(lines) - self.MOST} more"] if len(lines) > self.MOST else []
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n  ".join([f"{where}: {count}, nothing was written", *self.lines[: self.MOST], *more]))
