"""The command line: flags, and which function each mode calls. The rest lives elsewhere, for tests and notebooks."""

import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from pdiff import aot, exits, exports, machine, processes, run
from pdiff import config as config_lib
from pdiff.errors import PdiffError

MODES = ("run", "import", "sample", "evaluate", "report", "check", "audit", "compile")

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
_OUT = flags.DEFINE_string("out", None, "sample: the file (.safetensors, .npz) or folder to write.")
_FORMAT = flags.DEFINE_enum("format", None, exports.FORMATS, "sample: what to write, if --out does not say.")
_SOURCE = flags.DEFINE_string("source", None, "import: the folder of networks; see docs/importing.md.")
_MANIFEST = flags.DEFINE_string("manifest", None, "import: a CSV or JSON file that describes them, if not in --source.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    with exits.said():
        if _MODE.value != "compile":
            if _CONFIG.value is not None:
                config_lib.validate(_CONFIG.value)
            if _NUM_PROCESSES.value is None:  # of many on one host, each has as many as its launcher says
                machine.use_all_cores(_CONFIG.value)
            machine.keep_compiled()
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
    if mode == "import":
        _import(workdir)
        return
    if mode == "compile":
        print(aot.compile_config(_CONFIG.value, _TOPOLOGY.value, workdir=workdir))
        return
    if workdir is None:
        raise PdiffError(f"--workdir: missing; --mode={mode} works on a finished run")
    if _CONFIG.value is not None:
        config_lib.validate(_CONFIG.value)
        run.check_same_config(_CONFIG.value, Path(workdir))
    if mode == "sample":
        run.sample(
            Path(workdir), prompt=_PROMPT.value, task=_TASK.value, num_samples=_NUM_SAMPLES.value,
            sampler=_SAMPLER.value, seed=_SAMPLE_SEED.value, out=_OUT.value, form=_FORMAT.value,
        )  # fmt: skip
    else:
        modes = {"evaluate": run.evaluate, "report": run.report, "check": run.check, "audit": run.audit}
        modes[mode](Path(workdir))


def _import(workdir: str | None) -> None:
    for name, value in (("--config", _CONFIG.value), ("--source", _SOURCE.value), ("--workdir", workdir)):
        if value is None:
            raise PdiffError(f"{name}: missing; --mode=import needs --config, --source and --workdir")
    manifest = _MANIFEST.value and Path(_MANIFEST.value)
    run.import_networks(_CONFIG.value, Path(_SOURCE.value), manifest, Path(workdir))


if __name__ == "__main__":
    app.run(main, flags_parser=config_lib.parse_flags)
