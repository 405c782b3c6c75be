"""Several processes on this machine: output, exit codes, signals, and that none is left behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local
from tests.launch.conftest import PASSED, check_shell

# In place of pdiff.main: notes its pid, arguments and environment, then does what $DO says for its number.
PROGRAM = """
import json, os, signal, subprocess, sys, time
me = next(int(a.split("=")[1]) for a in sys.argv if a.startswith("--process_id="))
folder = os.environ["STUB"]
variables = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_LOCAL_DEVICE_IDS")
def note(pid, kind="pid"):
    with open(f"{folder}/{kind}_{me}_{pid}.part", "w") as f:
        json.dump({"argv": sys.argv[1:], "env": {v: os.environ.get(v) for v in variables}}, f)
    os.rename(f.name, f.name[:-5])
seen = []
def count(number, _):
    seen.append(number)
what, _, value = json.loads(os.environ["DO"])[me].partition(":")
if what == "trap":
    signal.signal(signal.SIGTERM, count), signal.signal(signal.SIGINT, count)
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "child":
    note(subprocess.Popen(["sleep", "60"]).pid, "left")
note(os.getpid())
if what == "print":
    for i in range(int(value)):
        (sys.stdout if i % 2 else sys.stderr).write(f"line {i} of {me} " + "x" * 200 + "\\n")
        sys.stdout.flush()
    sys.stdout.write("no end of line")
if what == "late":
    time.sleep(0.3)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "trap":
    while not seen:
        time.sleep(0.02)
    time.sleep(0.3)  # for a second one, which must not come
    print("seen", seen, flush=True)
    sys.exit(128 + seen[0])
if what == "stubborn":
    time.sleep(60)
sys.exit(int(value or 0) if what in ("exit", "late", "child") else 0)
"""
LAUNCHER = """
import sys
from pathlib import Path
from launch import common, local
planned = local.plan(int(sys.argv[1]), 2, "cpu", [sys.executable, "-SE", sys.argv[2]], sys.argv[5:])
sys.exit(local.launch(planned, Path(sys.argv[3]) if sys.argv[3] else None, float(sys.argv[4])))
"""


def vanish(pid: int) -> None:
    """Waits until a killed process whose parent has died is taken from the table by init."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Launched:
    """A launcher whose process i does the i-th of `do`."""

    def __init__(self, folder: Path, do: list[str], log_dir: str = "", patience: float = 30, passed=()):
        self.folder, self.count = folder, len(do)
        (folder / "program.py").write_text(PROGRAM)
        command = [sys.executable, "-c", LAUNCHER, str(len(do)), str(folder / "program.py"), log_dir, str(patience)]
        environment = os.environ | {"STUB": str(folder), "DO": json.dumps(do)}
        self.process = subprocess.Popen(
            [*command, *passed], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def started(self) -> dict[int, int]:
        """{pid: number} of all processes, as soon as all have started."""
        while True:
            found = {int(p.name.split("_")[2]): int(p.name.split("_")[1]) for p in self.folder.glob("pid_*[0-9]")}
            if len(set(found.values())) == self.count:
                return found
            assert self.process.poll() is None
            time.sleep(0.02)

    def noted(self, number: int) -> dict:
        return json.loads(next(self.folder.glob(f"pid_{number}_*")).read_text())

    def end(self) -> tuple[int, str, str]:
        """(exit code, standard output, standard error), after a check that nothing is left behind."""
        out, err = self.process.communicate(timeout=20)
        for path in self.folder.glob("pid_*"):
            with pytest.raises(ProcessLookupError):
                os.kill(int(path.name.split("_")[2]), 0)
        for path in self.folder.glob("left_*"):
            vanish(int(path.name.split("_")[2]))
        return self.process.returncode, out, err


def test_each_process_is_told_who_it_is_and_gets_exactly_what_was_passed(tmp_path):
    launched = Launched(tmp_path, ["exit:0"] * 3, passed=PASSED)
    assert launched.end()[0] == 0
    addresses = set()
    for i in range(3):
        noted = launched.noted(i)
        address, count, index, *rest = noted["argv"]
        addresses.add(address)
        assert (count, index, rest) == ("--num_processes=3", f"--process_id={i}", PASSED)
        assert noted["env"] == {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_LOCAL_DEVICE_IDS": None}
    assert len(addresses) == 1 and re.fullmatch(r"--coordinator_address=localhost:\d+", addresses.pop())


def test_gpus_are_shared_out():
    planned = local.plan(2, 4, "cuda", ["p"], [])
    assert [own.get("JAX_LOCAL_DEVICE_IDS") for own, _ in planned] == ["0,1,2,3", "4,5,6,7"]
    assert all(own["JAX_PLATFORMS"] == "cuda" and "JAX_NUM_CPU_DEVICES" not in own for own, _ in planned)


def test_lines_are_whole_prefixed_and_in_order(tmp_path):
    code, out, err = Launched(tmp_path, ["print:400", "print:400"]).end()
    assert code == 0 and out == ""
    lines = err.splitlines()
    for i in range(2):
        own = [line.removeprefix(f"[{i}] ") for line in lines if line.startswith(f"[{i}] ")]
        assert own == [f"line {n} of {i} " + "x" * 200 for n in range(400)] + ["no end of line"]
    assert len(lines) == 802


def test_with_a_log_folder_only_process_0_is_on_the_terminal(tmp_path):
    logs = tmp_path / "deep/logs"
    for _ in range(2):  # the same command goes on: nothing is lost
        code, out, err = Launched(tmp_path, ["print:4", "print:4", "exit:0"], log_dir=str(logs)).end()
        assert code == 0 and "[0]" not in out + err
        assert "line 1 of 0" in out and "line 0 of 0" in err and "of 1" not in out + err
    assert sorted(p.name for p in logs.iterdir()) == ["process_1.log", "process_2.log"]
    assert (logs / "process_1.log").read_text().count("line 3 of 1") == 2


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (["exit:0", "exit:0"], 0),
        (["exit:2", "exit:2"], 2),
        (["late:1", "exit:3"], 3),
        (["exit:3", "late:1"], 3),
        (["exit:0", "late:7"], 7),
        (["late:1", "kill"], 137),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(tmp_path, do, code):
    assert Launched(tmp_path, do).end()[0] == code


def test_those_that_do_not_end_after_a_failure_are_killed(tmp_path):
    start = time.monotonic()
    code, _, err = Launched(tmp_path, ["stubborn", "exit:5", "stubborn"], patience=0.5).end()
    assert code == 5 and "launch.local: still running after 0.5 s, killed: 0, 2" in err
    assert time.monotonic() - start < 10


def test_what_a_process_leaves_behind_is_killed_and_holds_nothing_up(tmp_path):
    start = time.monotonic()
    code, _, _ = Launched(tmp_path, ["child:6", "late:0"]).end()
    assert code == 6 and len(list(tmp_path.glob("left_0_*"))) == 1 and time.monotonic() - start < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_process_once(tmp_path, number):
    launched = Launched(tmp_path, ["trap", "trap"])
    launched.started()
    launched.process.send_signal(number)
    code, _, err = launched.end()
    assert code == 128 + number
    seen = sorted(line for line in err.splitlines() if "seen" in line)
    assert seen == [f"[{i}] seen [{number.value}]" for i in (0, 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_launcher_that_is_killed_takes_the_processes_along(tmp_path):
    launched = Launched(tmp_path, ["late:0", "trap"])
    pids = launched.started()
    launched.process.kill()
    launched.process.wait()
    for pid in pids:
        vanish(pid)
    launched.process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_if_one_cannot_be_started_the_others_are_ended(tmp_path):
    (tmp_path / "program.py").write_text("import time; time.sleep(60)")
    before = children()
    with pytest.raises(FileNotFoundError):
        local.launch([({}, [sys.executable, "-SE", str(tmp_path / "program.py")]), ({}, ["/no/such/program"])])
    assert children() == before


def children() -> set[str]:
    """Pids of the children of this process, zombies too."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            parent = path.read_text().rpartition(")")[2].split()[1]
            found |= {path.parent.name} if parent == str(os.getpid()) else set()
    return found


def test_a_dry_run_starts_nothing_and_prints_commands_that_a_shell_runs_alike(tmp_path, capsys, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("STUB", str(tmp_path))
    monkeypatch.setenv("DO", json.dumps(["exit:0"] * 2))
    program = [sys.executable, "-SE", str(tmp_path / "program.py")]
    assert local.main(["--dry_run", "--", *PASSED], program) == 0
    text = capsys.readouterr().out
    assert list(tmp_path.glob("pid_*")) == []
    check_shell(text, tmp_path)
    subprocess.run(["sh", "-c", text], check=True)
    for i in range(2):
        (path,) = tmp_path.glob(f"pid_{i}_*")
        noted = json.loads(path.read_text())
        assert noted["argv"][2:] == [f"--process_id={i}", *PASSED]
        assert noted["env"] == {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_LOCAL_DEVICE_IDS": None}
