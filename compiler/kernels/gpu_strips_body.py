"""Strips of results whose windows slide, as a phase written for one thread.

A thread computes `rows` by `columns` results of `lanes` neighbouring channels. It goes down the
rows of inputs that they look at, and reads every place once, 16 bytes at a time, for all windows
that cover it; weights it has read before. So 3 x 3 windows of a strip of 2 x 4 results read 24
places instead of 72. Whatever the strip, a result combines its taps in row-major order.

Threads side by side have neighbouring channels, then neighbouring strips of a row, whose common
inputs are in the first cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Final

from ...ops.expr import Expr, apply, const, index, logical_and, var
from ...ops.traverse import substitute
from ...ops.types import boolean
from .gpu_sharing import unflattened
from .gpu_strips_problem import Axis, Windows
from .ir import Buffer, Call, Declare, If, Let, Local, Phase, Set, Stmt, Store, loop
from .pieces import trip_count
from .reductions import combined, identity
from .template import Config
from .vectors import unguarded, wide_loads

WRITTEN_OUT: Final = 100
"""Weights of a thread, taps of all its channels, up to which all rows of a window are written out.
Strips have one row of larger windows."""
FAR: Final = 1 << 40  # inputs behind the last


def taps_held(p: Windows, lanes: int) -> int:
    """Taps whose weights a thread holds at once: all, or those of one row of a large window."""
    return p.taps if p.taps * lanes <= WRITTEN_OUT else p.across.taps


class Strips:
    """Configs: `rows`, `columns`, `lanes` of a thread; `threads` of a block."""

    def __init__(self, p: Windows, config: Config) -> None:
        self.p, self.threads = p, config["threads"]
        self.rows, self.columns, self.lanes = (config[k] for k in ("rows", "columns", "lanes"))
        self.u = var("u", self.lanes) if self.lanes > 1 else index(0)
        strips = {p.down.place: _number("row", p.down.count, self.rows),
                  p.across.place: _number("column", p.across.count, self.columns),
                  p.lane: _number("channels", p.channels, self.lanes)}  # fmt: skip
        self.counted = [x for v in p.piece.loops if not (x := strips.get(v, v)).is_const]
        self.top = strips[p.down.place] * self.rows
        self.left = strips[p.across.place] * self.columns
        self.lane = {p.lane: strips[p.lane] * self.lanes + self.u}
        self.whole = taps_held(p, self.lanes) == p.taps
        self.acc = self._registers("acc", p.node, self.rows * self.columns)
        self.seen = self._registers("seen", p.reads, p.across.looks(self.columns))
        self.weights = {n: self._registers(f"weights{k}", n, taps_held(p, self.lanes))
                        for k, n in enumerate(p.weights)}  # fmt: skip
        self.count = 0

    def _registers(self, name: str, of: Expr, places: int) -> Local:
        return Local(name, of.dtype, (places * self.lanes,))

    def phase(self) -> Phase:
        total = prod(map(trip_count, self.counted))
        item, thread = var("item", -(-total // self.threads)), var("thread", self.threads)
        number = item * self.threads + thread
        named = unflattened(number, self.counted)
        body = (*(Let(v, named[v]) for v in self.counted), *self._windows(), *self._results())
        there = number < total
        stmts = body if there.is_const else (If(there, body),)
        return Phase(trip_count(item), item, stmts, self.threads, thread)

    def _every(self, *body: Stmt) -> tuple[Stmt, ...]:
        """For every channel of the thread."""
        return (loop(self.u, body, "unroll"),) if self.lanes > 1 else body

    # ----------------------------------------------------------------------- windows

    def _windows(self) -> tuple[Stmt, ...]:
        """Row of inputs after row of inputs."""
        p, e = self.p, var("e", self.acc.shape[0])
        start = identity(p.node.payload[0], p.node.dtype)
        row = var("look", p.down.looks(self.rows))
        first: list[Stmt] = [Declare(x) for x in (self.acc, self.seen, *self.weights.values())]
        first.append(loop(e, (Set(self.acc, (e,), start),), "unroll"))
        if self.whole and self.weights:
            tap = var("down_tap", p.down.taps)
            first.append(loop(tap, self._weights(tap), "unroll"))
        body = (*(() if self.whole else self._weights(row)), *self._seen(row), *self._joined(row))
        return *first, loop(row, body, "unroll" if self.whole else "serial")

    def _weights(self, tap: Expr) -> tuple[Stmt, ...]:
        """Those of one row of taps."""
        p, beside = self.p, var("tap", self.p.across.taps)
        where = {p.down.tap: tap, p.across.tap: beside, **self.lane}
        out: list[Stmt] = []
        for n, held in self.weights.items():
            place = self._weight(tap, beside)
            out += self._read(substitute(n, where), held, place)
        return (loop(beside, out, "unroll"),) if out else ()

    def _weight(self, tap: Expr, beside: Expr) -> Expr:
        """Where the first channel's weight of a tap is held."""
        return ((tap * self.p.across.taps if self.whole else index(0)) + beside) * self.lanes

    def _seen(self, row: Expr) -> tuple[Stmt, ...]:
        """What all windows of the strip see in a row of inputs."""
        p, look = self.p, var("beside", self.p.across.looks(self.columns))
        at = {**p.down.at(self.top, row, self.rows), **p.across.at(self.left, look, self.columns)}
        value = substitute(p.reads, at | self.lane)
        inside, beyond = const(True, boolean), const(0, p.reads.dtype)
        if value.op == "select":
            inside, value, beyond = value.args
        inside = logical_and(_exists(p.down, self.top, row, self.rows, inside), inside)
        inside = logical_and(_exists(p.across, self.left, look, self.columns, inside), inside)
        body = self._read(value, self.seen, look * self.lanes)
        if not (inside.is_const and inside.payload):
            none = self._every(Set(self.seen, (look * self.lanes + self.u,), beyond))
            body = (If(inside, body, none),)
        return (loop(look, body, "unroll"),)

    def _joined(self, row: Expr) -> tuple[Stmt, ...]:
        """What a row of inputs adds to the results whose windows cover it."""
        a = self.p.down
        if self.rows == 1:
            return self._taps(index(0), row)
        if a.apart == 1:
            r = var("r", self.rows)
            tap = row - r * a.step
            inside = logical_and(tap >= 0, tap < a.taps)
            return (loop(r, (If(inside, self._taps(r, tap)),), "unroll"),)
        tap = var("down_tap", a.taps)
        r = row - tap * a.apart
        inside = logical_and(r >= 0, r < self.rows)
        return (loop(tap, (If(inside, self._taps(r, tap)),), "unroll"),)

    def _taps(self, r: Expr, tap: Expr) -> tuple[Stmt, ...]:
        """A row of taps of a row of results."""
        p, u = self.p, self.u
        c, beside = var("c", self.columns), var("tap", p.across.taps)
        look = beside if self.columns == 1 else c * p.across.step + beside * p.across.apart
        known = {n: held[self._weight(tap, beside) + u] for n, held in self.weights.items()}
        known |= {p.reads: self.seen[look * self.lanes + u], p.down.tap: tap, p.across.tap: beside}
        value = substitute(p.node.args[0], known | self.lane)
        place = (r * self.columns + c) * self.lanes + u
        step = Set(self.acc, (place,), combined(p.node.payload[0], self.acc[place], value))
        return (loop(beside, (loop(c, self._every(step), "unroll"),), "unroll"),)

    # ----------------------------------------------------------------------- results

    def _results(self) -> tuple[Stmt, ...]:
        """What becomes of the reductions; what depends on the channel only is read ahead."""
        p = self.p
        r, c = var("r", self.rows), var("c", self.columns)
        total = apply("total", (), p.node.dtype)
        values = [substitute(a.value, {p.node: total}) for a in p.piece.assignments]
        ahead: list[Stmt] = []
        known: dict[Expr, Expr] = {}
        for n in unguarded_loads(values):
            if not {p.down.place, p.across.place} & n.free and n not in known:
                held = self._local(n.payload)
                ahead += [Declare(held), *self._read(substitute(n, self.lane), held, index(0))]
                known[n] = held[self.u]
        where = {p.down.place: self.top + r, p.across.place: self.left + c, **self.lane,
                 total: self.acc[(r * self.columns + c) * self.lanes + self.u]}  # fmt: skip
        body: list[Stmt] = []
        for a, value in zip(p.piece.assignments, values, strict=True):
            made = substitute(value, known | where)
            body += self._stored(a.buffer, substitute(a.offset, where), made)
        inside = logical_and(_below(p.down, self.top + r, self.rows),
                             _below(p.across, self.left + c, self.columns))  # fmt: skip
        if not inside.is_const:
            body = [If(inside, tuple(body))]
        return *ahead, loop(r, (loop(c, body, "unroll"),), "unroll")

    def _stored(self, buffer: Buffer, at: Expr, value: Expr) -> list[Stmt]:
        """Neighbouring channels at once."""
        if self.lanes == 1:
            return [Store(buffer, at, value)]
        reads, value = wide_loads(value, self.u, self._local)
        out = Local(f"out{self._fresh()}", buffer.dtype, (self.lanes,))
        first = substitute(at, {self.u: index(0)})
        return [*reads, Declare(out), *self._every(Set(out, (self.u,), value)),
                Call("store_vector", (buffer, first, out, index(0), self.lanes))]  # fmt: skip

    # ----------------------------------------------------------------------- reading

    def _read(self, value: Expr, into: Local, place: Expr) -> tuple[Stmt, ...]:
        """into[place + u] = value, whose loads are made for all channels u at once."""
        if self.lanes == 1:
            return (Set(into, (place,), value),)
        reads, wide = wide_loads(value, self.u, self._local)
        if value.op == "load" and wide is not value:
            call = reads[-1]
            assert isinstance(call, Call)
            return (Call(call.name, (into, place, *call.args[2:])),)
        return (*reads, *self._every(Set(into, (place + self.u,), wide)))

    def _local(self, b: Buffer) -> Local:
        """Registers for what is read of a buffer at once."""
        return Local(f"{b.name}_v{self._fresh()}", b.dtype, (self.lanes,))

    def _fresh(self) -> int:
        self.count += 1
        return self.count


def unguarded_loads(values: Iterable[Expr]) -> list[Expr]:
    """Loads of buffers that are made whatever conditions say."""
    return [n for value in values for n in unguarded(value)]


def _number(name: str, count: int, each: int) -> Expr:
    """Counts the strips of an axis."""
    n = -(-count // each)
    return var(f"{name}_strip", n) if n > 1 else index(0)


def _exists(a: Axis, first: Expr, look: Expr, n: int, inside: Expr) -> Expr:
    """Whether inputs that a strip's results look at are those of a result that exists, as far as
    `inside` does not keep to inputs that exist."""
    ends = substitute(inside, {look: index(FAR)})
    known = a.count % n == 0 or (ends.is_const and not ends.payload)
    return const(True, boolean) if known else a.exists(first, look, n)


def _below(a: Axis, place: Expr, n: int) -> Expr:
    """Whether a result of a strip exists."""
    return place < a.count if a.count % n else const(True, boolean)
