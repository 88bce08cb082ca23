"""What a program's memory is for, by type of operator: the table that Caffe2's
`estimate_memory_usage` gave, for the memory that a program really has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..graph.ir import Graph
from ..graph.storage import aliases
from ..kernels.ir import Launch, Prepared
from ..memory.plan import MemoryPlan
from ..text import human_bytes, table
from .alternatives import main_op


@dataclass(frozen=True, slots=True)
class OperatorMemory:
    """Bytes of one type of operator, in the graph after all passes.

    ops: how many there are. results, scratch: in the arena, if nothing shared its bytes; they add
    up to the plan's unshared bytes. at_bound: of these, alive in the step that needs most. fused:
    results that stay in registers, for they are computed and read within one kernel. views: results
    that lie in another blob. weights: constants, as the model holds them, at their first reader.
    """

    operator: str
    ops: int = 0
    results: int = 0
    scratch: int = 0
    at_bound: int = 0
    fused: int = 0
    views: int = 0
    weights: int = 0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """One row per type of operator, those with most bytes of results and scratch first."""

    rows: tuple[OperatorMemory, ...]

    @property
    def total(self) -> OperatorMemory:
        """All rows together."""
        return OperatorMemory("total", *(
            sum(getattr(r, f.name) for r in self.rows) for f in fields(OperatorMemory)[1:]
        ))  # fmt: skip

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(r) for r in self.rows]

    def __str__(self) -> str:
        """A table with totals, and the shares of the arena if nothing shared its bytes."""
        total = self.total
        whole = max(total.results + total.scratch, 1)
        rows = [
            (r.operator, r.ops, _amount(r.results), _amount(r.scratch),
             f"{100 * (r.results + r.scratch) / whole:.1f}",
             *map(_amount, (r.at_bound, r.fused, r.views, r.weights)))
            for r in (*self.rows, total)
        ]  # fmt: skip
        header = ("operator", "ops", "results", "scratch", "%", "at bound", "fused", "views",
                  "weights")  # fmt: skip
        return table(rows, header, "lrrrrrrrr")


def _amount(size: int) -> str:
    return human_bytes(size) if size else "-"


def memory_use(graph: Graph, launches: Sequence[Launch], plan: MemoryPlan) -> MemoryUse:
    """What the arena of a plan, and the constants beside it, are for.

    launches: of the plan's steps, in their order.
    """
    sums: dict[str, dict[str, int]] = {}
    for operator, field, count in _entries(graph, launches, plan):
        found = sums.setdefault(operator, {})
        found[field] = found.get(field, 0) + count
    rows = [OperatorMemory(operator, **counts) for operator, counts in sums.items()]
    return MemoryUse(
        tuple(sorted(rows, key=lambda r: (-r.results - r.scratch, -r.fused, r.operator)))
    )


def _entries(
    graph: Graph, launches: Sequence[Launch], plan: MemoryPlan
) -> Iterator[tuple[str, str, int]]:
    """(operator, field, how much) of everything there is."""
    for op in graph.ops:
        yield op.operator, "ops", 1
    owner = {n: op.operator for n, op in graph.producer.items()}
    for block in plan.ranges:
        size = -(-block.bytes // plan.alignment) * plan.alignment
        if not block.members:  # scratch, alive in its step alone
            launch = launches[block.first]
            owner[block.name] = main_op(tuple(graph.ops[k] for k in launch.ops)).operator
            yield owner[block.name], "scratch", size
        for member in block.members:
            yield owner[member], "results", size
    for region in plan.regions:
        for block in region.ranges:
            size = -(-block.bytes // plan.alignment) * plan.alignment
            for member in block.members:
                if member != region.name:
                    yield owner[member], "results", size
    for name, size in plan.peak:
        yield owner[name], "at_bound", size
    shared = aliases(graph)
    in_memory = {*plan.offsets, *(n for region in plan.regions for n in region.offsets)}
    for name, op in graph.producer.items():
        size = graph.type(name).nbytes
        if name in shared:
            yield op.operator, "views", size
        elif name not in in_memory and name not in graph.outputs:
            yield op.operator, "fused", size
    yield from _weights(graph, launches)


def _weights(graph: Graph, launches: Sequence[Launch]) -> Iterator[tuple[str, str, int]]:
    """Every constant that kernels read, at the first op that reads it."""
    used: dict[str, None] = {}
    for launch in launches:
        for arg in launch.args:
            names = arg.blobs if isinstance(arg, Prepared) else () if arg is None else (arg,)
            used |= dict.fromkeys(n for n in names if graph.is_constant(n))
    for name in used:
        reader = graph.consumers[name][0]
        yield reader.operator, "weights", graph.type(name).nbytes
