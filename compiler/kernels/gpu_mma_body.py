"""The kernel of one product on tensor cores: copies run ahead of what warps multiply.

A block computes a tile of m rows and n columns, in rounds of k terms. Its threads copy the tiles of
both operands for the next `stages` - 1 rounds into a ring in shared memory while its warps multiply
those of this round: each warp wm by wn of the result, in steps of 32 bytes of terms, whose
fragments are loaded one step ahead. One barrier a round is enough: behind it the tiles of the next
round are there for all threads, and all have read the last of this one, so that what comes
`stages` rounds later may take its place from the next round on.

Every element is one chain of steps in the order of the sum, whatever the tile; or as many as there
are parts of the sum (see `gpu_parts`).
"""

from __future__ import annotations

from math import prod
from typing import Final

from ...ops.expr import Expr, const, index, logical_and, var
from ...ops.traverse import substitute
from ...ops.types import boolean, u32
from ..graph.ir import Graph
from .gpu_mma_operands import STEP, Fragments, Tile, operand
from .gpu_mma_product import Product
from .gpu_mma_results import Results
from .gpu_model import WARP
from .gpu_parts import Parts
from .gpu_sharing import unflattened
from .ir import (
    Buffer,
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
from .pieces import Buffers
from .template import Config, traffic

EIGHT: Final = 8  # columns that a thread stores at once
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
        self.parts = config["parts"]
        self.rounds = -(-product.k // k) // self.parts
        self.tall, self.wide = config["wm"] // 16, config["wn"] // 8  # fragments of a warp
        self.tiles = tuple(
            Tile(product, operand(graph, self.buffers, product, left, size, k), size, k,
                 self.threads, self.stages)
            for left, size in ((True, m), (False, n))
        )  # fmt: skip
        self.down, self.over = -(-self.p.m // m), -(-self.p.n // n)
        self.each = self.down * self.over * self.parts  # blocks of a batch
        self.item = var("item", self.p.batch * self.each)
        self.thread = var("thread", self.threads)
        self.lane, self.row, self.column = var("lane", WARP), var("row", m), var("column", n)
        self.first = var("first_row", self.down * m), var("first_column", self.over * n)
        self.batch = self.item // self.each
        self.where = unflattened(self.batch, self.p.batches)
        self.start = var("first_round", self.rounds * (self.parts - 1) + 1)
        self.operands = tuple(
            Fragments(t, first, count, self.lane) for t, first, count in zip(
                self.tiles, (self.row, self.column), (self.tall, self.wide // 2), strict=True)
        )  # fmt: skip
        self.results = Results(graph, product, self.buffers)
        sizes = self.p.batch, self.p.m, self.p.n
        self.split = Parts(*sizes, product.total, self.parts, self.item % self.parts)
        self.stored = self.results if self.parts == 1 else self.split
        self.sums = Local("sums", product.total, (self.tall * self.wide * 4,))
        self.held = tuple(
            (Local(f"a{j}", u32, (self.tall * 4,)), Local(f"b{j}", u32, (self.wide * 2,)))
            for j in range(2)
        )

    def _named(self) -> tuple[Stmt, ...]:
        """Where the block's tile is (a few rows of tiles, column by column), the warp's in that,
        and what the thread copies and loads."""
        side = next(s for s in (SIDE, 4, 2, 1) if self.down % s == 0)
        tile, row = self.item % self.each // self.parts, side * self.over
        warp = self.thread // WARP
        down, config = self.warps[0], self.config
        start = (Let(self.start, self.item % self.parts * self.rounds),) if self.parts > 1 else ()
        return (
            *start,
            Let(self.first[0], (tile // row * side + tile % side) * config["m"]),
            Let(self.first[1], tile % row // side * config["n"]),
            Let(self.lane, self.thread % WARP),
            Let(self.row, warp % down * config["wm"]),
            Let(self.column, warp // down * config["wn"]),
            *(s for t in self.tiles for s in t.named(self.thread)),
            *(s for f in self.operands for s in f.named()),
        )

    def launch(self, name: str, version: int) -> Launch:
        body = self._body()
        phases = [Phase(self.item.payload[2], self.item, body, self.threads, self.thread)]
        params, args = self.buffers.parameters()
        scratch: tuple[Buffer, ...] = ()
        if self.parts > 1:
            phases.append(self.split.added(self.results))
            scratch = (self.split.out,)
        p = self.p
        work = 2 * p.batch * p.m * p.n * p.k
        kernel = Kernel(
            name, version, tuple(sorted(self.config.items())), (*params, *scratch),
            tuple(phases), work, traffic(self.graph, params, args),
        )  # fmt: skip
        return Launch(kernel, (*args, *(None for _ in scratch)), ())

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
        if self.parts > 1:
            round_ = self.start + round_
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
        for part, into in zip(self.operands, self.held[step % 2], strict=True):
            out += part.loaded(into, round_ % self.stages, step)
            if self.product.kind == "tf32":
                out.append(Call("round_tf32", (into, into.shape[0])))
        return tuple(out)

    # ---------------------------------------------------------------- the result

    def _stored(self) -> tuple[Stmt, ...]:
        """What becomes of every sum that exists: of eight neighbours of a row at a time, where they
        are neighbours in memory, else of the two that a thread holds."""
        i, half = var("i", self.tall), var("half", 2)
        row = self.first[0] + self.row + i * 16 + half * 8 + self.lane // 4
        start, column = i * self.wide * 4 + half * 2, self.first[1] + self.column
        body: tuple[Stmt, ...]
        if self.wide % 4 == 0 and self.stored.neighbours(EIGHT):
            j, s, e = var("j", self.wide // 4), var("s", 4), var("e", 2)
            first = start + j * 16
            body = self._in_words(EIGHT, row, column + j * 32 + self.lane % 4 * 8,
                                  ((s, 2, first + s * 4), (e, 1, e)))  # fmt: skip
            body = (Call("turn_columns", (self.sums, first)), *body)
        else:
            j, e = var("j", self.wide), var("e", 2)
            column, first = column + j * 8 + self.lane % 4 * 2, start + j * 4
            if self.stored.neighbours(2):
                body = self._in_words(2, row, column, ((e, 1, first + e),))
            else:
                found = self.stored.element(self.sums[first + e], self.batch, row, column + e)
                put = Store(self.stored.out, found.at, found.value)
                body = (loop(e, self._inside(row, column + e, (put,)), "unroll"),)
        for v in (j, half, i):
            body = (loop(v, body, "unroll"),)
        return body

    def _in_words(
        self, count: int, row: Expr, column: Expr, loops: tuple[tuple[Expr, int, Expr], ...]
    ) -> tuple[Stmt, ...]:
        """`count` neighbours from a column on, in stores of 16 bytes at most. loops: variables, how
        many columns a step of them is, and what it adds to the number of the register."""
        kind = self.stored.dtype
        word = Local("word", kind, (count,))
        at, register = index(0), index(0)
        for v, step, r in loops:
            at, register = at + v * step, register + r
        found = self.stored.element(self.sums[register], self.batch, row, column + at)
        filled: tuple[Stmt, ...] = (Set(word, (at,), found.value),)
        for v, _, _ in reversed(loops):
            filled = (loop(v, filled, "unroll"),)
        first = substitute(found.at, {v: index(0) for v, _, _ in loops})
        each = min(count, 16 // kind.bytes)
        stores = (Call("store_vector", (self.stored.out, first + k, word, index(k), each))
                  for k in range(0, count, each))  # fmt: skip
        return (Declare(word), *self._inside(row, column, (*filled, *stores)))

    def _inside(self, row: Expr, column: Expr, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        inside = const(True, boolean)
        if self.p.m % self.config["m"]:
            inside = logical_and(inside, row < self.p.m)
        if self.p.n % self.config["n"]:
            inside = logical_and(inside, column < self.p.n)
        return body if inside.is_const else (If(inside, body),)
