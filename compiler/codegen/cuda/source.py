"""Kernel IR to Python source in the dialect of Numba CUDA, one function per phase.

How a phase is spread over a GPU:

* One that holds no vector loop runs an item in every thread.
* Otherwise an item is a block. The iterations of its vector loops are dealt out to the threads, and
  locals with lanes are variables of each thread. An array without lanes that is set in a vector
  loop lies in shared memory. All threads compute what is the same in all lanes; one of them stores
  it. `hsum` and the like become shuffles in every warp and a table in shared
  memory, and barriers stand where threads meet in memory (see `barriers`).

The source reads like the Kernel IR. What Python has no sign for, or gives another meaning than the
operators of `ops.expr`, are functions of the dialect (see `dialect`). Values that are used more
than once get names, where they are first needed: what a `select` guards stays behind its condition.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Final

from ....ops.expr import Expr, bounds, index
from ....ops.traverse import walk
from ....ops.types import DType, boolean
from ...errors import LoweringError
from ...kernels.ir import (
    Buffer,
    Comment,
    Declare,
    For,
    If,
    Kernel,
    Local,
    Phase,
    Prefetch,
    Set,
    Stmt,
    Store,
    statements,
)
from ...kernels.printer import symbol
from .barriers import JOINING, barriers, shared_arrays
from .dialect import FUNCTIONS
from .operations import (
    ATOM,
    TERNARY,
    Text,
    from_memory,
    in_memory,
    literal,
    operation,
    paired,
    storage,
)

WARP: Final = 32
FREE_THREADS: Final = 128  # of a block whose threads have nothing to do with each other
MOST_THREADS: Final = 1024
MOST_BLOCKS: Final = (1 << 31) - 1
LONG: Final = 64  # characters from which an operand gets a name
_TAKEN: Final = frozenset((*keyword.kwlist, *dir(builtins), *FUNCTIONS, "cuda", "np", "lane"))


@dataclass(frozen=True, slots=True)
class Entry:
    """A phase as a CUDA kernel: its name, and the grid that it is launched with."""

    name: str
    blocks: int
    threads: int


@dataclass(frozen=True, slots=True)
class Source:
    """The source of one kernel: a function for every entry, whose arguments are the buffers."""

    text: str
    entries: tuple[Entry, ...]


def kernel_source(kernel: Kernel) -> Source:
    """Raises LoweringError naming the template where the Kernel IR has no form on a GPU."""
    entries: list[Entry] = []
    parts: list[str] = []
    for k, phase in enumerate(kernel.phases):
        try:
            entry, text = _Function(kernel, phase, f"{symbol(kernel)}_p{k}").finish()
        except LoweringError as e:
            raise LoweringError(f"kernel template {kernel.template}: {e}") from e
        entries.append(entry)
        parts.append(text)
    return Source("\n\n".join(parts), tuple(entries))


def _threads(phase: Phase) -> int:
    """Threads of a block that share an item, 0 where every thread has its own."""
    found = {s.lanes for s in statements(phase.body) if isinstance(s, For) and s.kind == "vector"}
    found |= {s.local.lanes for s in statements(phase.body) if isinstance(s, Declare)} - {0}
    if len(found) > 1:
        raise LoweringError(f"vector loops of {sorted(found)} lanes share a block of threads")
    n = max(found, default=0)
    if n and (n & (n - 1) or not WARP <= n <= MOST_THREADS):
        raise LoweringError(f"a block of {n} threads; it takes whole warps, a power of two of them")
    return n


class _Function:
    """One phase."""

    def __init__(self, kernel: Kernel, phase: Phase, name: str) -> None:
        self.kernel, self.phase, self.name = kernel, phase, name
        self.threads = _threads(phase)
        self.barriers = frozenset[int]()
        if self.threads:
            self.barriers = barriers(kernel, phase, self.threads > WARP)
        self.shared = shared_arrays(phase)
        self.lines: list[str] = []
        self.depth = 1
        self.used = {*_TAKEN, *(b.name for b in kernel.params)}
        self.locals: dict[Local, str] = {}
        self.variables: dict[Expr, str] = {}
        self.lanes: For | None = None
        self.counts: dict[Expr, int] = {}
        self.known: dict[Expr, str] = {}
        self.inline = 0
        self.tables: dict[DType, str] = {}
        self.loops = 0

    # ---------------------------------------------------------------- the function

    def finish(self) -> tuple[Entry, str]:
        blocks, head = self._grid()
        if blocks > MOST_BLOCKS:
            raise LoweringError(f"{blocks} blocks; a grid has {MOST_BLOCKS} at most")
        self.lines += head
        self.body(self.phase.body)
        threads = self.threads or min(FREE_THREADS, -(-self.phase.items // WARP) * WARP)
        tables = [f"    {name} = cuda.shared.array({threads // WARP}, {storage(t)})"
                  for t, name in self.tables.items()]  # fmt: skip
        params = ", ".join(b.name for b in self.kernel.params)
        text = [
            f"# {blocks} blocks of {threads} threads",
            f"def {self.name}({params}):",
            *(f"    # {b.role} {b.name}: {b.dtype}[{b.elements}]" for b in self.kernel.params),
            *tables,
            *self.lines,
        ]
        return Entry(self.name, blocks, threads), "\n".join(text) + "\n"

    def _grid(self) -> tuple[int, list[str]]:
        """How many blocks, and the lines that find out the item."""
        items, item = self.phase.items, self._variable(self.phase.item)
        if self.threads:
            which = "i64(cuda.blockIdx.x)" if items > 1 else "0"
            return items, [f"    {item} = {which}", "    lane = i64(cuda.threadIdx.x)"]
        n = min(FREE_THREADS, -(-items // WARP) * WARP)
        blocks = -(-items // n)
        lines = [f"    {item} = i64(cuda.blockIdx.x) * {n} + i64(cuda.threadIdx.x)"]
        if blocks * n > items:
            lines += [f"    if {item} >= {items}:", "        return"]
        return blocks, lines

    # ---------------------------------------------------------------- text

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Indented lines below `head`; names that are given there are forgotten behind them."""
        self.line(head)
        self.depth += 1
        before, start = dict(self.known), len(self.lines)
        yield
        if len(self.lines) == start:
            self.line("pass")
        self.known = before
        self.depth -= 1

    def fresh(self, stem: str) -> str:
        """A name that nothing else has."""
        stem = re.sub(r"\W", "_", stem)
        name, k = stem, 1
        while name in self.used:
            k += 1
            name = f"{stem}_{k}"
        self.used.add(name)
        return name

    def _variable(self, v: Expr) -> str:
        found = self.variables.get(v)
        if found is None:
            found = self.variables[v] = self.fresh(v.payload[0])
        return found

    # ---------------------------------------------------------------- statements

    def body(self, stmts: Iterable[Stmt]) -> None:
        for s in stmts:
            if id(s) in self.barriers:
                self.line("cuda.syncthreads()")
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
        elif isinstance(s, Comment):
            self.line(f"# {s.text}")
        elif not isinstance(s, Prefetch):
            raise LoweringError(f"GPUs have no lowering for the statement {type(s).__name__}")

    def declare(self, local: Local) -> None:
        if self.lanes is not None and not local.lanes:
            raise LoweringError(f"the local {local.name} has no lanes in a vector loop")
        if local not in self.locals:
            self.locals[local] = self.fresh(local.name)
        if local in self.shared:
            size = prod(local.shape)
            if len(local.shape) != 1:
                raise LoweringError(f"the shared array {local.name} has {len(local.shape)} axes")
            made = f"cuda.shared.array({size}, {storage(local.dtype)})"
            self.line(f"{self.locals[local]} = {made}")
        elif local.shape:
            dims = local.shape[0] if len(local.shape) == 1 else local.shape
            self.line(f"{self.locals[local]} = cuda.local.array({dims}, {storage(local.dtype)})")

    def set(self, s: Set) -> None:
        if s.local in self.shared:
            if self.lanes is None:
                raise LoweringError(f"the shared array {s.local.name} is set outside vector loops")
        elif self.lanes is not None and not s.local.lanes:
            raise LoweringError(f"the local {s.local.name} has no lanes in a vector loop")
        self.prepare(*s.where, s.value)
        value = self.root(s.value)
        kept = in_memory(value, s.local.dtype) if s.where else value
        self.line(f"{self._element(s.local, s.where)} = {kept}")

    def store(self, s: Store) -> None:
        self.prepare(s.offset, s.value)
        if self.threads and self.lanes is None:
            self._joined(s.offset, s.value)
            with self.block("if lane == 0:"):
                self._put(s)
        else:
            self._put(s)

    def _put(self, s: Store) -> None:
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
        v = self._variable(s.var)
        if s.lo.is_const and s.hi.is_const and s.hi.payload - s.lo.payload <= s.step:
            if s.lo.payload < s.hi.payload:
                self.line(f"{v} = {lo}")
                self.body(s.body)
            return
        if any(isinstance(t, For) and t.kind == "vector" for t in statements(s.body)):
            hi = f"unknown({hi})"  # unrolled, its rounds would only fill all registers
        rounds = hi if lo == "0" and s.step == 1 else f"{lo}, {hi}"
        rounds += f", {s.step}" if s.step != 1 else ""
        self.loops += 1
        with self.block(f"for {v} in range({rounds}):{'  # unrolled' * (s.kind == 'unroll')}"):
            self.body(s.body)
        self.loops -= 1

    def vector(self, s: For) -> None:
        if self.lanes is not None:
            raise LoweringError(f"vector loops cannot nest (over {s.var!r})")
        self.prepare(s.lo, s.hi)
        lo, hi = self.text(s.lo, 10), self.text(s.hi)
        v = self._variable(s.var)
        first = "lane" if lo == "0" else f"{lo} + lane"
        trips = s.hi - s.lo
        self.lanes = s
        if trips.is_const and trips.payload <= s.lanes:
            self.line(f"{v} = {first}")
            if trips.payload < s.lanes:
                with self.block(f"if {v} < {hi}:"):
                    self.body(s.body)
            else:
                self.body(s.body)
        else:
            with self.block(f"for {v} in range({first}, {hi}, {s.lanes}):"):
                self.body(s.body)
        self.lanes = None

    # ---------------------------------------------------------------- values

    def prepare(self, *roots: Expr) -> None:
        """Count how often every part of a statement is used."""
        self.known, self.counts = {}, {}
        for n in walk(*roots):
            for a in n.args:
                self.counts[a] = self.counts.get(a, 0) + 1
        for r in roots:
            self.counts[r] = self.counts.get(r, 0) + 1

    def text(self, e: Expr, rank: int = 0) -> str:
        """e as an operand of something that binds as tightly as `rank`."""
        found = self.value(e)
        return found.text if found.rank >= rank else f"({found.text})"

    def root(self, e: Expr) -> str:
        """The value of a statement, which needs no name."""
        self.counts[e] -= 1
        made = self.value(e) if e in self.known or e.op in (*JOINING, "select") else self._made(e)
        return made.text

    def value(self, e: Expr) -> Text:
        if e in self.known:
            return Text(self.known[e], ATOM)
        if e.op in JOINING:
            self.known[e] = self._join(e)
            return Text(self.known[e], ATOM)
        if e.op == "select" and not self.inline and self._takes_lines(e):
            return self._choice(e)
        made = self._made(e)
        if self.inline or not self._wants_name(e, made.text):
            return made
        return self._named(e, made.text)

    def _named(self, e: Expr, text: str) -> Text:
        name = self.fresh("v")
        self.line(f"{name} = {text}")
        self.known[e] = name
        return Text(name, ATOM)

    def _wants_name(self, e: Expr, text: str) -> bool:
        if e.op in ("const", "var") or _is_plain(e):
            return False
        return self.counts.get(e, 0) > 1 or len(text) > LONG

    def _made(self, e: Expr) -> Text:
        if e.op == "const":
            return literal(e)
        if e.op == "var":
            if e not in self.variables:
                raise LoweringError(f"the variable {e!r} is used outside its loop")
            return Text(self.variables[e], ATOM)
        if e.op == "load":
            found = self._element(e.payload, e.args)
            return Text(from_memory(found, e.dtype) if e.args else found, ATOM)
        if e.op == "select":
            c = self.text(e.args[0], TERNARY + 1)
            self.inline += 1
            yes, no = (self.text(a, TERNARY + 1) for a in e.args[1:])
            self.inline -= 1
            return Text(f"{yes} if {c} else {no}", TERNARY)
        if e.op == "reduce":
            raise LoweringError(f"{e!r} is still a reduction")
        small = all((b := bounds(a)) is not None and b[0] >= 0 and b[1] < 1 << 32 for a in e.args)
        return operation(e, [self.value(a) for a in e.args], small)

    def _element(self, source: Buffer | Local, at: tuple[Expr, ...]) -> str:
        name = source.name if isinstance(source, Buffer) else self.locals.get(source)
        if name is None:
            raise LoweringError(f"the local {source.name} is used before it is declared")
        return f"{name}[{', '.join(map(self.text, at))}]" if at else name

    def _takes_lines(self, e: Expr) -> bool:
        """Whether an arm of a select is too much for an expression: something in it needs lines of
        its own, is used again, or is long."""
        arms = walk(*e.args[1:])
        return len(arms) > 24 or any(
            n.op in JOINING or (n.op == "select" and n is not e)
            or (self.counts.get(n, 0) > 1 and n.op not in ("const", "var") and not _is_plain(n))
            for n in arms
        )  # fmt: skip

    def _choice(self, e: Expr) -> Text:
        condition, yes, no = e.args
        name = self.fresh("v")
        with self.block(f"if {self.text(condition)}:"):
            self.line(f"{name} = {self.text(yes)}")
        with self.block("else:"):
            self.line(f"{name} = {self.text(no)}")
        self.known[e] = name
        return Text(name, ATOM)

    # ---------------------------------------------------------------- across threads

    def _joined(self, *values: Expr) -> None:
        """Combine lanes here, where all threads are."""
        for n in walk(*values):
            if n.op in JOINING:
                self.value(n)

    def _join(self, e: Expr) -> str:
        """The lanes of a value combined, in every thread: pairwise in a warp, then warp by warp."""
        if not self.threads or self.lanes is not None:
            raise LoweringError(f"{e!r} combines lanes inside of a vector loop, or without any")
        r, dtype = self.fresh("r"), e.dtype
        self.line(f"{r} = {self.text(e.args[0])}  # {e.op[1:]} over the block")
        with self.block("for distance in (16, 8, 4, 2, 1):"):
            other = Text(f"shuffle_xor({r}, distance)", ATOM)
            self.line(f"{r} = {self._pair(e.op, Text(r, ATOM), other, dtype)}")
        warps = self.threads // WARP
        if warps == 1:
            return r
        if dtype in self.tables or self.loops:  # all threads must have read what was there
            self.line("cuda.syncthreads()")
        if dtype not in self.tables:
            self.tables[dtype] = self.fresh(f"warps_{dtype}")
        table = self.tables[dtype]
        with self.block("if umod(lane, 32) == 0:"):
            self.line(f"{table}[udiv(lane, 32)] = {in_memory(r, dtype)}")
        self.line("cuda.syncthreads()")
        self.line(f"{r} = {from_memory(f'{table}[0]', dtype)}")
        with self.block(f"for warp in range(1, {warps}):"):
            held = Text(from_memory(f"{table}[warp]", dtype), ATOM)
            step = self._pair(e.op, Text(r, ATOM), held, dtype)
            self.line(f"{r} = {step}")
        return r

    def _pair(self, op: str, a: Text, b: Text, dtype: DType) -> str:
        if dtype is boolean:
            return f"{a.text} {'|' if op in ('hmax', 'hsum') else '&'} {b.text}"
        name = {"hsum": "add", "hprod": "mul", "hmax": "max", "hmin": "min"}[op]
        return paired(name, a, b, dtype).text


def _is_plain(e: Expr) -> bool:
    """Whether writing e again is shorter than a name for it: scalars, and sums of few indices."""
    if e.op == "load":
        return isinstance(e.payload, Local) and all(a.op in ("const", "var") for a in e.args)
    if e.op == "cast":
        return e.args[0].op in ("const", "var")
    return e.dtype is index(0).dtype and e.op in ("add", "mul") and len(walk(e)) <= 5
