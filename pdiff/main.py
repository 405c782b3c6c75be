"""The command line: flags, and which function each mode calls. The rest lives elsewhere, for tests and notebooks."""

import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from pdiff import aot, exits, machine, processes, run
from pdiff import config as config_lib
from pdiff.errors import PdiffError

MODES = ("run", "sample", "evaluate", "report", "check", "audit", "compile", "compare")

_CONFIG = config_flags.DEFINE_config_file("config", None, "A scenario, as configs/interp.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; by default runs/<name of the config>.")
_MODE = flags.DEFINE_enum("mode", "run", MODES, "What to do.")
_PROMPT = flags.DEFINE_string("prompt", None, "sample: a description of the task.")
_TASK = flags.DEFINE_string("task", None, "sample: the name or id of one of the family's tasks, in place of a prompt.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 8, "sample: how many networks.", lower_bound=1)
_SAMPLER = flags.DEFINE_string("sampler", None, "sample: by default the one that validation chose.")
_SAMPLE_SEED = flags.DEFINE_integer("sample_seed", 0, "sample: another seed gives other networks.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Many processes: host:port of the first; see launch/.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Many processes: how many.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Many processes: which of them this is, from 0.", lower_bound=0)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "compile: TPU slices by chip and shape, separated by commas.")
_WORKDIRS = flags.DEFINE_list("workdirs", [], "compare: finished runs, separated by commas.")
_OUT = flags.DEFINE_string("out", None, "sample: the safetensors file to write; compare: the page, compare.html.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    with exits.said():
        if _MODE.value != "compile":
            if _CONFIG.value is not None:
                config_lib.validate(_CONFIG.value)
            machine.set_up(_CONFIG.value, one_of_many=_NUM_PROCESSES.value is not None)
            processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        _dispatch(argv)


def _dispatch(argv: list[str]) -> None:
    mode, workdir = _MODE.value, _WORKDIR.value
    if mode == "run":
        if _CONFIG.value is None:
            raise PdiffError("--config: missing; allowed: a scenario such as configs/interp.py")
        name = Path(flags.FLAGS["config"].config_filename).stem
        run.run(
            _CONFIG.value,
            Path(workdir or f"runs/{name}"),
            command=shlex.join(["python", "-m", "pdiff.main", *sys.argv[1:]]),
        )
        return
    if mode == "compile":
        print(aot.compile_config(_CONFIG.value, _TOPOLOGY.value, workdir=workdir))
        return
    if mode == "compare":
        print(run.compare(_WORKDIRS.value, _OUT.value or "compare.html"))
        return
    if workdir is None:
        if mode == "check":  # of the installation alone
            return run.check(None)
        raise PdiffError(f"--workdir: missing; --mode={mode} works on a finished run")
    if _CONFIG.value is not None:
        config_lib.validate(_CONFIG.value)
        run.check_same_config(_CONFIG.value, Path(workdir))
    if mode == "sample":
        run.sample(
            Path(workdir), prompt=_PROMPT.value, task=_TASK.value, num_samples=_NUM_SAMPLES.value,
            sampler=_SAMPLER.value, seed=_SAMPLE_SEED.value, out=_OUT.value,
        )  # fmt: skip
    else:
        modes = {"evaluate": run.evaluate, "report": run.report, "check": run.check, "audit": run.audit}
        modes[mode](Path(workdir))


if __name__ == "__main__":
    app.run(main, flags_parser=config_lib.parse_flags)
