"""Describe a task, get a network.

  python -m pdiff.main --config=configs/interp.py    a whole run in runs/interp: zoo, training, evaluation, report
  python -m pdiff.main --config=configs/interp.py --config.train.steps=3000 --workdir=runs/long    any field is a flag
  python -m pdiff.main --mode=sample --prompt="digits rotated by 75 degrees" --out=nets.safetensors
  python -m pdiff.main --mode=adapt --support=images --out=net.safetensors   from a few labelled images of a new task
  python -m pdiff.main --mode=serve                                       the same as a page on this machine
  python -m pdiff.main --mode=check                                       what is installed; with --workdir, of a run
  python -m pdiff.main --mode=import --config=configs/imported.py --source=my_loras --workdir=runs/mine
  python -m pdiff.main --mode=merge --workdir=runs/mine --method=ties --out=merged    a zoo's networks as one
  python -m pdiff.main --mode=compare --workdirs=runs/a,runs/b            runs side by side

Of a finished run (--workdir): --mode=evaluate scores again, report writes its page again, audit looks for copies,
publish makes a small folder of it. --mode=compile asks whether a config fits a TPU. What can be set in a config, and
what each field means, is in pdiff/config/fields.py; what each mode does, in README.md and docs/.
"""

from absl import app, flags
from ml_collections import config_flags

from pdiff import config as config_lib
from pdiff.modes import MODES, dispatch
from pdiff.system import exits, machine, processes

config_flags.DEFINE_config_file("config", None, "A scenario, as configs/interp.py.")
flags.DEFINE_string(
    "workdir", None, "A run's folder, by default runs/<config>; sample, serve: or a published one, by default pdiff's."
)
flags.DEFINE_enum("mode", "run", list(MODES), "What to do.")
flags.DEFINE_string("prompt", None, "sample, adapt: a description of the task, or of a set of tasks.")
flags.DEFINE_string("task", None, "sample: the name or id of one of the family's tasks, in place of a prompt.")
flags.DEFINE_string("between", None, "sample: two tasks and how far from one to the other, as 'a,b,0.5'.")
flags.DEFINE_string(
    "support", None, "adapt: a folder of images, or a folder of them for each class; or CLASS.txt of texts."
)
flags.DEFINE_bool("force", False, "sample, adapt: take a prompt like no description, with a warning.")
flags.DEFINE_integer(
    "num_samples", None, "Networks: for sample, by default 8; for adapt to choose from, by default 512.", lower_bound=1
)
flags.DEFINE_integer("steps", None, "adapt: of fine-tuning; by default the run's adapt.steps.", lower_bound=0)
flags.DEFINE_string("sampler", None, "sample: by default the one that validation chose.")
flags.DEFINE_integer("sample_seed", 0, "sample, adapt: another seed gives other networks; merge: of what dare drops.")
flags.DEFINE_integer("port", 8484, "serve: the port on this machine.", lower_bound=1, upper_bound=65535)
flags.DEFINE_string("coordinator_address", None, "Many processes: host:port of the first; see launch/.")
flags.DEFINE_integer("num_processes", None, "Many processes: how many.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Many processes: which one this is, from 0.", lower_bound=0)
flags.DEFINE_string("topology", "v5e:4x4", "compile: TPU slices by chip and shape, separated by commas.")
flags.DEFINE_list("workdirs", [], "compare: finished runs, separated by commas.")
flags.DEFINE_string(
    "out",
    None,
    "sample, adapt, merge: a file (.safetensors, .npz) or folder to write; publish: a folder; compare: a page.",
)
flags.DEFINE_string(
    "format", None, "sample, merge: safetensors, npz, orbax, files, or of LoRAs peft, diffusers, kohya, mlx."
)
flags.DEFINE_string("method", None, "merge: mean, svd, ties, dare, dare_ties, lerp or slerp.")
flags.DEFINE_list("tasks", [], "merge: names or ids of tasks, separated by commas; by default all seen ones.")
flags.DEFINE_float("t", None, "merge: for lerp and slerp, from the first task (0) to the second (1); by default 0.5.")
flags.DEFINE_float("density", None, "merge: for ties and dare, the share of numbers that are kept.")
flags.DEFINE_string("source", None, "import: the folder of networks; see docs/importing.md.")
flags.DEFINE_string("manifest", None, "import: a CSV or JSON file that describes them, if not in --source.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    args = flags.FLAGS
    with exits.said():
        if args.mode != "compile":
            if args.config is not None:
                config_lib.validate(args.config)
            one_of_many = args.num_processes is not None  # each has as many devices as its launcher says
            machine.set_up(args.config, all_cores=not one_of_many and not MODES[args.mode].light)
            processes.initialize(args.coordinator_address, args.num_processes, args.process_id)
        dispatch(args)


if __name__ == "__main__":
    app.run(main, flags_parser=config_lib.parse_flags)
