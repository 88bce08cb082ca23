"""What lies between kernels is as narrow as it can be: casts from half floats go to who reads them.

Where models of half floats are computed in float32 between casts, fusion has a kernel widen its
result for the next one, or a kernel that does nothing else. Either writes and reads twice the
bytes. A kernel that loads half floats instead converts them in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ops.operator import Contraction, Elementwise, Opaque, Recurrence, View
from ...ops.types import HALF, f32
from ..graph.ir import Blob, Graph, Op
from .base import UNLIMITED, Fuel, OptionalPass


@dataclass(frozen=True)
class Widen(OptionalPass):
    """Behind fusion: a kernel that reads a half float widened to float32 gets a cast of its own,
    and the one that made it keeps none. All readers or none, so that nothing is written twice."""

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        members = {ops[0].group: ops for ops in graph.groups if ops[0].group is not None}
        blobs, gone = dict(graph.blobs), set()
        first: dict[int, list[Op]] = {}  # casts that a group begins with
        names: dict[tuple[int, str], str] = {}  # what a group calls a widened blob
        for op in graph.ops:
            readers = _others(graph, op)
            if not readers or not all(_takes(members[g], op.outputs[0]) for g in readers):
                continue
            if not fuel.take(f"widen: cast {op.outputs[0]!r}"):
                continue
            wide = op.outputs[0]
            for g in readers:
                name = names[g, wide] = _fresh(blobs, wide)
                blobs[name] = Blob(name, graph.type(wide))
                moved = replace(op, outputs=(name,), group=g)
                first.setdefault(g, []).append(moved)
            if all(u.group != op.group for u in graph.consumers[wide]):
                gone.add(wide)
                del blobs[wide]
        if not first:
            return graph
        made: list[Op] = []
        for op in graph.ops:
            made += first.pop(op.group, []) if op.group is not None else []
            if gone.isdisjoint(op.outputs):
                made.append(_renamed(op, names))
        return replace(graph, ops=tuple(made), blobs=blobs)


def _others(graph: Graph, op: Op) -> list[int]:
    """The groups other than its own that read a cast from half floats to float32; none for other
    ops."""
    out = op.outputs[0]
    if op.operator != "cast" or op.group is None or out in graph.outputs:
        return []
    if graph.type(op.reads[0]).dtype not in HALF or graph.type(out).dtype is not f32:
        return []
    groups = dict.fromkeys(u.group for u in graph.consumers[out] if u.group != op.group)
    return [] if None in groups else [g for g in groups if g is not None]


def _takes(ops: Sequence[Op], blob: str) -> bool:
    """Whether the kernel of a group can convert what it loads of a blob: a loop nest, or a
    contraction that reads it behind the product. Factors of products stay as templates match them,
    and views alone are no kernel."""
    if all(op.has(View) and not op.has(Elementwise) for op in ops):
        return False
    for op in ops:
        if op.definition.compute is None or op.has(Opaque) or op.has(Recurrence):
            return False
    products = [op for op in ops if op.has(Contraction)]
    readers = [op for op in ops if blob in op.reads]
    return not products or (len(products) == 1 and all(op.has(Elementwise) for op in readers))


def _fresh(blobs: dict[str, Blob], name: str) -> str:
    count = 1
    while f"{name}_{count}" in blobs:
        count += 1
    return f"{name}_{count}"


def _renamed(op: Op, names: dict[tuple[int, str], str]) -> Op:
    """The op, reading what its group calls its inputs."""
    if op.group is None or not any((op.group, n) in names for n in op.reads):
        return op
    group = op.group
    return replace(op, inputs=tuple(None if n is None else names.get((group, n), n)
                                    for n in op.inputs))  # fmt: skip
