"""What pdiff says on stderr."""

import logging

from absl import logging as absl_logging

log = logging.getLogger("pdiff")


def set_up() -> None:
    """pdiff's own lines to stderr, and nothing from libraries below an error."""
    if not log.handlers:
        absl_logging.set_verbosity(absl_logging.ERROR)
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("pdiff: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
