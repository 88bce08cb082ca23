"""Phases that are written for one thread of a block.

Shared arrays are pieces of the block's dynamic shared memory, one behind the other. Nothing is
added to what the phase says: no barrier, no guard. Loops that are to be unrolled are, whatever
becomes of them (`unrolled()`, see `block_memory`), so that their variables may index registers.
"""

from __future__ import annotations

from ....ops.expr import Expr
from ...errors import LoweringError
from ...kernels.ir import (
    Buffer,
    Call,
    Declare,
    For,
    Kernel,
    Local,
    Phase,
    Stmt,
    TensorMap,
    statements,
)
from .entry import MOST_THREADS, Entry
from .function import Function
from .intrinsics import INTRINSICS, Parameter
from .operations import stored_as
from .tensor_maps import described


def shared_layout(phase: Phase) -> tuple[dict[Local, int], int]:
    """Where every shared array of a phase begins, in bytes, and the bytes of all of them."""
    places: dict[Local, int] = {}
    end = 0
    for s in statements(phase.body):
        if isinstance(s, Declare) and s.local.shared and s.local not in places:
            places[s.local] = -(-end // s.local.align) * s.local.align
            end = places[s.local] + _elements(s.local) * stored_as(s.local.dtype).bytes
    return places, end


def _elements(local: Local) -> int:
    if len(local.shape) != 1:
        raise LoweringError(f"the shared array {local.name} has {len(local.shape)} axes, not one")
    return local.shape[0]


class PerThread(Function):
    """One phase."""

    def __init__(self, kernel: Kernel, phase: Phase, name: str) -> None:
        super().__init__(kernel, phase, name)
        if not 0 < phase.threads <= MOST_THREADS or phase.thread is None:
            raise LoweringError(f"a block of {phase.threads} threads, numbered by {phase.thread!r}")
        self.places, self.shared_bytes = shared_layout(phase)

    def finish(self) -> tuple[Entry, str]:
        items, threads = self.phase.items, self.phase.threads
        assert self.phase.thread is not None
        which = "i64(cuda.blockIdx.x)" if items > 1 else "0"
        self.line(f"{self.variable(self.phase.item)} = {which}")
        self.line(f"{self.variable(self.phase.thread)} = i64(cuda.threadIdx.x)")
        self.body(self.phase.body)
        title = f"{items} blocks of {threads} threads"
        if self.shared_bytes:
            title += f", {self.shared_bytes} bytes of shared memory"
        if self.phase.cluster > 1:
            title += f", in clusters of {self.phase.cluster}"
        maps = tuple(described(m, self.kernel.params) for m in self.maps)
        entry = Entry(self.name, items, threads, self.shared_bytes, self.phase.cluster, maps,
                      self.phase.resident)  # fmt: skip
        return entry, self.whole(title, ())

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Call):
            self.call(s)
        else:
            super().statement(s)

    def declare(self, local: Local) -> None:
        if not local.shared:
            return super().declare(local)
        self.locals[local] = self.fresh(local.name)
        at, count = self.places[local], _elements(local)
        self.line(f"{self.locals[local]} = shared_{local.dtype}({at}, {count})")

    def may_unroll(self, s: For) -> bool:
        return s.kind == "unroll"

    def end(self, s: For) -> None:
        if s.kind == "unroll":
            self.line("unrolled()")

    def call(self, s: Call) -> None:
        found = INTRINSICS.get(s.name)
        if found is None:
            raise LoweringError(f"there is no intrinsic {s.name}")
        if len(found.parameters) != len(s.args):
            raise LoweringError(f"{s.name} takes {len(found.parameters)} arguments: {found.takes}")
        self.prepare(*(a for a in s.args if isinstance(a, Expr)))
        given = [self._argument(s, p, a) for p, a in zip(found.parameters, s.args, strict=True)]
        self.line(f"{s.name}({', '.join(given)})")

    def _argument(self, s: Call, p: Parameter, a: object) -> str:
        if isinstance(a, Expr) and p.kind in ("index", "flag", "value"):
            return self.text(a)
        if isinstance(a, int) and p.kind == "literal":
            return str(a)
        if isinstance(a, Buffer) and p.kind in ("global", "memory"):
            return a.name
        if isinstance(a, TensorMap) and p.kind == "map":
            return self.maps[a]
        if isinstance(a, Local) and p.kind in _KINDS[a.shared]:
            return self.element(a, ())
        raise LoweringError(f"{s.name} takes {p.kind} {p.name} where {a!r} is given")


_KINDS = {True: ("shared", "memory"), False: ("registers",)}
"""Of parameters that take a local, by whether it is shared."""
