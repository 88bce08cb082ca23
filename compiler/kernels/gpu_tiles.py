"""Sums of products on GPUs: tiles of the result in registers, of the operands in shared memory.

A block of threads computes a tile of `m` rows and `n` columns, a thread `tm` of the rows and `tn`
of the columns, in registers. Operands come in rounds of `k` terms through `stages` places in shared
memory: while a round is multiplied, copies for later ones are on their way. Threads of a warp lie
eight rows by four columns. A thread's rows and columns come in groups of 16 bytes, those of a warp
side by side, so that all banks of shared memory work; where an operand lies along the sum, a thread
reads 16 bytes of terms instead.

Every element is one chain of multiply-adds in the order of the sum (see `gpu_operands`), whatever
the tile. When it is complete, the tile goes through shared memory once more, and threads side by
side make neighbouring results of it, four at a time: so what follows on the sum is written once,
and what it reads and stores lies side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ...ops.expr import Expr, apply, const, index, logical_and, select, var
from ...ops.traverse import substitute
from ...ops.types import boolean, i64
from ..graph.ir import Graph, Op
from .address import offset
from .device import Device
from .gpu_contraction import LEAST, Contraction, contraction_of
from .gpu_operands import Operand, operand, terms_of
from .gpu_sharing import flattened, unflattened
from .inplace import overwritable
from .ir import Buffer, Call, Declare, If, Kernel, Launch, Local, Phase, Set, Stmt, Store, loop
from .pieces import Buffers
from .template import Config, required, traffic
from .vectors import WIDEST, aligned, wide_loads

DOWN: Final = 8  # threads of a warp along rows
ACROSS: Final = 4  # and along columns
MOST_SUMS: Final = 256  # bytes of registers that a thread's tile may take
TILES: Final[tuple[Config, ...]] = (
    {"m": 128, "n": 128, "k": 16, "tm": 8, "tn": 8, "stages": 3},
    {"m": 128, "n": 64, "k": 16, "tm": 8, "tn": 8, "stages": 3},
    {"m": 64, "n": 128, "k": 16, "tm": 8, "tn": 8, "stages": 3},
    {"m": 64, "n": 64, "k": 16, "tm": 8, "tn": 4, "stages": 3},
    {"m": 32, "n": 64, "k": 16, "tm": 4, "tn": 4, "stages": 3},
    {"m": 32, "n": 32, "k": 16, "tm": 4, "tn": 4, "stages": 3},
)
"""From the most to the fewest multiply-adds per word of shared memory."""
BUSY_THREADS: Final = 512  # of a multiprocessor: each may have 128 registers
MORE_STAGES: Final = (2, 4)


class GpuTiles:
    """Configs: `m`, `n`, `k` of a block's tile, `tm`, `tn` of a thread's, `stages`."""

    name = "gpu_tiles"
    version = 2

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return contraction_of(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = required(contraction_of(graph, ops, outputs), self.name, ops)
        more = [{**c, "stages": s} for c in _tiles(p) for s in MORE_STAGES]
        return [*_tiles(p), *more]

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


class _Tiles:
    """The kernel of one contraction."""

    def __init__(self, graph: Graph, p: Contraction, config: Config) -> None:
        self.graph, self.p, self.config = graph, p, config
        self.buffers = Buffers(graph)
        self.m, self.n, self.tm, self.tn = (config[x] for x in ("m", "n", "tm", "tn"))
        self.stages = config["stages"]
        self.group = WIDEST // p.dtype.bytes
        self.threads = self.m // self.tm * (self.n // self.tn)
        down, over = -(-p.m // self.m), -(-p.n // self.n)
        self.item = var("item", _blocks(p, config))
        self.thread = var("thread", self.threads)
        self.where = unflattened(self.item // (down * over), p.batches)
        self.first = self.item % down * self.m, self.item // down % over * self.n
        self.terms = terms_of(p, config["k"])
        self.held = Local("held", p.dtype, (0,), shared=True)
        rows = self._operand(p.left, p.rows, self.m, 0)
        columns = self._operand(p.right, p.columns, self.n, rows.elements)
        self.stage = rows.elements + columns.elements
        self.pitch = self.n + self.group  # of a row of results in shared memory
        size = max(self.stages * self.stage, self.m * self.pitch)
        self.held = replace(self.held, shape=(size,))
        self.sides = replace(rows, held=self.held), replace(columns, held=self.held)
        self.sums = Local("sums", p.dtype, (self.tm * self.tn,))
        self.reads, self.writes = Local("reads", i64), Local("writes", i64)
        self.x = Local("x", p.dtype, (self.group * self.tm,))
        self.w = Local("w", p.dtype, (self.group * self.tn,))
        self.mine = Local("rows", i64), Local("columns", i64)

    def _operand(self, factor: Expr, loops: Sequence[Expr], tile: int, start: int) -> Operand:
        found = operand(self.graph, self.buffers, self.p, factor, loops, tile, self.terms,
                        self.held, start)  # fmt: skip
        return replace(found, value=substitute(found.value, self.where),
                       at=substitute(found.at, self.where),
                       guard=substitute(found.guard, self.where))  # fmt: skip

    def launch(self, name: str, version: int) -> Launch:
        p = self.p
        body = (*self._summed(), *self._finished())
        phases = (Phase(_blocks(p, self.config), self.item, body, self.threads, self.thread,
                        BUSY_THREADS // self.threads),)  # fmt: skip
        params, args = self.buffers.parameters()
        work = 2 * p.batch * p.m * p.n * p.k
        kernel = Kernel(
            name, version, tuple(sorted(self.config.items())), params, phases, work,
            traffic(self.graph, params, args), overwritable(params, phases),
        )  # fmt: skip
        return Launch(kernel, args, ())

    # ---------------------------------------------------------------- the sums

    def _summed(self) -> tuple[Stmt, ...]:
        """All rounds. Copies run `stages` - 1 rounds ahead, which takes as many rounds more."""
        ahead, rounds = self.stages - 1, self.terms.rounds
        t = var("t", rounds + ahead)
        begin = tuple(s.copied(t, self.writes.value, f, self.thread, self.threads)
                      for s, f in zip(self.sides, self.first, strict=True))  # fmt: skip
        zero = const(0, self.p.dtype)
        body = (
            Call("cp_wait", (ahead - 1,)), Call("barrier"),
            If(t < rounds, begin), Call("cp_commit"), self._next(self.writes),
            If(index(ahead) <= t, (*self._multiplied(), self._next(self.reads))),
        )  # fmt: skip
        return (
            Declare(self.held), Declare(self.sums), Declare(self.x), Declare(self.w),
            Call("fill", (self.sums, zero, self.tm * self.tn)),
            Declare(self.writes), Set(self.writes, (), index(0)),
            Declare(self.reads), Set(self.reads, (), index(0)),
            *self._places(),
            loop(t, body),
        )  # fmt: skip

    def _next(self, place: Local) -> Stmt:
        """On to the next stage, the first one after the last."""
        behind = place.value + self.stage
        last = behind < self.stages * self.stage
        return Set(place, (), select(last, behind, index(0)))

    def _spot(self) -> tuple[Expr, Expr]:
        """The first row and column of a thread, in groups, and of warps in tiles."""
        warp, lane = self.thread // 32, self.thread % 32
        down = self.m // (DOWN * self.tm)
        a, b = self.sides
        row = warp % down * (DOWN * self.tm) + lane // ACROSS * self._neighbours(a)
        column = warp // down * (ACROSS * self.tn) + lane % ACROSS * self._neighbours(b)
        return row, column

    def _neighbours(self, s: Operand) -> int:
        """Rows of a thread that lie side by side."""
        return 1 if s.along_terms else self.group

    def _places(self) -> tuple[Stmt, ...]:
        """Where a thread's part of a stage begins."""
        starts = (s.start + at * (s.pitch if s.along_terms else 1)
                  for s, at in zip(self.sides, self._spot(), strict=True))  # fmt: skip
        return tuple(s for local, start in zip(self.mine, starts, strict=True)
                     for s in (Declare(local), Set(local, (), start)))  # fmt: skip

    def _multiplied(self) -> tuple[Stmt, ...]:
        """The terms of a round, a group of them at a time."""
        out: list[Stmt] = []
        a, b = self.sides
        for term in range(0, self.config["k"], self.group):
            for s, r, start, each, apart in (
                (a, self.x, self.mine[0], self.tm, DOWN), (b, self.w, self.mine[1], self.tn, ACROSS)
            ):  # fmt: skip
                at = self.reads.value + start.value + term * (1 if s.along_terms else s.pitch)
                many, far = (1, 0) if s.along_terms else (self.group, s.pitch)
                count = each if s.along_terms else each // self.group
                step = apart * (s.pitch if s.along_terms else self.group)
                out.append(Call("load_rows", (r, self.held, at, many, far, count, step,
                                              self.group)))  # fmt: skip
            by_term = (int(not s.along_terms) for s in self.sides)
            out.append(Call("multiply", (self.sums, self.x, self.w, self.tm, self.tn, self.group,
                                         *by_term)))  # fmt: skip
        return tuple(out)

    # ---------------------------------------------------------------- the results

    def _finished(self) -> tuple[Stmt, ...]:
        """The epilogue, when all threads have written their sums to shared memory."""
        p, g = self.p, self.group
        a, b = map(self._neighbours, self.sides)
        row, column = self._spot()
        put = Call("store_tile", (
            self.held, row * self.pitch + column, self.sums, self.tm, self.tn, self.pitch,
            a, DOWN * a, b, ACROSS * b,
        ))  # fmt: skip
        u = var("u", self.m * self.n // (g * self.threads))
        piece = u * self.threads + self.thread
        i, j = piece // (self.n // g), piece % (self.n // g) * g
        m, n = self.first[0] + i, self.first[1] + j
        sums = Local("total", p.dtype, (g,))
        read = Call("load_vector", (sums, index(0), self.held, i * self.pitch + j, g))
        results = self._results(m, n, sums)
        inside = const(True, boolean)
        if p.m % self.m:
            inside = m < p.m
        if p.n % self.n:
            inside = logical_and(inside, n < p.n)
        whole = (Declare(sums), read, *results)
        body = whole if inside.is_const else (If(inside, whole),)
        return Call("barrier"), put, Call("barrier"), loop(u, body)

    def _results(self, m: Expr, n: Expr, sums: Local) -> tuple[Stmt, ...]:
        """Neighbouring results of a row: all are computed before one is stored, so that they are
        stored at once where they lie side by side."""
        p, g = self.p, self.group
        v = var("v", g)
        total = apply("sum", (), p.dtype)
        row, column = var("row", p.m), var("column", p.n)

        def there(e: Expr) -> Expr:
            e = flattened(flattened(substitute(e, self.where), row, p.rows), column, p.columns)
            return substitute(e, {row: m, column: n + v, total: sums[v]})

        value = there(self.buffers.lower(substitute(p.value, {p.node: total}), None))
        kind = self.graph.type(p.out)
        out = Local("out", kind.dtype, (g,))
        y, at = self.buffers.write(p.out), there(offset(kind, p.at))
        if p.n % g:
            both = If(n + v < p.n, (Set(out, (v,), value), Store(y, at, out[v])))
            return Declare(out), loop(v, (both,), "unroll")
        reads, value = wide_loads(value, v, self._held)
        made = loop(v, (Set(out, (v,), value),), "unroll")
        if aligned(at, v) and g * kind.dtype.bytes <= WIDEST:
            put: Stmt = Call("store_vector", (y, substitute(at, {v: index(0)}), out, index(0), g))
        else:
            put = loop(v, (Store(y, at, out[v]),), "unroll")
        return Declare(out), *reads, made, put

    def _held(self, b: Buffer) -> Local:
        """Registers for what is read of a buffer at once."""
        return Local(f"{b.name}_v", b.dtype, (self.group,))


__all__ = ["LEAST", "TILES", "GpuTiles", "contraction_of"]
