"""Removes what no output needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..graph.ir import Graph, Role
from .base import UNLIMITED, Fuel, OptionalPass


@dataclass(frozen=True)
class DeadCode(OptionalPass):
    """Drops ops none of whose results is read, and constants that nothing reads.

    Inputs stay, because callers give them, and state stays, because it outlives a call.
    """

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        live = set(graph.outputs)
        kept = []
        for op in reversed(graph.ops):
            wanted = not live.isdisjoint(op.outputs)
            if wanted or not fuel.take(f"dead_code: {op.operator} {op.outputs[0]!r}"):
                kept.append(op)
                live.update(op.reads)
        made = {n for op in kept for n in op.outputs}
        blobs = {
            n: b
            for n, b in graph.blobs.items()
            if n in made or n in live or b.role in (Role.INPUT, Role.STATE)
        }
        if len(kept) == len(graph.ops) and len(blobs) == len(graph.blobs):
            return graph
        return replace(graph, ops=tuple(reversed(kept)), blobs=blobs)
