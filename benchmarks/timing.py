"""Honest timing on a noisy machine: candidates take turns, so that a slow minute is slow for all of them.

A ratio of two candidates is the median of the ratios of their turns, with its quartiles as the spread; single times are
said for orientation alone. The limits are measured too: `peak_flops` and `copy_bandwidth`.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of several measurements, and their quartiles."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values) -> "Spread":
        low, median, high = np.percentile(np.asarray(values, float), (25, 50, 75))
        return cls(float(median), float(low), float(high), len(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} .. {_short(self.high)})"


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds of each candidate in each turn, in units of `per` (what one call does, such as 128 networks)."""

    seconds: dict[str, list[float]]

    def time(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])

    def against(self, ours: str, rivals: Iterable[str]) -> dict:
        """The fields `ours`, `rivals` and `ratios` of a row."""
        names = list(rivals)
        return {
            "ours": self.time(ours),
            "rivals": {name: self.time(name) for name in names},
            "ratios": {name: self.ratio(name, ours) for name in names},
        }

    def ratio(self, rival: str, ours: str) -> Spread:
        """How many times as long the rival takes."""
        return Spread.of(np.array(self.seconds[rival]) / np.array(self.seconds[ours]))


def take_turns(
    candidates: Mapping[str, Callable[[], object]], turns: int, work: Mapping[str, float] | None = None
) -> Turns:
    """Seconds of `candidates`, each called once in each turn, in an order that rotates; the first turn warms up.

    What a candidate returns is waited for. `work` says how many units of the same work one call of each does (1 by
    default), and seconds are of one unit: a slow rival may do a part of it.
    """
    names, seconds = list(candidates), {n: [] for n in candidates}
    for turn in range(turns + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            _wait(candidates[name]())
            elapsed = time.perf_counter() - start
            if turn:
                seconds[name].append(elapsed / (work or {}).get(name, 1))
    return Turns(seconds)


def _wait(result: object) -> None:
    """Until what was started is done, on a GPU in PyTorch too."""
    jax.block_until_ready(result)
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.synchronize()


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      path: which hot path.
      what: the work, with its sizes.
      unit: of what `ours` and `rivals` are seconds.
      ours: seconds of pdiff.
      rivals: seconds of each rival.
      ratios: how many times as long each rival takes.
      limit: what bounds the path physically, in words with its figure; '' if nothing does.
      share: the share of that limit which is reached, 1 is all; None where there is no limit.
      goals: each goal in words, and whether it is met.
      peak_mb: the most memory (10^6 bytes) that the process had while it ran.
      bounded_by: the setting that bounds that memory; '' where nothing needs to.
      notes: one sentence where a figure needs it.
      flops, moved: floating-point operations of one unit, and bytes to and from memory as XLA's program moves them, for
        the roofline plot.
    """

    path: str
    what: str
    unit: str
    ours: Spread
    rivals: dict[str, Spread] = dataclasses.field(default_factory=dict)
    ratios: dict[str, Spread] = dataclasses.field(default_factory=dict)
    limit: str = ""
    share: Spread | None = None
    goals: dict[str, bool] = dataclasses.field(default_factory=dict)
    peak_mb: float | None = None
    bounded_by: str = ""
    notes: str = ""
    flops: float | None = None
    moved: float | None = None


def peak_flops(turns: int = 12, size: int | None = None) -> float:
    """FLOP/s of the machine in a large product of float32 matrices: the best turn of JAX's, and of PyTorch's on a CPU.

    The best and not the median, since this is a limit. On a GPU it is at JAX's default precision, TF32.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    x = np.random.default_rng(0).standard_normal((size, size), np.float32)
    on_device = jnp.asarray(x)
    product = jax.jit(lambda a: a @ a)
    candidates = {"jax": lambda: product(on_device)}
    with contextlib.suppress(ImportError):
        import torch

        if jax.default_backend() == "cpu":
            tensor = torch.from_numpy(x)
            candidates["torch"] = lambda: tensor @ tensor
    measured = take_turns(candidates, turns)
    return 2 * size**3 / min(min(s) for s in measured.seconds.values())


def copy_bandwidth(megabytes: int = 256, turns: int = 8) -> float:
    """Bytes/s that memory moves in a large copy, one read and one write counted each: the best turn of `memcpy`."""
    source = np.ones(megabytes << 20, np.uint8)
    target = np.empty_like(source)
    measured = take_turns({"copy": lambda: np.copyto(target, source)}, turns)
    return 2 * source.nbytes / min(measured.seconds["copy"])


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Appends the most memory (10^6 bytes) that this process had inside, if the system tells (Linux)."""
    found: list[float] = []
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    yield found
    with contextlib.suppress(OSError, StopIteration):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        found.append(1024 * int(line.split()[1]) / 1e6)


def _short(x: float) -> str:
    return f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"
