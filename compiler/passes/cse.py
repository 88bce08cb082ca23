"""Computes equal things once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ...ops.operator import View
from ..graph.ir import Array, Graph, Op, Role
from .base import UNLIMITED, Fuel, OptionalPass

_HEAD: Final = 64  # elements that are compared first


@dataclass(frozen=True)
class CommonSubexpressions(OptionalPass):
    """An op with the operator, attributes and inputs of an earlier one takes its results.

    Constants with equal bytes count as one where they have at most `max_bytes`: comparing larger
    ones costs more than it finds. Parameters are never merged with others, as training may tell
    them apart. Operators are functions of their inputs (random ones read a seed): this is always
    sound.
    """

    max_bytes: int = 1 << 20

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        same = self._equal_constants(graph, fuel)  # blob -> the earlier blob that takes its place
        ops: list[Op] = []
        first: dict[tuple[object, ...], int] = {}  # what an op computes -> its place in `ops`
        for op in graph.ops:
            op = replace(op, inputs=tuple(n and same.get(n, n) for n in op.inputs))
            layouts = tuple(t.layout for t in graph.output_types(op))
            # repr tells 1 from 1.0 and True, and 0.0 from -0.0
            key = (op.operator, op.inputs, repr(op.attrs), op.group, layouts)
            place = first.setdefault(key, len(ops))
            wanted = [n for n in op.outputs if n in graph.outputs]
            # a view under the name of an output is as cheap as the copy that would replace it
            if (
                place == len(ops)
                or (wanted and op.has(View))
                or not fuel.take(f"cse: {op.operator} {op.outputs[0]!r}")
            ):
                ops.append(op)
                continue
            kept = ops[place]
            source = tuple(dict.fromkeys(kept.source + op.source))
            ops[place] = replace(kept, source=source)
            for mine, earlier in zip(op.outputs, kept.outputs, strict=True):
                same[mine] = earlier
                if mine in wanted:
                    copy = Op("identity", (earlier,), (mine,), (), op.name, op.source, op.group)
                    ops.append(copy)
        if not same:
            return graph
        made = {n for op in ops for n in op.outputs}
        merged = same.keys() - made - set(graph.outputs)
        blobs = {n: b for n, b in graph.blobs.items() if n not in merged}
        return replace(graph, ops=tuple(ops), blobs=blobs)

    def _equal_constants(self, graph: Graph, fuel: Fuel) -> dict[str, str]:
        """Constant -> an equal constant before it."""
        table: dict[tuple[object, bytes], list[str]] = {}
        out = {}
        for n in graph.constants:
            b = graph.blobs[n]
            value = b.content
            if b.role is not Role.CONSTANT or not isinstance(value, np.ndarray):
                continue
            if value.nbytes > self.max_bytes:
                continue
            alike = table.setdefault((b.type, value.reshape(-1)[:_HEAD].tobytes()), [])
            kept = next((k for k in alike if _same_bytes(value, graph.blobs[k].value)), None)
            if kept is None:
                alike.append(n)
            elif n not in graph.outputs and fuel.take(f"cse: constant {n!r}"):
                out[n] = kept
        return out


def _same_bytes(a: Array, b: Array | None) -> bool:
    """Whether two arrays of one type hold the same bits: -0.0 is not 0.0, a NaN equals itself."""
    if b is None:
        return False
    x, y = (np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in (a, b))
    return bool(np.array_equal(x, y))
