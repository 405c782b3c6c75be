"""The command line in processes of its own, many of them, without importing JAX and all else for each.

A server (of the standard library) imports it once, starts no device, and forks a process for each command. What these
do is what `python -m pdiff.main` does, faults by `shim` aside; `fresh` processes are just that.
"""

import ctypes
import dataclasses
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 600.0  # no command takes longer, however busy the machine is
_SERVER = multiprocessing.get_context("forkserver")

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # what compiles in half the time


def environment(compiled: Path) -> dict[str, str]:
    """One device, programs quickly compiled and all of them kept in the folder `compiled`."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": QUICK,
        "JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def start_server(compiled: Path) -> None:
    """Starts the server, for this process. Its environment is what the children have."""
    before = dict(os.environ)
    os.environ.update(environment(compiled))
    try:
        _SERVER.set_forkserver_preload(["tests.faults.preloaded"])
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclasses.dataclass
class Ended:
    """How a command ended: exit status (negative: the signal that killed it), what it printed, seconds."""

    code: int
    said: str
    seconds: float

    @property
    def error(self) -> str:
        """The line that says why it could not go on; '' if there is not exactly one."""
        lines = [line for line in self.said.splitlines() if line.startswith("pdiff: error: ")]
        return lines[0] if len(lines) == 1 else ""

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    @property
    def plain_error(self) -> bool:
        return self.code == 1 and bool(self.error) and not self.traceback


class Child:
    """A command that runs. `args` are those of pdiff.main, `out` a file for what it prints."""

    def __init__(self, args: list[str], out: Path, settings: dict | None = None, privileged: bool = True):
        self._out, self._start = out, time.perf_counter()
        out.write_bytes(b"")
        self._process = _SERVER.Process(target=_main, args=(args, str(out), settings, privileged), daemon=True)
        self._process.start()

    def wait(self) -> Ended:
        self._process.join(LIMIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"process {self._process.pid} took more than {LIMIT_S:g} s; see {self._out}")
        seconds = time.perf_counter() - self._start
        return Ended(self._process.exitcode, self._out.read_text(errors="replace"), seconds)


def run(args: list[str], out: Path, settings: dict | None = None, privileged: bool = True) -> Ended:
    """Starts a command and waits for its end."""
    return Child(args, out, settings, privileged).wait()


def fresh(args: list[str], compiled: Path, kill_after: float | None = None) -> Ended:
    """`python -m pdiff.main` as it is, killed after a while if asked to."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pdiff.main", *args], cwd=ROOT, env=environment(compiled), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=kill_after or LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    return Ended(process.returncode, said, time.perf_counter() - start)


def _main(args: list[str], out: str, settings: dict | None, privileged: bool) -> None:
    from absl import app

    from pdiff import config as config_lib
    from pdiff import main
    from tests.faults import shim

    file = os.open(out, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    if not privileged:
        _obey_modes()
    if settings is not None:
        shim.install(settings)
    sys.argv = ["pdiff", *args]
    app.run(main.main, flags_parser=config_lib.parse_flags)


def can_obey_modes() -> bool:
    """Whether a child started without privileges minds files' modes: as anyone but root, or by giving up root's."""
    pid = os.fork()
    if not pid:
        try:
            _obey_modes()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _obey_modes() -> None:
    """Gives up what lets root read and write in spite of a file's mode."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Data(ctypes.Structure):
        _fields_ = [(n, ctypes.c_uint32) for n in ("effective", "permitted", "inheritable")]

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (Data * 2)()
    libc.capget(ctypes.byref(header), data)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        data[0].effective &= ~(1 << capability)
    if libc.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capset")
