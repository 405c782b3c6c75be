"""Many processes, one run: how they find each other, wait for each other, and end together.

`jax.distributed` connects them. On top of it each has a thread that sends a heartbeat every second and listens for
failures: a process that fails posts its message and all others leave with it; one that is silent for `SILENCE` seconds
has failed too. So no process is left waiting in a collective operation for one that is gone.

Everything here does nothing in a run of one process.
"""

import ctypes
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import jax
from jax._src import distributed  # its key-value store has no public name
from jax.experimental import multihost_utils

from pdiff.errors import AGAIN, PdiffError, complain

SILENCE = 20.0  # seconds without a sign of life after which a process counts as gone
PATIENCE = 6 * 3600.0  # seconds that a barrier waits: one process may train or check what all others wait for
_FAILED, _ALIVE = "pdiff/failed", "pdiff/alive"
_counter = itertools.count()
_chances_to_stop = itertools.count()  # without gaps: JAX stops at one number, and a number that is left out is missed
_leaving = threading.Event()


def count() -> int:
    """How many processes the run has; it starts no device."""
    return distributed.global_state.num_processes


def index() -> int:
    """Which of them this is."""
    return distributed.global_state.process_id


def initialize(address: str | None = None, number: int | None = None, mine: int | None = None) -> None:
    """Connects the processes of a run; on TPU, Slurm and GKE JAX finds the address itself. Before any use of a device.

    Raises:
      PdiffError: some of the three are given and some not, or the others could not be reached.
    """
    options = {"--coordinator_address": address, "--num_processes": number, "--process_id": mine}
    missing = [n for n, v in options.items() if v is None]
    if 0 < len(missing) < 3:
        raise PdiffError(f"{', '.join(missing)}: missing; give {', '.join(options)} together, or none of them")
    if address is not None and not 0 <= mine < number:
        raise PdiffError(f"--process_id: got {mine}; allowed: 0 to {number - 1}, as --num_processes is {number}")
    if address is None and not _on_a_cluster():
        return
    try:
        jax.distributed.initialize(address, number, mine)
    except (RuntimeError, ValueError) as e:
        raise PdiffError(f"--coordinator_address: {address or 'the cluster'}: {e}") from e
    if count() > 1:
        _leave_on_abort()
        threading.Thread(target=_watch, daemon=True).start()


def _on_a_cluster() -> bool:
    """Whether this is one of several tasks of `srun`, or on a TPU host, where JAX finds out the rest by itself."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", "") or not find_spec("libtpu"):
        return False
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) or "TPU_WORKER_HOSTNAMES" in os.environ  # GKE's name for the hosts of a slice


def is_first() -> bool:
    """Whether this is process 0, which writes."""
    return index() == 0


def barrier(what: str, seconds: float = PATIENCE) -> None:
    """Waits until all processes are here. All must reach the same barriers in the same order.

    Raises:
      PdiffError: they were not within that time.
    """
    if count() == 1:
        return
    try:
        distributed.global_state.client.wait_at_barrier(f"pdiff/{next(_counter)}", int(1000 * seconds))
    except Exception as e:
        if "DEADLINE" not in str(e):
            await_verdict(e)
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise PdiffError(f"processes: waited {seconds:g} s in vain for all to be {what}; {reason}") from e


def on_first(make: Callable[[], None], what: str) -> None:
    """Process 0 runs `make`, such as the writing of a file, while the others wait for it to be done."""
    if is_first():
        make()
    barrier(what)


def all_hold(mine: bool) -> bool:
    """Whether it holds on all processes."""
    if count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(mine)).all())


def asked_to_stop() -> bool:
    """Whether any process got a SIGTERM; all learn of it at the same one of their calls."""
    return multihost_utils.reached_preemption_sync_point(next(_chances_to_stop))


def fail(message: str, code: int) -> None:
    """Tells the other processes why this one ends, and ends it. Returns in a run of one process."""
    if count() == 1:
        return
    _leaving.set()
    client = distributed.global_state.client
    try:
        reason = f"process {index()}: {message}"
        client.key_value_set(_FAILED, reason)
    except Exception:  # another was first, or nobody is there to read it
        reason = _failure() or message
    _end(reason, code)


def await_verdict(error: Exception) -> None:
    """If `error` is of an operation with another process, waits for that one's failure to be noticed.

    The watching thread then ends this process with the right message. Returns for other errors, or if there was none.
    """
    if count() > 1 and re.search("gloo|coordination|connection|socket|unavailable|deadline", str(error), re.I):
        time.sleep(1.5 * SILENCE)


def _watch() -> None:
    """Sends heartbeats, and ends this process when another has failed. Process 0 looks out for silent ones."""
    client, me = distributed.global_state.client, index()
    heard: dict[str, tuple[str, float]] = {}
    for beat in itertools.count():
        time.sleep(1)
        try:
            client.key_value_set(f"{_ALIVE}/{me}", str(beat), allow_overwrite=True)
            message = _failure()
            if message is None and me == 0:
                message = _silent(dict(client.key_value_dir_get(_ALIVE)), heard)
                if message:
                    client.key_value_set(_FAILED, message)
        except Exception:
            continue  # process 0 is gone: JAX ends this process by itself, see `_leave_on_abort`
        if message and not _leaving.is_set():
            _end(message, 1)


def _end(message: str, code: int) -> NoReturn:
    complain(message)
    if is_first():
        time.sleep(5)  # the messages are here: the others shall have read theirs before it is gone
    os._exit(code)


def _silent(beats: dict[str, str], heard: dict[str, tuple[str, float]]) -> str | None:
    """The failure of a process that has sent no new beat for too long. `heard` is updated."""
    now = time.monotonic()
    for name, beat in beats.items():
        if heard.get(name, ("", 0))[0] != beat:
            heard[name] = (beat, now)
    for name, (_, when) in heard.items():
        if now - when > SILENCE:
            who = f"process {name.rsplit('/', 1)[-1]} of {count()}"
            return f"{who} has not been heard of for {SILENCE:g} s: killed, or its host is gone; {AGAIN} to go on"
    return None


def _failure() -> str | None:
    try:
        return distributed.global_state.client.key_value_try_get(_FAILED)
    except Exception:
        return None


def _leave_on_abort() -> None:
    """When process 0 is gone, JAX aborts the others from a thread of its own: prints why before that happens."""

    def ended(_):
        if not _leaving.is_set():
            what = "which coordinates the others, is gone: killed, or its host is"
            complain(f"process 0 of {count()}, {what}; {AGAIN} to go on")
        os._exit(1)

    _leave_on_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(ended)  # kept alive: C holds only its address
    ctypes.CDLL(None).signal(signal.SIGABRT, _leave_on_abort.handler)
