"""What `--mode=` does: a table of modes, each with what it needs and the function that takes the flags.

A mode imports its rooms when it is called: all together take longer to import than sampling does.
"""

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdiff import config as config_lib
from pdiff.errors import PdiffError
from pdiff.system import exits


@dataclasses.dataclass(frozen=True)
class Mode:
    """A mode of the command line.

    Attributes:
      call: takes the flags and the workdir, if there is one.
      config: an example of the config that it needs, "" if it needs none.
      workdir: "new" if it makes one, "finished" if it needs the one of a run, "" if it does without.
      light: whether one device is enough: compiling for more takes longer.
    """

    call: Callable[[Any, Path | None], None]
    config: str = ""
    workdir: str = ""
    light: bool = False


def dispatch(flags: Any) -> None:
    """Checks that the mode has what it needs, and calls it.

    Raises:
      PdiffError: names the flag that is missing or wrong.
    """
    name, mode = flags.mode, MODES[flags.mode]
    workdir = Path(flags.workdir) if flags.workdir is not None else None
    if mode.config and flags.config is None:
        raise PdiffError(f"--config: missing; allowed: a scenario such as {mode.config}")
    if mode.workdir == "finished" and workdir is None:
        raise PdiffError(f"--workdir: missing; --mode={name} works on a finished run")
    if mode.workdir != "new" and workdir is not None:
        if not workdir.is_dir():
            raise PdiffError(f"--workdir: {workdir}: no such folder; allowed: the workdir of a run")
        if flags.config is not None:
            config_lib.check_same(flags.config, workdir)
    mode.call(flags, workdir)


def _run(flags: Any, workdir: Path | None) -> None:
    from pdiff import run

    workdir = workdir or Path("runs") / Path(flags["config"].config_filename).stem
    command = shlex.join(["python", "-m", "pdiff.main", *sys.argv[1:]])
    run.run(flags.config, workdir, command, at_once=exits.leave_at_once, tell_time=True)


def _import(flags: Any, workdir: Path | None) -> None:
    from pdiff import run

    if None in (flags.source, workdir):
        raise PdiffError("--source, --workdir: missing; --mode=import reads a folder of networks into a new workdir")
    source = Path(flags.source)
    if not source.is_dir():
        raise PdiffError(f"--source: {source}: no such folder; allowed: the folder of the networks")
    run.import_networks(flags.config, source, Path(flags.manifest) if flags.manifest else None, workdir)


def _sample(flags: Any, workdir: Path | None) -> None:
    from pdiff.ask import commands

    commands.sample(workdir, **_request(flags, 8, "task", "between", "sampler"))


def _adapt(flags: Any, workdir: Path | None) -> None:
    from pdiff.ask import commands

    commands.adapt(workdir, **_request(flags, 512, "support", "steps"))


def _request(flags: Any, count: int, *names: str) -> dict[str, Any]:
    """The flags that sample and adapt share, and those of `names`, as `pdiff.ask.commands` takes them.

    Args:
      count: of networks, by default.
    """
    shared = {"num_samples": flags.num_samples or count, "seed": flags.sample_seed, "form": flags.format}
    return shared | {n: flags[n].value for n in ("prompt", "force", "out", *names)}


def _serve(flags: Any, workdir: Path | None) -> None:
    from pdiff.ask import serve

    serve.serve(workdir, flags.port)


def _publish(flags: Any, workdir: Path | None) -> None:
    from pdiff.ask import commands

    commands.publish(workdir, flags.out)


def _evaluate(flags: Any, workdir: Path | None) -> None:
    from pdiff import run

    run.evaluate(workdir, at_once=exits.leave_at_once)


def _report(flags: Any, workdir: Path | None) -> None:
    from pdiff import run

    run.report(workdir)


def _audit(flags: Any, workdir: Path | None) -> None:
    from pdiff import run

    run.audit(workdir)


def _check(flags: Any, workdir: Path | None) -> None:
    from pdiff import workdir as workdir_lib
    from pdiff.system import installation, logs

    logs.set_up()
    for line in installation.environment():
        logs.log.info("%s", line)
    if workdir is not None:
        for line in workdir_lib.check(workdir):
            logs.log.info("%s", line)
        logs.log.info("%s: complete", workdir)


def _compare(flags: Any, workdir: Path | None) -> None:
    from pdiff.report.compare import compare
    from pdiff.system import logs

    logs.set_up()
    out = flags.out or "compare.html"
    table = compare(flags.workdirs, out)
    logs.log.info("compare: %s", out)
    print(table)


def _compile(flags: Any, workdir: Path | None) -> None:
    from pdiff.compile import aot

    print(aot.compile_config(flags.config, flags.topology, workdir=flags.workdir))


def _merge(flags: Any, workdir: Path | None) -> None:
    from pdiff.ask import merge

    given = {n: flags[n].value for n in ("method", "tasks", "t", "density", "out")}
    merge.merge(workdir, **given, seed=flags.sample_seed, form=flags.format)


MODES = {
    "run": Mode(_run, config="configs/interp.py", workdir="new"),
    "import": Mode(_import, config="configs/imported.py", workdir="new"),
    "sample": Mode(_sample, light=True),
    "adapt": Mode(_adapt, light=True),
    "serve": Mode(_serve, light=True),
    "publish": Mode(_publish, workdir="finished"),
    "evaluate": Mode(_evaluate, workdir="finished"),
    "report": Mode(_report, workdir="finished"),
    "audit": Mode(_audit, workdir="finished"),
    "check": Mode(_check),
    "compare": Mode(_compare, workdir="new"),
    "compile": Mode(_compile, workdir="new"),
    "merge": Mode(_merge, light=True),
}
