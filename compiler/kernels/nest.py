"""The general template: pointwise, injective and reducing operators, fused, as loop nests.

Every output is one expression over its indices, with `reduce` nodes inside. Each reduction is
computed at the outermost loop level at which all indices it depends on are bound, which makes a
softmax or a layer normalisation one pass over rows and a pooling a window loop at each point. One
loop runs in lanes: the output's contiguous axis, or the axis of a reduction, whichever the loads
follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

from ...ops.expr import (
    UNARY,
    Expr,
    apply,
    binary,
    bounds,
    const,
    index,
    reduce,
    select,
    unary,
    var,
)
from ...ops.traverse import rebuild, substitute, walk
from ...ops.types import DType, boolean, f64, i64
from ..graph.ir import Graph, Op
from .device import Device
from .inplace import overwritable
from .ir import (
    Declare,
    Kernel,
    Launch,
    Local,
    Phase,
    Prefetch,
    Set,
    Stmt,
    loop,
    seq,
)
from .partial import in_steps
from .pieces import (
    Assignment,
    Buffers,
    Piece,
    buffer_loads,
    collapse,
    operations,
    pieces,
    stride,
    trip_count,
)
from .reductions import across_lanes, combined, identity, reduces
from .sliding import MOST_TAPS, Sliding, rows_apart, separated, sliding, taps
from .template import Config, traffic
from .tiles import Tiling, square, tiling

VERSION = 5
SERIAL_WORK = 24_000  # element operations below which a phase is not worth sharing between threads
LEAST_WORK = 12_000  # what one item of a few holds at least
ITEM_WORK = 96_000  # and one of many: taking one costs little beside it
FEW_ITEMS, MAX_ITEMS = 4, 32
FAR = 4  # second caches' bytes from which an input comes from memory
ROWS_AHEAD = 2  # rows of results between those that are computed and those whose input is asked for
LINE = 64  # bytes that one prefetch brings
LONG = 8  # terms of a reduction that is worth lanes of its own
CHAINS = 4  # accumulators of a long reduction in lanes: an addition takes up to 4 cycles
BORDER = 4  # rounds at either end of a loop that may be split off to free the middle of guards
LIGHT = set("neg abs sqrt rsqrt floor ceil round trunc not bitnot isnan isinf".split())
HEAVY = (UNARY - LIGHT) | {"pow", "fmod", "mod", "floordiv", "truncdiv"}


def items_for(work: int) -> int:
    """Into how many items a phase of so many element operations should fall."""
    if work < SERIAL_WORK:
        return 1
    return min(MAX_ITEMS, max(work // ITEM_WORK, min(FEW_ITEMS, work // LEAST_WORK)))


def _is_heavy(e: Expr) -> bool:
    """Whether unrolling e would repeat long code: elementary functions."""
    return any(n.op in HEAVY and n.dtype is not i64 for n in walk(e))


def _prefers_output_lanes(v: Expr, reduces: Sequence[Expr]) -> bool:
    """Whether lanes along output axis v suit the loads inside reductions better than lanes along
    the reductions' own axes. How long v is does not matter: it may be a batch, and sums along lanes
    are added in another order."""
    score, long, along = 0, False, False
    for r in reduces:
        over = [k for k in r.payload[1] if trip_count(k) >= LONG]
        long = long or bool(over)
        for n in buffer_loads(r.args[0]):
            if stride(n.args[0], v) == 1:
                score, along = score + 1, True
            if any(stride(n.args[0], k) == 1 for k in over):
                score -= 1
    return score > 0 or (score == 0 and (along or not long))


# --------------------------------------------------------------------------- emission


class _Emitter:
    """Turns one piece into statements, placing reductions at their loop levels."""

    def __init__(self, piece: Piece, device: Device) -> None:
        self.piece = piece
        widest = max(
            n.dtype.bytes for a in piece.assignments for n in (a.value, *buffer_loads(a.value))
        )
        self.lanes = device.lanes(f64) if widest == 8 else device.lanes()
        self.registers = device.registers
        self.near, self.beyond = device.l1_bytes, device.l2_bytes * device.threads
        self.far = FAR * device.l2_bytes
        self.around: list[Expr] = []  # the loops that the one being written stands in
        self.in_lanes = False
        self.locals = 0
        self.tile: Tiling | None = None
        self.extents: dict[Expr, int] = {}  # rows or lanes of a square that exist

    def local(self, dtype: DType, shape: tuple[int, ...] = (), lanes: int = 0) -> Local:
        self.locals += 1
        return Local(f"t{self.locals}", dtype, shape, lanes)

    def hoist(
        self, values: Sequence[Expr], bound: frozenset[Expr]
    ) -> tuple[list[Stmt], list[Expr]]:
        """Emit every reduction that can be computed here, and what follows from the results alone;
        values then read that."""
        out: list[Stmt] = []
        known: dict[Expr, Expr] = {}
        fixed: dict[Expr, Expr] = {}
        for r in reduces(values):
            if r.free <= bound and r not in known:
                stmts, (node,) = self._fixed([substitute(r, known)], fixed)
                out += stmts
                stmts, known[r] = self.reduce(node, bound)
                out += stmts
        stmts, values = self._fixed([substitute(v, known) for v in values], fixed)
        return out + stmts, values

    def _fixed(
        self, values: Sequence[Expr], known: dict[Expr, Expr]
    ) -> tuple[list[Stmt], list[Expr]]:
        """Emit arithmetic on results of reductions that no lane and no loop further in changes: a
        mean, a standard deviation. known: what this level has emitted of that."""
        out: list[Stmt] = []

        def go(e: Expr) -> None:
            locals_only = [n for n in walk(e) if n.op in ("load", "reduce", "var")]
            if e.op not in ("load", "reduce", "const") and e.dtype.is_float and locals_only and all(
                isinstance(n.payload, Local) and not n.payload.lanes for n in locals_only
            ):  # fmt: skip
                if e not in known:
                    result = self.local(e.dtype)
                    out.extend((Declare(result), Set(result, (), e)))
                    known[e] = result.value
                return
            for a in e.args:
                go(a)

        if not self.in_lanes:
            for v in values:
                go(v)
        return out, [substitute(v, known) for v in values]

    def reduce(self, r: Expr, bound: frozenset[Expr]) -> tuple[list[Stmt], Expr]:
        combine, over = r.payload
        body = r.args[0]
        lane = None if self.in_lanes else self._lane_of(over, body)
        lanes = self.lanes if self.in_lanes or lane is not None else 0
        chains = CHAINS if lane is not None and trip_count(lane) >= 2 * CHAINS * lanes else 1
        acc = self.local(body.dtype, (chains,) if chains > 1 else (), lanes)
        chain = var("chain", chains)
        here = (chain,) if chains > 1 else ()
        start = Set(acc, here, identity(combine, body.dtype))
        out: list[Stmt] = [Declare(acc), *([loop(chain, [start], "unroll")] if here else [start])]
        order = sorted(over, key=lambda v: v is lane)
        inner = bound | set(over)
        self.in_lanes = self.in_lanes or lane is not None
        stmts, (value,) = self.hoist([body], inner)
        self.in_lanes = lanes > 0 and lane is None
        nest = seq(stmts, Set(acc, here, combined(combine, acc[here], value)))
        small = taps(r) <= MOST_TAPS and not _is_heavy(body)
        for v in reversed(order):
            if lane is not None and v is lane:
                nest = self._in_chains(v, nest, chain, chains)
            else:
                nest = (loop(v, nest, "unroll" if small else "serial"),)
        out += nest
        if lane is None:
            return out, acc.value
        kind = across_lanes(combine, body.dtype)
        result = self.local(body.dtype)
        sums = [acc[k] for k in range(chains)] if here else [acc.value]
        while len(sums) > 1:
            sums = [combined(combine, a, b) for a, b in zip(sums[::2], sums[1::2], strict=True)]
        whole = sums[0]
        if here:
            join = (Set(acc, (index(0),), whole),)
            out.append(loop(var("each", self.lanes), join, "vector", lanes=self.lanes))
            whole = acc[0]
        out += [Declare(result), Set(result, (), apply(kind, (whole,), body.dtype))]
        return out, result.value

    def _in_chains(
        self, lane: Expr, body: Sequence[Stmt], chain: Expr, chains: int
    ) -> tuple[Stmt, ...]:
        """A loop in lanes whose rounds take turns between accumulators, so that none waits for the
        one before it; the first gets what is left over."""
        if chains == 1:
            return (loop(lane, body, "vector", lanes=self.lanes),)
        _, first, end = lane.payload
        turn = chains * self.lanes
        turns = var("turn", (end - first) // turn)
        lo = turns * turn + chain * self.lanes + first
        part = loop(lane, body, "vector", lo=lo, hi=lo + self.lanes, lanes=self.lanes)
        out: tuple[Stmt, ...] = (loop(turns, (loop(chain, (part,), "unroll"),)),)
        done = first + trip_count(turns) * turn
        if done < end:
            rest = loop(lane, body, "vector", lo=done, lanes=self.lanes)
            out += (loop(chain, (rest,), "unroll", hi=1),)
        return out

    def _lane_of(self, over: Sequence[Expr], body: Expr) -> Expr | None:
        """The reduction variable to run in lanes: the one most loads follow, if it is long."""
        best, votes = None, -1
        for v in over:
            if trip_count(v) < LONG:
                continue
            n = sum(1 for x in buffer_loads(body) if stride(x.args[0], v) == 1)
            if n >= votes:
                best, votes = v, n
        return best

    def emit(self) -> Phase:
        loops = [v for v in self.piece.loops]
        values = [guarded(a.value) for a in self.piece.assignments]
        inner = reduces(values)
        lane = self._output_lane(loops, inner)
        needed = {v for r in inner for v in r.free}
        rows = [v for v in loops if v in needed]
        columns = [v for v in loops if v not in needed]
        if lane is not None and lane in rows:
            rows = [v for v in rows if v is not lane] + [lane]
        order = rows + columns
        if lane is not None and lane in columns:
            order = rows + [v for v in columns if v is not lane] + [lane]
        if lane is not None and len(order) > 1 and lane is order[-1]:
            values = [separated(v, order[-2]) for v in values]
        if not inner:
            self.tile = tiling(order, lane, self.piece.assignments, self.lanes)
        often = rows if columns and lane not in rows else order  # where reductions are computed
        work = prod(map(trip_count, order)) + prod(map(trip_count, often)) * sum(
            prod(map(trip_count, r.payload[1])) for r in inner
        )
        work *= max(1, len(walk(*values)) // 12)
        if self.tile is not None:
            order = [v for v in order if v not in (self.tile.across, lane)] + [*self.tile.squares]
            return self._parallel(order, None, self._placed(self.tile.where, values), work)
        return self._parallel(order, lane, values, work)

    def _placed(self, where: Mapping[Expr, Expr], values: Sequence[Expr]) -> list[Expr]:
        """Replace variables in the assignments' offsets for good, and in their values."""
        moved = (replace(a, offset=substitute(a.offset, where)) for a in self.piece.assignments)
        self.piece = Piece(self.piece.loops, tuple(moved))
        return [substitute(v, where) for v in values]

    def _output_lane(self, loops: Sequence[Expr], reduces: Sequence[Expr]) -> Expr | None:
        at = self.piece.assignments[0].offset
        lane = next((v for v in loops if stride(at, v) == 1), None)
        if lane is None or trip_count(lane) < 2:
            return None
        inside = [r for r in reduces if lane in r.free]
        if inside and not _prefers_output_lanes(lane, inside):
            return None
        return lane

    def _parallel(
        self, order: list[Expr], lane: Expr | None, values: list[Expr], work: int
    ) -> Phase:
        """Outer loops are shared out: each value of a short one, then parts of the next, make an
        item. All loops stay loops, so that their borders can be split off."""
        wanted = items_for(work)
        shares: list[tuple[Expr, int, int]] = []  # (loop, rounds of an item, items along it)
        for v in order:
            if wanted <= 1:
                break
            n, grain = trip_count(v), self.lanes if v is lane else 1
            step = -(-n // (wanted * grain)) * grain
            shares.append((v, step, -(-n // step)))
            parts = shares[-1][2]  # three items keep two threads busy for as long as four would
            wanted = max(wanted // parts, 2 if parts < min(wanted, FEW_ITEMS) else 1)
            if v is lane:
                break
        count = prod(parts for _, _, parts in shares)
        item = var("item", count)
        limits: dict[Expr, tuple[Expr, Expr]] = {}
        apart = count
        for v, step, parts in shares:
            apart //= parts
            _, first, end = v.payload
            lo = item // apart % parts * step + first
            limits[v] = lo, binary("min", lo + step, end)
        if count == 1:
            limits = {}
        return Phase(count, item, self._nest(order, lane, values, frozenset(), limits))

    def _nest(
        self, order: list[Expr], lane: Expr | None, values: list[Expr], bound: frozenset[Expr],
        limits: dict[Expr, tuple[Expr, Expr]],
    ) -> tuple[Stmt, ...]:  # fmt: skip
        stmts, values = self.hoist(values, bound)
        if not order:
            made = [replace(a, value=v)
                    for a, v in zip(self.piece.assignments, values, strict=True)]  # fmt: skip
            if self.tile is not None:
                extents = [self.extents[v] for v in self.tile.squares]
                return seq(stmts, square(self.tile.n, self.tile.places, made, extents, self.local))
            return seq(stmts, [a.at(a.offset, a.value) for a in made])
        v, rest = order[0], order[1:]
        lo, hi = limits.get(v, (None, None))
        parts: list[Stmt] = []
        whole = self.piece
        for a, b, extent in self._parts(v, lane, values):
            self.extents[v] = extent
            _, first, end = v.payload
            part = var(v.payload[0], b - a, a)
            if rest == [lane] and lo is None:
                narrowed = self._placed({v: part}, values)
                slid = self._slide(part, lane, narrowed, bound)
                self.piece = whole
                if slid:
                    parts.extend(slid)
                    continue
            if (a, b) == (first, end):
                parts += self._loop(v, rest, lane, values, bound, limits, lo, hi)
                continue
            start = None if lo is None else binary("max", lo, a)
            stop = None if hi is None else binary("min", hi, b)
            narrowed = self._placed({v: part if b - a > 1 else index(a)}, values)
            parts += self._loop(part, rest, lane, narrowed, bound, limits, start, stop)
            self.piece = whole
        return seq(stmts, parts)

    def _slide(
        self, v: Expr, lane: Expr | None, values: Sequence[Expr], bound: frozenset[Expr]
    ) -> list[Stmt]:
        """Loop v, around the lanes' loop, with several results of a sliding window a round; nothing
        where there are none that share much."""
        found = sliding(values, v)
        if found is None or lane is None:
            return []
        width = found.width(self.registers, trip_count(v))
        if width == 1:
            return []
        _, first, end = v.payload
        whole = (end - first) // width * width
        body = self._together(found, v, v, width, lane, values, bound | {v})
        out: list[Stmt] = [loop(v, body, hi=first + whole, step=width)]
        if first + whole < end:
            base = index(first + whole)
            rest = end - first - whole
            out += self._together(found, v, base, rest, lane, values, bound)
        return out

    def _together(
        self, found: Sliding, v: Expr, base: Expr, width: int, lane: Expr, values: Sequence[Expr],
        bound: frozenset[Expr],
    ) -> tuple[Stmt, ...]:  # fmt: skip
        """`width` results from v = base on: their columns, then each window's."""
        self.in_lanes = True
        combine, (tap,) = found.node.payload
        columns = self.local(found.node.dtype, (found.columns(width),), self.lanes)
        j, w = var("column", found.columns(width)), var("result", width)
        bound |= {lane, j, w}
        stmts, (column,) = self.hoist([substitute(found.node.args[0], {v: base, tap: j})], bound)
        read = loop(j, seq(stmts, Set(columns, (j,), column)), "unroll")
        window = reduce(combine, (tap,), columns[w * found.step + tap])
        there = [substitute(substitute(x, {found.node: window}), {v: base + w}) for x in values]
        stmts, there = self.hoist(there, bound)
        stores = [a.at(substitute(a.offset, {v: base + w}), x)
                  for a, x in zip(self.piece.assignments, there, strict=True)]  # fmt: skip
        self.in_lanes = False
        body = (Declare(columns), read, loop(w, seq(stmts, stores), "unroll"))
        ahead = self._later_rows(values, v, base, width, lane)
        return (*ahead, loop(lane, body, "vector", lanes=self.lanes))

    def _later_rows(
        self, values: Sequence[Expr], v: Expr, base: Expr, width: int, lane: Expr
    ) -> list[Stmt]:
        """Ask for what windows that move by several rows read first in the row after the next, at
        `width` places from v = base on, where it comes from memory: processors see no stream in two
        rows that are read side by side."""
        taps = [t for n in reduces(values) for t in n.payload[1]]
        out: dict[Stmt, None] = {}
        for n in (n for value in values for n in buffer_loads(value) if taps):
            at, row = n.args[0], self.around[-1] if self.around else v
            down, right = stride(at, row), stride(at, v)
            if n.payload.nbytes <= self.far or stride(at, lane) != 1 or not down or not right:
                continue
            over = max(taps, key=lambda t: stride(at, t) or 0, default=row)
            pitch = stride(at, over) or 0
            if right % self.lanes or not right < pitch <= down // 2:
                continue
            corner = {t: index(t.payload[1]) for t in taps} | {
                lane: index(lane.payload[1]), v: base, row: row + ROWS_AHEAD}  # fmt: skip
            for k in range(1, min(down // pitch, trip_count(over)) + 1):
                first = substitute(at, corner | {over: index(over.payload[2] - k)})
                for line in range(0, width * right, LINE // n.dtype.bytes):
                    out[Prefetch(n.payload, first + line, far=True)] = None
        return list(out)

    def _parts(
        self, v: Expr, lane: Expr | None, values: Sequence[Expr]
    ) -> Iterable[tuple[int, int, int]]:
        """The ranges of loop v that get code of their own, borders and cut squares; and how much of
        a square there is."""
        n, (_, first, end) = self.lanes, v.payload
        if self.tile is not None and v in self.tile.squares:
            over = (self.tile.across, self.tile.lane)[self.tile.squares.index(v)]
            whole, rest = divmod(trip_count(over), n)
            return [p for p in ((0, whole, n), (whole, end, rest)) if p[0] < p[1]]
        inside = None if v is lane else interior(v, values)
        cuts = (first, *inside, end) if inside else (first, end)
        return [(a, b, n) for a, b in pairwise(cuts) if a < b]

    def _loop(
        self, v: Expr, rest: list[Expr], lane: Expr | None, values: list[Expr],
        bound: frozenset[Expr], limits: dict[Expr, tuple[Expr, Expr]], lo: Expr | None,
        hi: Expr | None,
    ) -> tuple[Stmt, ...]:  # fmt: skip
        by_rows = self._row_by_row(v, rest, lane, values, bound, limits, lo, hi)
        if by_rows:
            return by_rows
        before = self.in_lanes
        ahead = (
            self._later_rows(values, v, v, 1, lane) if lane is not None and rest == [lane] else []
        )
        self.in_lanes = before or v is lane
        self.around.append(v)
        body = seq(ahead, self._nest(rest, lane, values, bound | {v}, limits))
        self.around.pop()
        self.in_lanes = before
        if v is lane:
            return (loop(v, body, "vector", lo=lo, hi=hi, lanes=self.lanes),)
        return (loop(v, body, lo=lo, hi=hi),)

    def _row_by_row(
        self, v: Expr, rest: list[Expr], lane: Expr | None, values: list[Expr],
        bound: frozenset[Expr], limits: dict[Expr, tuple[Expr, Expr]], lo: Expr | None,
        hi: Expr | None,
    ) -> tuple[Stmt, ...]:  # fmt: skip
        """Loop v over rows of results, around one along a row and the lanes', where windows move by
        several rows of what lies beyond the second caches: a sweep for each row that is read. Until
        the last, the best of a window is kept in a local, or, where rows are long, in the result's
        place. Nothing where that does not apply."""
        if lane is None or rest[1:] != [lane] or trip_count(lane) > self.lanes:
            return ()
        apart = rows_apart(values, v, rest[0])
        if apart is None:
            return ()
        values, rows = apart
        length = trip_count(rest[0]) * self.lanes * rows.node.dtype.bytes
        far = any(n.payload.nbytes > self.beyond for n in buffer_loads(rows.node))
        if not far or length > self.near // 2:
            return ()
        whole, before = self.piece, list[Stmt]()
        keep = whole.assignments[0]
        if rows.shared or keep.buffer.dtype is not rows.node.dtype or length <= self.near // 8:
            best = self.local(rows.node.dtype, (trip_count(rest[0]),), self.lanes)
            keep = replace(keep, offset=rest[0] - rest[0].payload[1], kept=best)
            before.append(Declare(best))

        def sweep(*made: tuple[Assignment, Expr]) -> tuple[Stmt, ...]:
            self.piece = Piece(whole.loops, tuple(a for a, _ in made))
            self.around.append(v)
            out = self._nest(rest, lane, [x for _, x in made], bound | {v}, limits)
            self.around.pop()
            self.piece = whole
            return out

        combine, known = rows.node.payload[0], keep.target[keep.offset]
        first, *between, last = map(rows.row, range(trip_count(rows.tap)))
        body = sweep((keep, first))
        if rows.shared:  # each round leaves it to the next one
            begin = index(v.payload[1]) if lo is None else lo
            stop = begin + 1 if hi is None else binary("min", begin + 1, hi)
            before.append(loop(v, body, lo=begin, hi=stop))
            body = ()
        for row in between:
            body += sweep((keep, combined(combine, known, row)))
        total = {rows.node: combined(combine, known, last)}
        made = [(a, substitute(x, total)) for a, x in zip(whole.assignments, values, strict=True)]
        body += sweep(*made, *([(keep, last)] if rows.shared else []))
        return (*before, loop(v, body, lo=lo, hi=hi))


def guarded(value: Expr) -> Expr:
    """value with reductions that a select keeps from reading outside their buffers guarded in
    themselves: they are computed ahead of the select."""

    def go(e: Expr, guard: Expr) -> Expr:
        if not reduces([e]):
            return e
        if e.op == "select":
            c = e.args[0]
            yes, no = go(e.args[1], guard & c), go(e.args[2], guard & unary("not", c))
            return select(c, yes, no)
        args = tuple(go(a, guard) for a in e.args)
        if e.op == "reduce" and not guard.is_const and _strays(e):
            combine, over = e.payload
            inside = select(guard, args[0], identity(combine, e.dtype))
            return reduce(combine, over, inside)
        return rebuild(e, args)

    return go(value, const(True, boolean))


def _strays(e: Expr) -> bool:
    """Whether a load in e may leave its buffer, by what is known of its offset."""
    for n in buffer_loads(e):
        b = bounds(n.args[0])
        if b is not None and (b[0] < 0 or b[1] >= n.payload.elements):
            return True
    return False


def interior(v: Expr, values: Sequence[Expr]) -> tuple[int, int] | None:
    """The part of loop v, without a few rounds at its ends, in which every comparison that v is
    part of holds: a window that stays inside its input. None where there is nothing to gain."""
    guards = [n for x in walk(*values) if x.op == "select" and v in x.args[0].free
              for n in walk(x.args[0]) if n.op in ("lt", "le") and v in n.free]  # fmt: skip
    if not guards:
        return None
    name, first, end = v.payload
    for cut in range(1, min(2 * BORDER, end - first - 1) + 1):
        for left in range(max(0, cut - BORDER), min(cut, BORDER) + 1):
            a, b = first + left, end - (cut - left)
            part = var(name, b - a, a)
            if all(substitute(g, {v: part}).op == "const" for g in guards):
                return a, b
    return None


# --------------------------------------------------------------------------- the template


class Nest:
    """The template that serves every group whose operators before expressions."""

    name = "nest"
    version = VERSION

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return all(op.definition.compute is not None for op in ops)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        return {}

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return [{}]

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        buffers = Buffers(graph)
        found = [collapse(p) for p in pieces(graph, ops, outputs, buffers)]
        steps, scratch = in_steps(found)
        phases = tuple(_Emitter(p, device).emit() for p in steps if p.assignments)
        params, args = buffers.parameters()
        flops = sum(map(operations, found))
        kernel = Kernel(
            self.name, VERSION, (), (*params, *scratch), phases, flops,
            traffic(graph, params, args), overwritable(params, phases),
        )  # fmt: skip
        return Launch(kernel, (*args, *(None for _ in scratch)), ())
