"""What the launchers share: the split of argv at `--`, flags with early checks, quoting, and how a launcher ends.

`python -m launch.NAME [flags of the launcher] -- [flags of pdiff.main]`. What follows the first bare `--` reaches
`python -m pdiff.main` untouched.

A launcher is a function `define` that declares its flags on a `FlagValues` of its own (so that two launchers may both
have a `--name`), and a function that turns their values and the passed flags into a script, a manifest or processes.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags

from pdiff.errors import PdiffError

MOUNT = "/mnt/pdiff"  # where gke.py, and the examples for TPU VMs, have the file system that all processes share
OWN = ("coordinator_address", "num_processes", "process_id")  # flags of pdiff.main that launchers or clusters give
_ABSENT = "{}: not found on PATH; install it, or see what it would be given with --dry_run"
USAGE = 2  # exit code of pdiff.main and of the launchers for flags that make no sense: never tried again


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(before, after) the first bare `--`.

    Raises:
      PdiffError: nothing follows it, it holds a line break or NUL, or a flag that is the launcher's to give.
    """
    argv = list(argv)
    at = argv.index("--") if "--" in argv else len(argv)
    own, passed = argv[:at], argv[at + 1 :]
    if not passed:
        raise PdiffError("--: missing; allowed: flags of pdiff.main after it, as -- --config=configs/interp.py")
    for value in passed:
        name = re.split("[= \n]", value.lstrip("-"), maxsplit=1)[0]
        if re.search(r"[\n\r\0]", value):
            raise PdiffError(f"{value!r}: has a line break or NUL; allowed: one line")
        if value.startswith("-") and name in OWN:
            raise PdiffError(f"{value}: given by the launcher or found out on the cluster; allowed: other flags")
    return own, passed


def parse(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None], doc: str
) -> tuple[flags.FlagValues, list[str]] | None:
    """(the launcher's flags, those for pdiff.main), or None if only help was asked for, which is then printed.

    Raises:
      PdiffError, flags.Error: one sentence that names the flag, its value and what is allowed.
    """
    values = flags.FlagValues()
    flags.DEFINE_boolean("dry_run", False, "Print what would be done, and do nothing.", flag_values=values)
    define(values)
    if {"--help", "-h", "--helpfull"} & set(argv[: list(argv).index("--") if "--" in argv else None]):
        print(f"{doc}\n{values.get_help()}")
        return None
    own, passed = split(argv)
    rest = values(["launch", *own])[1:]
    if rest:
        raise PdiffError(f"{' '.join(rest)}: unknown; allowed before --: {', '.join('--' + n for n in values)}")
    return values, passed


def text(
    values: flags.FlagValues,
    name: str,
    default: str | None,
    help: str,
    pattern: str = r"[^\n\r\0]+",
    allowed: str = "one line that is not empty",
    required: bool = False,
) -> None:
    """Declares a flag whose whole value must match `pattern`, which `allowed` puts in words."""
    flags.DEFINE_string(name, default, help, flag_values=values, required=required)
    flags.register_validator(
        name,
        lambda value: value is None or re.fullmatch(pattern, value) is not None,
        f"allowed: {allowed}",
        flag_values=values,
    )


class _Positive(flags.ArgumentParser):
    def parse(self, argument: str | int) -> int:
        if not re.fullmatch("[1-9][0-9]*", str(argument)):
            raise ValueError("allowed: a whole number of 1 or more")
        return int(argument)


def positive(values: flags.FlagValues, name: str, default: int | None, help: str) -> None:
    """Declares a flag of a whole number of 1 or more. (absl's own does not say what is allowed.)"""
    flags.DEFINE(_Positive(), name, default, help, values, flags.ArgumentSerializer())


def pdiff_main(passed: Sequence[str], python: str = "python") -> list[str]:
    """The command that a process runs."""
    return [python, "-m", "pdiff.main", *passed]


def quoted(command: Sequence[str]) -> str:
    """The shell text that a POSIX shell reads as exactly this command."""
    return shlex.join(command)


def workdir(passed: Sequence[str]) -> str | None:
    """The value of --workdir among the flags of pdiff.main; None if there is none."""
    for i, value in enumerate(passed):
        if match := re.fullmatch("--?workdir(?:=(.*))?", value):
            return match[1] if match[1] is not None else next(iter(passed[i + 1 :]), None)
    return None


def fill(template: str, **parts: object) -> str:
    """The template with each @name@ replaced, once: what is put in is never read as a template."""
    return re.sub(r"@(\w+)@", lambda m: str(parts[m[1]]), template)


def feed(command: Sequence[str], stdin: str) -> int:
    """Runs a program on a text; its exit code.

    Raises:
      PdiffError: it is not installed.
    """
    try:
        return subprocess.run(command, input=stdin.encode()).returncode
    except FileNotFoundError as e:
        raise PdiffError(_ABSENT.format(command[0])) from e


def replace_process(command: Sequence[str]) -> NoReturn:
    """Goes on as another program, which so gets the signals meant for the launcher.

    Raises:
      PdiffError: it is not installed.
    """
    sys.stdout.flush()
    try:
        os.execvp(command[0], list(command))
    except FileNotFoundError as e:
        raise PdiffError(_ABSENT.format(command[0])) from e


def submit(
    argv: Sequence[str],
    define: Callable[[flags.FlagValues], None],
    doc: str,
    script: Callable[[flags.FlagValues, list[str]], str],
    hand_over: Callable[[str], int],
) -> int:
    """A launcher of one script: prints what `script` makes of the flags, or hands it over; the exit code.

    Raises:
      PdiffError, flags.Error: as `parse` and `script` do.
    """
    if (parsed := parse(argv, define, doc)) is None:
        return 0
    made = script(*parsed)
    if parsed[0].dry_run:
        print(made, end="")
        return 0
    return hand_over(made)


def start(main: Callable[[list[str]], int]) -> None:
    """Ends the program as `main` says, or with one line and exit code 2 on a flag that makes no sense."""
    try:
        sys.exit(main(sys.argv[1:]))
    except (flags.Error, PdiffError) as e:
        print(f"launch: error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(USAGE)
