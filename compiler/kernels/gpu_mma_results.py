"""What becomes of the sums of `gpu_mma_body`: results; or parts of them, see `gpu_parts`."""

from __future__ import annotations

from ...ops.expr import Expr, apply, cast, const, linear
from ...ops.traverse import substitute
from ...ops.types import HALF, DType, boolean
from ..graph.ir import Graph
from .address import offset
from .gpu_mma_operands import numbered
from .gpu_mma_product import Product, kept_wide
from .gpu_parts import Element
from .gpu_sharing import unflattened
from .ir import Buffer
from .pieces import Buffers, trip_count


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

    def exists(self, row: Expr) -> Expr:
        """All rows that are numbered do."""
        return const(True, boolean)

    def neighbours(self, count: int) -> bool:
        """Whether that many elements of a row, from a multiple of it on, are so in memory."""
        terms, first = linear(self.at)
        last = self.p.columns[-1]
        whole = all(c % count == 0 for v, c in terms.items() if v is not last)
        return (whole and first % count == 0 and terms.get(last) == 1
                and trip_count(last) % count == 0)  # fmt: skip
