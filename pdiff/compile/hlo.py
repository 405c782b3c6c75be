"""What one device does in a compiled program, read from its optimised HLO: matmuls, memory traffic, collectives.

XLA's own `cost_analysis` counts the body of a loop once and leaves out collectives. Here every instruction counts as
often as it runs: a computation as often as its callers, a loop's body `trip count` times that.

On TPU a matmul is a `convolution`, a reduce-scatter an all-reduce inside a computation of the name
`all-reduce-scatter`, and an asynchronous all-gather is spread over several fusions, all of which show the same
`channel_id`: it counts once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "token": 0} | {
    f"{sign}{bits}": max(1, bits // 8) for sign in "su" for bits in (2, 4, 8, 16, 32, 64)
}
# Instructions that move nothing by themselves.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota",
    "partition-id", "replica-id", "after-all", "opt-barrier", "copy-done", "custom-call",
}  # fmt: skip
SLICING = ("dynamic-slice", "slice", "gather")  # these read of their first operand what they return
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?\})?")
_CALLS = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array; `off_hbm` says that it lives in on-chip memory."""

    dtype: str
    dims: tuple[int, ...]
    off_hbm: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return self.size * BYTES.get(self.dtype, 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result, a tuple's in order
    operands: tuple[str, ...]
    attributes: str
    argument: str  # what stands between the parentheses

    def called(self, *which: str) -> list[str]:
        """Names of the computations that it calls as `which`."""
        return [name for kind, name in _CALLS.findall(self.attributes) if kind in which]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, and what one device has of it.

    Attributes:
      kind: one of KINDS.
      bytes: of the whole array on one device: the sum of an all-reduce, the result of an all-gather, the operand of a
        reduce-scatter, an all-to-all or a permute.
      group: devices that take part together.
      groups: the groups, or (permute) pairs, if the text lists them; else None.
      times: how often it runs in the program.
      shapes: of the larger of operands and results.
      source: the `op_name` of the code that it comes from.
    """

    kind: str
    bytes: int
    group: int
    groups: tuple[tuple[int, ...], ...] | None
    times: int
    shapes: tuple[Shape, ...]
    source: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all, on a ring (Thakur et al. 2005): 2 (n-1)/n for an all-reduce."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * factor * self.bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in one run of a program. `once` counts loops' bodies once, as XLA does."""

    matmul_flops: float
    matmul_flops_once: float
    hbm_bytes: float
    hbm_bytes_once: float
    collectives: tuple[Collective, ...]


def analyse(text: str) -> Work:
    """Reads the text of an optimised program (`compiled.as_text()`)."""
    computations, entry = parse(text)
    times = _times(computations, entry)
    fused = _fused(computations)
    flops, once, hbm, hbm_once = 0.0, 0.0, 0.0, 0.0
    for name, instructions in computations.items():
        if not times[name]:
            continue
        table = {i.name: i for i in instructions}
        matmuls = sum(_matmul_flops(i, table) for i in instructions)
        flops, once = flops + times[name] * matmuls, once + matmuls
        if name not in fused:
            moved = sum(_moved(i, table, computations) for i in instructions)
            hbm, hbm_once = hbm + times[name] * moved, hbm_once + moved
    partitions = int((re.search(r"num_partitions=(\d+)", text) or ("", 1))[1])
    return Work(flops, once, hbm, hbm_once, tuple(_collectives(computations, times, fused, partitions)))


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if heading := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = computations.setdefault(heading[2], [])
                entry = heading[2] if heading[1] else entry
        elif line.startswith("}"):
            current = None
        elif " = " in line:
            current.append(_instruction(line))
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    argument = rest[opening + 1 : closing]
    return Instruction(
        name=name.lstrip("%"),
        opcode=rest[end:opening].strip(),
        shapes=_shapes(rest[:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", argument)),
        attributes=rest[closing + 1 :],
        argument=argument,
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"no closing parenthesis in {text[:200]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), bool(space))
        for dtype, dims, space in _SHAPE.findall(text)
    )


def _times(computations: Mapping[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs. Functions of reductions and sorts run once for each element: here never."""
    times = collections.Counter({entry: 1})
    for name in reversed(computations):  # callers come after what they call
        for i in computations[name]:
            trips = _trip_count(i, computations) if i.opcode == "while" else 1
            called = i.called("calls", "body", "true_computation", "false_computation")
            called += i.called("to_apply") if i.opcode == "call" else []
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", i.attributes):
                called += re.findall(r"[\w.\-]+", branches)
            for one in called:
                times[one] += times[name] * trips
    return times


def _trip_count(loop: Instruction, computations: Mapping[str, list[Instruction]]) -> int:
    """XLA's own count, else from the constant that the condition compares a counter with and what the body adds to it.

    The counter of a scan starts at 0. It goes up by more than 1 where XLA has unrolled a loop.
    """
    if known := re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes):
        return int(known[1])
    pending, limits = loop.called("condition"), []
    while pending:
        for i in computations[pending.pop()]:
            pending += i.called("calls", "to_apply")
            limits += [_number(i)] if _number(i) is not None else []
    return -(-max(limits, default=1) // _increment(loop, computations))


def _increment(loop: Instruction, computations: Mapping[str, list[Instruction]]) -> int:
    """What the body adds to the counter that the condition compares; 1 if that is not clear."""
    condition = {i.name: i for i in computations[loop.called("condition")[0]]}
    body = {i.name: i for i in computations[loop.called("body")[0]]}
    compared = next((i for i in condition.values() if i.opcode == "compare"), None)
    counter = condition.get(compared.operands[0]) if compared else None
    place = re.search(r"index=(\d+)", counter.attributes) if counter else None
    results = list(body.values())[-1].operands
    result = body.get(results[int(place[1])]) if place and int(place[1]) < len(results) else None
    if result is None or result.opcode != "add":
        return 1
    return next((_number(body[o]) for o in result.operands if o in body and _number(body[o])), 1)


def _number(i: Instruction) -> int | None:
    """The value of a whole scalar constant."""
    plain = i.opcode == "constant" and i.shapes[0].dims == () and re.fullmatch(r"\d+", i.argument)
    return int(i.argument) if plain else None


def _fused(computations: Mapping[str, list[Instruction]]) -> set[str]:
    """Computations whose instructions do not go through memory: bodies of fusions and what they call."""
    fused: set[str] = set()
    for name in reversed(computations):
        for i in computations[name]:
            if name in fused or i.opcode not in ("while", "conditional", "call", "async-start"):
                fused.update(n for _, n in _CALLS.findall(i.attributes))
            elif i.opcode == "while":
                fused.update(i.called("condition"))
    return fused


def _matmul_flops(i: Instruction, table: Mapping[str, Instruction]) -> float:
    """2 for each multiplication and addition of a matrix product or convolution; taps on padding do not count."""
    if i.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
        lhs = table[i.operands[0]].shapes[0].dims
        return 2.0 * i.shapes[0].size * math.prod(lhs[int(d)] for d in (contracted[1].split(",") if contracted else ()))
    if i.opcode != "convolution":
        return 0.0
    lhs_labels, rhs_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes).groups()
    lhs, rhs, out = table[i.operands[0]].shapes[0].dims, table[i.operands[1]].shapes[0].dims, i.shapes[0].dims
    window = dict(re.findall(r"(\w+)=([\w\-x]+)", (re.search(r"window=\{([^}]*)\}", i.attributes) or ("", ""))[1]))
    taps = 1
    for label in filter(str.isdigit, out_labels):
        length, kernel = lhs[lhs_labels.index(label)], rhs[rhs_labels.index(label)]
        taps *= _valid_taps(int(label), window, length, kernel, out[out_labels.index(label)])
    inputs = rhs[rhs_labels.index("i")]  # of one feature group
    return 2.0 * taps * inputs * out[out_labels.index("b")] * out[out_labels.index("f")]


def _valid_taps(axis: int, window: Mapping[str, str], length: int, kernel: int, out: int) -> int:
    """Pairs of an output and a tap of the kernel that meet an element, along one spatial axis."""

    def field(name: str, default: str) -> str:
        values = window[name].split("x") if name in window else []
        return values[axis] if axis < len(values) else default

    stride, dilate, rhs_dilate = (int(field(n, "1")) for n in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(field("pad", "0_0").split("_")[0])
    reach = (length - 1) * dilate
    at = (o * stride + t * rhs_dilate - low for o in range(out) for t in range(kernel))
    return sum(1 for p in at if 0 <= p <= reach and p % dilate == 0)


def _moved(i: Instruction, table: Mapping[str, Instruction], computations: Mapping[str, list[Instruction]]) -> float:
    """Bytes that an instruction reads from and writes to memory, without what lives on the chip."""
    if i.opcode in FREE:
        return 0.0
    body = computations[i.called("calls")[0]] if i.opcode == "fusion" else None
    written = sum(s.bytes for s in i.shapes if not s.off_hbm)
    if i.opcode == "dynamic-update-slice":
        return 2.0 * table[i.operands[1]].shapes[0].bytes
    if i.opcode in SLICING:
        return 2.0 * written
    if i.opcode == "copy-start":  # (destination, source, context)
        return float(sum(s.bytes for s in i.shapes[:2] if not s.off_hbm))
    if body and body[-1].opcode == "dynamic-update-slice":
        inner = {b.name: b for b in body}
        written = min(written, 2 * inner[body[-1].operands[1]].shapes[0].bytes)
    read = sum(_read(k, name, table, body) for k, name in enumerate(i.operands))
    return float(written + read)


def _read(position: int, name: str, table: Mapping[str, Instruction], body: list[Instruction] | None) -> float:
    """Bytes of an operand that are read: of one that a fusion only slices, the slices."""
    operand = table.get(name)
    if operand is None:
        return 0.0
    whole = sum(s.bytes for s in operand.shapes if not s.off_hbm)
    if not body or not whole:
        return whole
    parameter = next((b.name for b in body if b.opcode == "parameter" and b.argument == str(position)), None)
    users = [b for b in body if parameter in b.operands]
    if not users or any(b.operands[0] != parameter for b in users):
        return whole
    if all(b.opcode == "dynamic-update-slice" for b in users):
        return 0.0
    if all(b.opcode in SLICING for b in users):
        return min(whole, sum(s.bytes for b in users for s in b.shapes))
    return whole


def _collectives(
    computations: Mapping[str, list[Instruction]], times: Mapping[str, int], fused: set[str], partitions: int
) -> Iterator[Collective]:
    fewest: dict[str, tuple[int, str, str, Instruction]] = {}
    for name, instructions in computations.items():
        for i in instructions:
            kind = i.opcode.removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            key = channel[1] if channel and name in fused else f"%{i.name}"
            # One that goes on during a loop shows up in the loop's body, too, in part and as often as that runs.
            if key not in fewest or times[name] < fewest[key][0]:
                fewest[key] = (times[name], name, kind, i)
    for count, name, kind, i in fewest.values():
        kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
        yield _collective(kind, i, {j.name: j for j in computations[name]}, count, partitions)


def _collective(kind: str, i: Instruction, table: Mapping[str, Instruction], times: int, partitions: int) -> Collective:
    operands, results = tuple(s for o in i.operands if o in table for s in table[o].shapes), i.shapes
    if i.opcode.endswith("-start") and kind != "all-reduce":
        results = results[len(operands) : 2 * len(operands)]  # (operands, results, contexts)
    shapes = results if kind == "all-gather" else (operands or results)
    groups = _groups(kind, i.attributes)
    size = 2 if kind == "collective-permute" else len(groups[0]) if groups else partitions
    source = re.search(r'op_name="([^"]*)"', i.attributes)
    return Collective(kind, sum(s.bytes for s in shapes), size, groups, times, shapes, source[1] if source else i.name)


def _groups(kind: str, text: str) -> tuple[tuple[int, ...], ...] | None:
    """Replica groups from any of the ways to write them: lists, iota, or axes of a mesh. None is all together."""
    attribute = "source_target_pairs" if kind == "collective-permute" else "replica_groups"
    if lists := re.search(rf"{attribute}=\{{(\{{[\d,{{}}]*\}})\}}", text):
        return tuple(tuple(int(n) for n in ids.split(",")) for ids in re.findall(r"\{([\d,]+)\}", lists[1]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        count, size, *ids = iota.groups()
        return _rows(_iota(*ids).reshape(int(count), int(size)))
    devices = r"(?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+)\))?"
    axes = re.search(rf"replica_groups=mesh\[([^\]]*)\]{devices}\s*\{{([^}}]*)\}}", text)
    return _mesh_groups(*axes.groups()) if axes else None


def _iota(dims: str, order: str | None) -> Int[np.ndarray, "..."]:
    sizes = [int(d) for d in dims.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(d) for d in order.split(",")]) if order else ids


def _mesh_groups(mesh: str, devices: str | None, used: str) -> tuple[tuple[int, ...], ...]:
    """Groups over the axes `used` of a mesh of `devices`: of ids one by one, of an iota, or in their own order."""
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
    names, over = list(sizes), re.findall(r"'(\w+)'", used)
    iota = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", devices or f"[{math.prod(sizes.values())}]")
    ids = _iota(*iota.groups()) if iota else np.array([int(n) for n in devices.split(",")])
    order = [n for n in names if n not in over] + over
    ids = ids.reshape(list(sizes.values())).transpose([names.index(n) for n in order])
    return _rows(ids.reshape(-1, math.prod(sizes[n] for n in over)))


def _rows(ids: Int[np.ndarray, "groups size"]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, ids.tolist()))
