"""Where the time of a compiled program goes, operation by operation: a profiler's trace joined with the program's HLO.

On a CPU several threads run operations at once. At every moment the machine is shared evenly among the threads that
are in one, so that a sum over operations is wall-clock time: one that runs alone has the whole machine, whether it uses
all cores or not. Time in which no thread is in any is `IDLE`.
"""

import collections
import dataclasses
import gzip
import itertools
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax

from pdiff.compile import hlo

IDLE = ""  # the name of no operation
MATMULS = ("dot", "convolution")
MOVES = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy", "transpose", "reshape", "slice", "pad",
    "concatenate", "broadcast", "dynamic-slice", "dynamic-update-slice", "copy-start", "copy-done", "reverse",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Event:
    """One run of an operation on a thread; times in seconds."""

    name: str
    thread: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Operation:
    """What the HLO says of an operation.

    Attributes:
      source: the `op_name` of the code that asked for it, such as 'jit(step)/jvp(…)/dit/in/dot_general'.
      is_matmul: it is a matrix product, or a fusion with one in it.
      flops: of its matrix products; convolutions are not counted.
      only_moves: it computes nothing.
    """

    source: str
    is_matmul: bool
    only_moves: bool
    flops: float = 0.0


def trace(run: Callable[[], object], times: int, text: str) -> list[Event]:
    """The operations of the program with that text in `times` calls of `run`, whose result is waited for each time."""
    module = re.match(r"HloModule ([\w.\-]+)", text)[1]
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as where:
        with jax.profiler.trace(where, profiler_options=options):
            for _ in range(times):
                jax.block_until_ready(run())
        written = next(Path(where).rglob("*.trace.json.gz"))
        events = json.loads(gzip.decompress(written.read_bytes()))["traceEvents"]
    return [
        Event(e["args"]["hlo_op"], e["tid"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)
        for e in events
        if e.get("ph") == "X" and "hlo_op" in e.get("args", {}) and e["args"].get("hlo_module") == module
    ]


def operations(text: str) -> dict[str, Operation]:
    """Every operation of a program's text (`compiled.as_text()`) by name."""
    computations, _ = hlo.parse(text)
    inside: dict[str, set[str]] = {}
    tables = {name: {i.name: i for i in instructions} for name, instructions in computations.items()}

    def opcodes(name: str) -> set[str]:
        """Of everything that is run by the computation `name`."""
        if name not in inside:
            inside[name] = set()
            for i in computations.get(name, ()):
                inside[name] |= of_instruction(i)
        return inside[name]

    def of_instruction(i: hlo.Instruction) -> set[str]:
        called = i.called("calls", "to_apply", "body", "condition")
        return set().union(*(opcodes(c) for c in called)) if called else {i.opcode}

    def flops(i: hlo.Instruction, table: dict[str, hlo.Instruction]) -> float:
        if i.opcode == "dot":
            return _dot_flops(i, table)
        called = i.called("calls", "to_apply")
        return sum(flops(j, tables[c]) for c in called if c in tables for j in computations[c])

    found = {}
    for name, instructions in computations.items():
        for i in instructions:
            codes = of_instruction(i)
            source = re.search(r'op_name="([^"]*)"', i.attributes)
            is_matmul = i.opcode != "while" and not codes.isdisjoint(MATMULS)
            found[i.name] = Operation(
                source[1] if source else "", is_matmul, codes <= MOVES, flops(i, tables[name]) if is_matmul else 0.0
            )
    return found


def _dot_flops(i: hlo.Instruction, table: dict[str, hlo.Instruction]) -> float:
    """2 for each multiplication and addition."""
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", i.attributes)
    lhs = table[i.operands[0]].shapes[0].dims
    return 2.0 * i.shapes[0].size * math.prod(lhs[int(d)] for d in (contracted[1].split(",") if contracted else ()))


def seconds(events: Iterable[Event]) -> dict[str, float]:
    """Wall-clock seconds of each operation, the machine shared among those that run at once; they sum to the span."""
    changes = []
    for thread, own in _by_thread(events).items():
        for name, start, end in _innermost(own):
            changes += [(start, 1, thread, name), (end, 0, thread, IDLE)]
    changes.sort()  # at the same time, ends come before starts
    total, running = collections.Counter(), {}
    for (now, starts, thread, name), following in itertools.pairwise([*changes, None]):
        if starts:
            running[thread] = name
        else:
            running.pop(thread, None)
        if following and following[0] > now:
            for active in running.values() or (IDLE,):
                total[active] += (following[0] - now) / max(1, len(running))
    return dict(total)


def _by_thread(events: Iterable[Event]) -> dict[int, list[Event]]:
    found = collections.defaultdict(list)
    for event in events:
        found[event.thread].append(event)
    return found


def _innermost(events: list[Event]) -> Iterator[tuple[str, float, float]]:
    """(name, start, end) of when each of a thread's operations, which may lie in one another, is the innermost."""
    stack: list[Event] = []
    now = 0.0

    def until(moment: float) -> Iterator[tuple[str, float, float]]:
        """Ends all that end before `moment`, and what is then innermost reaches to it."""
        nonlocal now
        while stack and stack[-1].end <= moment:
            last = stack.pop()
            if last.end > now:
                yield last.name, now, last.end
                now = last.end
        if stack and moment > now:
            yield stack[-1].name, now, moment
        now = moment

    for event in sorted(events, key=lambda e: (e.start, -e.end)):
        yield from until(event.start)
        stack.append(event)
    yield from until(float("inf")) if stack else ()
