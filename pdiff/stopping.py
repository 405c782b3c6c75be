"""Ctrl-C and SIGTERM, turned into a stop at the next safe point."""

import signal

from pdiff.errors import PdiffError


class Interrupted(PdiffError):
    """The run was asked to stop, and did so with everything finished so far on disk."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


class StopSignal:
    """Context manager: the first SIGINT or SIGTERM is noted, a second SIGINT stops at once.

    Long loops call `check` wherever it is safe to leave.
    """

    def __init__(self):
        self.signum: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum, _frame) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def check(self, where: str) -> None:
        """Raises Interrupted if a signal has come; `where` says what is safely on disk."""
        if self.signum is not None:
            name = signal.Signals(self.signum).name
            raise Interrupted(f"stopped by {name} {where}; run the same command again to go on", self.signum)
