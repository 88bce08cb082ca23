"""Places of extreme elements along one axis: arg max and arg min, and the k best in order."""

from __future__ import annotations

from ...ops.expr import (
    Expr,
    apply,
    binary,
    cast,
    compare,
    const,
    index,
    logical_and,
    logical_or,
    select,
    unary,
    var,
)
from ...ops.types import DType, i32, i64
from ..graph.ir import Op
from .device import Device
from .ir import Buffer, Declare, If, Launch, Local, Phase, Set, Stmt, Store, loop
from .single import OpaqueTemplate, Parameters, around, columns, rows, wide

CHUNK = 4  # vectors of a row that are compared with the worst kept element at once


def precedes(a: Expr, b: Expr, largest: bool) -> Expr:
    """Whether a comes strictly before b: larger ones first, or smaller ones; NaN is largest."""
    first, second = (b, a) if largest else (a, b)
    before = first < second
    if not a.dtype.is_float:
        return before
    # first is a number and second is NaN
    return logical_or(before, logical_and(compare("eq", first, first), unary("isnan", second)))


# --------------------------------------------------------------------------- arg max, arg min


class ArgReduce(OpaqueTemplate):
    """One pass over every row that keeps the best element and its place, in lanes along the
    contiguous axis; where that is the reduced one, the lanes are combined at the end.

    NaN comes before all numbers, in arg min too.
    """

    name = "arg"
    kind = "argreduce"

    def build(self, op: Op, params: Parameters, device: Device) -> Launch:
        x, y = params.read(op.reads[0]), params.write(op.outputs[0])
        shape = around(params.graph.type(op.reads[0]).dims, op.attr("axis"))
        sign = "max" if op.operator == "arg_max" else "min"
        arg = _Arg(x, y, shape, sign, bool(op.attr("select_last_index")))
        phases = [arg.phase(device)] if y.elements else []
        return params.launch(self.name, self.version, {}, phases, x.elements)


class _Arg:
    def __init__(
        self, x: Buffer, y: Buffer, shape: tuple[int, int, int], sign: str, last: bool
    ) -> None:
        self.x, self.y, self.sign, self.last = x, y, sign, last
        self.outer, self.n, self.inner = shape
        self.key: DType = wide(x[0]).dtype
        self.place = i32 if self.n < 1 << 31 else i64

    def phase(self, device: Device) -> Phase:
        self.lanes = device.lanes(self.x.dtype)
        self.best = Local("best", self.key, (), self.lanes)
        self.where = Local("where", self.place, (), self.lanes)
        if self.inner > 1:
            return columns(self.outer, self.inner, self.x.dtype, self.x.elements, self._column,
                           device)  # fmt: skip
        return rows(self.outer, self.x.elements, self._row, device)

    def _better(self, v: Expr) -> Expr:
        """Whether v takes the place of the best so far, which stands at a lower index."""
        best = self.best.value
        if not self.last:
            ahead = v > best if self.sign == "max" else v < best
            if not self.key.is_float:
                return ahead
            return logical_or(ahead, logical_and(unary("isnan", v), compare("eq", best, best)))
        level = v >= best if self.sign == "max" else v <= best
        return logical_or(level, unary("isnan", v)) if self.key.is_float else level

    def _start(self, first: Expr) -> tuple[Stmt, ...]:
        return (Set(self.best, (), wide(self.x[first])), Set(self.where, (), const(0, self.place)))

    def _step(self, seen: Local, at: Expr, t: Expr) -> tuple[Stmt, ...]:
        """The place is decided while `best` still holds the old element."""
        better = self._better(seen.value)
        return (
            Set(seen, (), wide(self.x[at])),
            Set(self.where, (), select(better, cast(t, self.place), self.where.value)),
            Set(self.best, (), select(better, seen.value, self.best.value)),
        )

    def _column(self, o: Expr, i: Expr) -> tuple[Stmt, ...]:
        t, base = var("t", self.n), o * (self.n * self.inner) + i
        seen = Local("seen", self.key, (), self.lanes)
        return (
            Declare(self.best), Declare(self.where), Declare(seen),
            *self._start(base),
            loop(t, self._step(seen, base + t * self.inner, t), lo=1),
            Store(self.y, o * self.inner + i, cast(self.where.value, i64)),
        )  # fmt: skip

    def _row(self, row: Expr) -> tuple[Stmt, ...]:
        """Every lane starts from element 0, so that the lanes past a short row hold a true one."""
        t, lane, base = var("t", self.n), var("lane", self.lanes), row * self.n
        seen = Local("seen", self.key, (), self.lanes)
        top, found = Local("top", self.key), Local("found", self.place, (), self.lanes)
        hit = compare("eq", self.best.value, top.value)
        if self.key.is_float:
            hit = logical_or(hit, unary("isnan", self.best.value))
        never = const(-1 if self.last else (1 << (self.place.bits - 1)) - 1, self.place)
        choose = "hmax" if self.last else "hmin"
        return (
            Declare(self.best), Declare(self.where), Declare(seen), Declare(top), Declare(found),
            *self._start(base),
            loop(t, self._step(seen, base + t, t), "vector", lanes=self.lanes),
            Set(top, (), apply(f"h{self.sign}", (self.best.value,), self.key)),
            loop(lane, (Set(found, (), select(hit, self.where.value, never)),), "vector",
                 lanes=self.lanes),
            Store(self.y, row, cast(apply(choose, (found.value,), self.place), i64)),
        )  # fmt: skip


# --------------------------------------------------------------------------- top k


class TopK(OpaqueTemplate):
    """The k best elements of a row in a binary heap inside the outputs, the worst one at the root.

    An element that does not beat the root costs one comparison, whole chunks of them one comparison
    in lanes; the others log2(k) steps. In the end the heap is sorted where it lies (heapsort,
    Williams 1964). Elements are ordered by value, then by index: the result is unique.
    """

    name = "top_k"
    kind = "sort"

    def build(self, op: Op, params: Parameters, device: Device) -> Launch:
        x = params.read(op.reads[0])
        values, places = map(params.write, op.outputs)
        dims = params.graph.type(op.reads[0]).dims
        outer, n, inner = around(dims, op.attr("axis"))
        heap = _Heap(x, values, places, n, inner, op.attr("k"), bool(op.attr("largest")),
                     device.lanes(x.dtype))  # fmt: skip
        work = x.elements + 8 * values.elements
        phases = [rows(outer * inner, work, heap.row, device)] if values.elements else []
        return params.launch(self.name, self.version, {}, phases, work)


class _Heap:
    """Statements for one row. Slot 0 is the root, slots 2p + 1 and 2p + 2 are below slot p."""

    def __init__(
        self, x: Buffer, values: Buffer, places: Buffer, n: int, inner: int, k: int, largest: bool,
        lanes: int,
    ) -> None:  # fmt: skip
        self.x, self.values, self.places = x, values, places
        self.n, self.inner, self.k, self.largest, self.lanes = n, inner, k, largest, lanes
        self.source, self.slots = Local("source", i64), Local("slots", i64)  # offsets of the row
        self.value, self.place = Local("value", x.dtype), Local("place", i64)  # being sifted
        self.child, self.child_place = Local("child", x.dtype), Local("child_place", i64)
        self.other, self.other_place = Local("other", x.dtype), Local("other_place", i64)
        self.at, self.down, self.end = Local("at", i64), Local("down", i64), Local("end", i64)
        self.worst = Local("worst", wide(x[0]).dtype)

    def row(self, row: Expr) -> tuple[Stmt, ...]:
        k, inner = self.k, self.inner
        o, i = row // inner, row % inner
        j, up = var("j", k), var("up", max(1, k // 2))
        out: list[Stmt] = [Declare(loc) for loc in (
            self.source, self.slots, self.value, self.place, self.child, self.child_place,
            self.other, self.other_place, self.at, self.down, self.end, self.worst,
        )]  # fmt: skip
        out += [Set(self.source, (), o * (self.n * inner) + i)]
        out += [Set(self.slots, (), o * (k * inner) + i)]
        out += [loop(j, (Store(self.values, self._slot(j), self.x[self._element(j)]),
                         Store(self.places, self._slot(j), j)))]  # fmt: skip
        if k > 1:
            p = index(k // 2 - 1) - up
            out += [loop(up, (*self._take(p), *self._sift(p, index(k))))]
        if k < self.n:
            out += self._scan()
        if k > 1:
            out += [self._sort()]
        return tuple(out)

    # ---------------------------------------------------------------- memory

    def _element(self, t: Expr) -> Expr:
        return self.source.value + t * self.inner

    def _slot(self, j: Expr) -> Expr:
        return self.slots.value + j * self.inner

    def _take(self, j: Expr) -> tuple[Stmt, ...]:
        return (Set(self.value, (), self.values[self._slot(j)]),
                Set(self.place, (), self.places[self._slot(j)]))  # fmt: skip

    def _put(self, j: Expr, value: Expr, place: Expr) -> tuple[Stmt, ...]:
        return (Store(self.values, self._slot(j), value), Store(self.places, self._slot(j), place))

    # ---------------------------------------------------------------- the heap

    def _worse(self, a: Local, a_place: Local, b: Local, b_place: Local) -> Expr:
        v, w = wide(a.value), wide(b.value)
        later = logical_and(unary("not", precedes(v, w, self.largest)),
                            b_place.value < a_place.value)  # fmt: skip
        return logical_or(precedes(w, v, self.largest), later)

    def _sift(self, start: Expr, size: Expr) -> tuple[Stmt, ...]:
        """Put (value, place) into the hole at slot `start`, or below it in favour of worse ones."""
        levels = self.k.bit_length() - 1
        depth = var("depth", levels)
        right = self.down.value + 1
        follow = If(self._worse(self.child, self.child_place, self.value, self.place),
                    (*self._put(self.at.value, self.child.value, self.child_place.value),
                     Set(self.at, (), self.down.value)),
                    (Set(self.end, (), index(0)),))  # fmt: skip
        prefer = If(self._worse(self.other, self.other_place, self.child, self.child_place),
                    (Set(self.child, (), self.other.value),
                     Set(self.child_place, (), self.other_place.value),
                     Set(self.down, (), right)))  # fmt: skip
        both = If(right < self.end.value,
                  (Set(self.other, (), self.values[self._slot(right)]),
                   Set(self.other_place, (), self.places[self._slot(right)]), prefer))  # fmt: skip
        left = If(self.down.value < self.end.value,
                  (Set(self.child, (), self.values[self._slot(self.down.value)]),
                   Set(self.child_place, (), self.places[self._slot(self.down.value)]),
                   both, follow))  # fmt: skip
        walk = (Set(self.down, (), self.at.value * 2 + 1), left)
        return (
            Set(self.at, (), start),
            Set(self.end, (), size),
            *((loop(depth, walk),) if levels else ()),
            *self._put(self.at.value, self.value.value, self.place.value),
        )

    def _scan(self) -> list[Stmt]:
        """Offer the rest of the row, chunk by chunk where it is contiguous and long."""
        t = var("t", self.n)
        seen = wide(self.x[self._element(t)])
        enter = (Set(self.value, (), self.x[self._element(t)]), Set(self.place, (), t),
                 *self._sift(index(0), index(self.k)), self._remember())  # fmt: skip
        offer = (If(precedes(seen, self.worst.value, self.largest), enter),)
        size = CHUNK * self.lanes
        chunks = (self.n - self.k) // size if self.inner == 1 else 0
        out: list[Stmt] = [self._remember()]
        if chunks:
            c = var("c", chunks)
            first = c * size + self.k
            hopeful, most = self._best_lanes(first)
            through = loop(t, offer, lo=first, hi=first + size)
            out += [Declare(most), loop(c, (*hopeful, If(self._beats(most), (through,))))]
        out += [loop(t, offer, lo=self.k + chunks * size)]
        return out

    def _remember(self) -> Stmt:
        return Set(self.worst, (), wide(self.values[self._slot(index(0))]))

    def _best_lanes(self, first: Expr) -> tuple[tuple[Stmt, ...], Local]:
        """Lanes with the best elements of the chunk from `first` on; NaN wins either way."""
        most = Local("most", self.worst.dtype, (), self.lanes)
        lane, u = var("lane", self.lanes), var("u", CHUNK)

        def element(v: Expr | int) -> Expr:
            return wide(self.x[self.source.value + first + v * self.lanes + lane])

        more = binary("max" if self.largest else "min", most.value, element(u))
        body = (Set(most, (), element(0)), loop(u, (Set(most, (), more),), "unroll", lo=1))
        return (loop(lane, body, "vector", lanes=self.lanes),), most

    def _beats(self, most: Local) -> Expr:
        """Whether a chunk may hold an element better than the worst kept one; sure where NaN is."""
        best = apply("hmax" if self.largest else "hmin", (most.value,), most.dtype)
        worst = self.worst.value
        return unary("not", best <= worst if self.largest else worst <= best)

    def _sort(self) -> Stmt:
        """Move the root, the worst of those left, behind the others, until one is left."""
        q = var("q", self.k - 1)
        last = index(self.k - 1) - q
        root = self._slot(index(0))
        return loop(q, (
            *self._take(last),
            Store(self.values, self._slot(last), self.values[root]),
            Store(self.places, self._slot(last), self.places[root]),
            *self._sift(index(0), last),
        ))  # fmt: skip
