"""What only moving a launch's data takes, measured where the launch stands in the program.

The bandwidths of `machine.py` are those of data that lie in one level of memory, all of it, and of
nothing else going on. Within an inference, parts of an input come from nearer and others from
farther away than where most of it lies, others share the last cache, and short streams end before
the prefetchers have caught up with them. So a mover, a kernel that reads the same inputs and writes
the same outputs from one end to the other and does nothing else, runs ahead of the launch in every
other inference: its time is what the launch could take if it had nothing to compute.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Mapping
from typing import Final

from ...ops.expr import Expr, apply, compare, const, index, var
from ...ops.types import i32
from ..codegen.cpu.target import CpuTarget
from ..kernels.ir import (
    Buffer,
    Declare,
    If,
    Kernel,
    Launch,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    loop,
    seq,
)
from ..runtime.objects import load
from ..store import Store as CodeStore

STREAMS: Final = (1, 4)
"""Movers read and write every buffer in so many places at a time; the faster one counts."""

UNROLL: Final = 4
TOGETHER: Final = 16
"""Vectors that a mover's round reads and writes at least, of all buffers together."""

NEVER: Final = 0x5EED5EED


def can_move(launch: Launch) -> bool:
    """Whether the launch has its buffers for itself: none is a part of a concatenation."""
    k = launch.kernel
    return k.bytes > 0 and k.bytes == sum(b.nbytes for b in k.params if b.role != "scratch")


def mover(kernel: Kernel, lanes: int, streams: int = 1) -> Kernel:
    """A kernel with the parameters of another that reads all inputs and writes all outputs, with no
    more arithmetic than keeps the reads. What may be overwritten in place stays as it is."""
    params = tuple(Buffer(b.name, i32, b.nbytes // 4, b.role) for b in kernel.params)
    copied = dict(kernel.inplace)  # outputs get what these inputs hold
    made = _Mover(params, copied, lanes, streams)
    return Kernel("mover", 1, (("streams", streams),), params, (made.phase(),))


class _Mover:
    def __init__(
        self, params: tuple[Buffer, ...], copied: Mapping[int, int], lanes: int, streams: int
    ) -> None:
        self.params, self.copied = params, copied
        self.lanes, self.streams = lanes, streams
        self.seen = Local("seen", i32, (UNROLL,), lanes)
        self.vectors = [b.elements // lanes if b.role != "scratch" else 0 for b in params]
        most = max(self.vectors) // streams
        whole = sum(self.vectors)
        self.rounds = max(1, min(most, whole // (streams * TOGETHER)))
        self.variables = 0

    def phase(self) -> Phase:
        turn, k = var("round", self.rounds), var("k", UNROLL)
        clear = loop(k, self._in_lanes(lambda lane: Set(self.seen, (k,), const(0, i32))), "unroll")
        inside: list[Stmt] = []
        behind: list[Stmt] = []
        for j, n in enumerate(self.vectors):
            part = n // self.streams
            each = part // self.rounds
            for s in range(self.streams):
                inside += self._sweep(j, turn * each + s * part, each)
                behind += self._sweep(j, index(s * part + each * self.rounds),
                                      part - each * self.rounds)  # fmt: skip
            behind += self._sweep(j, index(part * self.streams),
                                  n - part * self.streams)  # fmt: skip
        body = seq(Declare(self.seen), clear, loop(turn, inside), behind, self._kept())
        return Phase(1, var("item", 1), body)

    def _sweep(self, j: int, first: Expr, count: int) -> tuple[Stmt, ...]:
        """`count` vectors of a parameter, from vector `first` on."""
        whole, rest = divmod(count, UNROLL)
        self.variables += 1
        at, k = var(f"at{self.variables}", max(whole, 1)), var(f"k{self.variables}", UNROLL)
        out: list[Stmt] = []
        if whole:
            body = loop(k, self._one(j, first + at * UNROLL + k, k), "unroll")
            out.append(loop(at, (body,)))
        if rest:
            body = loop(k, self._one(j, first + whole * UNROLL + k, k), "unroll", hi=rest)
            out.append(body)
        return tuple(out)

    def _one(self, j: int, at: Expr, k: Expr) -> tuple[Stmt, ...]:
        b = self.params[j]
        if b.role != "out":
            return self._in_lanes(
                lambda lane: Set(self.seen, (k,), self.seen[k] + b[at * self.lanes + lane])
            )
        source = self.params[self.copied[j]] if j in self.copied else None
        return self._in_lanes(lambda lane: Store(
            b, at * self.lanes + lane,
            self.seen[k] if source is None else source[at * self.lanes + lane],
        ))  # fmt: skip

    def _kept(self) -> tuple[Stmt, ...]:
        """A use of all that was read, so that it is read."""
        out = [b for b in self.params if b.is_written and b.elements]
        if not out:
            return ()
        same = Store(out[0], index(0), out[0][0])
        sums = [apply("hsum", (self.seen[k],), i32) for k in range(UNROLL)]
        hit = sums[0]
        for x in sums[1:]:
            hit = hit + x
        return (If(compare("eq", hit, const(NEVER, i32)), (same,)),)

    def _in_lanes(self, body: Callable[[Expr], Stmt]) -> tuple[Stmt, ...]:
        self.variables += 1
        lane = var(f"lane{self.variables}", self.lanes)
        return (loop(lane, (body(lane),), "vector", lanes=self.lanes),)


class Movers:
    """Movers of some launches, to be run ahead of them; collects what `clock` (in ns) says. turn:
    which of each launch's movers is next."""

    def __init__(
        self, launches: Mapping[int, Launch], target: CpuTarget, clock: Callable[[], int]
    ) -> None:
        self.clock = clock
        self.turn = 0
        lanes = target.lanes(4)
        kernels = {n: [mover(x.kernel, lanes, s) for s in STREAMS] for n, x in launches.items()}
        self._objects = load([k for ks in kernels.values() for k in ks], target, CodeStore())
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._entries = {
            n: [kind(self._objects.addresses(k)[0]) for k in ks] for n, ks in kernels.items()
        }
        self._times: dict[int, list[list[int]]] = {n: [[] for _ in STREAMS] for n in launches}

    def before(self, number: int, table: int) -> None:
        """Run the mover of a launch, if there is one, on the launch's table of pointers."""
        entries = self._entries.get(number)
        if entries is None:
            return
        which = self.turn % len(entries)
        start = self.clock()
        entries[which](table, 0)
        self._times[number][which].append(self.clock() - start)

    def times(self) -> dict[int, float]:
        """By launch: the median time of its faster mover, in ns."""
        return {n: min(statistics.median(t) for t in ts if t) for n, ts in self._times.items()}
