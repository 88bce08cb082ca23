"""The one inner loop of every contraction: a tile of fused multiply-adds that stays in registers.

    acc[row, j, lane] += A[base + offset(row) + k] * B[base + k * step + j * lanes + lane]

Rows times `blocks` vectors are accumulated at once. A is read one scalar at a time (and spread over
the lanes), B one vector at a time, so `rows * blocks` multiply-adds share `rows + blocks` loads.
Convolutions and matrix products differ only in how far each row of A lies from the first and in
the loops that the reduction walks; both are numbers here. Terms are added in one order, that of
the loops, whatever the tile: results do not depend on it. Where one row of a problem has too few
vectors to keep the machine busy, steps take turns between several chains of sums; their number has
to follow from the problem alone, then.

A long reduction may be added up in partial sums. The error of a sum of n independent terms grows
with sqrt(n / 2) as the sum so far grows; that of c partial sums of n / c terms with
sqrt(n / 2c + c / 2) (Higham, SIAM J. Sci. Comput. 14(4), 1993). Between two of them, the sum of
those that are done is on the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from math import prod

from ...ops.expr import Expr, apply, compare, const, index, minimum, var
from ...ops.types import DType, i64
from .compose import Indices
from .device import Device
from .ir import Buffer, Declare, If, Local, Prefetch, Set, Stmt, loop

UNROLL = 4  # most steps of the reduction per round
ROUND = 32  # multiply-adds per round that hide the loop's own cost; more only make code longer
LAST = 4  # least steps of the last round, if there are as many, where it goes group by group
PIPELINE = 8  # independent multiply-adds that keep two units of latency 4 busy
# Bytes of B between asking for it and its use. The second cache can wait for more lines at a time
# than the first: it is asked long before, the first one for what is near by then.
AHEAD, NEXT = 32 << 10, 2 << 10
LINE = 64  # bytes per cache line: what one prefetch brings

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Level:
    """One loop of a reduction: `count` steps, `stride` elements of A apart.

    ahead: steps of B between two steps of this loop; by default as many as the loops inside make.
    span: the part of 0..count that is walked, where that is known only when the kernel runs.
    """

    count: int
    stride: int
    ahead: int | None = None
    span: tuple[Expr, Expr] | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A nest of loops over the reduction, outermost first. It begins `a_start` elements after A's
    base and `b_start` steps after B's; each innermost step moves B by one step.

    inner: segments that run one after the other in the innermost loop, instead of one step; the
    levels around them say how far they move B. rows: the range of rows, per axis, that take part
    (all by default). partial: steps of the outermost loop that make one partial sum, added up from
    zero before it joins the others; 0 adds all terms one after the other.
    """

    levels: tuple[Level, ...]
    a_start: int = 0
    b_start: int = 0
    inner: tuple[Segment, ...] = ()
    rows: tuple[Range, ...] = ()
    partial: int = 0

    @property
    def per_partial(self) -> int:
        """Steps per partial sum, evenly where that is possible; 0 where one holds nearly all."""
        count = self.levels[0].count
        if not self.partial or count < 2 * self.partial:
            return 0
        even = range(self.partial, self.partial // 2, -1)
        return next((n for n in even if count % n == 0), self.partial)


@dataclass(frozen=True, slots=True)
class Rows:
    """The operand that is read by scalars. strides: elements between rows, per axis of rows. next:
    when not 0, elements from a row to what a later tile reads instead: asked for meanwhile, one
    line before each innermost loop."""

    buffer: Buffer
    base: Expr
    strides: tuple[int, ...]
    next: int = 0


@dataclass(frozen=True, slots=True)
class Panel:
    """The operand that is read by vectors: step k is `blocks * lanes` elements at base + k * step.

    tail: when not 0, only that many lanes of the last block may be read (the others hold anything
    then, and their results must not be stored). far: whether it comes from beyond the first cache
    and is asked for some time before it is used.
    """

    buffer: Buffer
    base: Expr
    step: int
    tail: int = 0
    far: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """Memory that is asked for while a reduction runs, because it will be read soon: the lines that
    hold `step` elements from base + k * step, at step k of the reduction. far: for the second cache
    only."""

    buffer: Buffer
    base: Expr
    step: int
    far: bool = False


Element = Callable[[Indices, Expr, Expr], Expr]
"""A value for (row, block, lane)."""

Body = Callable[[Indices, Expr, Expr], Iterable[Stmt]]

Then = Callable[[Sequence[Range]], Stmt]
"""What becomes of the sums of a range of rows per axis, as statements."""


@dataclass(frozen=True, slots=True)
class MicroKernel:
    """A register tile.

    rows: how many, over one or more axes. group: so many blocks in turn are indexed together (a
    channel block of several vectors). tag: makes the names of its locals unique within a kernel.
    chains: sums per element, that neighbouring steps of the innermost loop take turns at; added in
    pairs at the end.
    """

    dtype: DType
    lanes: int
    rows: tuple[int, ...]
    blocks: int
    group: int = 1
    tag: str = ""
    chains: int = 1

    @property
    def acc(self) -> Local:
        chains = (self.chains,) if self.chains > 1 else ()
        return Local(f"acc{self.tag}", self.dtype, (*chains, *self.rows, self.blocks), self.lanes)

    def at(self, r: Indices, j: Expr, chain: Expr | int = 0) -> Indices:
        """Where in `acc` a sum is."""
        first = (index(chain) if isinstance(chain, int) else chain,) if self.chains > 1 else ()
        return (*first, *r, j)

    @property
    def sums(self) -> Local:
        """Of the partial sums that are done."""
        shape = (*self.rows, self.blocks)
        return Local(f"sum{self.tag}", self.dtype, shape, self.lanes, aside=True)

    # ---------------------------------------------------------------- loops over the tile

    def each_row(
        self, body: Callable[[Indices], Iterable[Stmt]], rows: Sequence[Range] = ()
    ) -> Stmt:
        """Statements for every row, or for a range of rows per axis."""
        ranges = rows or [(0, d) for d in self.rows]
        at = tuple(
            var(f"r{k}", hi - lo, lo) if hi - lo > 1 else index(lo)
            for k, (lo, hi) in enumerate(ranges)
        )
        inner = tuple(body(at))
        for v in reversed(at):
            if v.op == "var":
                inner = (loop(v, inner, "unroll"),)
        return inner[0] if len(inner) == 1 else loop(var("r", 1), inner, "unroll")

    def each_block(self, body: Callable[[Expr], Iterable[Stmt]], count: int) -> tuple[Stmt, ...]:
        """Statements for the first `count` blocks."""
        if self.group > 1:
            low, high = var("ji", self.group), var("jo", count // self.group)
            inner = (loop(low, body(high * self.group + low), "unroll"),)
            return (loop(high, inner, "unroll"),)
        if count == 1:
            return tuple(body(index(0)))
        j = var("j", count)
        return (loop(j, body(j), "unroll"),)

    def each_vector(
        self, body: Callable[[Expr, Expr], Iterable[Stmt]], tail: int = 0
    ) -> tuple[Stmt, ...]:
        """Statements for every block and lane; only `tail` lanes of the last block when not 0."""
        lane = var("l", self.lanes)
        out: list[Stmt] = []
        whole = self.blocks - (tail > 0)
        if whole:
            out += self.each_block(
                lambda j: (loop(lane, body(j, lane), "vector", lanes=self.lanes),), whole
            )
        if tail:
            last = body(index(self.blocks - 1), lane)
            out.append(loop(lane, last, "vector", hi=tail, lanes=self.lanes))
        return tuple(out)

    def each(self, body: Body, tail: int = 0, rows: Sequence[Range] = ()) -> Stmt:
        """Statements for every row, or for a range of rows per axis, block and lane."""
        return self.each_row(
            lambda r: self.each_vector(lambda j, lane: body(r, j, lane), tail), rows
        )

    def groups(self) -> list[tuple[Range, ...]]:
        """The rows in groups of about PIPELINE vectors, enough to keep the machine busy."""
        *lead, last = self.rows
        around = [[(k, k + 1) for k in range(n)] for n in lead]
        if lead and last * self.blocks < PIPELINE:
            around[-1] = parts(lead[-1], -(-lead[-1] * last * self.blocks // PIPELINE))
            return list(product(*around, [(0, last)]))
        return list(product(*around, parts(last, max(1, round(last * self.blocks / PIPELINE)))))

    # ---------------------------------------------------------------- its life

    def start(self, value: Element | None = None, tail: int = 0) -> tuple[Stmt, ...]:
        """Declare the accumulators and set them to a value, zero by default."""
        return (Declare(self.acc), self.restart(value, tail))

    def restart(self, value: Element | None = None, tail: int = 0) -> Stmt:
        """Set the accumulators."""
        zero = const(0, self.dtype)

        def body(r: Indices, j: Expr, lane: Expr) -> tuple[Stmt, ...]:
            first = Set(self.acc, self.at(r, j), zero if value is None else value(r, j, lane))
            return (first, *(Set(self.acc, self.at(r, j, c), zero) for c in range(1, self.chains)))

        return self.each(body, tail)

    def accumulate(
        self, a: Rows, b: Panel, segments: Sequence[Segment], soon: Stream | None = None,
        then: Then | None = None,
    ) -> tuple[Stmt, ...]:  # fmt: skip
        """The whole reduction: the nests of all segments, one after the other. soon: what to bring
        into the caches meanwhile. then: what becomes of the sums: the last round does one group of
        rows after the other, and each is done with at once. Stores in a row hold up the next tile,
        two cycles each on Zen 4; between multiply-adds they cost nothing. No loop of the last
        segment may be empty, then."""
        panel = Local(f"b{self.tag}", self.dtype, (self.blocks,), self.lanes)
        scalar = Local(f"a{self.tag}", self.dtype)
        numbers = count(1)
        declare_a, a_base = bind(f"pa{self.tag}", a.base)
        declare_b, b_base = bind(f"pb{self.tag}", b.base)
        out: list[Stmt] = [Declare(panel), Declare(scalar), *declare_a, *declare_b]
        streams: list[Stream] = []
        if b.far:
            streams += [Stream(b.buffer, b_base + ahead // self.dtype.bytes, b.step, far)
                        for ahead, far in ((AHEAD, True), (NEXT, False))]  # fmt: skip
        if soon is not None:
            declare_c, base = bind(f"pc{self.tag}", soon.base)
            out += declare_c
            streams.append(replace(soon, base=base))

        def step(
            a_at: Expr, b_k: Expr, rows: Sequence[Range], turn: Expr, hinted: bool = True
        ) -> tuple[Stmt, ...]:
            b_at = b_base + b_k * b.step

            def read(j: Expr, lane: Expr) -> tuple[Stmt, ...]:
                return (Set(panel, (j,), b.buffer[b_at + j * self.lanes + lane]),)

            def row(r: Indices) -> tuple[Stmt, ...]:
                def add(j: Expr) -> tuple[Stmt, ...]:
                    here = self.at(r, j, turn % self.chains)
                    total = apply("fma", (scalar.value, panel[j], self.acc[here]), self.dtype)
                    done = Set(self.acc, here, total)
                    return (loop(var("l", self.lanes), (done,), "vector", lanes=self.lanes),)

                at = a_at
                for i, s in zip(r, a.strides, strict=True):
                    at = at + i * s
                return (Set(scalar, (), a.buffer[at]), *self.each_block(add, self.blocks))

            hints = [
                Prefetch(x.buffer, x.base + b_k * x.step + at, x.far)
                for x in streams if hinted for at in range(0, x.step, LINE // self.dtype.bytes)
            ]  # fmt: skip
            return (*self.each_vector(read, b.tail), *hints, self.each_row(row, rows))

        def soon_after(a_at: Expr, rows: Sequence[Range]) -> tuple[Stmt, ...]:
            def hint(r: Indices) -> tuple[Stmt, ...]:
                moves = (i * s for i, s in zip(r, a.strides, strict=True))
                return (Prefetch(a.buffer, sum(moves, a_at + a.next)),)

            return (self.each_row(hint, rows),) if a.next else ()

        def widths(level: Level, rows: Sequence[Range]) -> tuple[int, int]:
            """(steps of a round, steps of the last one) of an innermost loop."""
            sizes = [(hi - lo, m) for (lo, hi), m in zip(rows, a.strides, strict=True)]
            width = round_width(level, sizes, self.blocks)
            width = -(-width // self.chains) * self.chains
            last = level.count % width
            while last < LAST:
                last += width
            return width, min(level.count, last)

        def nest(
            s: Segment, levels: Sequence[Level], a_at: Expr, b_k: Expr, depth: int,
            more: Expr | None,
        ) -> tuple[Stmt, ...]:  # fmt: skip
            """more: None, or a number that is 0 in the very last step of the loops around: there
            the last round is left out."""
            level, rest = levels[0], levels[1:]
            rows = s.rows or tuple((0, d) for d in self.rows)
            k = var(f"k{depth}", level.count)
            ahead = level.ahead or 1
            if level.span is not None and not rest and not s.inner:
                rest = (Level(1, 0),)
            if rest or s.inner:
                lo, hi = level.span or (None, None)
                if more is not None:
                    end = index(level.count) if hi is None else hi
                    if len(rest) == 1 and not s.inner and widths(rest[0], rows)[1] == rest[0].count:
                        hi, more = minimum(end, more + (end - 1)), None
                    else:
                        more = more * level.count + (end - 1 - k)
                a_at, b_k = a_at + k * level.stride, b_k + k * ahead
                body = nest(s, rest, a_at, b_k, depth + 1, more) if rest else tuple(
                    x for n, part in enumerate(s.inner, 1)
                    for x in whole(part, a_at, b_k, depth + 1, more if n == len(s.inner) else None)
                )  # fmt: skip
                return (loop(k, body, lo=lo, hi=hi),)
            name = f"{self.tag}_{next(numbers)}"
            declare_a, a_at = bind(f"pa{name}", a_at)
            declare_k, b_k = bind(f"pk{name}", b_k)
            width, last = widths(level, rows)

            def one(at: Expr, u: Expr) -> tuple[Stmt, ...]:
                return step(a_at + at * level.stride, b_k + at * ahead, rows, u)

            begin = (*declare_a, *declare_k, *soon_after(a_at, rows))
            if more is None:
                return (*begin, *unrolled(k, width, one))
            if more.is_const:
                few = var(f"k{depth}", level.count - last)
                return (*begin, *unrolled(few, width, one)) if last < level.count else ()
            if last == level.count:
                return (If(compare("lt", 0, more), (*begin, *unrolled(k, width, one))),)
            even = level.count // width * width
            u, end = var("u", width), minimum(even, level.count - last + more * last)
            rounds = loop(k, (loop(u, one(k + u, u), "unroll"),), hi=end, step=width)
            if even == level.count:
                return (*begin, rounds)
            u = var(f"u{name}", level.count)
            tail = loop(u, one(u, u), "unroll", lo=even)
            return (*begin, rounds, If(compare("lt", 0, more), (tail,)))

        def whole(
            s: Segment, a_at: Expr, b_k: Expr, depth: int, more: Expr | None = None
        ) -> tuple[Stmt, ...]:
            levels = simplified(stepped(s.levels))
            return nest(s, levels, a_at + s.a_start, b_k + s.b_start, depth, more)

        def ending(s: Segment, a_at: Expr, b_k: Expr, then: Then) -> tuple[Stmt, ...]:
            """The last round of a segment, group of rows by group of rows."""
            a_at, b_k = a_at + s.a_start, b_k + s.b_start
            levels = list(simplified(stepped(s.levels)))
            level = Level(1, 0) if s.inner or levels[-1].span is not None else levels.pop()
            for x in levels:
                at = (index(x.count) if x.span is None else x.span[1]) - 1
                a_at, b_k = a_at + at * x.stride, b_k + at * (x.ahead or 1)
            if s.inner:
                return ending(s.inner[-1], a_at, b_k, then)
            name = f"{self.tag}_{next(numbers)}"
            declare_a, a_at = bind(f"pa{name}", a_at)
            declare_k, b_k = bind(f"pk{name}", b_k)
            out = [*declare_a, *declare_k]
            present = s.rows or tuple((0, d) for d in self.rows)
            first = level.count - widths(level, present)[1]
            for n, group in enumerate(self.groups()):
                rows = [(max(x, lo), min(y, hi))
                        for (x, y), (lo, hi) in zip(group, present, strict=True)]  # fmt: skip
                if all(lo < hi for lo, hi in rows):
                    u = var(f"u{name}", level.count)
                    at, ahead = a_at + u * level.stride, b_k + u * (level.ahead or 1)
                    out.append(loop(u, step(at, ahead, rows, u, n == 0), "unroll", lo=first))
                out.append(then(group))
            return tuple(out)

        in_parts = any(s.per_partial for s in segments)
        if in_parts:
            out.append(Declare(self.sums))
        new = True  # whether there is nothing in `sums` yet
        for n, s in enumerate(segments, 1):
            outer, *inner = stepped(s.levels)
            done, ahead = 0, outer.ahead or 1
            if s.per_partial:
                parts, rest = divmod(outer.count, s.per_partial)
                done = outer.count - rest
                part = replace(s, levels=(replace(outer, count=s.per_partial), *inner))
                c = var("c", parts)
                at = c * s.per_partial
                one = whole(part, a_base + at * outer.stride, at * ahead, 0)
                if rest or n < len(segments):
                    out.append(loop(c, (*one, self.put_aside(new, c, 0))))
                else:  # the last one stays in registers
                    before = If(compare("lt", 0, c), (self.put_aside(new, c, 1),))
                    out.append(loop(c, (before, *one)))
                new = False
            if done < outer.count:
                part = replace(s, levels=(replace(outer, count=outer.count - done), *inner))
                at, b_at = a_base + done * outer.stride, index(done * ahead)
                if then is None or in_parts or n < len(segments):
                    out += whole(part, at, b_at, 0)
                else:
                    out += (*whole(part, at, b_at, 0, index(0)), *ending(part, at, b_at, then))
        if in_parts:
            out.append(self.each(lambda r, j, lane: (
                Set(self.acc, self.at(r, j), self.acc[self.at(r, j)] + self.sums[(*r, j)]),
            )))  # fmt: skip
            if then is not None:
                out.append(then(tuple((0, d) for d in self.rows)))
        return tuple(out)

    def put_aside(self, new: bool, c: Expr, first: int) -> Stmt:
        """Add the accumulators to the partial sums before them, and begin at zero again. new: those
        of c = first, the first number in use, have none before them. They are not added to zeros:
        that many stores more, right behind the results of the tile before, take longer than the
        core has other work for."""
        more = self._moved(lambda r, j: self.sums[(*r, j)] + self.total(r, j))
        if not new:
            return more
        begin, only = self._moved(self.total), c.payload[2] == first + 1
        return begin if only else If(compare("lt", first, c), (more,), (begin,))

    def _moved(self, value: Callable[[Indices, Expr], Expr]) -> Stmt:
        """Set the sums to a value of (row, block), and the accumulators to zero."""
        zero = const(0, self.dtype)
        return self.each(lambda r, j, lane: (
            Set(self.sums, (*r, j), value(r, j)),
            *(Set(self.acc, self.at(r, j, c), zero) for c in range(self.chains)),
        ))  # fmt: skip

    def total(self, r: Indices, j: Expr) -> Expr:
        """The sum of the chains of an element, added in pairs."""
        parts = [self.acc[self.at(r, j, c)] for c in range(self.chains)]
        while len(parts) > 1:
            parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def finish(
        self, body: Callable[[Indices, Expr, Expr, Expr], Iterable[Stmt]], tail: int = 0,
        rows: Sequence[Range] = (),
    ) -> Stmt:  # fmt: skip
        """Statements for every (row, or those in a range of rows per axis, block, lane, accumulated
        value)."""
        return self.each(lambda r, j, lane: body(r, j, lane, self.total(r, j)), tail, rows)


def parts(size: int, count: int) -> list[Range]:
    """0..size in `count` ranges, evenly."""
    return [(size * k // count, size * (k + 1) // count) for k in range(count)]


def bind(name: str, value: Expr) -> tuple[tuple[Stmt, ...], Expr]:
    """Compute an index once, here, instead of wherever it is used."""
    if value.op in ("const", "var") or (value.op == "load" and isinstance(value.payload, Local)):
        return (), value
    held = Local(name, i64)
    return (Declare(held), Set(held, (), value)), held.value


def round_width(level: Level, rows: Sequence[tuple[int, int]], blocks: int = 1) -> int:
    """Steps of an innermost loop that are written out in one round. rows: (count, stride) per axis;
    blocks: vectors per row.

    One where neighbouring steps read the same elements for other rows (taps of a window over
    row-major memory): the compiler would keep all of them in registers, and run out of these.
    """
    if any(s and level.stride * step % s == 0 and level.stride * step // s < n
           for step in range(1, UNROLL) for n, s in rows):  # fmt: skip
        return 1
    if level.count <= UNROLL:  # a loop of few rounds costs more than it saves
        return level.count
    step = blocks * prod(n for n, _ in rows)
    most = UNROLL if step * UNROLL // 2 <= ROUND else UNROLL // 2
    widths = range(most, most // 2 - 1, -1)
    return next((w for w in widths if level.count % w == 0), most)


def unrolled(
    k: Expr, width: int, body: Callable[[Expr, Expr], tuple[Stmt, ...]]
) -> tuple[Stmt, ...]:
    """body (of the step, and of its number in the round) for all of k's range in rounds of `width`
    steps, the rest one after the other."""
    count = k.payload[2]
    if width == 1 < count:
        return (loop(k, body(k, index(0))),)
    whole = count // width * width
    out: list[Stmt] = []
    if whole > width:
        u = var("u", width)
        out.append(loop(k, (loop(u, body(k + u, u), "unroll"),), hi=whole, step=width))
    else:
        whole = 0
    if whole < count:
        u = var("u", count)
        out.append(loop(u, body(u, u), "unroll", lo=whole))
    return tuple(out)


def stepped(levels: Sequence[Level]) -> tuple[Level, ...]:
    """The levels with `ahead` filled in."""
    out: list[Level] = []
    steps = 1
    for level in reversed(levels):
        out.append(replace(level, ahead=steps if level.ahead is None else level.ahead))
        steps = out[-1].ahead * level.count  # type: ignore[operator]
    return tuple(reversed(out))


def simplified(levels: Sequence[Level]) -> tuple[Level, ...]:
    """The same walk in fewer loops: single steps vanish, loops that continue each other merge."""
    out: list[Level] = []
    for level in levels:
        if level.span is None and level.count == 1:
            continue
        if out and _continues(out[-1], level):
            out[-1] = replace(level, count=out[-1].count * level.count)
        else:
            out.append(level)
    return tuple(out) or (Level(1, 0),)


def _continues(outer: Level, inner: Level) -> bool:
    """Whether each step of the outer loop goes on where the inner loop ends."""
    plain = outer.span is None and inner.span is None
    b_too = outer.ahead is None or outer.ahead == inner.count * (inner.ahead or 1)
    return plain and b_too and outer.stride == inner.count * inner.stride


def most_rows(blocks: int, registers: int, chains: int = 1) -> int:
    """Rows of the largest tile of that many blocks that fits into the registers, beside one vector
    of B per block and one spread scalar of A. 0 when none does."""
    return max(0, (registers - 1 - blocks) // (blocks * chains))


def issue_slots(
    rows: int, blocks: int, device: Device, vector_steps: int, chains: int = 1
) -> float:
    """Multiply-add slots that one reduction step of a tile takes: small tiles wait for results,
    loads are not quite free, and compilers want two more registers to have loads under way: with
    one they wait for some, with none they move accumulators to the stack and back.

    vector_steps: bytes of B per block that stay in use from tile to tile. A panel that does not fit
    into the first cache costs a little each time it is read, one too large for the second a lot.
    The weights were fitted to measurements on AVX-512 machines.
    """
    panel = blocks * vector_steps
    vector = 2.0 if panel > device.l2_bytes else 0.5 if 2 * panel > device.l1_bytes else 0.15
    slots = max(rows * blocks, (PIPELINE + blocks) / chains) + 0.15 * rows + vector * blocks
    spare = device.registers - (rows * blocks * chains + blocks + 1)
    return slots + (8, 2, 0)[min(spare, 2)]
