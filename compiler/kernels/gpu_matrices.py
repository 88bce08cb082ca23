"""A contraction as products of matrices whose elements lie at fixed distances, as the copying unit
and the tensor cores of Hopper GPUs need them.

Rows, columns and terms each have to be one walk through memory, in one step, for every operand that
they move. Loops that are no part of such a walk (the samples of a batch whose channels are rows)
count batches, which an operand may walk or stay where it is. Terms may be several such walks, as
those of one head after the other are, if each fills whole boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from ...ops.expr import Expr, linear
from ...ops.traverse import substitute
from ...ops.types import DType
from ..graph.ir import Graph
from .address import offset
from .gpu_contraction import Contraction, Unfit
from .gpu_mma_operands import TILES
from .gpu_sharing import unflattened
from .gpu_tap_boxes import Window, window_of
from .gpu_wgmma_shape import TILE
from .ir import Buffer
from .pieces import Buffers, stride, trip_count
from .recipe import prepared
from .tensor_map import MOST_AXES, WORD

ROW: Final = 128  # bytes of a row in shared memory
ACROSS: Final = 2  # bytes of elements of which rows may lie side by side


@dataclass(frozen=True, slots=True)
class Matrix:
    """An operand: elements from one row (or column, of the right one) to the next, from one term
    to the next, and of every loop over batches; one of the first two is 1. parts: where terms are
    no walk, the loops around those that are, with the elements from one to the next."""

    buffer: Buffer
    row: int
    term: int
    batches: tuple[int, ...]
    parts: tuple[tuple[Expr, int], ...] = ()

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
    value: an element, of which `node` is the sum of products. work: multiply-adds, twice. window:
    what the left operand is instead of a matrix; rows are then numbered tile after tile.
    """

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
    work: int
    window: Window | None = None

    def tiled(self, m: int) -> Product:
        """For tiles of m rows."""
        if self.window is None:
            return self
        window = self.window.tiled(m)
        batches = (*window.groups, *window.batches)
        most = len(batches)
        left, right = (replace(x, batches=x.batches[:most]) for x in (self.left, self.right))
        return replace(self, m=window.tiles * m, window=window, left=left, right=right,
                       batches=batches, rows=window.rows)  # fmt: skip

    @property
    def dtype(self) -> DType:
        """Of the factors."""
        return self.left.buffer.dtype

    @property
    def batch(self) -> int:
        return prod(map(trip_count, self.batches))

    def boxes(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
        """(dims, elements from one to the next, box) of the result's axes behind the columns: those
        of its rows, of which a box takes so many, and of its batches. None where columns do not lie
        side by side, or others not in fixed steps."""
        parts = [(self.rows, self.m, rows)]
        if self.window is not None:
            parts = [((v,), trip_count(v), n) for v, n in self.window.result_box(rows)]
        parts += [((v,), trip_count(v), 1) for v in self.batches]
        steps = [_walk(self.at, loops) for loops, _, _ in parts]
        found = tuple(s for s in steps if s is not None)
        if _walk(self.at, self.columns) != 1 or len(found) < len(steps):
            return None
        return tuple(d for _, d, _ in parts), found, tuple(b for _, _, b in parts)

    def box_at(self, batch: Expr, row: Expr) -> list[Expr]:
        """The coordinates of the box that begins with a row, along those axes."""
        over = unflattened(batch, self.batches)
        first = [row]
        if self.window is not None:
            place = self.window.place(row)
            first = [place[v] for v in reversed(self.window.rows)]
        return [*first, *(over[v] for v in self.batches)]

    def where(self, batch: Expr, row: Expr, column: Expr) -> dict[Expr, Expr]:
        """The loops of an element."""
        at = unflattened(row, self.rows) if self.window is None else self.window.place(row)
        return unflattened(batch, self.batches) | at | unflattened(column, self.columns)

    def bounds(self, row: Expr) -> list[tuple[Expr, int]]:
        """What has to be below what for a row to exist."""
        if self.window is None:
            return [(row, self.m)]
        return [(e, trip_count(v)) for v, e in self.window.place(row).items()]

    def is_ragged(self, rows: int) -> bool:
        """Whether tiles of so many rows go beyond the result."""
        return self.m % rows != 0 or (self.window is not None and self.window.is_ragged)


def product_of(
    graph: Graph, c: Contraction, buffers: Buffers, types: Sequence[DType]
) -> Product:  # fmt: skip
    """The contraction as a product of what can be copied in boxes; where it is one of matrices and
    one of a convolution's input, the one with fewer tiles to multiply, as rows of places in larger
    steps are matrices, too, of one row of the image each. Raises Unfit, saying why it is neither.
    """
    said: list[str] = []
    best: tuple[Product, Buffers] | None = None
    for name, find in (("matrices", _of_matrices), ("windows", _of_windows)):
        found = Buffers(graph)
        try:
            made = find(graph, c, found, types)
        except Unfit as e:
            said += [f"as {name}: {e}"] if str(e) else []
            continue
        if best is None or _tiles(made) < _tiles(best[0]):
            best = made, found
    if best is None:
        raise Unfit("; ".join(said))
    buffers.reads.update(best[1].reads)
    return best[0]


def _tiles(p: Product) -> int:
    """Of rows, times rounds."""
    p = p.tiled(TILE)
    return p.batch * -(-p.m // TILE) * -(-p.k * p.dtype.bytes // ROW)


def _of_windows(
    graph: Graph, c: Contraction, buffers: Buffers, types: Sequence[DType]
) -> Product:  # fmt: skip
    w = window_of(graph, c, types, ROW)
    right = load_of(c.right, types, "right")
    _same(graph.type(w.blob).dtype, right.dtype)
    batches = (*w.groups, *w.batches)
    left = Matrix(buffers.read(w.blob), 0, 1, (1,) * len(batches))
    terms = w.chunks * ROW // right.dtype.bytes
    b = _packed(graph, buffers, right, (*c.columns, *w.taps), (w.channel,), batches, terms)
    taps = prod(map(trip_count, w.taps))
    b = replace(b, row=taps * terms)
    return Product(c.out, 0, c.n, taps * terms, batches, w.rows, c.columns, left, b, c.value,
                   c.node, offset(graph.type(c.out), c.at), _work(c), w)  # fmt: skip


def _work(c: Contraction) -> int:
    return 2 * c.batch * c.m * c.n * c.k


def _of_matrices(
    graph: Graph, c: Contraction, buffers: Buffers, types: Sequence[DType]
) -> Product:  # fmt: skip
    left, right = load_of(c.left, types, "left"), load_of(c.right, types, "right")
    _same(left.dtype, right.dtype)
    at = offset(graph.type(c.out), c.at)
    over = c.node.payload[1]
    outer_rows, rows = _split(c.rows, (at, *_fixed(graph, left)))
    outer_columns, columns = _split(c.columns, (at, *_fixed(graph, right)))
    batches = (*c.batches, *outer_rows, *outer_columns)
    parts, inner = _split(over, (*_fixed(graph, left), *_fixed(graph, right)))
    if prod(map(trip_count, inner)) * left.dtype.bytes % ROW:
        parts = ()  # a box would reach into the next one
    if not rows or not columns:
        raise Unfit("its rows or columns do not lie in fixed steps")
    a = matrix_of(graph, buffers, left, rows, over, batches, len(parts))
    b = matrix_of(graph, buffers, right, columns, over, batches, len(parts))
    m, n, k = (prod(map(trip_count, loops)) for loops in (rows, columns, over))
    return Product(c.out, m, n, k, batches, rows, columns, a, b, c.value, c.node, at,
                   _work(c))  # fmt: skip


def _same(left: DType, right: DType) -> None:
    if left is not right:
        raise Unfit(f"factors of {left} and {right}")


def load_of(factor: Expr, types: Sequence[DType], which: str) -> Expr:
    """The load of a factor that is read as it is, or only widened."""
    plain = factor.args[0] if factor.op == "cast" else factor
    if plain.op != "load":
        raise Unfit(f"the {which} operand is computed on the way, or padded")
    if plain.dtype not in types:
        raise Unfit(f"factors of {plain.dtype}")
    return plain


def _at(graph: Graph, x: Expr) -> Expr:
    """Where the element of a load lies."""
    return offset(graph.type(x.payload), x.args)


def _fixed(graph: Graph, x: Expr) -> tuple[Expr, ...]:
    """The same for what cannot be stored otherwise."""
    return () if graph.blobs[x.payload].is_constant else (_at(graph, x),)


def matrix_of(
    graph: Graph, buffers: Buffers, x: Expr, rows: Sequence[Expr], terms: Sequence[Expr],
    batches: Sequence[Expr], parts: int,
) -> Matrix:  # fmt: skip
    """parts: how many of the terms' loops lie around those that are one walk."""
    at = _at(graph, x)
    around, inner = terms[:parts], terms[parts:]
    row, term = _walk(at, rows), _walk(at, inner)
    each = [stride(at, v) for v in (*around, *batches)]
    steps = tuple(s for s in each if s is not None)
    why = ""
    if row is None or term is None or len(steps) < len(each):
        why = "its rows, terms or batches do not lie in fixed steps"
    elif 1 not in (row, term):
        why = f"neither rows, {row} elements apart, nor terms, {term} apart, lie side by side"
    else:
        apart = (row if term == 1 else term, *(s for s in steps if s))
        start = substitute(at, {v: v * 0 for v in (*rows, *terms, *batches)})
        if odd := [s for s in apart if s <= 0 or s * x.dtype.bytes % WORD]:
            why = f"steps of {odd[0] * x.dtype.bytes} bytes are no multiples of {WORD}"
        elif 0 in steps[:parts]:
            why = "it has the same terms more than once"
        elif len(apart) >= MOST_AXES:
            why = f"{len(apart) + 1} axes; boxes have {MOST_AXES}"
        elif not _is_zero(start):
            why = "it does not begin where its blob does"
        elif term != 1 and x.dtype.bytes != ACROSS:
            why = f"terms of {x.dtype} do not lie side by side"
    if not why:
        assert row is not None and term is not None
        of_parts = tuple(zip(around, steps[:parts], strict=True))
        return Matrix(buffers.read(x.payload), row, term, steps[parts:], of_parts)
    if not graph.blobs[x.payload].is_constant:
        raise Unfit(f"{graph.type(x.payload)}: {why}")
    return _packed(graph, buffers, x, rows, terms, batches)


def _packed(
    graph: Graph, buffers: Buffers, x: Expr, rows: Sequence[Expr], terms: Sequence[Expr],
    batches: Sequence[Expr], least: int = 0,
) -> Matrix:  # fmt: skip
    """A constant, stored anew with its terms side by side, `least` at least, filled up with zeros,
    and rows at multiples of 16 bytes."""
    steps, first = linear(_at(graph, x))
    moving = tuple(v for v in batches if v in steps)
    axes = (*moving, *rows, *terms)
    if not graph.blobs[x.payload].is_constant:
        raise Unfit("its weights are no constant")
    if first or not set(steps) <= set(axes) or any(v.payload[1] for v in axes):
        raise Unfit("its weights do not lie in fixed steps")
    if len(moving) + 2 > MOST_AXES:
        raise Unfit(f"{len(moving) + 2} axes of weights; boxes have {MOST_AXES}")
    n, k = (prod(map(trip_count, loops)) for loops in (rows, terms))
    row = max(-(-k * x.dtype.bytes // WORD) * WORD // x.dtype.bytes, least)
    made = prepared(
        (x.payload,), TILES, sizes=tuple(map(trip_count, axes)),
        steps=tuple(steps.get(v, 0) for v in axes), batches=len(moving), rows=len(rows),
        to=(n, row),
    )  # fmt: skip
    count = prod(map(trip_count, moving))
    buffer = Buffer(f"x{len(buffers.reads)}", x.dtype, count * n * row, "const")
    found, step = [], n * row
    for v in reversed(batches):
        found.append(step if v in moving else 0)
        step *= trip_count(v) if v in moving else 1
    return Matrix(buffers.reads.setdefault(made, buffer), row, 1, tuple(reversed(found)))


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
