"""Runs of two processes: the bits of one, whatever happens on the way, and no process left waiting for another."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pdiff import results as results_lib
from pdiff.errors import PdiffError
from pdiff.generator import generator
from pdiff.system import dist, processes
from pdiff.system.checkpoint import Checkpoints
from pdiff.training import stages
from pdiff.training import train as train_lib

ROOT = Path(__file__).parents[2]
MEAN_STEPS, STEPS, EVERY = 24, 40, 8
TINY = (
    "--config=configs/smoke.py", "--config.tasks.num_seen=8", "--config.tasks.num_interp=2",
    "--config.tasks.num_unseen=2", "--config.tasks.num_validation=2", "--config.zoo.pretrain_steps=10",
    "--config.zoo.steps=5", "--config.zoo.chunk_size=8", "--config.model.depth=1",
    "--config.condition.use=('factors',)", "--config.sample.condition=('factors',)",
    "--config.sample.samplers=('posterior_mean',)", "--config.mean.functional_weight=0.",
    "--config.mean.zoo_weight=1.", f"--config.mean.steps={MEAN_STEPS}", "--config.refined.networks=64",
    f"--config.train.steps={STEPS}", f"--config.train.checkpoint_every={EVERY}",
    f"--config.train.validate_every={STEPS}",
    "--config.eval.rivals=", "--config.eval.mixing_separations=()",
    "--config.eval.vague_samples=0", "--config.eval.calibration_samples=0", "--config.eval.adapt_tasks=0",
    "--config.mesh.model=2", "--config.mesh.fsdp=True",
)  # fmt: skip
DEVICES = 4


@pytest.fixture(scope="module")
def environment():
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def start(environment, number, *command):
    """Processes of one run, each with its share of the devices."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"--coordinator_address=localhost:{probe.getsockname()[1]}"
    shared = environment | {"JAX_NUM_CPU_DEVICES": str(DEVICES // number)}
    return [
        subprocess.Popen(
            [sys.executable, *command, address, f"--num_processes={number}", f"--process_id={i}"],
            cwd=ROOT, env=shared, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for i in range(number)
    ]  # fmt: skip


def pdiff_main(workdir):
    return "-m", "pdiff.main", *TINY, f"--workdir={workdir}"


def ends(running, seconds):
    """Exit codes and what was said, of processes that end within that time."""
    deadline = time.monotonic() + seconds
    said = [p.communicate(timeout=max(1, deadline - time.monotonic()))[1] for p in running]
    return [p.returncode for p in running], said


def launched(environment, number, workdir):
    command = [sys.executable, "-m", "launch.local", f"--processes={number}", f"--devices={DEVICES // number}", "--"]
    return subprocess.run(
        [*command, *pdiff_main(workdir)[2:]], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300
    )


# A run whose process 1 gets a SIGNAL after the first checkpoint in FOLDER, and whose steps are slow from there on: JAX
# looks for signals once a second, and a fast machine would be done by then.
SIGNALLED = """
    import os, signal, time
    from absl import app
    from pdiff import config, main
    from pdiff.system import checkpoint, processes, stopping

    save, requested = checkpoint.Checkpoints.save, stopping.StopSignal.requested

    def slow(self):
        time.sleep(0.25)
        return requested(self)

    def save_and_signal(self, *args):
        save(self, *args)
        if self.directory.name == FOLDER and stopping.StopSignal.requested is requested:
            stopping.StopSignal.requested = slow
            if not processes.is_first():
                os.kill(os.getpid(), signal.SIGNAL)

    checkpoint.Checkpoints.save = save_and_signal
    app.run(main.main, flags_parser=config.parse_flags)
"""


def signalled(folder, name):
    return "-c", textwrap.dedent(SIGNALLED).replace("FOLDER", repr(folder)).replace("signal.SIGNAL", f"signal.{name}")


@pytest.fixture(scope="module")
def straight(environment, tmp_path_factory):
    """A run of two processes with two devices each that nothing happened to."""
    workdir = tmp_path_factory.mktemp("straight") / "w"
    done = launched(environment, 2, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def eventful(environment, tmp_path_factory):
    """The same run, begun by two processes of which one is killed while they train the mean, gone on with by two and
    stopped while they train the prior, and finished by one with four devices."""
    workdir = tmp_path_factory.mktemp("eventful") / "w"
    arguments = pdiff_main(workdir)[2:]
    killed = ends(start(environment, 2, *signalled(stages.MEAN, "SIGKILL"), *arguments), 300)
    stopped = ends(start(environment, 2, *signalled(stages.CHECKPOINTS, "SIGTERM"), *arguments), 300)
    return workdir, killed, stopped, launched(environment, 1, workdir)


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_within_a_minute_and_says_why(eventful):
    """Takes 90 s with what comes before the other tests of these runs."""
    codes, said = eventful[1]
    assert codes == [1, -signal.SIGKILL]
    assert "process 1 of 2 has not been heard of for" in said[0] and "run the same command again to go on" in said[0]


@pytest.mark.slow
def test_sigterm_to_one_saves_and_ends_both(eventful):
    codes, said = eventful[2]
    assert codes == [128 + signal.SIGTERM] * 2
    assert all("stopped by SIGTERM after" in s and "all in a checkpoint; run the same command again" in s for s in said)


@pytest.mark.slow
def test_killed_stopped_and_finished_by_another_number_of_processes_it_ends_with_the_same_bits(straight, eventful):
    workdir, _, _, finished = eventful
    assert finished.returncode == 0, finished.stderr
    theirs, ours = (results_lib.read(w / "results.json") for w in (straight, workdir))
    for changing in ("timing", "created", "command", "commit"):
        del theirs[changing], ours[changing]
    assert ours == theirs
    one, another = (generator.load(w) for w in (straight, workdir))
    for a, b in zip(*(jax.tree.leaves(g.arrays()) for g in (one, another)), strict=True):
        np.testing.assert_array_equal(a, b)  # the trained mean, its networks and the subspace among them
    for a, b in zip(*(jax.tree.leaves(restored(w)) for w in (straight, workdir)), strict=True):
        np.testing.assert_array_equal(a, b)


def restored(workdir):
    """The prior's last state, on one device: parameters, their average and what the optimizer keeps."""
    mesh = dist.make_mesh(jax.devices()[:1])
    like = train_lib.fresh_state(stages.prior(generator.load(workdir), "", mesh), mesh)
    checkpoints = Checkpoints(workdir / stages.CHECKPOINTS, 2)
    step = checkpoints.steps()[-1]
    assert step == STEPS
    read = checkpoints.read(step, params=like.params, ema=like.ema, opt_state=like.opt_state)
    return dist.fetch([read.params, read.ema, read.opt_state])


PROGRAM = """
    import sys, time
    from absl import app, flags
    from pdiff import main  # its flags
    from pdiff.system import exits, processes
    from pdiff.errors import PdiffError

    def run(argv):
        with exits.said():
            given = flags.FLAGS
            processes.initialize(given.coordinator_address, given.num_processes, given.process_id)
            print("ready", file=sys.stderr, flush=True)
            ACT

    app.run(run)
"""


@pytest.mark.parametrize(
    "act, killed, code, message",
    [
        ("processes.barrier('here') if processes.is_first() else 1 / 0", None, 1, "process 1: ZeroDivisionError"),
        ("processes.barrier('here') if processes.is_first() else sys.exit(exits._leave('no disk', 7))", None, 1,
         "process 1: no disk"),
        ("time.sleep(99)", 0, 1, "process 0 of 2, which coordinates the others, is gone"),
        ("processes.barrier('here', 2) if processes.is_first() else time.sleep(99)", None, 1,
         "waited 2 s in vain for all to be here"),
    ],
)  # fmt: skip
def test_the_failure_of_one_ends_all_with_its_message(environment, act, killed, code, message):
    """Takes 5 s each."""
    running = start(environment, 2, "-c", textwrap.dedent(PROGRAM).replace("ACT", act))
    if killed is not None:
        assert all("ready" in iter(p.stderr.readline, "ready\n") or True for p in running)
        running[killed].kill()
    codes, said = ends(running, 60)
    assert all(message in s for i, s in enumerate(said) if i != killed), said
    assert all(c for c in codes) and (killed is None or codes[1 - killed] == code)


@pytest.mark.parametrize(
    "given, message",
    [
        (("localhost:1", None, None), "--num_processes, --process_id: missing"),
        (("localhost:1", 2, 2), "--process_id: got 2; allowed: 0 to 1"),
    ],
)
def test_half_an_address_is_refused(given, message):
    with pytest.raises(PdiffError, match=message):
        processes.initialize(*given)


@pytest.mark.parametrize(
    "found, expected",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "JAX_PLATFORMS": "cuda"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, False),  # in the batch script itself, outside of srun
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, False),
    ],
)
def test_clusters_are_found_out(found, expected, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    assert processes._on_a_cluster() == expected


def test_one_process_needs_nothing(tmp_path):
    made = []
    processes.initialize()
    processes.on_first(lambda: made.append(1), "here")
    processes.barrier("here")
    assert made == [1] and processes.is_first() and processes.count() == 1
    assert processes.all_hold(True) and not processes.all_hold(False)


def test_barriers_between_them_leave_no_gap_in_the_chances_to_stop(monkeypatch):
    """JAX tells all processes to stop at one number, and only a call with that very number hears of it."""
    asked, waited = [], []
    monkeypatch.setattr(processes, "count", lambda: 2)
    client = SimpleNamespace(wait_at_barrier=lambda *given: waited.append(given))
    monkeypatch.setattr(processes.distributed.global_state, "client", client)
    monkeypatch.setattr(processes.multihost_utils, "reached_preemption_sync_point", lambda n: bool(asked.append(n)))
    for _ in range(3):
        processes.asked_to_stop()
        processes.barrier("here")
    assert len(waited) == 3 and np.all(np.diff(asked) == 1)


def test_a_process_without_a_new_beat_is_silent(monkeypatch):
    heard, now = {}, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for second in range(40):
        now[0] = float(second)
        beats = {"pdiff/alive/0": str(second), "pdiff/alive/1": str(min(second, 5))}
        message = processes._silent(beats, heard)
        assert (message is not None) == (second > 5 + processes.SILENCE)
    assert "process 1 of 1" in message
