"""pdiff's lines on stderr."""

import logging

from absl import logging as absl_logging

from pdiff.errors import printable
from pdiff.system import processes

log = logging.getLogger("pdiff")
BAR_AFTER_S = 3  # what takes longer shows how far it is and how long it will take


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def set_up() -> None:
    """pdiff's own lines to stderr, of many processes those of the first, and nothing from libraries below an error."""
    if not log.handlers:
        absl_logging.set_verbosity(absl_logging.ERROR)
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("pdiff: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO if processes.is_first() else logging.WARNING)
        log.propagate = False
