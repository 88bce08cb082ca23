"""What tensor cores can compute of a fusion group: a contraction whose factors have few bits.

Products of half floats are added up in float32, those of bytes in int32, so such a sum is rounded
less than the expression says. Factors that the expression widens first (integers always, half
floats in graphs of mixed precision) are taken as they were. Sums in float32 are computed in tf32,
with 10 bits behind the point, where the caller allows it ("reduced").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from ...ops.expr import Expr, cast, const, var
from ...ops.traverse import rebuild, walk
from ...ops.types import HALF, DType, f32, i8, i32, u8
from ..graph.ir import Graph, Op
from .gpu_contraction import LEAST, Contraction, Unfit, contraction_of, is_product
from .pieces import Buffers, buffer_loads, stride, trip_count

BYTES: Final = (i8, u8)
FEW: Final = 2
LONG: Final = 256
"""Terms with which a few rows or columns are worth tiles that are mostly empty: what is multiplied
costs nothing beside reading it, which happens once."""


@dataclass(frozen=True, slots=True)
class Product:
    """p: the contraction. kind: of the intrinsic `mma_<kind>`. left, right: its factors, without
    what widens them, whose elements are equal in size; total: the type of the sum. over: the
    indices of the sum, the one along which an operand lies in memory last. last: how many of the
    last one's are terms, where it counts more of them; 0 where all are."""

    p: Contraction
    kind: str
    left: Expr
    right: Expr
    total: DType
    over: tuple[Expr, ...]
    last: int = 0

    @property
    def chunk(self) -> int:
        """Elements of 16 bytes."""
        return 16 // self.left.dtype.bytes

    @property
    def k(self) -> int:
        return prod(map(trip_count, self.over))


def product_of(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], tf32: bool, any_size: bool = False
) -> Product:  # fmt: skip
    """The product that a group computes, if tensor cores can. tf32: also of sums in float32.
    any_size: however few rows and columns an operator has that multiplies matrices. Raises Unfit,
    saying why not."""
    matrices = is_product(graph, ops)
    p = contraction_of(graph, ops, outputs, (*HALF, f32, i32), 1 if matrices else FEW)
    if p is None:
        raise Unfit("it is no sum of products of rows and columns")
    if min(p.m, p.n) < LEAST and not (any_size and matrices):
        _worth_a_tile(graph, p)
    left, right = _narrow(p.left), _narrow(p.right)
    kind = _kind(left.dtype, right.dtype)
    total = i32 if left.dtype in BYTES else f32
    if kind is None:
        raise Unfit(f"factors of {left.dtype} and {right.dtype}")
    if kind == "tf32" and not tf32:
        raise Unfit("factors of f32 are rounded under numerics='reduced' only")
    if p.dtype is not total and (left.dtype in BYTES or p.dtype not in HALF):
        raise Unfit(f"factors of {left.dtype} with sums of {p.dtype}")
    one = tuple((var(f"one_{x}", 1),) for x in ("row", "column"))
    p = replace(p, rows=p.rows or one[0], columns=p.columns or one[1])
    return Product(p, kind, left, right, total, _ordered(graph, p))


def _worth_a_tile(graph: Graph, p: Contraction) -> None:
    """Raises Unfit unless a product of few rows or columns is as fast in tiles as elsewhere."""
    if p.k < LONG or max(p.m, p.n) < LEAST:
        raise Unfit(f"{p.m} rows, {p.n} columns and {p.k} terms would leave tiles mostly empty")
    larger = p.right if p.m < p.n else p.left
    if min(p.m, p.n) < FEW and constant_load(graph, _narrow(larger)) is not None:
        raise Unfit("a constant times one vector is read once by the general template, too")


def _narrow(factor: Expr) -> Expr:
    """A factor before it was widened without loss."""
    inner = factor.args[0] if factor.op == "cast" else factor
    return inner if inner.dtype in (*HALF, *BYTES) else factor


def _kind(left: DType, right: DType) -> str | None:
    if left in BYTES and right in BYTES:
        return str(left) if left is right else f"{left}_{right}"
    if left is not right:
        return None
    return "tf32" if left is f32 else str(left) if left in HALF else None


def _ordered(graph: Graph, p: Contraction) -> tuple[Expr, ...]:
    """The sum's indices; one that walks neighbours in an operand that is computed comes last. That
    does not depend on tiles."""
    over: tuple[Expr, ...] = p.node.payload[1]
    for factor in (p.left, p.right):
        loads = [n.args[0] for n in buffer_loads(Buffers(graph).lower(factor, None))]
        if constant_load(graph, factor) is not None:
            continue
        for v in reversed(over):
            if loads and all(stride(at, v) == 1 for at in loads):
                return (*(w for w in over if w is not v), v)
    return over


def constant_load(graph: Graph, factor: Expr) -> Expr | None:
    """A factor that is nothing but an element of a constant."""
    if factor.op != "load" or not graph.blobs[factor.payload].is_constant:
        return None
    return factor


def kept_wide(e: Expr, known: dict[Expr, Expr]) -> Expr:
    """An expression in half floats computed in float32: what is between its loads, which are
    rounded already, and its result, which is rounded once. Casts round as they say.

    known: what stands for some expressions, of their own type or in float32.
    """
    memo: dict[Expr, Expr] = {}
    for n in walk(e):
        if n in known:
            memo[n] = known[n]
        elif n.op in ("load", "const", "var"):
            memo[n] = const(n.payload, f32) if n.op == "const" and n.dtype in HALF else n
        else:
            memo[n] = _single(n, tuple(memo[a] for a in n.args))
        if n.dtype in HALF:
            memo[n] = cast(memo[n], f32)
    return cast(memo[e], e.dtype)


def _single(n: Expr, args: tuple[Expr, ...]) -> Expr:
    """n over arguments in float32 where they were half floats."""
    made = rebuild(n, args)
    if n.op == "cast" or n.dtype not in HALF or made.dtype is f32:
        return made
    return Expr(n.op, args, n.payload, f32)
