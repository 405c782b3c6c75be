"""Programs that stand in for those that the generated texts call, and values that are hard to quote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PASSED = [
    "--config=configs/interp.py",
    "--config.train.steps=20000",
    "--config.tasks.unseen=60:90,216:234",
    "--workdir=/mnt/pdiff/a b, c",
    '--prompt=it\'s "75" $HOME ${HOME} `id` $(id) $$ $1 \\ \\n ! * ? ~ # ; & | < > () {a,b} %s @name@ @run@ {0}',
    "--empty=",
    "",
    "--",
    "-- --dry_run",
    " leading and trailing ",
    "tab\there",
    "'",
    "ä ☃",
    "~",
]

# Notes how it was called in $STUB/NAME.jsonl, then ends with the next of the exit codes in $STUB/NAME.codes, 0 if there
# are none; for the code "wait" it waits for SIGTERM and then ends with 143.
NOTE = f"""#!{sys.executable} -SE
import json, os, signal, sys
folder, name = os.environ["STUB"], os.path.basename(sys.argv[0])
def note(what):
    with open(f"{{folder}}/{{name}}.jsonl", "a") as f:
        f.write(json.dumps(what) + "\\n")
codes = f"{{folder}}/{{name}}.codes"
left = open(codes).read().split() if os.path.exists(codes) else []
if left:
    open(codes, "w").write(" ".join(left[1:]))
if left[:1] == ["wait"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
note({{"argv": sys.argv[1:], "pid": os.getpid(), "stdin": "" if name in ("python", "sleep") else sys.stdin.read()}})
if left[:1] == ["wait"]:
    signal.pause()
sys.exit(int((left or ["0"])[0]))
"""


# All that scripts may find besides stand-ins: never the gcloud, kubectl or sbatch of the machine that runs the tests.
TOOLS = ("bash", "sh", "cat", "cp", "grep", "mkdir", "mktemp", "rm", "sed", "tail", "tar", "gzip", "timeout", "true")


class Stubs:
    """A folder of programs that is all of PATH, and what they were called with."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.env = os.environ | {"STUB": str(folder), "PATH": str(self.bin), "HOME": str(folder / "home")}

    def add(self, name: str, text: str = NOTE, codes: str = "", where: Path | None = None) -> None:
        path = (where or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link to a tool is replaced, not written through
        path.write_text(text)
        path.chmod(0o755)
        (self.folder / f"{name}.codes").write_text(codes)

    def calls(self, name: str) -> list[dict]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def argv(self, name: str) -> list[list[str]]:
        return [call["argv"] for call in self.calls(name)]

    def bash(self, text: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run([self.bin / "bash", "-c", text], env=self.env, capture_output=True, timeout=30, **options)


@pytest.fixture
def stubs(tmp_path) -> Stubs:
    return Stubs(tmp_path)


def module(name: str, arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess:
    """`python -m launch.NAME`, as typed."""
    command = [sys.executable, "-m", f"launch.{name}", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)


def check_shell(text: str, tmp_path: Path) -> None:
    """Neither shellcheck nor bash finds anything to say."""
    path = tmp_path / "script.sh"
    path.write_text(text)
    for command in (["shellcheck", "--norc"], ["bash", "-n"]):
        checked = subprocess.run([*command, path], capture_output=True, text=True)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
