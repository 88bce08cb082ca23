"""Windows that slide along what a thread computes: read once, used by all of its elements.

A thread of a pooling or of a depthwise convolution makes a few neighbouring elements, number u at a
time. Where what it reads depends on u and on the window's place r only through u * step + r, it
reads every such place once, into registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.expr import Expr, const, index, linear, logical_and, select, var
from ...ops.traverse import substitute
from ...ops.types import boolean
from .ir import If, Local, Set, Stmt, loop
from .pieces import buffer_loads, trip_count

MOST_PLACES = 24  # that a thread holds in registers


@dataclass(frozen=True, slots=True)
class Window:
    """`value`, which `reads` as a function of the place p = u * step + r in 0..places."""

    value: Expr
    step: int
    p: Expr
    reads: Expr

    @property
    def places(self) -> int:
        return trip_count(self.p)

    def filled(self, held: Local) -> tuple[Stmt, ...]:
        """held[p] = what is read there, place by place: where one is known, much of what guards it
        is known to hold. What guards all places is asked once."""
        e = self.reads
        if e.op != "select":
            return tuple(self._set(held, e, k) for k in range(self.places))
        alike, rest = parted(e.args[0], self.p)
        inside = select(rest, e.args[1], e.args[2])
        read = tuple(self._set(held, inside, k) for k in range(self.places))
        if alike.is_const:
            return read
        if e.args[2].is_const:
            beyond: tuple[Stmt, ...] = (loop(self.p, (Set(held, (self.p,), e.args[2]),), "unroll"),)
        else:
            beyond = tuple(self._set(held, e.args[2], k) for k in range(self.places))
        return (If(alike, read, beyond),)

    def _set(self, held: Local, value: Expr, place: int) -> Stmt:
        return Set(held, (index(place),), substitute(value, {self.p: index(place)}))


def window_of(body: Expr, u: Expr, r: Expr) -> Window | None:
    """The part of a reduction's body over r that its elements u share, if there is one."""
    if r.payload[1]:
        return None
    for value in _with_both(body, u, r):
        for step in {_step(n.args[0], u, r) for n in buffer_loads(value)} - {0}:
            p = var("p", (trip_count(u) - 1) * step + trip_count(r))
            reads = substitute(value, {u: index(0), r: p})
            if trip_count(p) <= MOST_PLACES and substitute(reads, {p: u * step + r}) is value:
                return Window(value, step, p, reads)
    return None


def _with_both(e: Expr, u: Expr, r: Expr) -> list[Expr]:
    """Parts of e that read memory at places that both variables decide. What a select guards stays
    behind it."""
    if not {u, r} <= e.free:
        return []
    if e.op in ("load", "select"):
        return [e] if buffer_loads(e) else []
    return [found for a in e.args for found in _with_both(a, u, r)]


def _step(at: Expr, u: Expr, r: Expr) -> int:
    """How many steps of r one of u is; 0 where it is no whole number of them."""
    terms, _ = linear(at)
    a, b = terms.get(u, 0), terms.get(r, 0)
    return a // b if b > 0 and a > 0 and a % b == 0 else 0


def parted(guard: Expr, p: Expr) -> tuple[Expr, Expr]:
    """A condition as (what holds for all p alike, the rest)."""
    alike = rest = const(True, boolean)
    for part in _conjuncts(guard):
        if p in part.free:
            rest = logical_and(rest, part)
        else:
            alike = logical_and(alike, part)
    return alike, rest


def _conjuncts(e: Expr) -> list[Expr]:
    if e.op == "and":
        return [c for a in e.args for c in _conjuncts(a)]
    return [e]
