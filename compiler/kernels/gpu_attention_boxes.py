"""Operands of an attention as boxes that the unit of Hopper GPUs copies (see `tensor_map`): rows of
128 bytes, one box for every 64 elements of the operand's lines, with zeros behind the last element
and behind the last line.

Lines are queries, keys or values; along them go terms, or columns of the result. That is what
products of `warpgroup_chains` take of all three of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ...ops.expr import Expr, index
from ...ops.types import HALF
from ..graph.ir import Graph
from .gpu_attention_problem import Attention
from .gpu_contraction import Unfit
from .gpu_matrices import ROW, Matrix, load_of, matrix_of
from .ir import Call, Declare, Local, Stmt, TensorMap
from .pieces import Buffers, trip_count
from .tensor_map import MOST_DIM


@dataclass(frozen=True, slots=True)
class Boxes:
    """Lines of an operand, `count` of them in each of `stages` places in shared memory. length: of
    a line. batches: loops that the operand moves along."""

    tensor: TensorMap
    held: Local
    count: int
    length: int
    batches: tuple[Expr, ...]

    @property
    def terms(self) -> int:
        """Elements of 128 bytes."""
        return ROW // self.held.dtype.bytes

    @property
    def panels(self) -> int:
        """Boxes of a stage."""
        return -(-self.length // self.terms)

    @property
    def size(self) -> int:
        """Elements of a stage."""
        return self.panels * self.count * self.terms

    @property
    def nbytes(self) -> int:
        """Of a stage."""
        return self.panels * self.count * ROW

    def copied(
        self, stage: Expr, line: Expr, where: Mapping[Expr, Expr], barriers: Local, number: Expr
    ) -> tuple[Stmt, ...]:
        """One thread's calls for a stage that begins with a line, announced to a barrier. where:
        the batch."""
        rank = len(self.tensor.dims)
        rest = [where[v] for v in self.batches]
        copies = (
            Call(f"tma_load_{rank}d", (
                self.held, stage * self.size + panel * (self.count * self.terms), self.tensor,
                barriers, number, index(panel * self.terms), line, *rest,
            ))
            for panel in range(self.panels)
        )  # fmt: skip
        return Call("mbarrier_expect", (barriers, number, self.nbytes)), *copies

    def declared(self) -> Stmt:
        return Declare(self.held)


@dataclass(frozen=True, slots=True)
class Operands:
    """Queries, keys and values of an attention whose rows are one walk through the queries."""

    p: Attention
    queries: Matrix
    keys: Matrix
    values: Matrix

    def boxes(self, m: int, n: int, stages: int) -> tuple[Boxes, Boxes, Boxes]:
        """For tiles of m queries and n keys."""
        p = self.p
        return (
            self._boxes("q", self.queries, p.m, p.depth, m, 1),
            self._boxes("k", self.keys, p.n, p.depth, n, stages),
            self._boxes("v", self.values, p.n, p.width, n, stages),
        )

    def _boxes(
        self, name: str, x: Matrix, lines: int, length: int, count: int, stages: int
    ) -> Boxes:  # fmt: skip
        size = x.buffer.dtype.bytes
        moving = tuple(self.p.batches[k] for k in x.moving)
        steps = (x.row, *(x.batches[k] for k in x.moving))
        tensor = TensorMap(
            f"{name}_tiles", x.buffer, (length, lines, *map(trip_count, moving)),
            tuple(s * size for s in steps), (ROW // size, count, *(1 for _ in moving)),
        )  # fmt: skip
        held = -(-length * size // ROW) * count * ROW // size * stages
        local = Local(name, x.buffer.dtype, (held,), shared=True, align=1024)
        return Boxes(tensor, local, count, length, moving)


def operands_of(graph: Graph, p: Attention, buffers: Buffers) -> Operands:
    """How an attention's operands can be copied. Rows that are no walk through the queries, as
    those of heads that share keys, count batches but for the innermost ones that are. Raises Unfit,
    saying why they can't."""
    if p.dtype not in HALF:
        raise Unfit(f"operands of {p.dtype}")
    if max(p.m, p.n) > MOST_DIM:
        raise Unfit(f"more than {MOST_DIM} rows or keys")
    said = "it has one row"
    for k in range(len(p.rows)):
        with_rows = replace(p, rows=p.rows[k:], batches=(*p.batches, *p.rows[:k]))
        found = Buffers(graph)
        try:
            made = _operands(graph, with_rows, found)
        except Unfit as e:
            said = str(e)
            continue
        buffers.reads.update(found.reads)
        return made
    raise Unfit(said)


def _operands(graph: Graph, p: Attention, buffers: Buffers) -> Operands:
    def matrix(name: str, x: Expr, lines: Sequence[Expr], along: Sequence[Expr]) -> Matrix:
        load = load_of(x, HALF, name)
        found = matrix_of(graph, buffers, load, lines, along, p.batches, 0)
        if found.across and prod(map(trip_count, along)) > 1:
            raise Unfit(f"elements of a {name} lie {found.term} apart, not side by side")
        return found

    return Operands(
        p,
        matrix("query", p.q, p.rows, (p.term,)),
        matrix("key", p.k, (p.key,), (p.term,)),
        matrix("value", p.v, (p.key,), p.columns),
    )
