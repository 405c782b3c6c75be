"""How a command ends when it cannot go on: one line on stderr, and an exit code."""

import errno
import os
import sys
import traceback
from contextlib import contextmanager
from typing import NoReturn

from pdiff.errors import Faults, PdiffError, printable
from pdiff.system import processes, stopping
from pdiff.system.stopping import Interrupted

ROOM, LEAVE = "make room and run the same command again", "mend the permissions and run the same command again"
MEND = {errno.ENOSPC: ROOM, errno.EDQUOT: ROOM, errno.EACCES: LEAVE, errno.EPERM: LEAVE, errno.EROFS: LEAVE}


@contextmanager
def said():
    """Turns what the commands raise into a line and an exit: 1, or 128 + n after signal n.

    Of many processes, one that fails ends all others, with its message. An interrupted run ends on all by itself.
    """
    before, stopping.at_once = stopping.at_once, _leave_at_once
    try:
        yield
    except Interrupted as e:
        _leave(str(e), e.exit_code, alone=True)
    except Faults as e:
        processes.fail(" ".join(str(e).split()), 1)
        _end(str(e), 1)  # a line for each
    except PdiffError as e:
        _leave(str(e), 1)
    except KeyboardInterrupt:
        _leave_at_once()
    except OSError as e:
        mend = MEND.get(e.errno, "run the same command again to go on")
        _leave(f"{e.filename or 'files'}: {e.strerror or e}; what was finished is kept; {mend}", 1)
    except Exception as e:
        if "No space left on device" in str(e):  # what Orbax and array_record raise is no OSError
            _leave(f"No space left on device; what was finished is kept; {ROOM}", 1)
        processes.await_verdict(e)
        if processes.count() == 1:
            raise
        traceback.print_exc()
        _leave(f"{type(e).__name__}: {e}", 1)
    finally:
        stopping.at_once = before


def _leave_at_once() -> NoReturn:
    """Without a word of what libraries and their threads were stopped in; all that is finished is on the disk."""
    processes.fail("stopped at once", 130)
    os.write(sys.stderr.fileno(), b"\npdiff: error: stopped at once; what was finished before is kept\n")
    os._exit(130)


def _leave(message: str, code: int, alone: bool = False) -> None:
    message = " ".join(message.split())
    if not alone:
        processes.fail(message, code)
    _end(message, code)


def _end(message: str, code: int) -> None:
    print(f"pdiff: error: {printable(message)}", file=sys.stderr)
    sys.exit(code)
