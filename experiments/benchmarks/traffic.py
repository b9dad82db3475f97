"""How many bytes a compiled GPU program moves, counted in its text: what memory-bound code costs, without a GPU.

Every kernel counts as reading its operands and writing its results once. Of our own kernels that is assumed: what they
read again is left out, which is B and C of the selective scan for every 128 channels (a fortieth of its traffic at 512)
and the keys that slot attention's backward pass brings in twice, where the second copy does not come from a cache.

Slices count at the size of the slice, updates in place at the size of the update, loops as often as they run. Caches
are ignored, as the arrays are larger.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
SIZES |= {"f64": 8, "c64": 8, "c128": 16}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
FREE |= {"replica-id", "copy-start", "copy-done", "opt-barrier"}
SLICES = {"slice", "dynamic-slice"}


class Op(NamedTuple):
    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    line: str


class Traffic(NamedTuple):
    """Bytes read and written, and how many kernels did it."""

    bytes: int
    kernels: int


def traffic(text: str) -> Traffic:
    """Count over the entry computation of an optimised HLO module, `compiled.as_text()`."""
    computations = _computations(text)
    return _count(computations, "ENTRY")


def _computations(text: str) -> dict[str, list[Op]]:
    found: dict[str, list[Op]] = {}
    current: list[Op] = []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line):
            current = found[head[2]] = []
            if head[1]:
                found["ENTRY"] = current
        elif op := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)$", line):
            operands = tuple(re.findall(r"%([\w.\-]+)", op[4].split("), ")[0]))
            current.append(Op(op[1], op[2], op[3], operands, line))
    return found


def _count(computations: dict[str, list[Op]], name: str) -> Traffic:
    shapes = {op.name: op.shape for op in computations[name]}
    total, kernels = 0, 0
    for op in computations[name]:
        if op.kind in FREE:
            continue
        called, times = _called(op)
        if op.kind in ("while", "call", "async-start", "conditional") and called in computations:
            inside = _count(computations, called)
            total, kernels = total + times * inside.bytes, kernels + times * inside.kernels
            continue
        kernels += 1
        operands = [_bytes(shapes.get(operand, "")) for operand in op.operands]
        if op.kind == "fusion" and called in computations:
            total += _fusion(computations[called], operands, _bytes(op.shape))
        elif op.kind in SLICES:
            total += 2 * _bytes(op.shape)
        elif op.kind == "dynamic-update-slice":
            total += 2 * operands[1]
        else:
            total += sum(operands) + _bytes(op.shape)
    return Traffic(total, kernels)


def _fusion(ops: list[Op], operands: list[int], written: int) -> int:
    """A parameter that is only sliced is read at the size of the slices; an update in place writes the update."""
    shapes = {op.name: op.shape for op in ops}
    read = 0
    updated = {}
    for op in ops:
        if op.kind == "dynamic-update-slice" and "ROOT" in op.line:
            updated[op.operands[0]] = _bytes(shapes[op.operands[1]])
            written = updated[op.operands[0]]
    for op in ops:
        if op.kind != "parameter":
            continue
        index = int(re.findall(r"parameter\((\d+)\)", op.line)[0])
        users = list(_users(ops, op.name))
        whole = operands[index] if index < len(operands) else 0
        if op.name in updated:
            continue
        if users and all(user.kind in SLICES for user in users):
            whole = min(whole, sum(_bytes(user.shape) for user in users))
        read += whole
    return read + written


def _users(ops: list[Op], name: str) -> Iterator[Op]:
    return (op for op in ops if name in op.operands)


def _called(op: Op) -> tuple[str, int]:
    called = re.search(r"(?:body|calls|to_apply)=%?([\w.\-]+)", op.line)
    trips = re.search(r'known_trip_count.{0,6}n.{0,4}"(\d+)"', op.line)
    return called[1] if called else "", int(trips[1]) if trips else 1


def _bytes(shape: str) -> int:
    arrays = re.findall(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]", shape)
    return sum(
        SIZES.get(kind, 0) * math.prod(int(n) for n in extent.split(",") if n) for kind, extent in arrays
    )
