"""Accesses of several neighbouring elements at once, in phases that are written for one thread.

They are calls of `load_vector` and `store_vector`, and mean what `spelled_out` makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from ...ops.expr import Expr, index, linear, var
from ...ops.traverse import substitute
from .ir import Buffer, Call, Declare, For, If, Local, Set, Stmt, Store, loop
from .pieces import trip_count

WIDEST: Final = 16  # bytes of one access


def aligned(at: Expr, u: Expr) -> bool:
    """Whether offsets for u = 0, 1, ... are neighbours, the first a multiple of their number."""
    terms, first = linear(at)
    n = trip_count(u)
    return terms.get(u) == 1 and first % n == 0 and all(
        c % n == 0 and u not in v.free for v, c in terms.items() if v is not u)  # fmt: skip


def wide_loads(
    value: Expr, u: Expr, local: Callable[[Buffer], Local]
) -> tuple[list[Stmt], Expr]:  # fmt: skip
    """What a value reads at u = 0, 1, ... read at once, where neighbours are and nothing guards
    them: statements, and the value that uses what they read."""
    out: list[Stmt] = []
    known: dict[Expr, Expr] = {}
    for n in unguarded(value):
        fits = trip_count(u) * n.dtype.bytes <= WIDEST
        if n not in known and fits and aligned(n.args[0], u):
            held = local(n.payload)
            at = substitute(n.args[0], {u: index(0)})
            out += [Declare(held), Call("load_vector", (held, index(0), n.payload, at,
                                                        trip_count(u)))]  # fmt: skip
            known[n] = held[u]
    return out, substitute(value, known)


def unguarded(e: Expr) -> list[Expr]:
    """Loads of buffers that are made whatever conditions say."""
    if e.op == "load":
        return [e] if isinstance(e.payload, Buffer) else []
    args = e.args[:1] if e.op == "select" else e.args
    return [n for a in args for n in unguarded(a)]


def spelled_out(body: Iterable[Stmt]) -> tuple[Stmt, ...]:
    """The same with one element after the other."""
    return tuple(map(_spelled_out, body))


def _spelled_out(s: Stmt) -> Stmt:
    if isinstance(s, For):
        return replace(s, body=spelled_out(s.body))
    if isinstance(s, If):
        return replace(s, then=spelled_out(s.then), otherwise=spelled_out(s.otherwise))
    if isinstance(s, Call) and s.name == "load_vector":
        held, first, memory, at, n = s.args
        v = var("v", _number(n))
        if isinstance(memory, Buffer):
            return loop(v, (Set(_local(held), (_expr(first) + v,), memory[_expr(at) + v]),))
    if isinstance(s, Call) and s.name == "store_vector":
        memory, at, held, first, n = s.args
        v = var("v", _number(n))
        if isinstance(memory, Buffer):
            return loop(v, (Store(memory, _expr(at) + v, _local(held)[_expr(first) + v]),))
    return s


def _number(x: object) -> int:
    assert isinstance(x, int)
    return x


def _expr(x: object) -> Expr:
    assert isinstance(x, Expr)
    return x


def _local(x: object) -> Local:
    assert isinstance(x, Local)
    return x
