"""What the attention kernels of GPUs compute, read off a group's expressions.

The second product says which of the result's indices are rows, columns and batches: rows are what
the values do not depend on, heads among them where those share keys and values. The score of a row
and a key is whatever the softmax reads, an expression around the first product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...ops.expr import Expr, cast, const, var
from ...ops.operator import Contraction
from ...ops.traverse import substitute, walk
from ...ops.types import HALF, DType
from ..graph.ir import Graph, Op
from ..passes.attention import attention_from
from .compose import Composer
from .gpu_contraction import grouped
from .pieces import regions, trip_count
from .reductions import reduces


@dataclass(frozen=True, slots=True)
class Attention:
    """out = what `value` makes of the sum `mixed`, over the output's indices `at`. score: what
    `product` becomes on its way to the softmax. q, k, v: elements of the operands, over batches and
    rows, key, columns; term: what the first product runs over."""

    out: str
    at: tuple[Expr, ...]
    value: Expr
    mixed: Expr
    score: Expr
    product: Expr
    q: Expr
    k: Expr
    v: Expr
    batches: tuple[Expr, ...]
    rows: tuple[Expr, ...]
    columns: tuple[Expr, ...]
    key: Expr
    term: Expr

    @property
    def dtype(self) -> DType:
        """Of the operands."""
        return self.q.dtype

    @property
    def batch(self) -> int:
        return prod(map(trip_count, self.batches))

    @property
    def m(self) -> int:
        """Rows of a batch."""
        return prod(map(trip_count, self.rows))

    @property
    def n(self) -> int:
        """Keys."""
        return trip_count(self.key)

    @property
    def depth(self) -> int:
        """Terms of the first product."""
        return trip_count(self.term)

    @property
    def width(self) -> int:
        """Columns of the result."""
        return prod(map(trip_count, self.columns))

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.n * (self.depth + self.width)


def attention_of(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> Attention | None:
    """The attention that a group computes, if it is one."""
    products = [op for op in ops if op.definition.trait(Contraction) is not None]
    found = attention_from(graph, products[0]) if len(products) == 2 else None
    if found is None or found.second is not products[1] or len(outputs) != 1:
        return None
    if any(op.definition.compute is None for op in ops):
        return None
    before = _makers(ops, found.softmax.scores)
    taken = {id(op) for op in (*before, *found.softmax.ops)}
    behind = [op for op in ops if id(op) not in taken]
    whole = tuple(regions(graph.type(outputs[0])))
    if len(whole) != 1:
        return None
    ((loops, at),) = whole
    value = Composer(graph, behind).element(outputs[0], at)
    todo, done = list(loops), 0
    while done < len(todo):  # what is a place in a group may be a group of places
        apart, at, value = grouped(todo[done], tuple(todo), at, value)
        done += len(apart) == len(todo)
        todo = list(apart)
    mixed = _sum([value])
    if mixed is None or mixed.free - set(todo):
        return None
    (over,) = mixed.payload[1]
    key = var("key", trip_count(over))
    weights, v = (_narrow(substitute(e, {over: key})) for e in mixed.args[0].args)
    if not _reads(weights, found.softmax.weights):
        weights, v = v, weights
    where = _load(weights, found.softmax.weights)
    if where is None or _reads(v, found.softmax.weights):
        return None
    score = Composer(graph, before).element(found.softmax.scores, where.args)
    product = _sum([score])
    if product is None:
        return None
    (term,) = product.payload[1]
    q, k = (_narrow(e) for e in product.args[0].args)
    if key in q.free:
        q, k = k, q
    (q, by), (k, also) = _unscaled(q), _unscaled(k)
    score = _times(score, product, by * also)
    batches = tuple(x for x in todo if x in where.free and x in v.free)
    rows = tuple(x for x in todo if x in where.free and x not in v.free)
    columns = tuple(x for x in todo if x not in where.free and x in v.free)
    fits = (
        len(batches) + len(rows) + len(columns) == len(todo)
        and q.free <= {*batches, *rows, term} and k.free <= {*batches, key, term}
        and score.free <= {*batches, *rows, key} and q.dtype is k.dtype is v.dtype
    )  # fmt: skip
    if not fits:
        return None
    return Attention(outputs[0], at, value, mixed, score, product, q, k, v, batches, rows, columns,
                     key, term)  # fmt: skip


def _makers(ops: Sequence[Op], blob: str) -> list[Op]:
    """Those of the ops that a blob is made by."""
    made = {o: op for op in ops for o in op.outputs}
    found: set[int] = set()
    todo = [blob]
    while todo:
        op = made.get(todo.pop())
        if op is not None and id(op) not in found:
            found.add(id(op))
            todo += op.reads
    return [op for op in ops if id(op) in found]


def _sum(values: Sequence[Expr]) -> Expr | None:
    """The one sum of products in expressions."""
    found = reduces(values)
    if len(found) != 1 or found[0].payload[0] != "sum" or found[0].args[0].op != "mul":
        return None
    return found[0] if len(found[0].payload[1]) == 1 else None


def _reads(e: Expr, blob: str) -> bool:
    return any(n.op == "load" and n.payload == blob for n in walk(e))


def _load(e: Expr, blob: str) -> Expr | None:
    """An element of a blob that is taken as it is, or only cast."""
    while e.op == "cast":
        (e,) = e.args
    return e if e.op == "load" and e.payload == blob else None


def _unscaled(factor: Expr) -> tuple[Expr, float]:
    """A factor of half floats without the numbers that it is multiplied by on its way, and their
    product: scaled are the sums, in float32, in its place."""
    number = 1.0
    while factor.dtype in HALF:
        made = factor.args[0] if factor.op == "cast" else factor
        if made.op != "mul":
            break
        x, by = made.args if made.args[1].is_const else made.args[::-1]
        x = _narrow(x)
        if not by.is_const or x.dtype is not factor.dtype:
            break
        number, factor = number * float(by.payload), x
    return factor, number


def _times(score: Expr, product: Expr, number: float) -> Expr:
    """A score whose product, as a half float or as it is, is multiplied by a number."""
    if number == 1:
        return score
    sums = [*(cast(product, t) for t in HALF), product]
    return substitute(score, {x: x * const(number, x.dtype) for x in sums})


def _narrow(factor: Expr) -> Expr:
    """A factor before it was widened without loss."""
    inner = factor.args[0] if factor.op == "cast" else factor
    return inner if inner.dtype in HALF else factor
