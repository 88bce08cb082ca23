"""Sums of products, read off expressions: what the GPU templates for contractions compute.

An element is a function of one sum of products whose first factor depends on some of the output's
indices, the rows, and whose second factor depends on the others, the columns; indices in both count
batches. That is so for matrix products, with any transposition and broadcasting, and for
convolutions (an implicit matrix product: columns are places, the sum runs over channels and
windows; groups are batches). What follows on the sum is the epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from ...ops.expr import Expr, reduce, var
from ...ops.operator import Contraction as Product
from ...ops.traverse import substitute, walk
from ...ops.types import DType, f32, f64
from ..errors import LoweringError
from ..graph.ir import Graph, Op
from ..passes.convolutions import is_depthwise
from .compose import Composer
from .pieces import regions, trip_count
from .reductions import reduces

LEAST: Final = 8  # rows and columns below which most of a tile would be empty
FAMILY: Final = "sums of products"
"""Of the templates that compute contractions, which are rivals."""
LEAST_TERMS: Final = 4  # of a sum: with fewer, moving operands is all that takes time


class Unfit(LoweringError):
    """Why a template does not take a group."""


def objection(find: Callable[[], object]) -> str:
    """Why something is not found, "" where it is."""
    try:
        find()
    except Unfit as e:
        return str(e)
    return ""


@dataclass(frozen=True, slots=True)
class Contraction:
    """out = what `value` makes of the sum `node`, over the output's indices `at`. left, right: the
    factors, over logical indices; rows only touch the left, columns only the right one."""

    out: str
    at: tuple[Expr, ...]
    value: Expr
    node: Expr
    left: Expr
    right: Expr
    batches: tuple[Expr, ...]
    rows: tuple[Expr, ...]
    columns: tuple[Expr, ...]

    @property
    def m(self) -> int:
        return prod(map(trip_count, self.rows))

    @property
    def n(self) -> int:
        return prod(map(trip_count, self.columns))

    @property
    def batch(self) -> int:
        return prod(map(trip_count, self.batches))

    @property
    def k(self) -> int:
        return prod(map(trip_count, self.node.payload[1]))

    @property
    def dtype(self) -> DType:
        return self.node.dtype


def contraction_of(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str],
    sums: Sequence[DType] = (f32, f64), least: int = LEAST,
) -> Contraction | None:  # fmt: skip
    """The sum of products that a group computes, if it is one, in one of the types `sums`, and
    large enough for tiles. least: rows and columns from which it is.

    Found once for a group of a graph: every estimate of every config asks."""
    key = contraction_of, tuple(map(id, ops)), tuple(outputs), tuple(sums), least
    if key not in graph.derived:  # with the ops, whose ids are nobody else's then
        graph.derived[key] = tuple(ops), _contraction_of(graph, ops, outputs, sums, least)
    found: Contraction | None = graph.derived[key][1]
    return found


def _contraction_of(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], sums: Sequence[DType], least: int
) -> Contraction | None:  # fmt: skip
    if len(outputs) != 1 or any(op.definition.compute is None for op in ops):
        return None
    kind = graph.type(outputs[0])
    whole = tuple(regions(kind)) if kind.size else ()
    if len(whole) != 1:
        return None
    ((loops, at),) = whole
    value = Composer(graph, ops).element(outputs[0], at)
    for v in loops:
        loops, at, value = grouped(v, loops, at, value)
    found = reduces([value])
    if len(found) != 1 or found[0].payload[0] != "sum" or found[0].args[0].op != "mul":
        return None
    (node,) = found
    walks = _in_walks(node)
    node, value = walks, substitute(value, {node: walks})
    if node.dtype not in sums or node.free - set(loops):
        return None
    left, right = node.args[0].args
    if set(loops) - left.free - right.free:
        return None
    if loops and loops[-1] in left.free - right.free:  # columns lie side by side in the result
        left, right = right, left
    both = left.free & right.free
    rows, columns = (tuple(v for v in loops if v in e.free - both) for e in (left, right))
    batches = tuple(v for v in loops if v in both)
    made = Contraction(outputs[0], at, value, node, left, right, batches, rows, columns)
    return made if min(made.m, made.n) >= least and made.k >= LEAST_TERMS else None


def is_product(graph: Graph, ops: Sequence[Op]) -> bool:
    """Whether one of the operators is a matrix product or a convolution that mixes channels: then
    the number of rows and columns may be no more than the size of a batch."""
    found = [(op, op.definition.trait(Product)) for op in ops]
    return any(t is not None and not (t.kind == "conv" and is_depthwise(graph, op))
               for op, t in found)  # fmt: skip


def grouped(
    v: Expr, loops: tuple[Expr, ...], at: tuple[Expr, ...], value: Expr
) -> tuple[tuple[Expr, ...], tuple[Expr, ...], Expr]:
    """Index v as a group and a place in it, where something in the value depends on the group only:
    the channels that a convolution with groups reads."""
    n = trip_count(v)
    size = _part(v, value)
    if not size:
        return loops, at, value
    name = v.payload[0]
    group, place = var(f"{name}_group", n // size), var(f"{name}_place", size)
    parts = {v: group * size + place}
    apart = tuple(x for w in loops for x in ((group, place) if w is v else (w,)))
    return apart, tuple(substitute(i, parts) for i in at), substitute(value, parts)


def _part(v: Expr, value: Expr) -> int:
    """The largest part in which a value counts an index v, 0 where it does not."""
    n = trip_count(v)
    sizes = {int(e.args[1].payload) for e in walk(value)
             if e.op == "floordiv" and e.args[0] is v and e.args[1].is_const}  # fmt: skip
    return max((s for s in sizes if 1 < s < n and n % s == 0), default=0)


def _in_walks(node: Expr) -> Expr:
    """A sum whose indices are in parts where an operand lies so: terms of a reshaped blob, say,
    which are those of one head after the other. They stay in their order."""
    combine, over = node.payload
    inner = node.args[0]
    parts: list[Expr] = []
    for v in over:
        size = 0 if v.payload[1] else _part(v, inner)
        if not size:
            parts.append(v)
            continue
        name = v.payload[0]
        group, place = var(f"{name}_group", trip_count(v) // size), var(f"{name}_place", size)
        inner = substitute(inner, {v: group * size + place})
        parts += [group, place]
    return node if tuple(parts) == over else reduce(combine, tuple(parts), inner)


def moved_bytes(graph: Graph, out: str, value: Expr) -> int:
    """Of all blobs that an element of `out` is made of, and of `out`, each moved once."""
    read = {n.payload for n in walk(value) if n.op == "load"}
    return sum(graph.type(name).nbytes for name in (*sorted(read), out))
