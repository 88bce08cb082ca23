"""What becomes of the sums of `gpu_mma_body`: results, or parts of them for a second phase to add.

A long sum of few elements falls into parts where its tiles would leave most of a GPU idle. Each is
a block's, which writes its sums as they are; a thread of the second phase adds all parts of some
neighbours, from the first to the last, and makes results of them. So nothing depends on which block
is done first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...ops.expr import Expr, apply, cast, const, linear, var
from ...ops.traverse import substitute
from ...ops.types import HALF, DType
from ..graph.ir import Graph
from .address import offset
from .gpu_mma_operands import numbered
from .gpu_mma_product import Product, kept_wide
from .gpu_sharing import unflattened
from .ir import Buffer, Declare, Local, Phase, Set, Stmt, Store, loop
from .pieces import Buffers, trip_count

SUMS: Final = 4  # in the second phase, of a thread: 16 bytes


@dataclass(frozen=True, slots=True)
class Element:
    """What is stored for one sum, and where."""

    value: Expr
    at: Expr


class Results:
    """The epilogue of every sum."""

    def __init__(self, graph: Graph, product: Product, buffers: Buffers) -> None:
        self.product, self.p = product, product.p
        kind, p = graph.type(self.p.out), self.p
        self.dtype: DType = kind.dtype
        self.out: Buffer = buffers.write(p.out)
        self.at = offset(kind, p.at)
        total, self.known = apply("sum", (), p.dtype), apply("whole", (), product.total)
        plain = buffers.lower(substitute(p.value, {p.node: total}), None)
        if plain.dtype in HALF:  # a sum that is only rounded for the epilogue need not be
            known = {total: self.known, cast(total, plain.dtype): self.known}
            plain = kept_wide(plain, known)
        self.value = substitute(plain, {total: cast(self.known, p.dtype)})

    def element(self, total: Expr, batch: Expr, row: Expr, column: Expr) -> Element:
        """Of one sum."""
        where = unflattened(batch, self.p.batches)
        value, at = (
            substitute(numbered(numbered(e, self.p.rows, row), self.p.columns, column), where)
            for e in (self.value, self.at)
        )
        return Element(substitute(value, {self.known: total}), at)

    def neighbours(self, count: int) -> bool:
        """Whether that many elements of a row, from a multiple of it on, are so in memory."""
        terms, first = linear(self.at)
        last = self.p.columns[-1]
        whole = all(c % count == 0 for v, c in terms.items() if v is not last)
        return (whole and first % count == 0 and terms.get(last) == 1
                and trip_count(last) % count == 0)  # fmt: skip


class Parts:
    """Sums as they are, part after part, of each batch after batch, row after row."""

    def __init__(self, product: Product, parts: int, part: Expr) -> None:
        p = product.p
        self.p, self.parts, self.part = p, parts, part
        self.size = p.batch * p.m * p.n
        self.dtype: DType = product.total
        self.out = Buffer("s0", self.dtype, parts * self.size, "scratch")

    def element(self, total: Expr, batch: Expr, row: Expr, column: Expr) -> Element:
        """Of one sum."""
        at = self.part * self.size + (batch * self.p.m + row) * self.p.n + column
        return Element(total, at)

    def neighbours(self, count: int) -> bool:
        """As `Results.neighbours`."""
        return self.p.n % count == 0

    def added(self, results: Results) -> Phase:
        """The results of all parts added up in order; an item is a thread."""
        p = self.p
        g = next(k for k in (SUMS, 2, 1) if p.n % k == 0)
        item, q, v = var("item", self.size // g), var("part", self.parts), var("v", g)
        sums, made = Local("total", self.dtype, (g,)), Local("made", results.dtype, (g,))
        row, column = item // (p.n // g), item % (p.n // g) * g
        e = results.element(sums[v], row // p.m, row % p.m, column + v)
        more = sums[v] + self.out[q * self.size + item * g + v]
        body: tuple[Stmt, ...] = (
            Declare(sums), Declare(made),
            loop(v, (Set(sums, (v,), const(0, self.dtype)),), "unroll"),
            loop(q, (loop(v, (Set(sums, (v,), more),), "unroll"),), "unroll"),
            loop(v, (Set(made, (v,), e.value),), "unroll"),
            loop(v, (Store(results.out, e.at, made[v]),), "unroll"),
        )  # fmt: skip
        return Phase(self.size // g, item, body)
