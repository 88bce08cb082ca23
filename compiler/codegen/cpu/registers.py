"""Locals that live in registers: which can, and what each holds at the point being lowered.

Control flow in Kernel IR is structured, so SSA form needs no dominance analysis: a loop carries
what its body sets, and the arms of a branch are merged where they meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Final

from ....ops.expr import Expr
from ....ops.traverse import walk
from ...kernels.ir import (
    Declare,
    For,
    If,
    Local,
    Phase,
    Set,
    Stmt,
    Transpose,
    expressions,
    statements,
)
from .llvm_text import Function, Value, poison

MOST_ELEMENTS: Final = 256
"""Locals of more elements stay on the stack: no machine has as many registers."""

Place = tuple[str, int]  # a local's name and a flat index into it
Held = dict[Place, Value]


class Registers:
    """What the locals of a phase hold that are only used at indices known when lowering."""

    def __init__(self, phase: Phase) -> None:
        self.locals = _static_locals(phase)
        self.held: Held = {}
        self._changes: dict[int, tuple[tuple[Stmt, ...], tuple[Local, ...], frozenset[Local]]] = {}

    def __contains__(self, local: Local) -> bool:
        return local.name in self.locals

    def get(self, local: Local, at: int) -> Value:
        found = self.held.get((local.name, at))
        return poison(local.dtype, local.lanes) if found is None else found

    def put(self, local: Local, at: int, value: Value) -> None:
        self.held[local.name, at] = value

    def forget(self, local: Local) -> None:
        """Leave the contents undefined."""
        for at in range(prod(local.shape)):
            self.held.pop((local.name, at), None)

    def carried(self, body: tuple[Stmt, ...]) -> list[Place]:
        """What rounds of a loop over `body` hand on."""
        changed, _ = self._changed(body)
        return [(local.name, at) for local in changed for at in range(prod(local.shape))]

    def holding(self, places: Iterable[Place]) -> list[Value]:
        return [self.get(self.locals[name], at) for name, at in places]

    def begin(self, places: Iterable[Place], values: Iterable[Value]) -> None:
        self.held.update(zip(places, values, strict=True))

    def end(self, places: Iterable[Place], bodies: Iterable[tuple[Stmt, ...]]) -> list[Value]:
        """What the places hold now. What was declared inside the bodies ends with them."""
        values = self.holding(places)
        for body in bodies:
            for local in self._changed(body)[1]:
                self.forget(local)
        return values

    def merge(self, f: Function, arms: Iterable[tuple[Held, str]]) -> None:
        """Two arms of a branch meet: what they held at their ends, and the blocks they ended in."""
        (one, here), (two, there) = arms
        self.held = {}
        for place in dict.fromkeys((*one, *two)):
            local = self.locals[place[0]]
            nothing = poison(local.dtype, local.lanes)
            a, b = one.get(place, nothing), two.get(place, nothing)
            self.held[place] = a if a is b else f.phi([(a, here), (b, there)])

    def _changed(self, body: tuple[Stmt, ...]) -> tuple[tuple[Local, ...], frozenset[Local]]:
        """(registers that a body sets and did not declare itself, locals that it declares)."""
        found = self._changes.get(id(body))
        if found is None:
            inner = list(statements(body))
            own = frozenset(s.local for s in inner if isinstance(s, Declare))
            sets = dict.fromkeys(s.local for s in inner if isinstance(s, (Set, Transpose)))
            changed = tuple(x for x in sets if x in self and x not in own)
            found = self._changes[id(body)] = (body, changed, own)  # keeps the body, and its id
        return found[1], found[2]


def _static_locals(phase: Phase) -> dict[str, Local]:
    """Locals whose indices depend on nothing but variables of unrolled loops, by name."""
    seen: dict[str, Local] = {}
    moving: set[str] = set()
    checked: set[tuple[Expr, frozenset[Expr]]] = set()

    def use(local: Local, where: tuple[Expr, ...], unrolled: frozenset[Expr]) -> None:
        static = not local.aside and all(_is_static(i, unrolled) for i in where)
        if prod(local.shape) > MOST_ELEMENTS or not static:
            moving.add(local.name)

    def visit(body: Iterable[Stmt], unrolled: frozenset[Expr]) -> None:
        for s in body:
            if isinstance(s, Declare):
                if seen.setdefault(s.local.name, s.local) != s.local:
                    moving.add(s.local.name)  # two locals of one name
            elif isinstance(s, Set):
                use(s.local, s.where, unrolled)
            for e in expressions(s):
                if (e, unrolled) not in checked:
                    checked.add((e, unrolled))
                    for local, where in _local_loads(e):
                        use(local, where, unrolled)
            if isinstance(s, For):
                visit(s.body, unrolled | {s.var} if s.kind == "unroll" else unrolled)
            else:
                for arm in _arms(s):
                    visit(arm, unrolled)

    visit(phase.body, frozenset())
    return {name: local for name, local in seen.items() if name not in moving}


def _arms(s: Stmt) -> Iterator[tuple[Stmt, ...]]:
    if isinstance(s, If):
        yield s.then
        yield s.otherwise


def _local_loads(e: Expr) -> list[tuple[Local, tuple[Expr, ...]]]:
    return [(n.payload, n.args) for n in walk(e) if n.op == "load" and isinstance(n.payload, Local)]


def _is_static(i: Expr, unrolled: frozenset[Expr]) -> bool:
    """Whether an index is a number once all unrolled loops are."""
    return i.op == "const" or (i.free <= unrolled and all(n.op != "load" for n in walk(i)))
