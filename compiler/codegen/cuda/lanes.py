"""Phases whose items are threads, or blocks of threads that run vector loops.

* One that holds no vector loop runs an item in every thread.
* Otherwise an item is a block, or a warp of a block if that is all it takes. The iterations of its
  vector loops are dealt out to the threads, and locals with lanes are variables of each thread. An
  array without lanes that is set in a vector loop lies in shared memory. All threads compute what
  is the same in all lanes; one of them stores it. `hsum` and the like become shuffles in every warp
  and a table in shared memory, and barriers stand where threads meet in memory (see `barriers`).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Final

from ....ops.expr import Expr
from ....ops.traverse import walk
from ....ops.types import DType, boolean
from ...errors import LoweringError
from ...kernels.ir import Declare, For, Kernel, Local, Phase, Set, Stmt, Store, statements
from .barriers import JOINING, barriers, shared_arrays
from .entry import MOST_THREADS, WARP, Entry
from .function import Function
from .operations import ATOM, Text, from_memory, in_memory, paired, storage

MANY_ROUNDS: Final = 16  # of a loop, which LLVM may not unroll by itself
FREE_THREADS: Final = 128  # of a block whose threads have nothing to do with each other


def _threads(phase: Phase) -> int:
    """Threads of a block that share an item, 0 where every thread has its own."""
    found = {s.lanes for s in statements(phase.body) if isinstance(s, For) and s.kind == "vector"}
    found |= {s.local.lanes for s in statements(phase.body) if isinstance(s, Declare)} - {0}
    if len(found) > 1:
        raise LoweringError(f"vector loops of {sorted(found)} lanes share a block of threads")
    n = max(found, default=0)
    if n % WARP or n > MOST_THREADS:
        raise LoweringError(f"a block of {n} threads; it takes whole warps, {MOST_THREADS} at most")
    return n


class Lanes(Function):
    """One phase."""

    def __init__(self, kernel: Kernel, phase: Phase, name: str) -> None:
        super().__init__(kernel, phase, name)
        self.used.add("lane")
        self.threads = _threads(phase)
        self.barriers = frozenset[int]()
        if self.threads:
            self.barriers = barriers(kernel, phase, self.threads > WARP)
        self.shared = shared_arrays(phase)
        self.lanes: For | None = None
        self.tables: dict[DType, str] = {}

    def finish(self) -> tuple[Entry, str]:
        blocks, threads, head = self._grid()
        self.lines += head
        self.body(self.phase.body)
        tables = [f"    {name} = cuda.shared.array({threads // WARP}, {storage(t)})"
                  for t, name in self.tables.items()]  # fmt: skip
        text = self.whole(f"{blocks} blocks of {threads} threads", tables)
        return Entry(self.name, blocks, threads), text

    def _grid(self) -> tuple[int, int, list[str]]:
        """How many blocks of how many threads, and the lines that find out the item."""
        items, item = self.phase.items, self.variable(self.phase.item)
        if self.threads and not self._are_warps():
            which = "i64(cuda.blockIdx.x)" if items > 1 else "0"
            lines = [f"    {item} = {which}", "    lane = i64(cuda.threadIdx.x)"]
            return items, self.threads, lines
        each = self.threads or 1  # threads of an item
        n = min(FREE_THREADS // each, -(-items * each // WARP) * WARP // each)
        blocks = -(-items // n)
        lines = [f"    {item} = i64(cuda.blockIdx.x) * {n} + i64(cuda.threadIdx.x)"]
        if self.threads:
            lines = [f"    {item} = i64(cuda.blockIdx.x) * {n} + udiv(i64(cuda.threadIdx.x), 32)",
                     "    lane = umod(i64(cuda.threadIdx.x), 32)"]  # fmt: skip
        if blocks * n > items:
            lines += [f"    if {item} >= {items}:", "        return"]
        return blocks, n * each, lines

    def _are_warps(self) -> bool:
        """Whether items are warps that share nothing: several of them make a block then, as a
        multiprocessor takes so many blocks and no more."""
        return self.threads == WARP and not self.barriers and not self.shared

    # ---------------------------------------------------------------- statements

    def body(self, stmts: Iterable[Stmt]) -> None:
        for s in stmts:
            if id(s) in self.barriers:
                self.line("cuda.syncthreads()")
            self.known = {}
            self.statement(s)

    def declare(self, local: Local) -> None:
        if self.lanes is not None and not local.lanes:
            raise LoweringError(f"the local {local.name} has no lanes in a vector loop")
        if local not in self.shared:
            return super().declare(local)
        if local not in self.locals:
            self.locals[local] = self.fresh(local.name)
        size = prod(local.shape)
        if len(local.shape) != 1:
            raise LoweringError(f"the shared array {local.name} has {len(local.shape)} axes")
        made = f"cuda.shared.array({size}, {storage(local.dtype)})"
        self.line(f"{self.locals[local]} = {made}")

    def set(self, s: Set) -> None:
        if s.local in self.shared:
            if self.lanes is None:
                raise LoweringError(f"the shared array {s.local.name} is set outside vector loops")
        elif self.lanes is not None and not s.local.lanes:
            raise LoweringError(f"the local {s.local.name} has no lanes in a vector loop")
        super().set(s)

    def store(self, s: Store) -> None:
        if not self.threads or self.lanes is not None:
            return super().store(s)
        self.prepare(s.offset, s.value)
        self.joined(s.offset, s.value)
        with self.block("if lane == 0:"):
            self.put(s)

    def end(self, s: For) -> None:
        """Long loops are unrolled only where that is asked for: those that index registers."""
        rounds = s.hi - s.lo
        if s.kind == "unroll" and rounds.is_const and rounds.payload // s.step >= MANY_ROUNDS:
            self.line("unrolled()")

    def may_unroll(self, s: For) -> bool:
        """Unrolled, the rounds of a loop that all threads run would only fill all registers."""
        return not any(isinstance(t, For) and t.kind == "vector" for t in statements(s.body))

    def vector(self, s: For) -> None:
        if self.lanes is not None:
            raise LoweringError(f"vector loops cannot nest (over {s.var!r})")
        self.prepare(s.lo, s.hi)
        lo, hi = self.text(s.lo, 10), self.text(s.hi)
        v = self.variable(s.var)
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
        self.ended.add(s.var)
        self.lanes = None

    # ---------------------------------------------------------------- across threads

    def joined(self, *values: Expr) -> None:
        """Combine lanes here, where all threads are."""
        for n in walk(*values):
            if n.op in JOINING:
                self.value(n)

    def join(self, e: Expr) -> str:
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
