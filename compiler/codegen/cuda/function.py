"""One phase as a function: what all kinds of phases have in common."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import LoweringError
from ...kernels.ir import (
    Comment,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Local,
    Phase,
    Prefetch,
    Set,
    Stmt,
    Store,
    tensor_maps,
)
from .entry import Entry
from .operations import in_memory, storage
from .values import Values


class Function(Values):
    """The statements of a phase as lines."""

    def __init__(self, kernel: Kernel, phase: Phase, name: str) -> None:
        super().__init__(kernel)
        self.kernel, self.phase, self.name = kernel, phase, name
        self.maps = {m: self.fresh(m.name) for m in tensor_maps(phase)}
        self.loops = 0  # that are open

    def finish(self) -> tuple[Entry, str]:
        """The function as a CUDA kernel, and its source."""
        raise NotImplementedError

    def whole(self, title: str, first: Iterable[str]) -> str:
        """The source of the function. first: lines ahead of its own."""
        params = ", ".join([*(b.name for b in self.kernel.params), *self.maps.values()])
        text = [
            f"# {title}",
            f"def {self.name}({params}):",
            *(f"    # {b.role} {b.name}: {b.dtype}[{b.elements}]" for b in self.kernel.params),
            *(f"    # {m}" for m in self.maps),
            *first,
            *self.lines,
        ]
        return "\n".join(text) + "\n"

    # ---------------------------------------------------------------- statements

    def body(self, stmts: Iterable[Stmt]) -> None:
        for s in stmts:
            self.known = {}
            self.statement(s)

    def statement(self, s: Stmt) -> None:
        if isinstance(s, For):
            self.vector(s) if s.kind == "vector" else self.serial(s)
        elif isinstance(s, Set):
            self.set(s)
        elif isinstance(s, Store):
            self.store(s)
        elif isinstance(s, Declare):
            self.declare(s.local)
        elif isinstance(s, If):
            self.branch(s)
        elif isinstance(s, Let):
            self.prepare(s.value)
            value = self.root(s.value)
            self.line(f"{self.variable(s.var)} = {value}")
        elif isinstance(s, Comment):
            self.line(f"# {s.text}")
        elif not isinstance(s, Prefetch):
            raise LoweringError(f"GPUs have no lowering for the statement {type(s).__name__}")

    def declare(self, local: Local) -> None:
        if local not in self.locals:
            self.locals[local] = self.fresh(local.name)
        if local.shape:
            dims = local.shape[0] if len(local.shape) == 1 else local.shape
            self.line(f"{self.locals[local]} = cuda.local.array({dims}, {storage(local.dtype)})")

    def set(self, s: Set) -> None:
        self.prepare(*s.where, s.value)
        value = self.root(s.value)
        kept = in_memory(value, s.local.dtype) if s.where else value
        self.line(f"{self.element(s.local, s.where)} = {kept}")

    def store(self, s: Store) -> None:
        self.prepare(s.offset, s.value)
        self.put(s)

    def put(self, s: Store) -> None:
        value = in_memory(self.root(s.value), s.buffer.dtype)
        self.line(f"{s.buffer.name}[{self.text(s.offset)}] = {value}")

    def branch(self, s: If) -> None:
        self.prepare(s.condition)
        with self.block(f"if {self.text(s.condition)}:"):
            self.body(s.then)
        if s.otherwise:
            with self.block("else:"):
                self.body(s.otherwise)

    def serial(self, s: For) -> None:
        self.prepare(s.lo, s.hi)
        lo, hi = self.text(s.lo), self.text(s.hi)
        v = self.variable(s.var)
        if s.lo.is_const and s.hi.is_const and s.hi.payload - s.lo.payload <= s.step:
            if s.lo.payload < s.hi.payload:
                self.line(f"{v} = {lo}")
                self.body(s.body)
            self.ended.add(s.var)
            return
        if not self.may_unroll(s):
            hi = f"unknown({hi})"
        rounds = hi if lo == "0" and s.step == 1 else f"{lo}, {hi}"
        rounds += f", {s.step}" if s.step != 1 else ""
        self.loops += 1
        with self.block(f"for {v} in range({rounds}):{'  # unrolled' * (s.kind == 'unroll')}"):
            self.body(s.body)
            self.end(s)
        self.ended.add(s.var)
        self.loops -= 1

    def vector(self, s: For) -> None:
        raise LoweringError(f"the loop over {s.var!r} has lanes, in a phase for one thread")

    def end(self, s: For) -> None:
        """What follows on the last statement of a loop's body."""

    def may_unroll(self, s: For) -> bool:
        """Whether the compiler may unroll a loop as it likes."""
        return True
