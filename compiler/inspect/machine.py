"""What this machine can do at most, measured: what cores issue, and memory traffic by level.

The kernels are built as all others are: Kernel IR, LLVM IR, machine code, thread pool. Every figure
is the best of several short runs, so a neighbour that takes the processor for a while does not make
the machine look slower than it is. A limit is what any kernel could reach, not what it must.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, apply, binary, const, index, unary, var
from ...ops.types import f32, i32
from ..codegen.cpu.target import CpuTarget, host
from ..kernels.ir import (
    Buffer,
    Declare,
    For,
    Kernel,
    Local,
    Phase,
    Role,
    Set,
    Stmt,
    Store,
    Transpose,
    loop,
)
from ..runtime.objects import load
from ..runtime.threads import thread_pool
from ..store import Store as CodeStore

REPEATS: Final = 8
REPEAT_SECONDS: Final = 25e-3
"""A figure is the best of REPEATS runs at least, spread over that time at least: longer than the
system lets a neighbour have a processor in one go."""

SECONDS: Final = 100e-6
FAST: Final = 512e9
"""One run of a kernel moves what a level of FAST bytes per second does in SECONDS, slower levels
take longer. Shorter runs would measure the call."""

CALLS: Final = 200

MEMORY_BYTES: Final = 128 << 20
"""Least bytes that stand for main memory."""

_CACHES: Final = (("L1", 32 << 10), ("L2", 1 << 20), ("L3", 8 << 20))
"""Sizes where the system does not say."""


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """One level of memory under `threads` threads. bytes: how much fits, all threads together (None
    for main memory). read, write, copy: bytes per second; a copy's bytes count twice."""

    name: str
    bytes: int | None
    read: float
    write: float
    copy: float

    def seconds(self, read: float, written: float) -> float:
        """Least time for so many bytes in and out: what pairs up is a copy."""
        pairs = min(read, written)
        rest = (read - pairs) / self.read + (written - pairs) / self.write
        return 2 * pairs / self.copy + rest


CLASSES: Final = (
    "multiply", "add", "simple", "shuffle", "divide", "sqrt", "load", "broadcast", "store"
)  # fmt: skip
"""Instructions on vectors that a core has different units for. multiply: multiply-adds as well;
add: maxima and minima as well; simple: comparisons, choices, conversions, integers, bits;
broadcast: loads of one element into all lanes."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Vectors of `vector_bytes` per second, by class of instructions. any: the most of the classes
    multiply, add, simple and shuffle together."""

    vector_bytes: int
    multiply: float
    add: float
    shuffle: float
    any: float
    divide: float
    sqrt: float
    load: float
    broadcast: float
    store: float


@dataclass(frozen=True, slots=True)
class Limits:
    """flops: multiply-adds of float32, two operations each, per second. levels: nearest first, main
    memory last. unit: what there are `threads` of. rates: what cores issue, if
    that was measured."""

    threads: int
    flops: float
    levels: tuple[MemoryLevel, ...]
    unit: str = "thread"
    rates: Rates | None = None

    def level(self, footprint: float) -> MemoryLevel:
        """The nearest level that holds so many bytes."""
        fits = (x for x in self.levels if x.bytes is None or footprint <= x.bytes)
        return next(fits, self.levels[-1])

    def peak(self, element_bytes: int) -> float:
        """Multiply-adds per second, times two, of floats of that size. Half floats count as
        float32, which their products are added up in."""
        return self.flops * 4 / max(element_bytes, 4)


@cache
def limits(threads: int) -> Limits:
    """The limits of this machine for so many threads: measured once per process, in about a
    second."""
    target = host()
    caches = cache_sizes()
    sizes: list[tuple[str, int | None, int]] = []  # name, capacity, working set per thread
    for name, size, shared in caches:
        mine = size // threads if shared else size
        sizes.append((name, mine * threads, mine // 2))
    largest = max(size for _, size, _ in caches)
    sizes.append(("DRAM", None, max(MEMORY_BYTES, 2 * largest) // threads))
    bench = _Bench(threads, target)
    levels = []
    for name, capacity, part in sizes:
        read, write, copy = (bench.bytes_per_second(how, part) for how in ("read", "write", "copy"))
        levels.append(MemoryLevel(name, capacity, read, write, copy))
    flops = bench.flops_per_second()
    return Limits(threads, flops, tuple(levels), rates=_rates(bench, flops, levels[0]))


def _rates(bench: _Bench, flops: float, nearest: MemoryLevel) -> Rates:
    """Stores are those of the nearest memory, multiplications those of the peak."""
    size = 4 * bench.lanes
    add, mixed, divide, sqrt, load, spread = (
        bench.vectors_per_second(how)
        for how in ("add", "mixed", "div", "sqrt", "load", "broadcast")
    )
    multiply, shuffle = flops / 2 / bench.lanes, bench.shuffles_per_second()
    load = max(load, nearest.read / size)
    both = max(mixed, add, multiply, shuffle)
    return Rates(size, multiply, add, shuffle, both, divide, sqrt, load, max(spread, load),
                 nearest.write / size)  # fmt: skip


@cache
def call_seconds(clock: Callable[[], int]) -> float:
    """What timing a launch costs by itself: a clock (in ns) read before and after a call from
    Python of a kernel that does next to nothing."""
    x = Buffer("x", f32, 1, "out")
    body = (Store(x, index(0), const(0, f32)),)
    kernel = Kernel("nothing", 1, (), (x,), (Phase(1, var("t", 1), body),))
    objects = load((kernel,), host(), CodeStore())
    (entry,) = objects.addresses(kernel)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(entry)
    memory = np.zeros(1, np.float32)
    table = np.array([memory.ctypes.data], np.uint64)
    at = table.ctypes.data
    spent = []
    for _ in range(CALLS):
        start = clock()
        call(at, 0)
        spent.append(clock() - start)
    return statistics.median(spent) / 1e9


def cache_sizes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> tuple[
    tuple[str, int, bool], ...
]:  # fmt: skip
    """(name, bytes, whether several processors share it) of the data caches, nearest first."""
    found: dict[int, tuple[int, bool]] = {}
    for entry in sorted(folder.glob("index*")):
        try:
            kind, level, size, cpus = (
                (entry / f).read_text().strip()
                for f in ("type", "level", "size", "shared_cpu_list")
            )
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
            count = int(size.rstrip("KM")) * unit
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and count:
            found[int(level)] = (count, int(level) > 2 and ("," in cpus or "-" in cpus))
    if not found:
        return tuple((name, size, name == "L3") for name, size in _CACHES)
    return tuple((f"L{level}", *found[level]) for level in sorted(found))


class _Bench:
    """Runs one kernel per figure, an item for every thread, each on memory of its own."""

    def __init__(self, threads: int, target: CpuTarget) -> None:
        self.threads = threads
        self.target = target
        self.lanes = target.lanes(4)
        # The multiplier and the multiplicand stay in registers beside the accumulators.
        self.width = min(16, target.vector_registers - 4)

    def flops_per_second(self) -> float:
        return 2 * self.lanes * self.vectors_per_second("fma")

    def vectors_per_second(self, how: str) -> float:
        """Of operations that do not wait for each other. how: "fma", "add", "mixed" of the two,
        "div", "sqrt", or from memory "load" and "broadcast"."""
        rounds, steps = 1 << (12 if how in ("div", "sqrt") else 14), 4
        width = self.width // 2 if how == "load" else self.width  # more are slower
        kind = i32 if how in ("load", "broadcast") else f32
        x = Buffer("x", kind, 2 * steps * width * self.lanes * self.threads, "in")
        y = Buffer("y", kind, width * self.lanes * self.threads, "out")
        acc = Local("acc", kind, (width,), self.lanes)
        held = Local("held", kind, (2,), self.lanes)

        def lanes(body: Stmt) -> Stmt:
            return loop(lane, (body,), "vector", lanes=self.lanes)

        item, lane = var("t", self.threads), var("l", self.lanes)
        j, k, u, r = var("j", width), var("k", 2), var("u", steps), var("r", rounds)

        def step(at: int) -> Expr:
            way = ("fma", "add")[at % 2] if how == "mixed" else how
            if way == "fma":
                return apply("fma", (held[0], held[1], acc[at]), f32)
            if way == "sqrt":
                return unary("sqrt", acc[at])
            # of two places in turn, so that no register can keep what is there
            place = ((item * 2 + r % 2) * steps + u) * width + at
            if way in ("load", "broadcast"):
                where = place * self.lanes + lane if way == "load" else place
                return binary("xor", acc[at], x[where])
            return binary(way, acc[at], held[0])

        once = [lanes(Set(acc, (index(at),), step(at))) for at in range(width)]
        body = (
            Declare(acc),
            Declare(held),
            loop(k, (lanes(Set(held, (k,), x[(item * 2 + k) * self.lanes + lane])),), "unroll"),
            loop(j, (lanes(Set(acc, (j,), const(1, kind))),), "unroll"),
            loop(r, (loop(u, once, "unroll"),)),
            loop(
                j,
                (lanes(Store(y, (item * width + j) * self.lanes + lane, acc[j])),),
                "unroll",
            ),
        )
        return rounds * steps * width * self.threads / self._best((x, y), item, body)

    def shuffles_per_second(self) -> float:
        """Of transposes of squares in registers."""
        rounds, n = 1 << 10, self.lanes
        x, y = self._buffer("x", n * n, "in"), self._buffer("y", n * n, "out")
        square = Local("square", f32, (n,), n)
        item, lane, j, r = var("t", self.threads), var("l", n), var("j", n), var("r", rounds)
        at = (item * n + j) * n + lane

        def each(body: Stmt) -> For:
            return loop(j, (loop(lane, (body,), "vector", lanes=n),), "unroll")

        body = (
            Declare(square), each(Set(square, (j,), x[at])), loop(r, (Transpose(square),)),
            each(Store(y, at, square[j])),
        )  # fmt: skip
        work = rounds * n * (n.bit_length() - 1) * self.threads
        return work / self._best((x, y), item, body)

    def bytes_per_second(self, how: str, part: int) -> float:
        """how: "read", "write" or "copy"; part: bytes of one thread's working set."""
        whole = self.width * self.lanes
        sides = 2 if how == "copy" else 1
        rounds = max(1, part // (4 * whole * sides))
        moved = rounds * whole * 4 * sides
        passes = max(1, int(SECONDS * FAST / moved))
        x = self._buffer("x", rounds * whole, "in")
        y = self._buffer("y", whole if how == "read" else rounds * whole, "out")
        acc = Local("acc", f32, (self.width,), self.lanes)
        item, lane, j = var("t", self.threads), var("l", self.lanes), var("j", self.width)
        p, r = var("p", passes), var("r", rounds)
        at = (item * rounds + r) * whole + j * self.lanes + lane
        inner: Stmt
        if how == "read":
            inner = Set(acc, (j,), acc[j] + x[at])
        else:
            inner = Store(y, at, acc[j] if how == "write" else x[at])

        def each(body: Stmt) -> For:
            vector = loop(lane, (body,), "vector", lanes=self.lanes)
            return loop(j, (vector,), "unroll")

        body: list[Stmt] = [Declare(acc), each(Set(acc, (j,), const(0, f32)))]
        body.append(loop(p, (loop(r, (each(inner),)),)))
        if how == "read":
            body.append(each(Store(y, item * whole + j * self.lanes + lane, acc[j])))
        params = (x, y) if how != "write" else (y,)
        return moved * passes * self.threads / self._best(params, item, body)

    def _buffer(self, name: str, elements: int, role: Role) -> Buffer:
        return Buffer(name, f32, elements * self.threads, role)

    def _best(self, params: Sequence[Buffer], item: Expr, body: Iterable[Stmt]) -> float:
        """Seconds of the fastest of several runs."""
        kernel = Kernel("limit", 1, (), tuple(params), (Phase(self.threads, item, tuple(body)),))
        objects = load((kernel,), self.target, CodeStore())
        (entry,) = objects.addresses(kernel)
        arrays = [_zeros(b.elements) for b in params]  # four bytes each, of whichever type
        table = np.array([a.ctypes.data for a in arrays], np.uint64)
        pool = thread_pool(self.threads)
        best, runs = float("inf"), 0
        pool.wake()
        end = time.perf_counter() + REPEAT_SECONDS
        while runs < REPEATS or time.perf_counter() < end:
            start = time.perf_counter()
            pool.run(entry, table.ctypes.data, self.threads)
            best = min(best, time.perf_counter() - start)
            runs += 1
        return best


def _zeros(elements: int) -> npt.NDArray[np.float32]:
    """On a cache line, every page of it touched."""
    raw = np.empty(elements + 16, np.float32)
    raw.fill(0)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + elements]
