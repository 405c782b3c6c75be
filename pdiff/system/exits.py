"""How a command ends when it cannot go on: one line on stderr, and an exit code."""

import errno
import os
import sys
import traceback
from contextlib import contextmanager
from typing import NoReturn

from pdiff.errors import AGAIN, Faults, PdiffError, complain
from pdiff.system import processes
from pdiff.system.stopping import Interrupted

ROOM, LEAVE = f"make room and {AGAIN}", f"mend the permissions and {AGAIN}"
MEND = {errno.ENOSPC: ROOM, errno.EDQUOT: ROOM, errno.EACCES: LEAVE, errno.EPERM: LEAVE, errno.EROFS: LEAVE}


@contextmanager
def said():
    """Turns what the commands raise into a line and an exit: 1, or 128 + n after signal n.

    Of many processes, one that fails ends all others, with its message. An interrupted run ends on all by itself.
    """
    try:
        yield
    except Interrupted as e:
        _end(" ".join(str(e).split()), e.exit_code)
    except Faults as e:
        processes.fail(" ".join(str(e).split()), 1)
        _end(str(e), 1)  # a line for each
    except PdiffError as e:
        _leave(str(e), 1)
    except KeyboardInterrupt:
        leave_at_once()
    except OSError as e:
        mend = MEND.get(e.errno, f"{AGAIN} to go on")
        _leave(f"{e.filename or 'files'}: {e.strerror or e}; what was finished is kept; {mend}", 1)
    except Exception as e:
        if "No space left on device" in str(e):  # what Orbax and array_record raise is no OSError
            _leave(f"No space left on device; what was finished is kept; {ROOM}", 1)
        processes.await_verdict(e)
        if processes.count() == 1:
            raise
        traceback.print_exc()
        _leave(f"{type(e).__name__}: {e}", 1)


def leave_at_once(*_) -> NoReturn:
    """Ends the process, also as a handler of signals, without waiting for libraries and their threads, or their
    tracebacks. All that is finished is on the disk."""
    processes.fail("stopped at once", 130)
    os.write(sys.stderr.fileno(), b"\npdiff: error: stopped at once; what was finished before is kept\n")
    os._exit(130)


def _leave(message: str, code: int) -> NoReturn:
    message = " ".join(message.split())
    processes.fail(message, code)
    _end(message, code)


def _end(message: str, code: int) -> NoReturn:
    complain(message)
    sys.exit(code)
