"""How many devices a CPU's cores become, and where compiled programs are kept."""

import os
import subprocess
import sys

import pytest

from configs import smoke
from pdiff.system import machine


@pytest.mark.parametrize(
    "cores, batch, chunk, model, microbatches, expected",
    [
        (1, 64, 128, 1, 1, 1),
        (2, 64, 128, 1, 1, 2),
        (6, 64, 128, 1, 1, 4),  # 6 and 5 do not divide the batch
        (12, 48, 96, 1, 1, 12),
        (64, 64, 128, 1, 1, 16),  # never more than that
        (8, 7, 128, 1, 1, 1),
        (8, 64, 100, 1, 1, 4),  # nor the zoo's chunks
        (8, 8, 128, 1, 4, 2),  # a part of a batch has to divide
        (8, 8, 128, 4, 4, 8),  # and only over the devices that split it
        (3, 64, 128, 4, 1, 1),
    ],
)
def test_cores_become_devices_as_far_as_batches_divide(cores, batch, chunk, model, microbatches, expected):
    config = smoke.get_config()
    with config.unlocked():
        config.train.update(dict(batch_size=batch, microbatches=microbatches))
        config.zoo.chunk_size, config.mesh.model = chunk, model
    assert machine.cpu_devices(cores, config) == expected


def test_without_a_config_every_core_is_a_device():
    assert machine.cpu_devices(6) == 6


PROGRAM = """
import jax
from pdiff.system import machine
machine.set_up()
print(jax.device_count(), jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize(
    "said, devices",
    [({}, len(os.sched_getaffinity(0))), ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
     ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3)],
)  # fmt: skip
def test_what_the_environment_says_holds(said, devices, tmp_path):
    ours = ("JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    plain = {k: v for k, v in os.environ.items() if k not in ours} | {"XDG_CACHE_HOME": str(tmp_path)}

    def run(environment):
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert run(plain | said) == [str(min(devices, machine.MOST_DEVICES)), str(tmp_path / "pdiff" / "compiled")]
    if not said:
        assert run(plain | {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"})[1] == "/elsewhere"


@pytest.mark.parametrize("platforms, said, level", [
    ("cpu", "", 1), ("cpu", "--xla_backend_optimization_level=2", 2), ("cuda,cpu", "", None),
])  # fmt: skip
def test_a_cpu_alone_compiles_lightly_unless_told_a_level(platforms, said, level, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", said)
    before = machine.jax.config.jax_platforms
    machine.jax.config.update("jax_platforms", platforms)
    try:
        machine.compile_lightly()
    finally:
        machine.jax.config.update("jax_platforms", before)
    assert os.environ["XLA_FLAGS"] == (f"--xla_backend_optimization_level={level}" if level else "")


@pytest.mark.parametrize("said, seconds", [("", 600), ("--xla_cpu_collective_call_terminate_timeout_seconds=7", 7)])
def test_a_busy_core_is_waited_for_unless_the_environment_says_how_long(said, seconds, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", said)
    machine.wait_for_cores()
    assert os.environ["XLA_FLAGS"] == f"{machine.PATIENCE}={seconds}"


def test_the_level_reaches_the_compiler():
    """It is read when the first device starts, so set_up comes in time."""
    program = f"""{PROGRAM}
from jax._src.lib import xla_client
print(xla_client.CompileOptions().executable_build_options.debug_options.xla_backend_optimization_level)
"""
    plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    ran = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == "1"
