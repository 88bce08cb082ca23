"""A contraction as products of matrices whose elements lie at fixed distances, as the copying unit
and the tensor cores of Hopper GPUs need them.

Rows, columns and terms each have to be one walk through memory, in one step, for every operand that
they move. Loops that are no part of such a walk (the samples of a batch whose channels are rows)
count batches, which an operand may walk or stay where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from ...ops.expr import Expr
from ...ops.traverse import substitute
from ...ops.types import DType
from ..graph.ir import Graph
from ..graph.storage import aliases
from .address import offset
from .gpu_sharing import unflattened
from .gpu_tiles import Contraction
from .ir import Buffer
from .pieces import Buffers, stride, trip_count
from .tensor_map import MOST_AXES, WORD

ROW: Final = 128  # bytes of a row in shared memory


@dataclass(frozen=True, slots=True)
class Matrix:
    """An operand: elements from one row (or column, of the right one) to the next, from one term
    to the next, and of every loop over batches; one of the first two is 1."""

    buffer: Buffer
    row: int
    term: int
    batches: tuple[int, ...]

    @property
    def across(self) -> bool:
        """Whether rows lie side by side, and not terms."""
        return self.term != 1

    @property
    def moving(self) -> tuple[int, ...]:
        """The loops over batches that it walks along, by number."""
        return tuple(k for k, s in enumerate(self.batches) if s)


@dataclass(frozen=True, slots=True)
class Product:
    """The result: m rows, n columns, k terms; `at`: where its elements lie in `out` by the loops.
    value: an element, of which `node` is the sum of products."""

    out: str
    m: int
    n: int
    k: int
    batches: tuple[Expr, ...]
    rows: tuple[Expr, ...]
    columns: tuple[Expr, ...]
    left: Matrix
    right: Matrix
    value: Expr
    node: Expr
    at: Expr

    @property
    def dtype(self) -> DType:
        """Of the factors."""
        return self.left.buffer.dtype

    @property
    def batch(self) -> int:
        return prod(map(trip_count, self.batches))

    def strides(self) -> tuple[int, int, tuple[int, ...]] | None:
        """(elements between rows, between columns, and of every batch) of the result, if fixed."""
        rows, columns = (_walk(self.at, loops) for loops in (self.rows, self.columns))
        batches = [stride(self.at, v) for v in self.batches]
        found = [s for s in batches if s is not None]
        if rows is None or columns is None or len(found) < len(batches):
            return None
        return rows, columns, tuple(found)

    def where(self, batch: Expr, row: Expr, column: Expr) -> dict[Expr, Expr]:
        """The loops of an element."""
        parts = (unflattened(batch, self.batches), unflattened(row, self.rows),
                 unflattened(column, self.columns))  # fmt: skip
        return {v: e for part in parts for v, e in part.items()}


def product_of(
    graph: Graph, c: Contraction, buffers: Buffers, types: Sequence[DType]
) -> Product | None:  # fmt: skip
    """The contraction as a product of matrices that can be copied in boxes, if it is one."""
    sides = [_load(buffers, e, types) for e in (c.left, c.right)]
    if None in sides or sides[0][0].dtype is not sides[1][0].dtype:  # type: ignore[index]
        return None
    (a, a_at), (b, b_at) = sides  # type: ignore[misc]
    at = offset(graph.type(c.out), c.at)
    over = c.node.payload[1]
    outer_rows, rows = _split(c.rows, (a_at, at))
    outer_columns, columns = _split(c.columns, (b_at, at))
    batches = (*c.batches, *outer_rows, *outer_columns)
    if not rows or not columns:
        return None
    left = _matrix(a, a_at, rows, over, batches)
    right = _matrix(b, b_at, columns, over, batches)
    if left is None or right is None or not all(is_aligned(graph, n) for n in _blobs(graph, c)):
        return None
    m, n, k = (prod(map(trip_count, loops)) for loops in (rows, columns, over))
    return Product(c.out, m, n, k, batches, rows, columns, left, right, c.value, c.node, at)


def _blobs(graph: Graph, c: Contraction) -> list[str]:
    return [(e.args[0] if e.op == "cast" else e).payload for e in (c.left, c.right)]


def _load(
    buffers: Buffers, factor: Expr, types: Sequence[DType]
) -> tuple[Buffer, Expr] | None:  # fmt: skip
    """The buffer and the offset of a factor that is read as it is, or only widened."""
    plain = factor.args[0] if factor.op == "cast" else factor
    if plain.op != "load" or plain.dtype not in types:
        return None
    lowered = buffers.lower(plain, None)
    return lowered.payload, lowered.args[0]


def _matrix(
    buffer: Buffer, at: Expr, rows: Sequence[Expr], terms: Sequence[Expr], batches: Sequence[Expr]
) -> Matrix | None:
    row, term = _walk(at, rows), _walk(at, terms)
    each = [stride(at, v) for v in batches]
    found = tuple(s for s in each if s is not None)
    if row is None or term is None or len(found) < len(each) or 1 not in (row, term):
        return None
    zero = {v: v * 0 for v in (*rows, *terms, *batches)}
    made = Matrix(buffer, row, term, found)
    apart = (term if made.across else row, *(s for s in found if s))
    fits = all(s > 0 and s * buffer.dtype.bytes % WORD == 0 for s in apart)
    if not fits or len(apart) + 1 > MOST_AXES or not _is_zero(substitute(at, zero)):
        return None
    return made


def _is_zero(e: Expr) -> bool:
    return e.is_const and e.payload == 0


def _split(
    loops: tuple[Expr, ...], offsets: Sequence[Expr]
) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:  # fmt: skip
    """The longest run of innermost loops that is one walk for all offsets, and the loops ahead."""
    for k in range(len(loops)):
        if all(_walk(at, loops[k:]) is not None for at in offsets):
            return loops[:k], loops[k:]
    return loops, ()


def _walk(at: Expr, loops: Sequence[Expr]) -> int | None:
    """The step in which nested loops move an offset, if it is one; any step where none moves."""
    step: int | None = None
    inside = 1
    for v in reversed(loops):
        s = stride(at, v)
        if s is None or (step is not None and s != step * inside):
            return None
        step = s if step is None else step
        inside *= trip_count(v)
    return step


def is_aligned(graph: Graph, blob: str) -> bool:
    """Whether a blob begins at a multiple of 16 bytes, if what it lies in does."""
    known = aliases(graph)
    while blob in known:
        if known[blob].offset % WORD:
            return False
        blob = known[blob].of
    return True
