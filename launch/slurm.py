r"""A run on a Slurm cluster: writes an sbatch script and submits it.

    python -m launch.slurm --nodes=2 --gpus_per_node=4 --partition=gpu --time=12:00:00 --venv=$HOME/venv -- \
        --config=configs/interp.py --workdir=/shared/runs/interp

Submit from the repository's root, on a file system that all nodes share; the workdir must be on one too.

How it resumes, always by the very same command:
- Two minutes before the time limit Slurm sends SIGUSR1 to the batch shell alone. The shell has SIGTERM sent to every
  process of the run by scancel (srun itself would answer a SIGTERM by killing them), they save and exit with 143, and
  the job puts itself back in the queue.
- SIGTERM from Slurm (preemption, scancel) is passed on in the same way, and the job leaves it to Slurm whether it comes
  back: with --requeue a preempted job and one whose node died do, a cancelled one does not. That is why the warning is
  not SIGTERM: the two could not be told apart. (A cluster that preempts should have
  PreemptParameters=send_user_signal, which sends the warning before a preemption too.)
- Any other failure is tried again within the same allocation, at most --max_failures times, after 30 s, 60 s, 120 s …
- Exit codes 0 (finished) and 2 (the flags make no sense) end the job.
"""

from absl import flags

from launch import common, scripts

WARNING = 120  # seconds before the time limit: enough for a checkpoint on a slow file system


def define(values: flags.FlagValues) -> None:
    word = r"[\w.+:/@%-]+"
    common.positive(values, "nodes", 1, "Nodes.")
    common.positive(values, "gpus_per_node", 1, "GPUs of each node.")
    common.positive(values, "tasks_per_node", None, "1, or as many as GPUs; by default one task for each GPU.")
    common.text(values, "partition", None, "Partition.", r"[\w.,-]+", "letters, digits, _ . , -")
    common.text(values, "account", None, "Account.", r"[\w.-]+", "letters, digits, _ . -")
    duration = r"\d+(-\d+(:\d+(:\d+)?)?|:\d+(:\d+)?)?"
    common.text(values, "time", "24:00:00", "Time limit.", duration, "Slurm's forms: 90, 12:00:00, 2-00:00:00")
    common.text(values, "job_name", "pdiff", "Name of the job.", r"[\w.-]+", "letters, digits, _ . -")
    common.text(values, "output", "slurm-%j.out", "File for the output.", word, "a path without spaces")
    common.text(values, "venv", None, "Virtual environment to use.", r"/[^\n\r\0]+", "an absolute path")
    common.positive(values, "max_failures", 3, "How many failures, other than the time limit, are tried again.")
    flags.DEFINE_boolean("requeue", True, "Back into the queue when time is up or preempted.", flag_values=values)
    flags.register_multi_flags_validator(
        ["tasks_per_node", "gpus_per_node"],
        lambda v: v["tasks_per_node"] in (None, 1, v["gpus_per_node"]),
        "--tasks_per_node: allowed: 1, or as many as --gpus_per_node",
        flag_values=values,
    )


def script(values: flags.FlagValues, passed: list[str]) -> str:
    """The sbatch script."""
    tasks = values.tasks_per_node or values.gpus_per_node
    options = {
        "job-name": values.job_name,
        "nodes": values.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": values.gpus_per_node,  # not per task: JAX picks the GPU of a task by its local id among all
        "time": values.time,
        "partition": values.partition,
        "account": values.account,
        "output": values.output,
        "open-mode": "append",
        "signal": f"B:USR1@{WARNING}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    environment = []
    if values.venv:
        environment.append(f'export PATH={common.quoted([values.venv + "/bin"])}:"$PATH"')
    if tasks == 1 and values.gpus_per_node > 1:  # JAX would give each task of Slurm one GPU
        environment.append(f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(values.gpus_per_node)))}")
    return common.fill(
        scripts.SLURM,
        directives="\n".join([*lines, f"#SBATCH --{'requeue' if values.requeue else 'no-requeue'}"]),
        environment="\n".join(environment),
        patiently=scripts.PATIENTLY,
        command=common.quoted(common.pdiff_main(passed)),
        requeue='scontrol requeue "$SLURM_JOB_ID"' if values.requeue else ":  # --norequeue",
        usage=common.USAGE,
        max_failures=values.max_failures,
    )


def main(argv: list[str]) -> int:
    return common.submit(argv, define, __doc__, script, lambda made: common.feed(["sbatch"], made))


if __name__ == "__main__":
    common.start(main)
