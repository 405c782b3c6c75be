r"""A run on the TPU VMs of one slice, through gcloud: writes a bash script and runs it.

    python -m launch.tpu_vm --name=pdiff --project=my-project --zone=us-west4-a --accelerator_type=v5litepod-16 --spot \
        --setup='sudo mkdir -p /mnt/pdiff && sudo mount -t nfs 10.0.0.2:/share /mnt/pdiff' --delete -- \
        --config=configs/interp.py --workdir=/mnt/pdiff/runs/interp

The script asks for the slice as a queued resource, waits until it is there, runs --setup, installs pdiff and runs
`python -m pdiff.main` on all workers; the processes find each other by the slice's metadata. The workdir must lie on a
file system that all workers share (NFS, Filestore, a bucket through gcsfuse), which --setup mounts. A local folder is
packed once, when the script starts; with a git URL give --revision, so that a slice made anew runs the same code.

How it resumes, always by the very same command:
- The slice is gone (spot: PREEMPTED or SUSPENDED) or being repaired: it is deleted and asked for again, without limit.
- The slice is there and the run failed (143: it was told to stop; 134, 137: crashed or killed; 1: an error; 255: the
  connection was lost): tried again after 30 s, 60 s, 120 s …, at most --max_failures times in a row; a run of more than
  an hour starts the count anew. Whatever of the last one is still running is stopped first.
- Exit codes 0 (finished) and 2 (the flags make no sense) end it. So do Ctrl-C and SIGTERM, after which the run saves.
At the end the slice is deleted if --delete is given; else it stays, and costs, and the script says so.
"""

import shlex
from pathlib import Path

from absl import flags

from launch import common, scripts
from pdiff.errors import PdiffError

WORD = (r"[\w.:-]+", "letters, digits, _ . : -")
NAME = (r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "at most 63 of a-z, 0-9, -; a letter first, no - last")


def define(values: flags.FlagValues) -> None:
    common.text(values, "name", None, "Name of the slice.", *NAME, required=True)
    common.text(values, "project", None, "Google Cloud project.", *WORD, required=True)
    common.text(values, "zone", None, "Zone.", r"[a-z]+-[a-z]+\d+-[a-z]", "as us-west4-a", required=True)
    common.text(values, "accelerator_type", "v5litepod-16", "Kind and size.", r"v\d\w*-\d+", "as v5litepod-16, v6e-8")
    common.text(values, "version", "v2-alpha-tpuv5-lite", "TPU software version.", *WORD)
    common.text(values, "repository", ".", "Git URL, or a local folder to copy, where pdiff's setup.py is.")
    common.text(values, "revision", None, "Git branch, tag or commit.", r"[\w./-]+", "letters, digits, _ . / -")
    common.text(values, "setup", "true", "Shell command for every worker before the installation, such as a mount.")
    common.positive(values, "max_failures", 3, "How many failures in a row are tried again.")
    flags.DEFINE_boolean("spot", False, "Cheaper, and preempted at times.", flag_values=values)
    flags.DEFINE_boolean("delete", False, "Delete the slice at the end.", flag_values=values)


def _source(values: flags.FlagValues) -> dict[str, str]:
    """How the code gets there: what to do once, what for every slice, and what on each worker."""
    repository = values.repository
    if "://" in repository or repository.startswith("git@"):
        checkout = f" && git -C ~/pdiff checkout --quiet {shlex.quote(values.revision)}" if values.revision else ""
        clone = f"{{ [ -d ~/pdiff/.git ] || git clone --quiet {shlex.quote(repository)} ~/pdiff; }}{checkout}"
        return {"pack": "", "copy": "code=0", "unpack": clone}
    folder = Path(repository).resolve()
    if not (folder / "setup.py").is_file():
        raise PdiffError(f"--repository: got {repository}; allowed: a git URL or a folder with pdiff's setup.py")
    return {
        "pack": 'tar -czf "$scratch/pdiff.tar.gz" --exclude=./.git --exclude=./runs --exclude=./.venv --exclude=./venv '
        f"-C {shlex.quote(str(folder))} . || exit",
        "copy": 'patiently tpus tpu-vm scp "$scratch/pdiff.tar.gz" "$name":pdiff.tar.gz --worker=all',
        "unpack": scripts.UNPACK,
    }


def script(values: flags.FlagValues, passed: list[str]) -> str:
    """The bash script.

    Raises:
      PdiffError: the local folder is not a copy of pdiff.
    """
    source = _source(values)
    run = f"{scripts.STOP}; cd ~/pdiff && echo $$ > ~/pdiff.pid && exec "
    create = [f"--accelerator-type={values.accelerator_type}", f"--runtime-version={values.version}"]
    return common.fill(
        scripts.TPU_VM,
        name=values.name,
        project=values.project,
        zone=values.zone,
        create=common.quoted(create + ["--spot"] * values.spot),
        setup=shlex.quote(f"{scripts.STOP}; ({values.setup}) && {source['unpack']} && {scripts.INSTALL}"),
        run=shlex.quote(run + common.quoted(common.pdiff_main(passed, ".venv/bin/python"))),
        stop=shlex.quote(scripts.STOP),
        pack=source["pack"],
        copy=source["copy"],
        patiently=scripts.PATIENTLY,
        delete=str(values.delete).lower(),
        usage=common.USAGE,
        max_failures=values.max_failures,
    )


def main(argv: list[str]) -> int:
    return common.submit(argv, define, __doc__, script, lambda made: common.replace_process(["bash", "-c", made]))


if __name__ == "__main__":
    common.start(main)
