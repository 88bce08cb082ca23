"""Sums of products on GPUs: tiles of the result in registers, of the operands in shared memory.

What is a contraction is read off the expression: an element is a function of one sum of products
whose first factor depends on some of the output's indices, the rows, and whose second factor
depends on the others, the columns; indices in both count batches. That is so for matrix products,
with any transposition and broadcasting, and for convolutions (an implicit matrix product: columns
are places, the sum runs over channels and windows; groups are batches). What follows on the sum is
the epilogue.

A block of threads computes a tile of `m` rows and `n` columns. In rounds of `k` terms it copies
both operands' parts into shared memory, and each thread multiplies `tm` rows with `tn` columns,
held in registers. A thread's rows and columns come in groups of four, side by side in shared
memory, the groups far apart, so that neighbours read neighbouring words. Every element is one chain
of multiply-adds in the order of the sum, whatever the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from ...ops.expr import Expr, apply, const, logical_and, select, var
from ...ops.traverse import substitute, walk
from ...ops.types import DType, boolean, f32, f64
from ..graph.ir import Graph, Op
from .address import offset
from .compose import Composer
from .device import Device
from .gpu_sharing import unflattened
from .inplace import overwritable
from .ir import (
    Declare,
    If,
    Kernel,
    Launch,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    loop,
)
from .pieces import Buffers, buffer_loads, regions, stride, trip_count
from .reductions import reduces
from .template import Config, required, traffic

GROUP: Final = 4  # neighbouring rows or columns of a thread: 16 bytes
LEAST: Final = 8  # rows and columns below which most of a tile would be empty
MOST_SUMS: Final = 256  # bytes of registers that a thread's tile may take
PAD: Final = 4  # words between rows of a tile in shared memory, which spreads them over its banks
TILES: Final[tuple[Config, ...]] = (
    {"m": 128, "n": 128, "k": 16, "tm": 8, "tn": 8},
    {"m": 128, "n": 64, "k": 16, "tm": 8, "tn": 4},
    {"m": 64, "n": 128, "k": 16, "tm": 4, "tn": 8},
    {"m": 64, "n": 64, "k": 16, "tm": 4, "tn": 4},
    {"m": 32, "n": 64, "k": 16, "tm": 4, "tn": 4},
    {"m": 32, "n": 32, "k": 16, "tm": 4, "tn": 4},
)
"""From the most to the fewest multiply-adds per word of shared memory."""


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


def contraction_of(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> Contraction | None:
    """The sum of products that a group computes, if it is one, and large enough for tiles."""
    if len(outputs) != 1 or any(op.definition.compute is None for op in ops):
        return None
    kind = graph.type(outputs[0])
    if kind.layout.is_blocked or not kind.size:
        return None
    ((loops, at),) = regions(kind)
    value = Composer(graph, ops).element(outputs[0], at)
    for v in loops:
        loops, at, value = _grouped(v, loops, at, value)
    found = reduces([value])
    if len(found) != 1 or found[0].payload[0] != "sum" or found[0].args[0].op != "mul":
        return None
    (node,) = found
    if node.dtype not in (f32, f64) or node.free - set(loops):
        return None
    left, right = node.args[0].args
    if not loops or set(loops) - left.free - right.free:
        return None
    if loops[-1] in left.free - right.free:  # columns are what lies side by side in the result
        left, right = right, left
    both = left.free & right.free
    rows, columns = (tuple(v for v in loops if v in e.free - both) for e in (left, right))
    batches = tuple(v for v in loops if v in both)
    made = Contraction(outputs[0], at, value, node, left, right, batches, rows, columns)
    return made if min(made.m, made.n, made.k) >= LEAST else None


def _grouped(
    v: Expr, loops: tuple[Expr, ...], at: tuple[Expr, ...], value: Expr
) -> tuple[tuple[Expr, ...], tuple[Expr, ...], Expr]:
    """Index v as a group and a place in it, where something in the value depends on the group only:
    the channels that a convolution with groups reads."""
    n = trip_count(v)
    sizes = {int(e.args[1].payload) for e in walk(value)
             if e.op == "floordiv" and e.args[0] is v and e.args[1].is_const}  # fmt: skip
    size = max((s for s in sizes if 1 < s < n and n % s == 0), default=0)
    if not size:
        return loops, at, value
    name = v.payload[0]
    group, place = var(f"{name}_group", n // size), var(f"{name}_place", size)
    parts = {v: group * size + place}
    apart = tuple(x for w in loops for x in ((group, place) if w is v else (w,)))
    return apart, tuple(substitute(i, parts) for i in at), substitute(value, parts)


class GpuTiles:
    """Configs: `m`, `n`, `k` of a block's tile, `tm`, `tn` of a thread's."""

    name = "gpu_tiles"
    version = 1

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return contraction_of(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return _tiles(required(contraction_of(graph, ops, outputs), self.name, ops))

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """The largest tile of which there are as many as blocks run side by side; else the one with
        the most blocks."""
        p = required(contraction_of(graph, ops, outputs), self.name, ops)
        found = _tiles(p)
        return next((c for c in found if _blocks(p, c) >= device.threads), found[-1])

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        p = required(contraction_of(graph, ops, outputs), self.name, ops)
        return _Tiles(graph, p, config).launch(self.name, self.version)


def _tiles(p: Contraction) -> list[Config]:
    """Tiles whose sums fit in registers."""
    return [c for c in TILES if c["tm"] * c["tn"] * p.dtype.bytes <= MOST_SUMS]


def _blocks(p: Contraction, config: Config) -> int:
    return p.batch * -(-p.m // config["m"]) * -(-p.n // config["n"])


@dataclass(frozen=True, slots=True)
class _Side:
    """One operand: `size` rows or columns, `tile` of them in a block, `each` in a thread, `held` in
    shared memory; word(i, k) is an element. along: whether those of the sum lie side by side."""

    size: int
    tile: int
    each: int
    word: Callable[[Expr, Expr], Expr]
    along: bool
    held: Local

    @property
    def pitch(self) -> int:
        return self.tile + PAD

    def place(self, thread: Expr, i: Expr) -> Expr:
        """Where in a tile a thread's i-th row or column is."""
        apart = self.tile * GROUP // self.each
        return i // GROUP * apart + thread * GROUP + i % GROUP


class _Tiles:
    """The kernel of one contraction."""

    def __init__(self, graph: Graph, p: Contraction, config: Config) -> None:
        self.graph, self.p, self.config = graph, p, config
        self.buffers = Buffers(graph)
        self.k = config["k"]
        self.across = config["n"] // config["tn"]  # threads side by side
        self.threads = config["m"] // config["tm"] * self.across
        self.down, self.over = -(-p.m // config["m"]), -(-p.n // config["n"])
        self.item = var("item", _blocks(p, config))
        batch = unflattened(self.item // (self.down * self.over), p.batches)
        self.where = batch
        self.sides = (
            self._side(p.left, p.rows, config["m"], config["tm"], "a"),
            self._side(p.right, p.columns, config["n"], config["tn"], "b"),
        )
        self.first = (
            self.item // self.over % self.down * config["m"], self.item % self.over * config["n"]
        )  # fmt: skip
        self.sums = Local("sums", p.dtype, (config["tm"], config["tn"]), self.threads)

    def _side(
        self, factor: Expr, loops: Sequence[Expr], tile: int, each: int, name: str
    ) -> _Side:  # fmt: skip
        over = self.p.node.payload[1]
        lowered = substitute(self.buffers.lower(factor, loops[-1]), self.where)
        loads = [n.args[0] for n in buffer_loads(lowered)]
        side = sum(stride(at, loops[-1]) == 1 for at in loads)
        along = sum(stride(at, over[-1]) == 1 for at in loads) > side

        def word(i: Expr, k: Expr) -> Expr:
            return substitute(lowered, unflattened(i, loops) | unflattened(k, over))

        held = Local(name, self.p.dtype, (self.k * (tile + PAD),))
        return _Side(prod(map(trip_count, loops)), tile, each, word, along, held)

    # ---------------------------------------------------------------- the kernel

    def launch(self, name: str, version: int) -> Launch:
        p = self.p
        body = self._body()
        phases = (Phase(_blocks(p, self.config), self.item, body),)
        params, args = self.buffers.parameters()
        work = 2 * p.batch * p.m * p.n * p.k
        kernel = Kernel(
            name, version, tuple(sorted(self.config.items())), params, phases, work,
            traffic(self.graph, params, args), overwritable(params, phases),
        )  # fmt: skip
        return Launch(kernel, args, ())

    def _vector(self, body: Callable[[Expr], Sequence[Stmt]]) -> Stmt:
        thread = var("thread", self.threads)
        return loop(thread, body(thread), "vector", lanes=self.threads)

    def _body(self) -> tuple[Stmt, ...]:
        start = var("start", self.p.k)
        a, b = self.sides

        def copied(s: _Side, first: Expr) -> Stmt:
            return self._vector(lambda t: self._copied(s, first, start, t))

        copies = [copied(s, f) for s, f in zip(self.sides, self.first, strict=True)]
        return (
            Declare(a.held), Declare(b.held), Declare(self.sums),
            self._vector(lambda t: self._cleared()),
            loop(start, (*copies, self._vector(self._multiplied)), step=self.k),
            self._vector(self._stored),
        )  # fmt: skip

    def _each(self, body: Callable[[Expr, Expr], Sequence[Stmt]]) -> Stmt:
        """body for all rows and columns of a thread."""
        i, j = var("i", self.config["tm"]), var("j", self.config["tn"])
        return loop(i, (loop(j, body(i, j), "unroll"),), "unroll")

    def _cleared(self) -> tuple[Stmt, ...]:
        zero = const(0, self.p.dtype)
        return (self._each(lambda i, j: (Set(self.sums, (i, j), zero),)),)

    def _copied(self, s: _Side, first: Expr, start: Expr, thread: Expr) -> tuple[Stmt, ...]:
        """One operand's part of a round, a few words by every thread, side by side as they lie in
        memory. Zeros stand for what is beyond the operand."""
        u = var("u", self.k * s.tile // self.threads)
        word = u * self.threads + thread
        at, term = (word // self.k, word % self.k) if s.along else (word % s.tile, word // s.tile)
        i, k = first + at, start + term
        inside = const(True, boolean)
        if s.size % s.tile:
            inside = logical_and(inside, i < s.size)
        if self.p.k % self.k:
            inside = logical_and(inside, k < self.p.k)
        value = select(inside, s.word(i, k), const(0, self.p.dtype))
        return (loop(u, (Set(s.held, (term * s.pitch + at,), value),), "unroll"),)

    def _multiplied(self, thread: Expr) -> tuple[Stmt, ...]:
        """A round's terms: one word of each operand for every row and column of the thread."""
        a, b = self.sides
        term = var("term", self.k)
        out: list[Stmt] = []
        held: list[Local] = []
        for s, t, name in ((a, thread // self.across, "x"), (b, thread % self.across, "w")):
            v, mine = var(f"{name}i", s.each), Local(name, self.p.dtype, (s.each,), self.threads)
            read = s.held[term * s.pitch + s.place(t, v)]
            out += [Declare(mine), loop(v, (Set(mine, (v,), read),), "unroll")]
            held.append(mine)
        x, w = held

        def add(i: Expr, j: Expr) -> tuple[Stmt, ...]:
            total = apply("fma", (x[i], w[j], self.sums[i, j]), self.p.dtype)
            return (Set(self.sums, (i, j), total),)

        return (loop(term, (*out, self._each(add)), "unroll"),)

    def _stored(self, thread: Expr) -> tuple[Stmt, ...]:
        """The epilogue of every element of the tile that exists."""
        p, (a, b) = self.p, self.sides

        def store(i: Expr, j: Expr) -> tuple[Stmt, ...]:
            m = self.first[0] + a.place(thread // self.across, i)
            n = self.first[1] + b.place(thread % self.across, j)
            to = self.where | unflattened(m, p.rows) | unflattened(n, p.columns)
            total = apply("sum", (), p.dtype)
            plain = self.buffers.lower(substitute(p.value, {p.node: total}), None)
            value = substitute(plain, to | {total: self.sums[i, j]})
            kind = self.graph.type(p.out)
            put = Store(self.buffers.write(p.out), substitute(offset(kind, p.at), to), value)
            inside = const(True, boolean)
            for place, s in ((m, a), (n, b)):
                if s.size % s.tile:
                    inside = logical_and(inside, place < s.size)
            return (put,) if inside.is_const else (If(inside, (put,)),)

        return (self._each(store),)
