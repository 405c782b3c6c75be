"""How JAX uses this machine. JAX has to know before it starts its devices, so the command line does this first."""

import importlib.util
import os
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

MOST_DEVICES = 16  # each holds a copy of the transformer and of its optimizer's state
CACHE_BYTES = 1 << 30
CACHE_FROM = 0.5  # seconds of compilation from which a program is kept
LLVM_LEVEL = "--xla_backend_optimization_level"
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"


def set_up(config: ConfigDict | None = None, all_cores: bool = True) -> None:
    """Does all of this for a run of `config`."""
    if all_cores:
        use_all_cores(config)
    compile_lightly()
    wait_for_cores()
    keep_compiled()


def use_all_cores(config: ConfigDict | None = None) -> None:
    """Makes every core of a CPU a device, as far as the batches of `config`, a valid one, divide over them.

    One XLA device uses one core for a small operation, and building a zoo consists of little else. If the environment
    says how many devices there are, that holds. GPUs and TPUs are used as they are.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", cpu_devices(len(os.sched_getaffinity(0)), config))


def cpu_devices(cores: int, config: ConfigDict | None = None) -> int:
    """The most devices, at most one a core, that a run of `config` can be laid out over; 1 if it says otherwise."""

    def fits(count: int) -> bool:
        if config is None:
            return True
        data, rest = divmod(count, config.mesh.model)
        batches = data * config.train.microbatches
        return not rest and not config.train.batch_size % batches and not config.zoo.chunk_size % count

    return next((n for n in range(min(cores, MOST_DEVICES), 1, -1) if fits(n)), 1)


def keep_compiled() -> None:
    """Keeps what XLA compiles, and finds it again in the next run, in `~/.cache/pdiff/compiled`.

    At most CACHE_BYTES: the least recently used goes first. If JAX has a directory already, it is used as it is.
    """
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "pdiff" / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHE_FROM)


def compile_lightly() -> None:
    """Leaves out LLVM's dearer optimizations where the CPU is all that JAX has, unless the environment says a level.

    Level 1 in place of 3 compiles in half to three quarters of the time. Training steps are as fast as before, as
    their products come from a library, and zoos are built a fifth faster (docs/performance.md).
    """
    _set_flag(LLVM_LEVEL, 1)


def wait_for_cores() -> None:
    """Gives each core of a CPU ten minutes to join a sum over devices, unless the environment says how long.

    After XLA's 40 seconds, which a busy machine may well need, the process would be aborted.
    """
    _set_flag(PATIENCE, 600)


def _set_flag(name: str, value: int) -> None:
    """Sets a flag of XLA that the environment does not set, where the CPU is all that JAX has."""
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags and _cpu_alone():
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}".strip()


def _cpu_alone() -> bool:
    """Whether JAX is set to use the CPU, or has no plugin for another device."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    plugins = metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("jax_plugins") is None
