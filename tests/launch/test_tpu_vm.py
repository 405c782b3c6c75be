"""The script for TPU VMs, run against a stand-in for gcloud that keeps a slice's state and runs what ssh is given."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from launch import common, tpu_vm
from tests.launch.conftest import NOTE, PASSED, check_shell, module

OWN = ["--name=pod", "--project=my-project", "--zone=us-west4-a", "--spot", "--delete"]
WHERE = ["--project=my-project", "--zone=us-west4-a"]

# A slice is ready one question after it was asked for, and is preempted in the runs whose numbers, from 0, are given.
GCLOUD = f"""#!{sys.executable} -SE
import json, os, subprocess, sys
folder = os.environ["STUB"]
kind, verb, name, *rest = sys.argv[3:]
state = json.load(open(folder + "/cloud.json"))
def end(code, said=""):
    json.dump(state, open(folder + "/cloud.json", "w"))
    print(said, end="")
    sys.exit(code)
option = dict((o + "=").split("=", 1) for o in rest if o.startswith("--"))
option = {{n: v[:-1] for n, v in option.items()}}
state["calls"].append({{"kind": kind, "verb": verb, "name": name, "rest": rest}})
if sys.argv[1:3] != ["compute", "tpus"] or "pod" not in (name, rest[0].partition(":")[0]):
    end(99)
if verb == "describe":
    seen = state["queue"] if kind == "queued-resources" else state["node"]
    if seen is None:
        print("ERROR: NOT_FOUND: no such thing", file=sys.stderr)
        end(1)
    if seen == "WAITING_FOR_RESOURCES":
        state.update(queue="ACTIVE", node="READY")
    end(0, seen + "\\n")
if verb == "create":
    if state["queue"] is not None:
        end(98)
    state.update(queue="WAITING_FOR_RESOURCES" if state["capacity"] else None)
    end(0 if state["capacity"] else 1)
if verb == "delete":
    state.update(queue=None, node=None)
    subprocess.run(["rm", "-rf", folder + "/home/pdiff", folder + "/home/pdiff.tar.gz"])
    end(0)
if state["node"] != "READY":
    end(255)
if verb == "scp":
    end(subprocess.run(["cp", name, folder + "/home/pdiff.tar.gz"]).returncode)
if verb == "ssh":
    command = option["--command"]
    is_run = "exec .venv" in command
    state["runs"] += is_run
    json.dump(state, open(folder + "/cloud.json", "w"))
    if is_run and state["runs"] - 1 in state["preempted"]:
        state.update(queue="SUSPENDED" if state["runs"] % 2 else "ACTIVE", node="PREEMPTED")
        end(255)
    done = subprocess.run(["bash", "-c", command], env=os.environ | {{"HOME": folder + "/home"}})
    state = json.load(open(folder + "/cloud.json"))
    end(done.returncode)
end(97)
"""
UV = """#!/bin/bash
[ "$1" != venv ] || { mkdir -p .venv/bin && cp "$STUB/bin/python" .venv/bin/python; }
"""


def script(*own: str, passed=PASSED) -> str:
    return tpu_vm.script(*common.parse([*OWN, *own, "--", *passed], tpu_vm.define, ""))


@pytest.fixture
def cloud(stubs):
    stubs.add("gcloud", GCLOUD)
    for name in ("python", "sleep", "git"):
        stubs.add(name, NOTE)
    stubs.add("python3", "#!/bin/bash\ntrue\n")
    stubs.add("uv", UV, where=stubs.folder / "home/.local/bin")
    repository = stubs.folder / "my $code"
    (repository / "runs").mkdir(parents=True)
    (repository / "setup.py").write_text("# pdiff")
    (repository / "runs/big").write_text("not to be copied")
    stubs.own = f"--repository={repository}"
    stubs.state = {"queue": None, "node": None, "capacity": True, "preempted": [], "runs": 0, "calls": []}
    return stubs


def run(cloud, text: str, **state) -> tuple[int, list[str]]:
    """(exit code, what was done in the cloud, questions left out)."""
    (cloud.folder / "cloud.json").write_text(json.dumps(cloud.state | state))
    code = cloud.bash(text).returncode
    return code, done(cloud)


def done(cloud) -> list[str]:
    calls = json.loads((cloud.folder / "cloud.json").read_text())["calls"]
    for call in calls:
        assert all(w in call["rest"] for w in [*WHERE, "--quiet"])
    names = [("run" if "exec .venv" in str(c["rest"]) else c["verb"]) for c in calls]
    return [n for n in names if n != "describe"]


@pytest.mark.parametrize(
    "own", [[], ["--setup=echo \"$HOME\" 'x'"], ["--repository=https://a.b/c.git", "--revision=v1", "--nodelete"]]
)
def test_shellcheck_has_nothing_to_say(own, tmp_path):
    check_shell(script(*own), tmp_path)


def test_a_run_is_set_up_gets_exactly_what_was_passed_and_the_slice_is_deleted(cloud):
    code, calls = run(cloud, script(cloud.own, '--setup=echo "in $HOME" > ~/mounted'))
    assert code == 0 and calls == ["create", "scp", "ssh", "run", "delete"]
    assert cloud.argv("python") == [["-m", "pdiff.main", *PASSED]]
    home = cloud.folder / "home"
    assert (home / "mounted").read_text() == f"in {home}\n"
    calls = json.loads((cloud.folder / "cloud.json").read_text())["calls"]
    (create,) = [c for c in calls if c["verb"] == "create"]
    assert create["kind"] == "queued-resources" and set(create["rest"]) >= {
        "--node-id=pod", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    }  # fmt: skip
    assert all("--worker=all" in c["rest"] for c in calls if c["verb"] in ("ssh", "scp"))


def test_the_local_folder_is_copied_without_its_runs(cloud):
    run(cloud, script(cloud.own).replace("tpus queued-resources delete", ": "))
    assert [p.name for p in (cloud.folder / "home/pdiff").iterdir() if p.name != ".venv"] == ["setup.py"]


def test_a_git_url_is_cloned_and_its_revision_checked_out(cloud):
    clone = NOTE.replace("note({", 'os.makedirs(os.path.expanduser("~/pdiff/.git"), exist_ok=True)\nnote({')
    cloud.add("git", clone)
    code, calls = run(cloud, script("--repository=https://a.b/c.git", "--revision=v1"))
    assert code == 0 and calls == ["create", "ssh", "run", "delete"]
    folder = str(cloud.folder / "home/pdiff")
    assert cloud.argv("git") == [
        ["clone", "--quiet", "https://a.b/c.git", folder], ["-C", folder, "checkout", "--quiet", "v1"],
    ]  # fmt: skip


def test_after_a_preemption_the_slice_is_made_anew_and_the_same_command_run(cloud):
    code, calls = run(cloud, script(cloud.own, "--max_failures=1"), preempted=[0, 1, 2])
    one = ["create", "scp", "ssh", "run", "delete"]
    assert code == 0 and calls == one * 4  # SUSPENDED, then PREEMPTED while the request is ACTIVE, then SUSPENDED
    assert cloud.argv("python") == [["-m", "pdiff.main", *PASSED]]
    assert set(map(tuple, cloud.argv("sleep"))) == {("30",)}


@pytest.mark.parametrize(
    ("codes", "runs", "waits", "code"),
    [("2", 1, [], 2), ("143 1 0", 3, ["30", "60"], 0), ("134 137 1", 3, ["30", "60"], 1)],
)
def test_failures_on_a_slice_that_is_there_are_tried_again_a_few_times(cloud, codes, runs, waits, code):
    cloud.add("python", codes=codes)
    ended, calls = run(cloud, script(cloud.own, "--max_failures=2"), queue="ACTIVE", node="READY")
    assert ended == code and calls == ["scp", "ssh", "run"] * runs + ["delete"]
    assert cloud.argv("sleep") == [[w] for w in waits]


def test_a_failed_installation_is_never_taken_for_a_usage_error(cloud):
    ended, calls = run(cloud, script(cloud.own, "--setup=exit 2", "--max_failures=1"), queue="ACTIVE", node="READY")
    assert ended == 255 and calls == ["scp", "ssh"] * 2 + ["delete"]


def test_without_gcloud_it_ends_at_once(stubs):
    ended = stubs.bash(script("--repository=https://a.b/c.git"))
    assert ended.returncode == 2 and b"gcloud: not found on PATH" in ended.stderr


def test_it_gives_up_where_there_is_no_capacity(cloud):
    ended, calls = run(cloud, script(cloud.own), capacity=False)
    assert ended == 1 and calls == ["create"] * 10 + ["delete"]


def test_without_delete_the_slice_stays_and_the_command_to_delete_it_is_printed(cloud):
    (cloud.folder / "cloud.json").write_text(json.dumps(cloud.state))
    said = cloud.bash(script(cloud.own, "--nodelete")).stderr.decode().splitlines()[-1]
    assert done(cloud) == ["create", "scp", "ssh", "run"]
    command = said.partition("delete it: ")[2]
    assert shlex.split(command) == ["gcloud", "compute", "tpus", "queued-resources", "delete", "pod", *WHERE, "--force"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_on_the_workers_and_ends(cloud, number, code):
    """Takes 1 s: `tail --pid` looks once a second."""
    cloud.add("python", codes="wait")
    (cloud.folder / "cloud.json").write_text(json.dumps(cloud.state | {"queue": "ACTIVE", "node": "READY"}))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, and so by children
    process = subprocess.Popen(["bash", "-c", script(cloud.own)], env=cloud.env, stderr=subprocess.DEVNULL)
    signal.signal(signal.SIGINT, before)
    while not cloud.calls("python"):
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    assert done(cloud)[-1] == "delete" and len(cloud.calls("python")) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(cloud.calls("python")[0]["pid"], 0)


def test_a_dry_run_prints_what_a_real_one_hands_to_bash(cloud):
    cloud.add("bash", NOTE, codes="7")
    arguments = [*OWN, cloud.own, "--", *PASSED]
    dry = module("tpu_vm", ["--dry_run", *arguments], cloud.env)
    assert dry.returncode == 0 and cloud.calls("bash") == [] and not (cloud.folder / "cloud.json").exists()
    assert module("tpu_vm", arguments, cloud.env).returncode == 7
    assert cloud.argv("bash") == [["-c", dry.stdout]]
