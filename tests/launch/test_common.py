"""The split of argv, early errors and quoting."""

import re
import subprocess

import pytest
from absl import flags

from launch import common, gke, local, slurm, tpu_vm
from pdiff.errors import PdiffError
from tests.launch.conftest import PASSED

GKE = ["--image=a/b:1", "--pvc=shared"]
TPU = ["--name=n", "--project=my-project", "--zone=us-west4-a"]
RUN = ["--", "--config=c.py", "--workdir=/mnt/pdiff/w"]


def test_argv_is_split_at_the_first_bare_double_dash_and_not_changed():
    assert common.split(["--nodes=2", "--", *PASSED]) == (["--nodes=2"], PASSED)


@pytest.mark.parametrize("argv", [[], ["--nodes=2"], ["--nodes=2", "--"]])
def test_flags_for_pdiff_main_are_needed(argv):
    with pytest.raises(PdiffError, match="--: missing; allowed: flags of pdiff.main"):
        common.split(argv)


@pytest.mark.parametrize("bad", ["a\nb", "--x=a\rb", "--workdir=\n", "a\0b"])
def test_line_breaks_are_refused(bad):
    with pytest.raises(PdiffError, match="line break") as error:
        common.split(["--", "--config=c.py", bad])
    assert repr(bad) in str(error.value)


@pytest.mark.parametrize("bad", ["--process_id=1", "-num_processes", "--coordinator_address=a:1"])
def test_flags_that_the_launcher_gives_are_refused(bad):
    with pytest.raises(PdiffError, match="given by the launcher"):
        common.split(["--", bad])


def test_quoting_is_read_back_exactly_by_sh():
    text = common.quoted(["printf", "%s\\0", *PASSED])
    read = subprocess.run(["sh", "-c", text], capture_output=True, check=True).stdout.decode()
    assert read.split("\0")[:-1] == PASSED


def test_what_is_filled_in_is_not_read_as_a_template():
    assert common.fill("@a@ $b {c} @b@", a="@b@", b="@a@ \\1") == "@b@ $b {c} @a@ \\1"


@pytest.mark.parametrize(
    ("passed", "found"),
    [
        (["--workdir=a b"], "a b"),
        (["--x", "--workdir", "d"], "d"),
        (["-workdir=a=b"], "a=b"),
        (["--workdir="], ""),
        (["--workdirs=a"], None),
        (["--workdir"], None),
    ],
)
def test_the_workdir_is_found_among_the_flags(passed, found):
    assert common.workdir(passed) == found


@pytest.mark.parametrize(
    ("launcher", "own", "said"),
    [
        (slurm, ["--nodes=0"], "--nodes=0: allowed: a whole number of 1 or more"),
        (slurm, ["--nodes=two"], "--nodes=two: allowed: a whole number"),
        (slurm, ["--partition=a b"], "--partition=a b: allowed: letters"),
        (slurm, ["--job_name=a\n#SBATCH --x"], "allowed: letters"),
        (slurm, ["--time=tomorrow"], "--time=tomorrow: allowed: .*12:00:00"),
        (slurm, ["--venv=venv"], "--venv=venv: allowed: an absolute path"),
        (slurm, ["--gpus_per_node=4", "--tasks_per_node=3"], "tasks_per_node=3.*allowed: 1, or as many"),
        (slurm, ["--nodez=2"], "nodez"),
        (slurm, ["stray"], "stray: unknown; allowed before --"),
        (local, ["--processes=0"], "--processes=0: allowed: a whole number"),
        (local, ["--platform=abacus"], "--platform=abacus: .*cpu"),
        (tpu_vm, TPU[1:], "--name"),
        (tpu_vm, [*TPU, "--name=Bad_Name"], "--name=Bad_Name: allowed: .*a-z"),
        (tpu_vm, [*TPU, "--zone=mars"], "--zone=mars: allowed: as us-west4-a"),
        (tpu_vm, [*TPU, "--accelerator_type=h100"], "--accelerator_type=h100: allowed: as v5litepod-16"),
        (tpu_vm, [*TPU, "--setup=a\nb"], "allowed: one line"),
        (tpu_vm, [*TPU, "--repository=/nowhere"], "--repository: got /nowhere; allowed: a git URL or a folder"),
        (gke, [*GKE, "--name=Bad.Name"], "--name=Bad.Name: allowed: .*a-z"),
        (gke, [*GKE, "--topology=4x"], "--topology=4x: allowed: as 4x4"),
        (gke, [*GKE, "--topology=0x4"], "--topology=0x4: allowed: as 4x4"),
        (gke, [*GKE, "--topology=4x4x4"], "--topology: got 4x4x4; allowed for tpu-v5-lite-podslice: 2 numbers"),
        (gke, [*GKE, "--accelerator=tpu-v4-podslice"], "--topology: got 4x4; allowed for tpu-v4-podslice: 3"),
        (gke, [*GKE, "--topology=2x2", "--chips_per_node=8"], "--chips_per_node: got 8; allowed for 2x2"),
        (gke, [*GKE, "--chips_per_node=3"], "--chips_per_node=3: .*1\\|4\\|8"),
        (gke, [*GKE, "--gcs_bucket=b1"], "pvc.*gcs_bucket"),
        (gke, ["--image=a"], "pvc.*gcs_bucket"),
        (gke, [*GKE, "--gcs_bucket=gs://b"], "--gcs_bucket=gs://b: allowed: a name without gs://"),
    ],
)
def test_a_bad_flag_is_named_with_its_value_and_what_is_allowed(launcher, own, said):
    with pytest.raises((PdiffError, flags.Error)) as error:
        launcher.main(["--dry_run", *own, *RUN])
    assert re.search(said, str(error.value)), str(error.value)


@pytest.mark.parametrize("launcher", [local, tpu_vm, gke, slurm])
def test_help_is_the_docstring_and_the_flags(launcher, capsys):
    assert launcher.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert launcher.__doc__ in shown and "--[no]dry_run" in shown
