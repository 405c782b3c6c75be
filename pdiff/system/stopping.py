"""Ctrl-C and SIGTERM, turned into a stop at the next safe point."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from pdiff.errors import AGAIN, PdiffError
from pdiff.system import processes

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(PdiffError):
    """The run was asked to stop, and did so with everything finished so far on disk."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


class StopSignal:
    """Context manager: the first SIGINT or SIGTERM is noted, a second SIGINT stops at once.

    Long loops call `check` wherever it is safe to leave. In a run of many processes all call it in the same order, and
    a signal to one of them stops all at the same call: SIGTERM is then JAX's to catch, and SIGINT is made one.

    Args:
      at_once: the handler of a second SIGINT.
    """

    def __init__(self, at_once: Handler = signal.default_int_handler):
        self.signum: int | None = None
        self._at_once = at_once
        self._previous: dict[int, object] = {}
        self._together = False  # until it is entered

    def __enter__(self) -> "StopSignal":
        self._together = processes.count() > 1
        for signum in (signal.SIGINT,) if self._together else (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_) -> None:
        self._together = False
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            self._at_once(signum, frame)
        if self._together:
            signal.raise_signal(signal.SIGTERM)
        else:
            self.signum = signum

    def requested(self) -> bool:
        """Whether a signal has come, to this process or, of many, to any."""
        if self._together and self.signum is None and processes.asked_to_stop():
            self.signum = signal.SIGTERM
        return self.signum is not None

    def check(self, where: str) -> None:
        """Raises Interrupted if a signal has come; `where` says what is safely on disk."""
        if self.requested():
            raise Interrupted(f"stopped by {signal.Signals(self.signum).name} {where}; {AGAIN} to go on", self.signum)
