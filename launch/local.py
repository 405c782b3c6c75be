r"""A run of several processes on this machine.

    python -m launch.local --processes=2 --devices=2 -- --config=configs/smoke.py --workdir=runs/local

Each process prints on standard error, with `[i] ` before every line; with --log_dir process 0 prints as if it were
alone and process i writes to process_i.log. SIGINT and SIGTERM are passed on, once each, and all processes save and
end. If one fails, the others have a minute to end by themselves and are then killed, with all that they started. The
exit code is that of the first that failed (128 + n for signal n). If the launcher itself is killed, Linux sends SIGTERM
to the processes.

It does not start a failed run again: whoever sits here sees what happened, and the same command goes on from there.
"""

import contextlib
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from absl import flags

from launch import common

PATIENCE = 60.0  # seconds for the others when one has failed; pdiff.main promises to need less
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def define(values: flags.FlagValues) -> None:
    common.positive(values, "processes", 2, "How many processes.")
    common.positive(values, "devices", 2, "Devices of each process.")
    flags.DEFINE_enum("platform", "cpu", ["cpu", "cuda"], "Devices of which kind.", flag_values=values)
    common.text(values, "log_dir", None, "Folder for the output of all processes but the first.")


def plan(
    processes: int, devices: int, platform: str, program: Sequence[str], passed: Sequence[str]
) -> list[tuple[dict[str, str], list[str]]]:
    """(environment variables to add, command) for each process; the coordinator's port is one that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    made = []
    for i in range(processes):
        own = {"JAX_NUM_CPU_DEVICES": str(devices)}
        if platform != "cpu":  # the CPU's devices are made up; others are shared out
            own = {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(i * devices, (i + 1) * devices)))}
        who = [f"--coordinator_address=localhost:{port}", f"--num_processes={processes}", f"--process_id={i}"]
        made.append(({"JAX_PLATFORMS": platform, **own, "PYTHONUNBUFFERED": "1"}, [*program, *who, *passed]))
    return made


def launch(
    planned: Sequence[tuple[dict[str, str], list[str]]], log_dir: Path | None = None, patience: float = PATIENCE
) -> int:
    """Runs the processes to their end. Call it from the main thread. Leaves none of them behind, whatever happens.

    Returns:
      0, or the exit code of the first that failed.
    """
    events: queue.SimpleQueue[tuple[str, int, int]] = queue.SimpleQueue()
    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {s: signal.signal(s, lambda number, _: events.put(("signal", number, 0))) for s in caught}
    running: dict[int, subprocess.Popen] = {}
    helpers: list[threading.Thread] = []
    try:
        for i, (environment, command) in enumerate(planned):
            running[i] = _start(i, environment, command, log_dir)
        lock = threading.Lock()
        for i, process in running.items():
            if process.stdout is not None:
                helpers.append(threading.Thread(target=_copy, args=(f"[{i}] ".encode(), process.stdout, lock)))
            helpers.append(threading.Thread(target=_await, args=(i, process, events)))
        for helper in helpers:
            helper.start()
        return _oversee(dict(running), events, patience)
    finally:
        for process in running.values():
            _kill_group(process)
        for helper in helpers:
            helper.join()
        for process in running.values():
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _oversee(running: dict[int, subprocess.Popen], events: queue.SimpleQueue, patience: float) -> int:
    first, deadline = 0, float("inf")
    while running:
        try:
            kind, which, code = events.get(timeout=min(max(deadline - time.monotonic(), 0), threading.TIMEOUT_MAX))
        except queue.Empty:
            _say(f"still running after {patience:g} s, killed: {', '.join(map(str, running))}")
            break
        if kind == "signal":
            for process in running.values():
                process.send_signal(which)
            continue
        del running[which]
        if code and not first:
            first, deadline = code, time.monotonic() + patience
            _say(f"process {which} failed with exit code {code}")
    return first


def _start(i: int, environment: dict[str, str], command: list[str], log_dir: Path | None) -> subprocess.Popen:
    """A session of its own, so that a Ctrl-C in the terminal reaches it once, through this launcher, and not twice."""
    output: int | BinaryIO | None = subprocess.PIPE
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True)
        output = open(log_dir / f"process_{i}.log", "ab") if i else None  # noqa: SIM115  closed below
    try:
        return subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    finally:
        if hasattr(output, "close"):
            output.close()


_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _await(i: int, process: subprocess.Popen, events: queue.SimpleQueue) -> None:
    """Waits for the process, then ends whatever it started and left behind, which could hold its output open."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: its group cannot be another's
    _kill_group(process)
    code = process.wait()
    events.put(("end", i, 128 - code if code < 0 else code))


def _kill_group(process: subprocess.Popen) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _copy(prefix: bytes, source: BinaryIO, lock: threading.Lock) -> None:
    with source:
        for line in source:
            with lock:
                sys.stderr.buffer.write(prefix + line.rstrip(b"\n") + b"\n")
                sys.stderr.buffer.flush()


def _say(message: str) -> None:
    print(f"launch.local: {message}", file=sys.stderr, flush=True)


def script(planned: Sequence[tuple[dict[str, str], list[str]]]) -> str:
    """The commands as a shell would start them."""
    lines = [f"{' '.join(f'{n}={v}' for n, v in own.items())} {common.quoted(command)} &" for own, command in planned]
    head = ["#!/bin/sh", "# What was passed stays as it was typed.", "# shellcheck disable=SC2016"]
    return "\n".join([*head, *lines, "wait", ""])


def main(argv: list[str], program: Sequence[str] = (sys.executable, "-m", "pdiff.main")) -> int:
    if (parsed := common.parse(argv, define, __doc__)) is None:
        return 0
    values, passed = parsed
    planned = plan(values.processes, values.devices, values.platform, program, passed)
    if values.dry_run:
        print(script(planned), end="")
        return 0
    return launch(planned, Path(values.log_dir) if values.log_dir else None)


if __name__ == "__main__":
    common.start(main)
