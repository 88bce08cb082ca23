"""Where the threads of a block must wait for each other, read off the Kernel IR.

A vector loop runs on all threads, everything else on each of them alike; only stores outside vector
loops are made by one thread, which computes what they store. So a barrier stands between two
statements that touch one buffer unless both only read it, or the same one thread makes both. The
lanes of one vector loop do not exchange anything through memory. Buffers that a caller may place in
the same memory count as one; so does every array in shared memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ....ops.expr import Expr
from ....ops.traverse import walk
from ...kernels.ir import (
    Buffer,
    For,
    If,
    Kernel,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    expressions,
    statements,
)

ALL, ONE = "all", "one"  # the threads that touch a buffer
JOINING: Final = frozenset(("hsum", "hprod", "hmax", "hmin"))


@dataclass(frozen=True, slots=True)
class _Touch:
    """A buffer (by the number of its memory), whether it is written, and by which threads."""

    memory: int
    written: bool
    by: str


_State = frozenset[_Touch]


def barriers(kernel: Kernel, phase: Phase, joining: bool) -> frozenset[int]:
    """The ids of the statements ahead of which all threads of a block must have arrived. joining:
    whether combining the lanes of a local has all threads wait."""
    found = _Barriers(_memories(kernel, phase), joining)
    found.body(phase.body, frozenset())
    return frozenset(found.ahead)


def shared_arrays(phase: Phase) -> frozenset[Local]:
    """Arrays of an item that vector loops set element by element: all threads see them."""
    inside = (t for s in statements(phase.body) if isinstance(s, For) and s.kind == "vector"
              for t in statements(s.body) if isinstance(t, Set))  # fmt: skip
    return frozenset(t.local for t in inside if t.local.shape and not t.local.lanes)


def _memories(kernel: Kernel, phase: Phase) -> dict[Buffer | Local, int]:
    """Of what is written in a phase and seen by all threads, and what may lie in the same place."""
    number = list(range(len(kernel.params)))
    for y, x in kernel.inplace:
        joined, gone = number[y], number[x]
        number = [joined if n == gone else n for n in number]
    of = dict(zip(kernel.params, number, strict=True))
    written = {of[s.buffer] for s in statements(phase.body) if isinstance(s, Store)}
    found: dict[Buffer | Local, int] = {b: n for b, n in of.items() if n in written}
    return found | {local: -1 - k for k, local in enumerate(shared_arrays(phase))}


class _Barriers:
    def __init__(self, memories: Mapping[Buffer | Local, int], joining: bool) -> None:
        self.memories = memories
        self.joining = joining
        self.ahead: set[int] = set()

    def body(self, stmts: Sequence[Stmt], state: _State) -> _State:
        """What was touched since the last barrier, behind the statements. state: ahead of them."""
        for s in stmts:
            state = self.statement(s, state)
        return state

    def statement(self, s: Stmt, state: _State) -> _State:
        state = self._met(s, self._of(s), state)
        if isinstance(s, If):
            return self.body(s.then, state) | self.body(s.otherwise, state)
        if isinstance(s, For) and s.kind != "vector":
            return self._rounds(s, state)
        return state

    def _rounds(self, s: For, state: _State) -> _State:
        """A round follows on what was ahead of the loop or on another one. Barriers that were found
        stay, so this ends."""
        while True:
            known = len(self.ahead)
            after = self.body(s.body, state)
            if after <= state and len(self.ahead) == known:
                return state
            state |= after

    def _met(self, s: Stmt, touched: _State, state: _State) -> _State:
        if self.joining and any(n.op in JOINING for n in walk(*expressions(s))):
            return touched
        if id(s) in self.ahead or any(_clash(a, b) for a in state for b in touched):
            self.ahead.add(id(s))
            return touched
        return state | touched

    def _of(self, s: Stmt) -> _State:
        """What a statement touches itself; a vector loop with all that it holds."""
        if isinstance(s, For) and s.kind == "vector":
            inner = [t for t in statements((s,))]
            reads = self._loads(e for t in inner for e in expressions(t))
            stores = [self.memories[t.buffer] for t in inner if isinstance(t, Store)]
            stores += [self.memories[t.local] for t in inner
                       if isinstance(t, Set) and t.local in self.memories]  # fmt: skip
            return frozenset((*(_Touch(m, False, ALL) for m in reads),
                              *(_Touch(m, True, ALL) for m in stores)))  # fmt: skip
        by = ONE if isinstance(s, Store) else ALL
        reads = self._loads(expressions(s))
        touched = {_Touch(m, False, by) for m in reads}
        if isinstance(s, Store):
            touched.add(_Touch(self.memories[s.buffer], True, ONE))
        return frozenset(touched)

    def _loads(self, values: Iterable[Expr]) -> set[int]:
        return {self.memories[n.payload] for n in walk(*values)
                if n.op == "load" and n.payload in self.memories}  # fmt: skip


def _clash(a: _Touch, b: _Touch) -> bool:
    return a.memory == b.memory and (a.written or b.written) and not a.by == b.by == ONE
