"""Sums of products on GPUs: tiles of the result in registers, of the operands in shared memory.

A block of threads computes a tile of `m` rows and `n` columns, a thread `tm` of the rows and `tn`
of the columns, in registers. Operands come in rounds of `k` terms through `stages` places in shared
memory: while a round is multiplied, copies for later ones are on their way. Threads of a warp lie
eight rows by four columns. A thread's rows and columns come in groups of 16 bytes, those of a warp
side by side, so that all banks of shared memory work; where an operand lies along the sum, a thread
reads 16 bytes of terms instead.

Every element is one chain of multiply-adds in the order of the sum (see `gpu_operands`), whatever
the tile. Except under "reproducible", a long sum of few elements may fall into `parts`, each a
block's, which a second phase adds up in order: that fills a device which the tiles of the result
leave idle. When it is complete, the tile goes through shared memory once more, and threads side by
side make neighbouring results of it, four at a time: so what follows on the sum is written once,
and what it reads and stores lies side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ...ops.expr import Expr, apply, const, index, logical_and, select, var
from ...ops.traverse import substitute
from ...ops.types import boolean, f64, i64
from ..graph.ir import Graph, Op
from .address import offset
from .device import Device
from .gpu_contraction import FAMILY, LEAST, Contraction, contraction_of, is_product
from .gpu_model import LAUNCH, chip_of
from .gpu_operands import Operand, operand, terms_of
from .gpu_sharing import flattened, unflattened
from .inplace import overwritable
from .ir import Buffer, Call, Declare, If, Kernel, Launch, Local, Phase, Set, Stmt, Store, loop
from .pieces import Buffers
from .template import Config, falling, required, traffic
from .vectors import WIDEST, aligned, spelled_out, wide_loads

DOWN: Final = 8  # threads of a warp along rows
ACROSS: Final = 4  # and along columns
MOST_SUMS: Final = 256  # bytes of registers that a thread's tile may take
TILES: Final[tuple[Config, ...]] = (
    {"m": 128, "n": 128, "k": 16, "tm": 8, "tn": 8, "stages": 3, "parts": 1},
    {"m": 128, "n": 64, "k": 16, "tm": 8, "tn": 8, "stages": 3, "parts": 1},
    {"m": 64, "n": 128, "k": 16, "tm": 8, "tn": 8, "stages": 3, "parts": 1},
    {"m": 64, "n": 64, "k": 16, "tm": 8, "tn": 4, "stages": 3, "parts": 1},
    {"m": 32, "n": 64, "k": 16, "tm": 4, "tn": 4, "stages": 3, "parts": 1},
    {"m": 32, "n": 32, "k": 16, "tm": 4, "tn": 4, "stages": 3, "parts": 1},
)
"""From the most to the fewest multiply-adds per word of shared memory."""
BUSY_THREADS: Final = 512  # of a multiprocessor: each may have 128 registers
ENOUGH_THREADS: Final = 192  # of a multiprocessor, to keep its multipliers busy
SHARING: Final = 1.5  # cost of a word of shared memory, in multiply-adds
SECOND_PHASE: Final = 600_000.0  # multiply-adds of a multiprocessor while a kernel starts
PART_ELEMENT: Final = 0.6  # and while one element of a part is written and read again
MOST_PARTS: Final = 16
LEAST_ROUNDS: Final = 3  # of a part
MORE_STAGES: Final = (2, 4)
LESS_STAGES: Final = 1.1  # times as long, with copies only one round ahead


class GpuTiles:
    """Configs: `m`, `n`, `k` of a block's tile, `tm`, `tn` of a thread's, `stages`, `parts` of the
    sum.

    one_order: all configs add in the same order, so that no sum falls into parts; and products of
    any number of rows are taken, as a batch may be one row and the next a hundred.
    """

    name = "gpu_tiles"
    version = 2
    family = FAMILY

    def __init__(self, *, one_order: bool = False) -> None:
        self.one_order = one_order

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return self._contraction(graph, ops, outputs) is not None

    def _contraction(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]
    ) -> Contraction | None:
        if not self.one_order:
            return contraction_of(graph, ops, outputs)
        return contraction_of(graph, ops, outputs, least=1) if is_product(graph, ops) else None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = required(self._contraction(graph, ops, outputs), self.name, ops)
        more = [{**c, "stages": s} for c in _tiles(p, 1) for s in MORE_STAGES]
        return [*_tiles(p, 1 if self.one_order else MOST_PARTS), *more]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        p = required(self._contraction(graph, ops, outputs), self.name, ops)
        most = 1 if self.one_order else MOST_PARTS
        return min(_tiles(p, most), key=lambda c: _time(p, c, device.threads))

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """Sums in fewer parts, or in none."""
        p = required(self._contraction(graph, ops, outputs), self.name, ops)
        size = p.batch * p.m * p.n * p.dtype.bytes
        return falling((_time(p, c, device.threads), c["parts"] * size if c["parts"] > 1 else 0, c)
                       for c in _tiles(p, 1 if self.one_order else MOST_PARTS))  # fmt: skip

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds, of a multiprocessor that does what `_time` counts."""
        p = required(self._contraction(graph, ops, outputs), self.name, ops)
        chip = chip_of(device)
        each = chip.clock * chip.rates["f64" if p.dtype is f64 else "f32"]
        stages = LESS_STAGES if config["stages"] < TILES[0]["stages"] else 1.0
        return LAUNCH + stages * _time(p, config, device.threads) / each

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        p = required(self._contraction(graph, ops, outputs), self.name, ops)
        return _Tiles(graph, p, config).launch(self.name, self.version)


def _tiles(p: Contraction, most: int) -> list[Config]:
    """Tiles whose sums fit in registers, with up to `most` parts of the same number of rounds."""
    found = []
    for c in TILES:
        rounds = terms_of(p, c["k"]).rounds
        if c["tm"] * c["tn"] * p.dtype.bytes <= MOST_SUMS:
            found += [{**c, "parts": n} for n in range(1, most + 1)
                      if n == 1 or (rounds % n == 0 and rounds // n >= LEAST_ROUNDS)]  # fmt: skip
    return found


def _blocks(p: Contraction, config: Config) -> int:
    return p.batch * -(-p.m // config["m"]) * -(-p.n // config["n"]) * int(config["parts"])


def _time(p: Contraction, config: Config, processors: int) -> float:
    """About how long a kernel takes: waves of blocks, what a block multiplies, how much of that its
    accesses of shared memory leave room for, and whether there are threads enough to hide them; for
    parts, another kernel that reads them again. In multiply-adds of one multiprocessor."""
    m, n, tm, tn = (config[x] for x in ("m", "n", "tm", "tn"))
    blocks, threads = _blocks(p, config), m // tm * (n // tn)
    waves = -(-blocks // processors)
    busy = min(waves * threads, BUSY_THREADS) / ENOUGH_THREADS
    parts = config["parts"]
    each = waves * m * n * (1 + SHARING * (1 / tm + 1 / tn)) / min(busy, 1.0) * p.k / parts
    if parts == 1:
        return each
    return each + SECOND_PHASE + parts * p.batch * p.m * p.n * PART_ELEMENT


def unknown(e: Expr) -> Expr:
    """e, of which the compiler does not know that: what follows from it is not computed before a
    loop to lie in registers until that ends."""
    return apply("unknown", (e,), e.dtype)


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
        self.tile = self.item // config["parts"]
        self.part = self.item % config["parts"]
        self.where = unflattened(self.tile // (down * over), p.batches)
        self.first = self.tile % down * self.m, self.tile // down % over * self.n
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
        self.late = Local("late", i64)

    def _operand(self, factor: Expr, loops: Sequence[Expr], tile: int, start: int) -> Operand:
        found = operand(self.graph, self.buffers, self.p, factor, loops, tile, self.terms,
                        self.held, start)  # fmt: skip
        return replace(found, value=substitute(found.value, self.where),
                       at=substitute(found.at, self.where),
                       guard=substitute(found.guard, self.where))  # fmt: skip

    def launch(self, name: str, version: int) -> Launch:
        p = self.p
        parts = self.config["parts"]
        size = p.batch * p.m * p.n
        scratch = (Buffer("s0", p.dtype, parts * size, "scratch"),) if parts > 1 else ()
        body = (*self._summed(), *self._finished(*scratch))
        phases: tuple[Phase, ...] = (
            Phase(_blocks(p, self.config), self.item, body, self.threads, self.thread,
                  resident=self._resident()),
            *(self._added(s, parts, size) for s in scratch),
        )  # fmt: skip
        params, args = self.buffers.parameters()
        work = 2 * p.batch * p.m * p.n * p.k
        kernel = Kernel(
            name, version, tuple(sorted(self.config.items())), (*params, *scratch), phases, work,
            traffic(self.graph, params, args), overwritable(params, phases),
        )  # fmt: skip
        return Launch(kernel, (*args, *(None for _ in scratch)), ())

    @property
    def _plain(self) -> bool:
        """Whether a thread needs few registers beside its sums. Copies word by word take some for
        places and guards, and operands that both lie along the sum are held for several terms at
        once."""
        return all(s.wide > 1 for s in self.sides) and not all(s.along_terms for s in self.sides)

    def _resident(self) -> int:
        """Blocks of a multiprocessor."""
        return (BUSY_THREADS if self._plain else BUSY_THREADS * 3 // 4) // self.threads

    # ---------------------------------------------------------------- the sums

    def _summed(self) -> tuple[Stmt, ...]:
        """All rounds. Copies run `stages` - 1 rounds ahead, which takes as many rounds more."""
        ahead, rounds = self.stages - 1, self.terms.rounds // self.config["parts"]
        t = var("t", rounds + ahead)
        number = self.part * rounds + t
        thread, again = self._copier()
        begin = (*again, *(s.copied(number, self.writes.value, f, thread, self.threads)
                           for s, f in zip(self.sides, self.first, strict=True)))  # fmt: skip
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

    def _copier(self) -> tuple[Expr, tuple[Stmt, ...]]:
        """The thread's number, for its copies. Where one operand is held for several terms at once,
        which takes all registers that there are, what follows from it is found again every round:
        a few instructions for a thousand multiply-adds."""
        along = [s.along_terms for s in self.sides]
        if not self._plain or not any(along):
            return self.thread, ()
        again = Local("copier", i64)
        return again.value % self.threads, (Declare(again), Set(again, (), unknown(self.thread)))

    def _next(self, place: Local) -> Stmt:
        """On to the next stage, the first one after the last."""
        behind = place.value + self.stage
        last = behind < self.stages * self.stage
        return Set(place, (), select(last, behind, index(0)))

    def _spot(self, thread: Expr) -> tuple[Expr, Expr]:
        """The first row and column of a thread, in groups, and of warps in tiles."""
        warp, lane = thread // 32, thread % 32
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
                  for s, at in zip(self.sides, self._spot(self.thread), strict=True))  # fmt: skip
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

    def _finished(self, part: Buffer | None = None) -> tuple[Stmt, ...]:
        """The epilogue, when all threads have written their sums to shared memory; or the sums as
        they are, if that is but a part of them."""
        p, g = self.p, self.group
        thread = self.late.value % self.threads
        a, b = map(self._neighbours, self.sides)
        row, column = self._spot(thread)
        put = Call("store_tile", (
            self.held, row * self.pitch + column, self.sums, self.tm, self.tn, self.pitch,
            a, DOWN * a, b, ACROSS * b,
        ))  # fmt: skip
        u = var("u", self.m * self.n // (g * self.threads))
        piece = u * self.threads + thread
        i, j = piece // (self.n // g), piece % (self.n // g) * g
        m, n = self.first[0] + i, self.first[1] + j
        sums = Local("total", p.dtype, (g,))
        read = Call("load_vector", (sums, index(0), self.held, i * self.pitch + j, g))
        if part is None:
            results = self._results(m, n, sums, self.where)
        else:
            size = p.m * p.n
            batch = self.tile // (-(-p.m // self.m) * -(-p.n // self.n))
            at = (self.part * p.batch + batch) * size + m * p.n + n
            results = self._kept(part, at, n, sums)
        inside = const(True, boolean)
        if p.m % self.m:
            inside = m < p.m
        if p.n % self.n:
            inside = logical_and(inside, n < p.n)
        whole = (Declare(sums), read, *results)
        body = whole if inside.is_const else (If(inside, whole),)
        return (
            Call("barrier"), Declare(self.late), Set(self.late, (), unknown(self.thread)), put,
            Call("barrier"), loop(u, body),
        )  # fmt: skip

    def _kept(self, part: Buffer, at: Expr, n: Expr, sums: Local) -> tuple[Stmt, ...]:
        """Neighbouring sums of a row, as they are."""
        p, g = self.p, self.group
        if p.n % g == 0:
            return (Call("store_vector", (part, at, sums, index(0), g)),)
        v = var("v", g)
        return (loop(v, (If(n + v < p.n, (Store(part, at + v, sums[v]),)),), "unroll"),)

    def _added(self, part: Buffer, parts: int, size: int) -> Phase:
        """All parts of neighbouring sums added up, in order, and the epilogue, by every thread."""
        p, g = self.p, self.group if self.p.n % self.group == 0 else 1
        item, q, v = var("item", size // g), var("part", parts), var("v", g)
        sums = Local("total", p.dtype, (g,))
        row, column = item // (p.n // g), item % (p.n // g) * g
        total = sums[v] + part[q * size + item * g + v]
        body = (
            Declare(sums),
            loop(v, (Set(sums, (v,), const(0, p.dtype)),), "unroll"),
            loop(q, (loop(v, (Set(sums, (v,), total),), "unroll"),)),
            *spelled_out(self._results(row % p.m, column, sums,
                                       unflattened(row // p.m, p.batches), g)),
        )  # fmt: skip
        return Phase(size // g, item, body)

    def _results(
        self, m: Expr, n: Expr, sums: Local, where: dict[Expr, Expr], g: int = 0
    ) -> tuple[Stmt, ...]:
        """Neighbouring results of a row: all are computed before one is stored, so that they are
        stored at once where they lie side by side. where: the batches."""
        p, g = self.p, g or self.group
        v = var("v", g)
        total = apply("sum", (), p.dtype)
        row, column = var("row", p.m), var("column", p.n)

        def there(e: Expr) -> Expr:
            e = flattened(flattened(substitute(e, where), row, p.rows), column, p.columns)
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
