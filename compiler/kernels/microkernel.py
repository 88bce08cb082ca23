"""The one inner loop of every contraction: a tile of fused multiply-adds that stays in registers.

    acc[r, j, lane] += A[base + row(r) + k] * B[base + k * step + j * lanes + lane]

`rows` times `blocks` vectors are accumulated at once. A is read one scalar at a time (and spread over
the lanes), B one vector at a time, so that `rows * blocks` multiply-adds share `rows + blocks` loads.
Convolutions and matrix products differ only in how far each row of A lies from the first and in the
loops that the reduction walks; both are numbers here. Terms are added in one order, that of the
loops, whatever the tile: results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

from ...ops.expr import Expr, apply, const, index, var
from ...ops.types import DType, i64
from .ir import Buffer, Declare, Local, Set, Stmt, loop

UNROLL = 4  # steps of the reduction per round: enough to hide the loop's own cost
PIPELINE = 8  # independent multiply-adds that keep two units of latency 4 busy


@dataclass(frozen=True, slots=True)
class Level:
    """One loop of a reduction: `count` steps, `stride` elements of A apart."""

    count: int
    stride: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A nest of loops over the reduction, outermost first. It begins `a_start` elements after A's
    base and `b_start` steps after B's; each innermost step moves B by one step."""

    levels: tuple[Level, ...]
    a_start: int = 0
    b_start: int = 0

    @property
    def steps(self) -> int:
        return prod(level.count for level in self.levels)


@dataclass(frozen=True, slots=True)
class Rows:
    """The operand that is read by scalars. offset: of row r from the base, static for static r."""

    buffer: Buffer
    base: Expr
    offset: Callable[[Expr], Expr]


@dataclass(frozen=True, slots=True)
class Panel:
    """The operand that is read by vectors: step k is `blocks * lanes` elements at base + k * step.

    tail: when not 0, only that many lanes of the last block may be read (the others hold anything
    then, and their results must not be stored).
    """

    buffer: Buffer
    base: Expr
    step: int
    tail: int = 0


Element = Callable[[Expr, Expr, Expr], Expr]
"""A value for (row, block, lane)."""


@dataclass(frozen=True, slots=True)
class MicroKernel:
    """A register tile. tag: makes the names of its locals unique within a kernel."""

    dtype: DType
    lanes: int
    rows: int
    blocks: int
    tag: str = ""

    @property
    def acc(self) -> Local:
        return Local(f"acc{self.tag}", self.dtype, (self.rows, self.blocks), self.lanes)

    def vectors(
        self, body: Callable[[Expr, Expr], Iterable[Stmt]], tail: int = 0, first: int = 0
    ) -> tuple[Stmt, ...]:
        """Statements for every block j and lane l; `tail` lanes of the last block when not 0."""
        lane = var("l", self.lanes)
        whole = self.blocks - (tail > 0)
        out: list[Stmt] = []
        if whole > first:
            j = var("j", self.blocks)
            inner = loop(lane, body(j, lane), "vector", lanes=self.lanes)
            out.append(loop(j, (inner,), "unroll", lo=first, hi=whole))
        if tail:
            last = body(index(self.blocks - 1), lane)
            out.append(loop(lane, last, "vector", hi=tail, lanes=self.lanes))
        return tuple(out)

    def tile(self, body: Callable[[Expr, Expr, Expr], Iterable[Stmt]], tail: int = 0) -> Stmt:
        """Statements for every row r, block j and lane l of the tile."""
        r = var("r", self.rows)
        return loop(r, self.vectors(lambda j, l: body(r, j, l), tail), "unroll")

    def declare(self) -> tuple[Stmt, ...]:
        return (Declare(self.acc),)

    def start(self, value: Element | None = None, tail: int = 0) -> Stmt:
        """Set the accumulators to a value, zero by default."""
        zero = const(0, self.dtype)

        def body(r: Expr, j: Expr, l: Expr) -> tuple[Stmt, ...]:
            return (Set(self.acc, (r, j), zero if value is None else value(r, j, l)),)

        return self.tile(body, tail)

    def accumulate(self, a: Rows, b: Panel, segments: Sequence[Segment]) -> tuple[Stmt, ...]:
        """The whole reduction: the nests of all segments, one after the other."""
        bs = Local(f"b{self.tag}", self.dtype, (self.blocks,), self.lanes)
        x = Local(f"a{self.tag}", self.dtype)
        declare_a, a_base = bind(f"pa{self.tag}", a.base)
        declare_b, b_base = bind(f"pb{self.tag}", b.base)
        out: list[Stmt] = [Declare(bs), Declare(x), *declare_a, *declare_b]
        r = var("r", self.rows)
        lane = var("l", self.lanes)
        j = var("j", self.blocks)

        def step(a_at: Expr, b_at: Expr) -> tuple[Stmt, ...]:
            def read(block: Expr, l: Expr) -> tuple[Stmt, ...]:
                return (Set(bs, (block,), b.buffer[b_at + block * self.lanes + l]),)

            product = apply("fma", (x.value, bs[j], self.acc[r, j]), self.dtype)
            add = loop(lane, (Set(self.acc, (r, j), product),), "vector", lanes=self.lanes)
            row = (Set(x, (), a.buffer[a_at + a.offset(r)]), loop(j, (add,), "unroll"))
            return (*self.vectors(read, b.tail), loop(r, row, "unroll"))

        def nest(levels: Sequence[Level], a_at: Expr, b_at: Expr, depth: int) -> tuple[Stmt, ...]:
            level, rest = levels[0], levels[1:]
            k = var(f"k{depth}", level.count)
            ahead = b.step * prod(x.count for x in rest)
            if rest:
                body = nest(rest, a_at + k * level.stride, b_at + k * ahead, depth + 1)
                return (loop(k, body),)
            return unrolled(k, lambda at: step(a_at + at * level.stride, b_at + at * ahead))

        for s in segments:
            levels = simplified(s.levels)
            out += nest(levels, a_base + s.a_start, b_base + s.b_start * b.step, 0)
        return tuple(out)

    def finish(
        self, body: Callable[[Expr, Expr, Expr, Expr], Iterable[Stmt]], tail: int = 0
    ) -> Stmt:
        """Statements for every (row, block, lane, accumulated value)."""
        return self.tile(lambda r, j, l: body(r, j, l, self.acc[r, j]), tail)


def bind(name: str, value: Expr) -> tuple[tuple[Stmt, ...], Expr]:
    """Compute an index once, here, instead of wherever it is used."""
    if value.op in ("const", "var"):
        return (), value
    held = Local(name, i64)
    return (Declare(held), Set(held, (), value)), held.value


def unrolled(k: Expr, body: Callable[[Expr], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """body for all of k's range in rounds of a few steps, the rest one after the other."""
    count = k.payload[2]
    width = next((w for w in (UNROLL, UNROLL - 1, UNROLL - 2) if count % w == 0), UNROLL)
    whole = count // width * width
    out: list[Stmt] = []
    if whole > width:
        u = var("u", width)
        out.append(loop(k, (loop(u, body(k + u), "unroll"),), hi=whole, step=width))
    else:
        whole = 0
    if whole < count:
        u = var("u", count)
        out.append(loop(u, body(u), "unroll", lo=whole))
    return tuple(out)


def simplified(levels: Sequence[Level]) -> tuple[Level, ...]:
    """The same walk in fewer loops: single steps vanish, loops that continue each other merge."""
    out: list[Level] = []
    for level in levels:
        if level.count == 1:
            continue
        if out and out[-1].stride == level.count * level.stride:
            out[-1] = Level(out[-1].count * level.count, level.stride)
        else:
            out.append(level)
    return tuple(out) or (Level(1, 0),)


def most_rows(blocks: int, registers: int) -> int:
    """Rows of the largest tile of that many blocks that fits into the registers, beside one vector
    of B per block and one spread scalar of A. 0 when none does."""
    return max(0, (registers - 1 - blocks) // blocks)


def issue_slots(rows: int, blocks: int) -> float:
    """Multiply-add slots that one reduction step of a tile takes; small tiles wait for results."""
    return max(rows * blocks, PIPELINE + blocks) + 0.3 * blocks
