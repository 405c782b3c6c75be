"""The sbatch script: what it asks Slurm for, and what it does when a run ends, with stand-ins for Slurm's programs."""

import os
import signal
import subprocess
import time

import pytest

from launch import common, slurm
from tests.launch.conftest import NOTE, PASSED, check_shell, module

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCANCEL = """#!/bin/bash
echo "$*" >> "$STUB/scancel.txt"
kill -TERM "$(tail -n 1 "$STUB/python.jsonl" | sed 's/.*"pid": \\([0-9]*\\).*/\\1/')"
"""
OWN = ["--nodes=2", "--gpus_per_node=4", "--partition=gpu", "--time=12:00:00", "--job_name=run"]


def script(*own: str, passed=PASSED) -> str:
    return slurm.script(*common.parse([*own, "--", *passed], slurm.define, ""))


def directives(text: str) -> dict[str, str]:
    found = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict((f.split("=", 1) + [""])[:2] for f in found)


@pytest.fixture
def cluster(stubs):
    stubs.env["SLURM_JOB_ID"] = "42"
    stubs.add("srun", SRUN)
    stubs.add("scancel", SCANCEL)
    for name in ("python", "scontrol", "sleep"):
        stubs.add(name, NOTE)
    return stubs


def test_one_task_for_each_gpu_by_default():
    assert directives(script(*OWN)) == {
        "job-name": "run", "nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "time": "12:00:00",
        "partition": "gpu", "output": "slurm-%j.out", "open-mode": "append", "signal": "B:USR1@120", "requeue": "",
    }  # fmt: skip
    assert "JAX_LOCAL_DEVICE_IDS" not in script(*OWN)


def test_one_task_for_each_node_sees_all_its_gpus():
    text = script(*OWN, "--tasks_per_node=1", "--norequeue")
    assert directives(text)["ntasks-per-node"] == "1"
    assert "no-requeue" in directives(text) and "requeue" not in directives(text)
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in text


@pytest.mark.parametrize("own", [[], [*OWN, "--tasks_per_node=1", "--venv=/a b/$c", "--norequeue"]])
def test_shellcheck_has_nothing_to_say(own, tmp_path):
    check_shell(script(*own), tmp_path)


def test_srun_gets_exactly_what_was_passed(cluster):
    assert cluster.bash(script(*OWN)).returncode == 0
    assert cluster.argv("python") == [["-m", "pdiff.main", *PASSED]]
    assert cluster.calls("scontrol") == []


def test_the_virtual_environment_comes_first(cluster):
    where = cluster.folder / "my venv $x"
    cluster.add("python", NOTE.replace('"argv": sys.argv[1:]', '"argv": ["of the venv"]'), where=where / "bin")
    assert cluster.bash(script(f"--venv={where}")).returncode == 0
    assert cluster.argv("python") == [["of the venv"]]


@pytest.mark.parametrize(
    ("codes", "calls", "waits", "code"),
    [
        ("0", 1, [], 0),
        ("2", 1, [], 2),
        ("1 134 0", 3, ["30", "60"], 0),
        ("143 2", 2, ["30"], 2),
        ("1 134 137 139", 4, ["30", "60", "120"], 139),
    ],
)
def test_failures_are_tried_again_a_few_times(cluster, codes, calls, waits, code):
    cluster.add("python", codes=codes)
    assert cluster.bash(script()).returncode == code
    assert cluster.argv("python") == [["-m", "pdiff.main", *PASSED]] * calls
    assert cluster.argv("sleep") == [[w] for w in waits]
    assert cluster.calls("scontrol") == []


@pytest.mark.parametrize(
    ("number", "own", "requeued"),
    [(signal.SIGUSR1, [], True), (signal.SIGUSR1, ["--norequeue"], False), (signal.SIGTERM, [], False)],
)
def test_signals_reach_the_run_and_only_the_warning_requeues(cluster, number, own, requeued):
    cluster.add("python", codes="wait")
    job = subprocess.Popen(["bash", "-c", script(*own)], env=cluster.env)
    while not cluster.calls("python"):
        time.sleep(0.02)
    os.kill(job.pid, number)
    assert job.wait(timeout=10) == 143
    assert (cluster.folder / "scancel.txt").read_text() == "--signal=TERM 42\n"
    assert cluster.argv("scontrol") == [["requeue", "42"]] * requeued
    assert len(cluster.calls("python")) == 1


def test_a_warning_between_two_tries_requeues_at_once(cluster):
    cluster.add("python", codes="1")
    cluster.add("sleep", codes="wait")
    job = subprocess.Popen(["bash", "-c", script()], env=cluster.env)
    while not cluster.calls("sleep"):
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(timeout=10) == 1
    assert cluster.argv("scontrol") == [["requeue", "42"]] and len(cluster.calls("python")) == 1


def test_a_dry_run_prints_what_a_real_one_submits(stubs):
    stubs.add("sbatch", codes="7")
    arguments = [*OWN, "--", *PASSED]
    dry = module("slurm", ["--dry_run", *arguments], stubs.env)
    assert dry.returncode == 0 and stubs.calls("sbatch") == []
    assert module("slurm", arguments, stubs.env).returncode == 7
    (call,) = stubs.calls("sbatch")
    assert call["argv"] == [] and call["stdin"] == dry.stdout == script(*OWN)


def test_a_missing_sbatch_and_a_bad_flag_are_one_line(stubs):
    cases = ((["--", "--config=c"], "sbatch: not found on PATH"), (["--nodes=0", "--", "x"], "--nodes=0: allowed"))
    for arguments, said in cases:
        done = module("slurm", arguments, stubs.env)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
