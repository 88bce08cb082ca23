"""The kernel of `gpu_wgmma`: what every thread of a block does.

Warps 0 to 3 are the producer: one of their threads has tiles of both operands copied into `stages`
places in shared memory, round and round. The other groups of four warps are consumers: each
multiplies its rows of the tile of A with the tile of B, straight from shared memory, and keeps the
sums in registers. Barrier `ready[s]` says that stage s is filled, `free[s]` that nobody reads it
any more. Blocks take tiles of the result one after the other, so that the copies for the next tile
go on while the sums of one become results.

Two blocks of a cluster take tiles one below the other, and need the same tile of B: each has one
half of it copied to both.

A long sum may fall into parts: each is a tile of its own then, of some of the rounds (see
`gpu_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, apply, compare, const, index, minimum, var
from ...ops.types import i64, u64
from .gpu_matrices import ROW, Matrix, Product
from .gpu_parts import rounds_of
from .gpu_sharing import unflattened
from .gpu_wgmma_results import Results
from .gpu_wgmma_shape import GROUP, TILE, Shape
from .ir import (
    Argument,
    Call,
    Comment,
    Declare,
    If,
    Let,
    Local,
    Phase,
    Set,
    Stmt,
    TensorMap,
    loop,
    seq,
)
from .pieces import trip_count

BAND: Final = 8  # tiles one below the other that are done before the next column of tiles
MANY: Final = 128  # sums of a thread that leave few of its 168 registers for what follows on them
KEPT, TAKEN = 40, 232  # registers of a thread of the producer, and of two groups of consumers


class Body:
    """The phase of one product with one shape."""

    def __init__(self, p: Product, s: Shape, results: Results) -> None:
        self.p, self.s, self.results = p, s, results
        size = p.dtype.bytes
        self.terms = ROW // size
        self.rounds = -(-p.k // self.terms)
        self.each, parts = rounds_of(self.rounds, s.parts)
        assert parts == s.parts, "a part without rounds"
        self.count, self.is_even = index(self.each), self.each * s.parts == self.rounds
        if not self.is_even:
            self.count = var("rounds", self.each + 1)
        self.down = -(-p.m // (s.m * s.cluster))
        self.over = -(-p.n // s.n)
        self.item = var("block", s.blocks * s.cluster)
        self.thread = var("thread", s.threads)
        self.a = Local("a", p.dtype, (s.stages * s.m * self.terms,), shared=True, align=1024)
        self.b = Local("b", p.dtype, (s.stages * s.n * self.terms,), shared=True, align=1024)
        self.ready = Local("ready", u64, (s.stages,), shared=True)
        self.free = Local("free", u64, (s.stages,), shared=True)
        self.stage, self.phase = Local("stage", i64), Local("phase", i64)
        self.group = var("group", s.groups + 1)
        self.place = (  # of a tile: its batch, first row and first column
            var("batch", p.batch), var("row", self.down * s.m * s.cluster),
            var("column", self.over * s.n),
        )  # fmt: skip
        self.left = (
            self._map("a_tiles", p.left, p.m, s.m) if p.window is None
            else p.window.tensor("a_tiles", p.left.buffer, self.terms, self._tf32)
        )  # fmt: skip
        self.right = self._map("b_tiles", p.right, p.n, s.n // s.cluster)

    def _map(self, name: str, x: Matrix, rows: int, tile: int) -> TensorMap:
        size = x.buffer.dtype.bytes
        parts = [trip_count(v) for v, _ in x.parts]
        extents = [*parts, *(trip_count(self.p.batches[k]) for k in x.moving)]
        steps = [s * size for s in (*(s for _, s in x.parts), *(x.batches[k] for k in x.moving))]
        terms = self.p.k // prod(parts)
        ones = (1,) * len(steps)
        if x.across:
            dims, first, box = (rows, terms), x.term, (self.terms, self.terms)
        else:
            dims, first, box = (terms, rows), x.row, (self.terms, tile)
        return TensorMap(name, x.buffer, (*dims, *extents), (first * size, *steps), (*box, *ones),
                         tf32=self._tf32)  # fmt: skip

    @property
    def _tf32(self) -> bool:
        return self.s.kind == "tf32"

    # ---------------------------------------------------------------- the whole

    def phase_of(self) -> Phase:
        s, t = self.s, self.thread
        locals_ = [self.a, self.b, self.ready, self.free, *self.results.shared]
        registers = [self.stage, self.phase]
        k = var("k", s.stages)
        arrivals = s.groups * 4 * s.cluster
        start = loop(k, (
            Call("mbarrier_init", (self.ready, k, 1)),
            Call("mbarrier_init", (self.free, k, arrivals)),
        ))  # fmt: skip
        maps = [self.left, self.right, *self.results.maps]
        prepare = If(compare("eq", t, 0), seq(
            [Call("tma_prefetch", (m,)) for m in maps], start, Call("mbarrier_init_fence")
        ))  # fmt: skip
        body = seq(
            [Declare(x) for x in (*locals_, *registers)], prepare, Call("barrier"), self._meet(),
            Let(self.group, apply("uniform", (t // GROUP,), i64)),
            Set(self.stage, (), index(0)), Set(self.phase, (), index(0)),
            If(compare("eq", self.group, 0), self._producer(), self._consumer()),
            self._meet(),
        )  # fmt: skip
        return Phase(s.blocks * s.cluster, self.item, body, s.threads, t, s.cluster)

    @property
    def moves_registers(self) -> bool:
        """Whether the consumers need more registers than there are for all threads alike."""
        return self.s.groups > 1 and self.s.sums >= MANY

    def _meet(self) -> tuple[Stmt, ...]:
        """Blocks of a cluster begin and end together: they use each other's shared memory."""
        return (Call("cluster_barrier"),) if self.s.cluster > 1 else ()

    def _each_tile(self, body: Sequence[Stmt]) -> Stmt:
        """body for every tile of the block. Tiles go down in bands, so that those that run side by
        side share what they read."""
        each, parts = self.down * self.over, self.s.parts
        number = var("tile", self.p.batch * each * parts)
        tile, rounds = number // parts, tuple[Stmt, ...]()
        if parts > 1:
            rounds = (Let(self.s.part, number % parts),)
        if not self.is_even:
            left = self.rounds - self.s.part * self.each
            rounds = (*rounds, Let(self.count, minimum(index(self.each), left)))
        within = tile % each
        band = within // (BAND * self.over)
        inside = within % (BAND * self.over)
        height = minimum(index(self.down) - band * BAND, index(BAND))
        row, column = band * BAND + inside % height, inside // height
        if self.s.cluster > 1:
            row = row * self.s.cluster + self.item % self.s.cluster
        found = (tile // each, row * self.s.m, column * self.s.n)
        where = [Let(v, e) for v, e in zip(self.place, found, strict=True)]
        body = (*rounds, *where, *body)
        return loop(number, body, lo=self.item // self.s.cluster, step=self.s.blocks)

    def _advance(self) -> tuple[Stmt, ...]:
        """The next stage; behind the last one comes the first, and the other parity."""
        return (
            Set(self.stage, (), self.stage.value + 1),
            If(compare("eq", self.stage.value, self.s.stages), (
                Set(self.stage, (), index(0)), Set(self.phase, (), 1 - self.phase.value),
            )),
        )  # fmt: skip

    # ---------------------------------------------------------------- producer

    def _producer(self) -> tuple[Stmt, ...]:
        s, k = self.s, var("k", self.each)
        batch, row, column = self.place
        at = k + (s.part * self.each if s.parts > 1 else 0)
        size = (s.m + s.n) * ROW
        round_ = seq(
            Call("mbarrier_wait", (self.free, self.stage.value, 1 - self.phase.value)),
            Call("mbarrier_expect", (self.ready, self.stage.value, size)),
            self._copies(self.a, self.left, self.p.left, s.m, at, row, batch, False),
            self._copies(self.b, self.right, self.p.right, s.n, at, column, batch, True),
            self._advance(),
        )
        rounds = (loop(k, round_, hi=self.count),)
        copy = If(compare("eq", self.thread, 0), (self._each_tile(rounds),))
        fewer = (Call("fewer_registers", (KEPT,)),) if self.moves_registers else ()
        return seq(Comment("the producer"), fewer, copy)

    def _copies(
        self, to: Local, tensor: TensorMap, x: Matrix, tile: int, k: Expr, first: Expr,
        batch: Expr, halved: bool,
    ) -> list[Stmt]:  # fmt: skip
        """The boxes of one operand for one round; of the right one in a cluster, the block's half
        of them, to all blocks."""
        over = unflattened(batch, self.p.batches)
        rest = [over[self.p.batches[j]] for j in x.moving]
        if x.parts:
            loops = [v for v, _ in x.parts]
            chunks = self.rounds // prod(map(trip_count, loops))
            where = unflattened(k // chunks, loops)
            rest, k = [*(where[v] for v in loops), *rest], k % chunks
        rank = len(tensor.dims)
        shares = self.s.cluster if halved else 1
        mine = self.item % shares if shares > 1 else index(0)
        at = self.stage.value * (tile * self.terms)
        step = self.terms if x.across else tile // shares
        made: list[Stmt] = []
        for j in range(tile // shares // step):
            part = mine * (tile // shares) + j * step
            inner = [first + part, k * self.terms] if x.across else [k * self.terms, first + part]
            window = self.p.window if x is self.p.left else None
            if window is not None:
                inner, rest = window.coordinates(k, first, over, self.terms), []
            given: list[Argument] = [to, at + part * self.terms, tensor, self.ready,
                                     self.stage.value, *inner, *rest]  # fmt: skip
            if shares > 1:
                made.append(Call(f"tma_cast_{rank}d", (*given, (1 << shares) - 1)))
            else:
                made.append(Call(f"tma_load_{rank}d", tuple(given)))
        return made

    # ---------------------------------------------------------------- consumers

    def _consumer(self) -> tuple[Stmt, ...]:
        s, k, group = self.s, var("k", self.each), var("consumer", self.s.groups)
        sums = Local("sums", s.held, (s.sums,))
        before = Local("before", i64)
        batch, row, column = self.place
        at_a = self.stage.value * (s.m * self.terms) + group * (s.tiles * TILE * self.terms)
        ways = (int(self.p.left.across), int(self.p.right.across))
        multiply = Call(f"wgmma_{s.kind}", (
            sums, self.a, at_a, self.b, self.stage.value * (s.n * self.terms), index(0) < k,
            s.tiles, s.n, *ways,
        ))  # fmt: skip
        round_ = seq(
            Call("mbarrier_wait", (self.ready, self.stage.value, self.phase.value)),
            multiply,
            If(index(0) < k, self._release(before.value)),
            Set(before, (), self.stage.value),
            self._advance(),
        )
        body = seq(
            Set(before, (), index(0)),
            loop(k, round_, hi=self.count),
            Call("wgmma_wait", (sums, s.sums, 0)),
            self._release(before.value),
            self.results.stored(sums, self.thread % GROUP, group, batch, row, column),
        )
        more = (Call("more_registers", (TAKEN,)),) if self.moves_registers else ()
        return seq(
            Comment("consumers"), more, Let(group, self.group - 1), Declare(sums), Declare(before),
            self.results.registers(), self._cleared(sums), self._each_tile(body),
            self.results.ended(self.thread % GROUP),
        )  # fmt: skip

    def _cleared(self, sums: Local) -> Stmt:
        j = var("j", self.s.sums)
        return loop(j, (Set(sums, (j,), const(0, self.s.held)),), "unroll")

    def _release(self, stage: Expr) -> tuple[Stmt, ...]:
        """One thread of every warp says that the warp has read a stage: to all blocks that fill
        it."""
        lane = self.thread % 32
        if self.s.cluster == 1:
            return (If(compare("eq", lane, 0), (Call("mbarrier_arrive", (self.free, stage)),)),)
        arrive = Call("mbarrier_arrive_at", (self.free, stage, lane))
        return (If(lane < self.s.cluster, (arrive,)),)
