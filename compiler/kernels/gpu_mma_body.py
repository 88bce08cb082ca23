"""The kernel of one product on tensor cores: copies run ahead of what warps multiply.

A block computes a tile of m rows and n columns, in rounds of k terms. Its threads copy the tiles of
both operands for the next `stages` - 1 rounds into a ring in shared memory while its warps multiply
those of this round: each warp wm by wn of the result, in steps of 32 bytes of terms, whose
fragments are loaded one step ahead. One barrier a round is enough: behind it the tiles of the next
round are there for all threads, and all have read the last of this one, so that what comes
`stages` rounds later may take its place from the next round on.

Every element is one chain of steps in the order of the sum, whatever the tile.
"""

from __future__ import annotations

from math import prod
from typing import Final

from ...ops.expr import Expr, apply, cast, const, index, linear, logical_and, var
from ...ops.traverse import substitute
from ...ops.types import boolean, u32
from ..graph.ir import Graph
from .address import offset
from .gpu_mma_operands import STEP, Fragments, Tile, numbered, operand
from .gpu_mma_product import HALF, Product, in_single
from .gpu_nest import unflattened
from .ir import (
    Call,
    Comment,
    Declare,
    If,
    Kernel,
    Launch,
    Let,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    loop,
)
from .pieces import Buffers, stride, trip_count
from .template import Config, traffic

WARP: Final = 32
SIDE: Final = (
    8  # neighbouring tiles of rows that run together, so that they share columns in the cache
)


class Mma:
    """The kernel for one config."""

    def __init__(self, graph: Graph, product: Product, config: Config) -> None:
        self.graph, self.product, self.config = graph, product, config
        self.p = product.p
        self.buffers = Buffers(graph)
        m, n, k = config["m"], config["n"], config["k"]
        self.stages = config["stages"]
        self.warps = m // config["wm"], n // config["wn"]
        self.threads = WARP * prod(self.warps)
        self.steps = k * product.left.dtype.bytes // STEP
        self.rounds = -(-product.k // k)
        self.tall, self.wide = config["wm"] // 16, config["wn"] // 8  # fragments of a warp
        self.tiles = tuple(
            Tile(product, operand(graph, self.buffers, product, left, size, k), size, k,
                 self.threads, self.stages)
            for left, size in ((True, m), (False, n))
        )  # fmt: skip
        self.down, self.over = -(-self.p.m // m), -(-self.p.n // n)
        self.item = var("item", self.p.batch * self.down * self.over)
        self.thread = var("thread", self.threads)
        self.lane, self.row, self.column = var("lane", WARP), var("row", m), var("column", n)
        self.first = var("first_row", self.down * m), var("first_column", self.over * n)
        self.where = unflattened(self.item // (self.down * self.over), self.p.batches)
        self.parts = tuple(
            Fragments(t, first, count, self.lane) for t, first, count in zip(
                self.tiles, (self.row, self.column), (self.tall, self.wide // 2), strict=True)
        )  # fmt: skip
        self.sums = Local("sums", product.total, (self.tall * self.wide * 4,))
        self.held = tuple(
            (Local(f"a{j}", u32, (self.tall * 4,)), Local(f"b{j}", u32, (self.wide * 2,)))
            for j in range(2)
        )

    def _named(self) -> tuple[Stmt, ...]:
        """Where the block's tile is (a few rows of tiles, column by column), the warp's in that,
        and what the thread copies and loads."""
        side = next(s for s in (SIDE, 4, 2, 1) if self.down % s == 0)
        tile, row = self.item % (self.down * self.over), side * self.over
        warp = self.thread // WARP
        down, config = self.warps[0], self.config
        return (
            Let(self.first[0], (tile // row * side + tile % side) * config["m"]),
            Let(self.first[1], tile % row // side * config["n"]),
            Let(self.lane, self.thread % WARP),
            Let(self.row, warp % down * config["wm"]),
            Let(self.column, warp // down * config["wn"]),
            *(s for t in self.tiles for s in t.named(self.thread)),
            *(s for f in self.parts for s in f.named()),
        )

    def launch(self, name: str, version: int) -> Launch:
        body = self._body()
        phase = Phase(self.item.payload[2], self.item, body, self.threads, self.thread)
        params, args = self.buffers.parameters()
        p = self.p
        work = 2 * p.batch * p.m * p.n * p.k
        kernel = Kernel(
            name, version, tuple(sorted(self.config.items())), params, (phase,), work,
            traffic(self.graph, params, args),
        )  # fmt: skip
        return Launch(kernel, args, ())

    # ---------------------------------------------------------------- the rounds

    def _body(self) -> tuple[Stmt, ...]:
        at, zero = var("s", self.sums.shape[0]), const(0, self.product.total)
        round_ = var("k_round", self.rounds)
        return (
            *self._named(),
            *(d for t in self.tiles for d in t.declared()),
            Declare(self.sums), *(Declare(r) for pair in self.held for r in pair),
            loop(at, (Set(self.sums, (at,), zero),), "unroll"),
            *self._ahead(),
            *self._arrived(),
            *self._fragments(0, index(0)),
            loop(round_, self._round(round_)),
            *self._stored(),
        )  # fmt: skip

    def _ahead(self) -> tuple[Stmt, ...]:
        """The copies of the first rounds, one group each."""
        if self.stages == 2:
            return (*self._copied(index(0)), Call("cp_commit"))
        s = var("ahead", self.stages - 1)
        copies = self._copied(s)
        if self.stages - 1 > self.rounds:
            copies = (If(s < self.rounds, copies),)
        return (loop(s, (*copies, Call("cp_commit")), "unroll"),)

    def _copied(self, round_: Expr) -> tuple[Stmt, ...]:
        stage = round_ % self.stages
        return tuple(t.copied(stage, first, round_, self.where)
                     for t, first in zip(self.tiles, self.first, strict=True))  # fmt: skip

    def _arrived(self) -> tuple[Stmt, ...]:
        """The next tiles are there, for all threads."""
        return Call("cp_wait", (self.stages - 2,)), Call("barrier")

    def _round(self, round_: Expr) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for step in range(self.steps):
            out.append(Comment(f"terms {step * STEP} to {step * STEP + STEP - 1} of a line, bytes"))
            ahead = self._fragments(step + 1, round_)
            if step == self.steps - 1:
                ahead = (*self._arrived(), *self._fragments(0, round_ + 1))
                ahead = (If(round_ < self.rounds - 1, ahead),) if self.rounds > 1 else ()
            out += ahead
            if step == 0:
                later = round_ + (self.stages - 1)
                if self.rounds >= self.stages:
                    out.append(If(later < self.rounds, self._copied(later)))
                out.append(Call("cp_commit"))
            a, b = self.held[step % 2]
            shape = self.tall, self.wide
            out.append(Call(f"mma_{self.product.kind}", (self.sums, a, b, *shape)))
        return tuple(out)

    def _fragments(self, step: int, round_: Expr) -> tuple[Stmt, ...]:
        """What the warp multiplies in a step of a round."""
        if step == self.steps:
            return ()
        out: list[Stmt] = []
        for part, into in zip(self.parts, self.held[step % 2], strict=True):
            out += part.loaded(into, round_ % self.stages, step)
            if self.product.kind == "tf32":
                out.append(Call("round_tf32", (into, into.shape[0])))
        return tuple(out)

    # ---------------------------------------------------------------- the result

    def _stored(self) -> tuple[Stmt, ...]:
        """The epilogue of every element that exists: two neighbours of a row at a time."""
        i, half, j = var("i", self.tall), var("half", 2), var("j", self.wide)
        row = self.first[0] + self.row + i * 16 + half * 8 + self.lane // 4
        column = self.first[1] + self.column + j * 8 + self.lane % 4 * 2
        register = (i * self.wide + j) * 4 + half * 2
        e = var("e", 2)
        kind = self.graph.type(self.p.out)
        out = self.buffers.write(self.p.out)
        value, to = self._value(row, column + e, register + e)
        body: tuple[Stmt, ...]
        if self._in_pairs():
            pair = Local("pair", kind.dtype, (2,))
            first = substitute(to, {e: index(0)})
            body = (
                Declare(pair), loop(e, (Set(pair, (e,), value),), "unroll"),
                Call("store_vector", (out, first, pair, index(0), 2)),
            )  # fmt: skip
            body = self._inside(row, column, body)
        else:
            body = (loop(e, self._inside(row, column + e, (Store(out, to, value),)), "unroll"),)
        for v in (j, half, i):
            body = (loop(v, body, "unroll"),)
        return body

    def _value(self, row: Expr, column: Expr, register: Expr) -> tuple[Expr, Expr]:
        """An element of the result, and where it belongs."""
        p = self.p
        total = apply("sum", (), p.dtype)
        known = apply("sum", (), self.product.total)
        plain = self.buffers.lower(substitute(p.value, {p.node: total}), None)
        if p.value.dtype in HALF:
            plain = in_single(plain, {total: known})
        elif p.dtype in HALF:
            plain = substitute(plain, {total: cast(known, p.dtype)})
        else:
            plain = substitute(plain, {total: known})
        value, to = (
            substitute(numbered(numbered(e, p.rows, row), p.columns, column), self.where)
            for e in (plain, offset(self.graph.type(p.out), p.at))
        )
        return substitute(value, {known: self.sums[register]}), to

    def _in_pairs(self) -> bool:
        """Whether two neighbours of a row, from an even column on, are so in memory."""
        kind, last = self.graph.type(self.p.out), self.p.columns[-1]
        at = offset(kind, self.p.at)
        terms, first = linear(at)
        even = all(c % 2 == 0 for v, c in terms.items() if v is not last)
        return even and first % 2 == 0 and stride(at, last) == 1 \
            and trip_count(last) % 2 == 0  # fmt: skip

    def _inside(self, row: Expr, column: Expr, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        inside = const(True, boolean)
        if self.p.m % self.config["m"]:
            inside = logical_and(inside, row < self.p.m)
        if self.p.n % self.config["n"]:
            inside = logical_and(inside, column < self.p.n)
        return body if inside.is_const else (If(inside, body),)
