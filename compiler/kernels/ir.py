"""Loop-level Kernel IR: what templates emit, people read, and code generators lower.

A kernel is a list of phases. A phase is a parallel region: its body runs once for every item, in
any order, on any thread; a phase starts when the one before it has ended. Bodies are loops and
stores over buffers in the expression language of `ops.expr`:

* `load(buffer, (offset,), dtype)` reads one element of a buffer at a flat element offset,
  `load(local, indices, dtype)` reads a local.
* A `vector` loop runs its iterations in lanes, `lanes` at a time, SPMD style: expressions that
  depend on its variable differ per lane, all others are uniform. The last, partial round runs under
  a mask: masked lanes neither load nor store. Vector loops do not nest, but one may contain serial
  and unrolled loops whose bounds are uniform.
* `unroll` loops have static bounds and are expanded; after that, indices of locals that live in
  registers must be static.
* Besides the operations of `ops.expr`, kernels may use apply("fma", (a, b, c)) for a * b + c in one
  rounding, and apply("hsum" | "hmax" | "hmin" | "hprod", (x,)) outside a vector loop, which
  combines the lanes of a local declared with lanes.

GPUs take phases of another kind as well, which say what each thread of a block does
(`Phase.threads`): those share arrays (`Local.shared`), call intrinsics of the dialect (`Call`), and
wait for each other where they say so and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, overload

import numpy.typing as npt

from ...ops.expr import Expr, index, load
from ...ops.types import DType

Role = Literal["in", "out", "const", "scratch"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A parameter of a kernel: `elements` of `dtype`, aligned to the element at least.

    in: read only. const: read only, the same in every call. out: written; may be read back.
    scratch: written and read within one launch, contents undefined at its start.
    """

    name: str
    dtype: DType
    elements: int
    role: Role

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.bytes

    @property
    def is_written(self) -> bool:
        return self.role in ("out", "scratch")

    def __getitem__(self, offset: Expr | int) -> Expr:
        return load(self, (_expr(offset),), self.dtype)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class TensorMap:
    """The tensor `name` that lies in a buffer, from its first element on, as units of a GPU see it
    that copy boxes (see `tensor_map`).

    dims: elements along every axis, innermost first; strides: bytes from one to the next along
    every axis but the innermost, whose elements lie side by side. box: elements of one copy.
    swizzle: 128 or 0 bytes. steps: in which a box goes along every axis, where they are not all 1.
    tf32: floats are rounded to 10 bits behind the point on the way to shared memory.
    """

    name: str
    buffer: Buffer
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 128
    steps: tuple[int, ...] = ()
    tf32: bool = False

    def __str__(self) -> str:
        dims, strides, box = (", ".join(map(str, x)) for x in (self.dims, self.strides, self.box))
        return (f"{self.name} = {self.buffer.name} as {self.buffer.dtype}[{dims}]"
                f" strides [{strides}] boxes [{box}] swizzle {self.swizzle}"
                f"{f' in steps of {list(self.steps)}' if self.steps else ''}"
                f"{' as tf32' if self.tf32 else ''}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Local:
    """Storage of one item: registers when all indices are static, else the stack. On a GPU, arrays
    that a vector loop sets lane by lane are shared by all lanes.

    lanes: 0 for one scalar per element, else each element holds that many lanes. shared: the array
    is one for all threads of a block, in a phase that is written for one thread; it has one axis
    and begins at a multiple of `align` bytes. aside: on the stack in any case, as the registers are
    wanted for others meanwhile.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...] = ()
    lanes: int = 0
    shared: bool = False
    align: int = 16
    aside: bool = False

    def __hash__(self) -> int:
        return hash(self.name)

    def __getitem__(self, where: Expr | int | tuple[Expr | int, ...]) -> Expr:
        at = where if isinstance(where, tuple) else (where,)
        return load(self, tuple(_expr(i) for i in at), self.dtype)

    @property
    def value(self) -> Expr:
        """The element of a local of rank 0."""
        return load(self, (), self.dtype)

    def __str__(self) -> str:
        return self.name


def _expr(value: Expr | int) -> Expr:
    return value if isinstance(value, Expr) else index(value)


# --------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class Stmt:
    """A statement."""


@dataclass(frozen=True, slots=True)
class For(Stmt):
    """for var in lo..hi by step. kind: "serial", "unroll" (static bounds) or "vector"."""

    var: Expr
    lo: Expr
    hi: Expr
    body: tuple[Stmt, ...]
    kind: Literal["serial", "unroll", "vector"] = "serial"
    step: int = 1
    lanes: int = 0


@dataclass(frozen=True, slots=True)
class Declare(Stmt):
    """Bring a local into being; its contents are undefined until set."""

    local: Local


@dataclass(frozen=True, slots=True)
class Set(Stmt):
    """local[where] = value. A uniform value fills all lanes."""

    local: Local
    where: tuple[Expr, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Let(Stmt):
    """A name for an index, whose bounds the variable declares; on GPUs only. Set once."""

    var: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class Transpose(Stmt):
    """Lane j of element i and lane i of element j change places, in a local of as many elements as
    lanes."""

    local: Local


@dataclass(frozen=True, slots=True)
class Store(Stmt):
    """buffer[offset] = value."""

    buffer: Buffer
    offset: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class If(Stmt):
    """A branch on a uniform condition; on a GPU, inside a vector loop, on any."""

    condition: Expr
    then: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefetch(Stmt):
    """A hint that buffer[offset] will be read, or written, soon. far: not so soon that it should
    displace what is in the first cache."""

    buffer: Buffer
    offset: Expr
    far: bool = False


Argument = Expr | Local | Buffer | TensorMap | int


@dataclass(frozen=True, slots=True)
class Call(Stmt):
    """An intrinsic of a GPU, for phases written for one thread (see `codegen.cuda.intrinsics`).

    Memory is named by a buffer, or a local, and the offset of an element in it. A plain int is a
    literal that the intrinsic is specialised on.
    """

    name: str
    args: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Comment(Stmt):
    """A line for the reader."""

    text: str


# --------------------------------------------------------------------------- kernels


@dataclass(frozen=True, slots=True)
class Phase:
    """body for every value of the variable `item` in 0..items, in parallel.

    threads: not 0 on a GPU where the body is what one thread of a block does, and an item is a
    block of so many of them. `thread` is the variable that counts them. Every thread makes the
    stores that it reaches, branches may differ between threads, and there are no vector loops.
    cluster: neighbouring blocks that run side by side and reach each other's shared memory.
    resident: how many such blocks a multiprocessor should hold at once, which limits the registers
    of a thread; 0 where that does not matter.
    """

    items: int
    item: Expr
    body: tuple[Stmt, ...]
    threads: int = 0
    thread: Expr | None = None
    cluster: int = 1
    resident: int = 0


_writing: Final = threading.Lock()
"""Expressions are interned by one thread at a time."""


class Unwritten(Sequence[Phase]):
    """Phases that are written when someone looks at them. items: of each of them; text: the digest
    of the kernel's text (`printer.text_digest`). Both are known before."""

    def __init__(
        self, items: tuple[int, ...], text: str, write: Callable[[], Sequence[Phase]]
    ) -> None:
        self.items, self.text = items, text
        self._write: Callable[[], Sequence[Phase]] | None = write
        self._phases: Sequence[Phase] = ()

    def _written(self) -> Sequence[Phase]:
        with _writing:
            if self._write is not None:
                self._phases = self._write()
                self._write = None
            return self._phases

    @overload
    def __getitem__(self, k: int) -> Phase: ...

    @overload
    def __getitem__(self, k: slice) -> Sequence[Phase]: ...

    def __getitem__(self, k: int | slice) -> Phase | Sequence[Phase]:
        return self._written()[k]

    def __iter__(self) -> Iterator[Phase]:
        return iter(self._written())

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A constant brought into the form that a kernel reads, once, when the program is linked.

    Equal (blobs, recipe) are prepared once and shared between kernels. make: from the constants'
    arrays (row-major) to the packed array; runs at most once per program.
    """

    blobs: tuple[str, ...]
    recipe: str
    make: Callable[..., npt.NDArray[Any]] = field(compare=False)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Kernel:
    """One unit of code, independent of the names in the model: equal shapes share one kernel.

    template, version, config: what made it. flops, bytes: the least work and traffic its problem
    needs, computed as it is defined. own_flops: of the multiply-adds that the kernel does instead,
    where its algorithm needs fewer; 0 where there is no such difference. inplace: pairs (out, in)
    of parameter positions that may be the same memory.
    """

    template: str
    version: int
    config: tuple[tuple[str, Any], ...]
    params: tuple[Buffer, ...]
    phases: Sequence[Phase]
    flops: int = 0
    bytes: int = 0
    inplace: tuple[tuple[int, int], ...] = ()
    own_flops: int = 0

    @property
    def items(self) -> tuple[int, ...]:
        """Of each phase."""
        if isinstance(self.phases, Unwritten):
            return self.phases.items
        return tuple(p.items for p in self.phases)


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """A kernel applied to blobs. args: per parameter a blob name, a `Prepared`, or None (scratch).
    ops: indices of the graph's ops it computes. note: why it is this kernel where another would be
    faster. origin: where its config comes from, if it is not the template's default."""

    kernel: Kernel
    args: tuple[str | Prepared | None, ...]
    ops: tuple[int, ...]
    label: str = ""
    note: str = ""
    origin: str = ""


# --------------------------------------------------------------------------- building and walking


def seq(*stmts: Stmt | Iterable[Stmt]) -> tuple[Stmt, ...]:
    """Flatten statements and sequences of statements into one body."""
    out: list[Stmt] = []
    for s in stmts:
        if isinstance(s, Stmt):
            out.append(s)
        else:
            out.extend(s)
    return tuple(out)


def loop(
    var: Expr,
    body: Iterable[Stmt],
    kind: Literal["serial", "unroll", "vector"] = "serial",
    *,
    lo: Expr | int | None = None,
    hi: Expr | int | None = None,
    step: int = 1,
    lanes: int = 0,
) -> For:
    """A loop over the range that `var` declares, or over lo..hi within it."""
    _, first, end = var.payload
    return For(
        var,
        index(first) if lo is None else _expr(lo),
        index(end) if hi is None else _expr(hi),
        tuple(body),
        kind,
        step,
        lanes,
    )


def statements(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement, outer before inner."""
    for s in body:
        yield s
        if isinstance(s, For):
            yield from statements(s.body)
        elif isinstance(s, If):
            yield from statements(s.then)
            yield from statements(s.otherwise)


def expressions(s: Stmt) -> tuple[Expr, ...]:
    """The expressions that a statement itself evaluates."""
    if isinstance(s, For):
        return s.lo, s.hi
    if isinstance(s, Set):
        return (*s.where, s.value)
    if isinstance(s, Store):
        return s.offset, s.value
    if isinstance(s, If):
        return (s.condition,)
    if isinstance(s, Prefetch):
        return (s.offset,)
    if isinstance(s, Let):
        return (s.value,)
    if isinstance(s, Call):
        return tuple(a for a in s.args if isinstance(a, Expr))
    return ()


def tensor_maps(phase: Phase) -> tuple[TensorMap, ...]:
    """The tensors that a phase copies boxes of, in the order in which it first names them."""
    named = (a for s in statements(phase.body) if isinstance(s, Call) for a in s.args)
    return tuple(dict.fromkeys(a for a in named if isinstance(a, TensorMap)))
