"""What a device does at most, by kernels that do one thing: the numbers of `kernels/gpu_model.py`.

Bytes a second of main memory and of the second cache, multiply-adds of every unit, what a launch
costs in a graph. Times are of events in a CUDA graph, the median of several. Factors are random
numbers, as the clock that a device keeps depends on how many bits change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
from loading import loaded, prepared
from rungs import ITEM, LANE, T, given, kernel, out

from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.kernels.gpu_model import Chip, chip_of
from tilewright.compiler.kernels.ir import Buffer, Call, Declare, Kernel, Local, Set, Store, loop
from tilewright.compiler.runtime.cuda_device import Device, device
from tilewright.compiler.runtime.cuda_graph import CudaGraph, seconds_between
from tilewright.ops.expr import Expr, const, index, var
from tilewright.ops.types import DType, f32, f64, i32, u16, u32

Row = dict[str, Any]
RUNS: Final = 9
THREADS: Final = 256


@dataclass(frozen=True)
class Measured:
    """A kernel and how much it does of `what`: "memory" and "cache" in bytes, kinds of products as
    in the model's table in multiply-adds; launched `times` times in a row. needs: the least compute
    capability."""

    what: str
    kernel: Kernel
    amount: float
    needs: int = 80
    times: int = 1

    @property
    def name(self) -> str:
        return f"calibration: {self.what}"


def copying(nbytes: int) -> Measured:
    """Main memory, read and written once."""
    n = nbytes // 4
    x, y, r = given(f32, n), out(f32, n), Local("r", f32, (4,))
    at = ITEM * (THREADS * 4) + T * 4
    body = [Declare(r), Call("load_vector", (r, index(0), x, at, 4)),
            Call("store_vector", (y, at, r, index(0), 4))]  # fmt: skip
    return Measured("memory", kernel([x, y], body, THREADS, n // (4 * THREADS)), 2.0 * nbytes)


def caching(nbytes: int, blocks: int, rounds: int) -> Measured:
    """The second cache: all blocks read the same bytes, from different places on."""
    n = nbytes // 4
    x, y = given(f32, n), out(f32, blocks * THREADS)
    r, total, k, e = Local("r", f32, (4,)), Local("s", f32, ()), var("k", rounds), var("e", 4)
    at = (ITEM * 131 + k) * (THREADS * 4) % n + T * 4
    body = [
        Declare(r), Declare(total), Set(total, (), const(0.0, f32)),
        loop(k, (Call("load_vector", (r, index(0), x, at, 4)),
                 loop(e, (Set(total, (), total.value + r[e]),), "unroll"))),
        Store(y, ITEM * THREADS + T, total.value),
    ]  # fmt: skip
    amount = float(blocks * THREADS * rounds * 16)
    return Measured("cache", kernel([x, y], body, THREADS, blocks), amount)


def multiplying(kind: DType, blocks: int, rounds: int) -> Measured:
    """Ordinary multiply-adds: 64 chains in every thread."""
    x, y = given(kind, 16), out(kind, blocks * THREADS)
    a, b, sums = Local("a", kind, (8,)), Local("b", kind, (8,)), Local("sums", kind, (64,))
    k, j, turn = var("k", 8), var("j", 64), var("turn", rounds)
    total = sums[0]
    for n in range(1, 64):
        total = total + sums[n]
    body = [
        Declare(a), Declare(b), Declare(sums),
        loop(k, (Set(a, (k,), x[k]), Set(b, (k,), x[k + 8])), "unroll"),
        loop(j, (Set(sums, (j,), const(0, kind)),), "unroll"),
        loop(turn, (Call("multiply", (sums, a, b, 8, 8, 1, 1, 1)),)),
        Store(y, ITEM * THREADS + T, total),
    ]  # fmt: skip
    made = kernel([x, y], body, THREADS, blocks)
    return Measured(str(kind), made, float(blocks * THREADS * 64 * rounds))


_MMA: Final = {"tf32": ("tf32", 8, f32), "half": ("bf16", 16, f32), "byte": ("i8", 32, i32)}


def by_warps(what: str, blocks: int, rounds: int) -> Measured:
    """Tensor cores by mma: fragments of 32 rows and 32 columns in every warp."""
    kind, terms, total_kind = _MMA[what]
    x, y = given(u32, 32 * 16), out(total_kind, blocks * THREADS)
    a, b, c = Local("a", u32, (8,)), Local("b", u32, (8,)), Local("c", total_kind, (32,))
    k, j, turn = var("k", 8), var("j", 32), var("turn", rounds)
    total = c[0]
    for n in range(1, 32):
        total = total + c[n]
    body = [
        Declare(a), Declare(b), Declare(c),
        loop(k, (Set(a, (k,), x[LANE * 16 + k]), Set(b, (k,), x[LANE * 16 + k + 8])), "unroll"),
        loop(j, (Set(c, (j,), const(0, total_kind)),), "unroll"),
        loop(turn, (Call(f"mma_{kind}", (c, a, b, 2, 4)),)),
        Store(y, ITEM * THREADS + T, total),
    ]  # fmt: skip
    amount = blocks * (THREADS // 32) * rounds * 32.0 * 32 * terms
    return Measured(f"{what} by mma", kernel([x, y], body, THREADS, blocks), amount)


def by_groups(blocks: int, rounds: int, stages: int = 4) -> Measured:
    """Tensor cores by wgmma: 128 rows and 256 columns of bf16, from all of shared memory."""
    x, y = given(u16, 64 * 64), out(f32, blocks * THREADS)
    a = Local("a", u16, (stages * 128 * 64,), shared=True, align=1024)
    b = Local("b", u16, (stages * 256 * 64,), shared=True, align=1024)
    sums, turn, j = Local("sums", f32, (128,)), var("turn", rounds), var("j", 128)
    fill = var("fill", stages * 256 * 64 // THREADS)
    fewer = var("fewer", stages * 128 * 64 // THREADS)
    stage = turn % stages
    group = T // 128

    def put(to: Local, v: Expr) -> Any:
        return loop(v, (Set(to, (v * THREADS + T,), x[(v * THREADS + T) % (64 * 64)]),))

    total = sums[0]
    for n in range(1, 128):
        total = total + sums[n]
    body = [
        Declare(a), Declare(b), put(a, fewer), put(b, fill), Call("proxy_fence"), Call("barrier"),
        Declare(sums), loop(j, (Set(sums, (j,), const(0.0, f32)),), "unroll"),
        loop(turn, (Call("wgmma_bf16", (
            sums, a, (stage * 128 + group * 64) * 64, b, stage * (256 * 64), index(0) < turn, 1,
            256, 0, 0)),)),
        Call("wgmma_wait", (sums, 128, 0)), Store(y, ITEM * THREADS + T, total),
    ]  # fmt: skip
    amount = blocks * rounds * 128.0 * 256 * 64
    return Measured("half", kernel([x, y], body, THREADS, blocks), amount, 90)


def launching(times: int = 100) -> Measured:
    """Kernels that do nothing, one behind the other in a graph."""
    y = out(f32, 32)
    return Measured("launch", kernel([y], [Store(y, T, const(1.0, f32))], 32), 1.0, times=times)


def all_of(chip: Chip, share: float = 1.0) -> list[Measured]:
    """For a chip. share: less than 1 for a simulator, which takes its time."""
    n = chip.multiprocessors

    def some(rounds: int) -> int:
        return max(int(rounds * share), 1)

    size = max(int((1 << 29) * share), THREADS * 16)
    blocks = n * 8 if share == 1 else 2
    return [
        copying(size), caching(max(int((16 << 20) * share), THREADS * 16), blocks, some(512)),
        multiplying(f32, blocks, some(4096)), multiplying(f64, blocks, some(512)),
        *(by_warps(what, blocks, some(4096)) for what in _MMA),
        by_groups(n if share == 1 else 1, some(4096), 4 if share == 1 else 1),
        launching(some(100)),
    ]  # fmt: skip


# --------------------------------------------------------------------------- on a device


def measured(share: float = 1.0) -> Iterator[Row]:
    """A row for each, and one with what the table of devices would say."""
    d = device(0)
    chip = chip_of(gpu_device(d.facts.capability))
    known: dict[str, float] = {}
    for m in all_of(chip, share):
        yield {"at": m.name}
        if 10 * d.facts.capability[0] + d.facts.capability[1] < m.needs:
            continue
        try:
            taken = seconds(d, m)
        except Exception as e:
            yield {"name": m.name, "error": f"{type(e).__name__}: {e}"[:400]}
            continue
        known[m.what] = median(taken) / m.times if m.what == "launch" else m.amount / median(taken)
        row = {"name": m.name, "ok": True, "seconds": sorted(taken), "measured": known[m.what]}
        yield row | compared(m.what, known[m.what], chip, d)
    yield {"name": "calibration", "chip": table_row(d, known), "ok": True}


def compared(what: str, found: float, chip: Chip, d: Device) -> Row:
    """Beside the table: for units, multiply-adds of a multiprocessor in a cycle of its highest
    clock."""
    kind = what.split(" ")[0]
    if what in ("memory", "cache"):
        return {"table": getattr(chip, what), "unit": "bytes/s"}
    if kind in chip.rates:
        cycles = d.facts.multiprocessors * d.facts.clock_khz * 1e3
        return {"table": chip.rates[kind], "per_cycle": found / cycles if cycles else 0.0,
                "unit": "multiply-adds/s"}  # fmt: skip
    return {"unit": "s"}


def table_row(d: Device, known: Mapping[str, float]) -> Row:
    """What `gpu_model.CHIPS` has of a device, as measured."""
    clock = d.facts.clock_khz * 1e3
    cycles = d.facts.multiprocessors * clock
    rates = {k.split(" ")[0]: v / cycles for k, v in known.items()
             if k not in ("memory", "cache", "launch") and cycles}  # fmt: skip
    if "half" in known and cycles:
        rates["half"] = known["half"] / cycles
    return {"name": d.facts.name, "multiprocessors": d.facts.multiprocessors, "clock": clock,
            "l2_bytes": d.facts.l2_bytes, "rates": rates,
            **{k: known[k] for k in ("memory", "cache", "launch") if k in known}}  # fmt: skip


def seconds(d: Device, m: Measured) -> list[float]:
    """Of several runs, behind two that do not count. Raises DeviceError."""
    rng = np.random.default_rng(1)
    with d:
        bound, _modules = loaded(d, m.kernel, m.times)
        held = []
        for k, p in enumerate(m.kernel.params):
            held.append(d.memory(p.nbytes, "a calibration"))
            if not p.is_written:
                raw = some_numbers(rng, p)
                assert raw.nbytes == p.nbytes, f"{p.name}: {raw.nbytes} bytes of {p.nbytes}"
                d.upload(held[-1].value, raw)
            for b in bound:
                b.point(k, held[-1].value)
        stream = d.stream()
        marks = [d.event(timing=True) for _ in range(len(bound) + 1)]
        graph = CudaGraph(d, stream.value, bound, marks if m.times == 1 else ())
        return _runs(d, graph, stream.value, marks if m.times == 1 else marks[:2], m.times > 1)


def _runs(
    d: Device, graph: CudaGraph, stream: int, marks: Sequence[Any], around: bool
) -> list[float]:  # fmt: skip
    """around: the events are recorded around the whole graph, not in it."""
    found = []
    for _ in range(2 + RUNS):
        if around:
            d.call("cuEventRecord", marks[0].value, stream)
        graph.launch(stream)
        if around:
            d.call("cuEventRecord", marks[1].value, stream)
        d.call("cuStreamSynchronize", stream)
        found.append(sum(seconds_between(d, marks)))
    graph.close()
    return found[2:]


def some_numbers(rng: Any, p: Buffer) -> Any:
    """Halves near 1 and words of them, floats below 1."""
    if p.dtype in (u16, u32):
        return rng.integers(0x3F00, 0x4040, p.nbytes // 2).astype(np.uint16)
    return rng.random(p.elements, np.float32 if p.dtype is f32 else np.float64)


def prepare(arch: str) -> Iterator[Row]:
    """The code of all of it."""
    target = CudaTarget(arch)
    number = 10 * target.capability[0] + target.capability[1]
    for m in all_of(chip_of(gpu_device(target.capability))):
        yield {"at": m.name}
        if number >= m.needs:
            prepared(m.kernel, arch)
