"""Describe a task, get a network.

  python -m pdiff.main --config=configs/interp.py    a whole run in runs/interp: zoo, training, evaluation, report
  python -m pdiff.main --config=configs/interp.py --config.train.steps=3000 --workdir=runs/long    any field is a flag
  python -m pdiff.main --mode=sample --prompt="digits rotated by 75 degrees" --out=nets.safetensors
  python -m pdiff.main --mode=adapt --support=images --out=net.safetensors   from a few labelled images of a new task
  python -m pdiff.main --mode=serve                                       the same as a page on this machine
  python -m pdiff.main --mode=check                                       what is installed; with --workdir, of a run
  python -m pdiff.main --mode=import --config=configs/imported.py --source=my_loras --workdir=runs/mine
  python -m pdiff.main --mode=compare --workdirs=runs/a,runs/b            runs side by side

Of a finished run (--workdir): --mode=evaluate scores again, report writes its page again, audit looks for copies,
publish makes a small folder of it. --mode=compile asks whether a config fits a TPU. What can be set in a config, and
what each field means, is in configs/common.py; what each mode does, in README.md and docs/.
"""
# Flags, and which function each mode calls. The rest lives elsewhere, for tests and notebooks.

import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from pdiff import config as config_lib
from pdiff import exits, machine, processes
from pdiff.errors import PdiffError

MODES = ("run", "import", "sample", "adapt", "serve", "publish", "evaluate", "report", "compare", "check", "audit",
         "compile")  # fmt: skip
LIGHT = ("sample", "adapt", "serve")  # a device is enough for them, and more take longer to compile for

_CONFIG = config_flags.DEFINE_config_file("config", None, "A scenario, as configs/interp.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives; by default runs/<name of the config>. sample, serve: or a published folder; "
    "by default the generator that comes with pdiff.",
)  # fmt: skip
_MODE = flags.DEFINE_enum("mode", "run", MODES, "What to do.")
_PROMPT = flags.DEFINE_string("prompt", None, "sample, adapt: a description of the task, or of a set of tasks.")
_TASK = flags.DEFINE_string("task", None, "sample: the name or id of one of the family's tasks, in place of a prompt.")
_BETWEEN = flags.DEFINE_string("between", None, "sample: two tasks and how far from one to the other, as 'a,b,0.5'.")
_SUPPORT = flags.DEFINE_string(
    "support", None, "adapt: a folder of png or jpg images of the task, or of a folder of them for each class."
)
_FORCE = flags.DEFINE_bool("force", False, "sample, adapt: take a prompt like no description, with a warning.")
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "sample: how many networks, by default 8. adapt: among how many to choose, by default 512.",
    lower_bound=1,
)  # fmt: skip
_STEPS = flags.DEFINE_integer("steps", None, "adapt: of fine-tuning; by default the run's adapt.steps.", lower_bound=0)
_SAMPLER = flags.DEFINE_string("sampler", None, "sample: by default the one that validation chose.")
_SAMPLE_SEED = flags.DEFINE_integer("sample_seed", 0, "sample, adapt: another seed gives other networks.")
_PORT = flags.DEFINE_integer("port", 8484, "serve: the port on this machine.", lower_bound=1, upper_bound=65535)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Many processes: host:port of the first; see launch/.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Many processes: how many.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Many processes: which of them this is, from 0.", lower_bound=0)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "compile: TPU slices by chip and shape, separated by commas.")
_WORKDIRS = flags.DEFINE_list("workdirs", [], "compare: finished runs, separated by commas.")
_OUT = flags.DEFINE_string(
    "out", None, "sample, adapt: the file (.safetensors, .npz) or folder to write; publish: a folder; compare: a page."
)
_FORMAT = flags.DEFINE_string("format", None, "sample: safetensors, npz, orbax, peft or files, if --out does not say.")
_SOURCE = flags.DEFINE_string("source", None, "import: the folder of networks; see docs/importing.md.")
_MANIFEST = flags.DEFINE_string("manifest", None, "import: a CSV or JSON file that describes them, if not in --source.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    with exits.said():
        if _MODE.value != "compile":
            if _CONFIG.value is not None:
                config_lib.validate(_CONFIG.value)
            one_of_many = _NUM_PROCESSES.value is not None  # each has as many devices as its launcher says
            machine.set_up(_CONFIG.value, all_cores=not one_of_many and _MODE.value not in LIGHT)
            processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        _dispatch(_MODE.value, Path(_WORKDIR.value) if _WORKDIR.value is not None else None)


def _dispatch(mode: str, workdir: Path | None) -> None:
    """Imports what the mode needs, and calls it: all modules together take longer to import than sampling does."""
    if mode == "compile":
        from pdiff import aot

        print(aot.compile_config(_CONFIG.value, _TOPOLOGY.value, workdir=_WORKDIR.value))
        return
    if mode in ("run", "import") and _CONFIG.value is None:
        raise PdiffError("--config: missing; allowed: a scenario such as configs/interp.py")
    if mode == "import" and None in (_SOURCE.value, workdir):
        raise PdiffError("--source, --workdir: missing; --mode=import reads a folder of networks into a new workdir")
    if mode not in ("run", "compare", "check", *LIGHT) and workdir is None:
        raise PdiffError(f"--workdir: missing; --mode={mode} works on a finished run")
    if mode not in ("run", "import", "compare") and workdir is not None and not workdir.is_dir():
        raise PdiffError(f"--workdir: {workdir}: no such folder; allowed: the workdir of a run")
    if mode == "import" and not Path(_SOURCE.value).is_dir():
        raise PdiffError(f"--source: {_SOURCE.value}: no such folder; allowed: the folder of the networks")
    if mode not in ("run", "import") and _CONFIG.value is not None and workdir is not None:
        config_lib.check_same(_CONFIG.value, workdir)
    if mode == "serve":
        from pdiff import serve

        serve.serve(workdir, _PORT.value)
    elif mode in ("sample", "adapt", "publish"):
        from pdiff import request

        if mode == "publish":
            return request.publish(workdir, _OUT.value)
        if mode == "adapt":
            return request.adapt(
                workdir, support=_SUPPORT.value, prompt=_PROMPT.value, num_samples=_NUM_SAMPLES.value or 512,
                steps=_STEPS.value, seed=_SAMPLE_SEED.value, force=_FORCE.value, out=_OUT.value, form=_FORMAT.value,
            )  # fmt: skip
        request.sample(
            workdir, prompt=_PROMPT.value, task=_TASK.value, between=_BETWEEN.value,
            num_samples=_NUM_SAMPLES.value or 8, sampler=_SAMPLER.value, seed=_SAMPLE_SEED.value, force=_FORCE.value,
            out=_OUT.value, form=_FORMAT.value,
        )  # fmt: skip
    else:
        from pdiff import run

        if mode == "run":
            name = Path(flags.FLAGS["config"].config_filename).stem
            command = shlex.join(["python", "-m", "pdiff.main", *sys.argv[1:]])
            run.run(_CONFIG.value, workdir or Path("runs") / name, command=command)
        elif mode == "import":
            manifest = Path(_MANIFEST.value) if _MANIFEST.value else None
            run.import_networks(_CONFIG.value, Path(_SOURCE.value), manifest, workdir)
        elif mode == "compare":
            print(run.compare(_WORKDIRS.value, _OUT.value or "compare.html"))
        else:
            {"evaluate": run.evaluate, "report": run.report, "check": run.check, "audit": run.audit}[mode](workdir)


if __name__ == "__main__":
    app.run(main, flags_parser=config_lib.parse_flags)
