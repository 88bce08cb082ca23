"""Windows over channels that lie side by side on GPUs: depthwise convolutions and pools.

What is computed so stands in `gpu_strips_problem`, the kernel in `gpu_strips_body`. Such kernels
move bytes, so inputs go from memory to registers, once for all windows of a strip. Strips of four
rows, which share with their neighbours in a row what the first cache has, bring an input 1.5 times
through the second one for 3 x 3 windows. Tiles of 16 x 16 results in shared memory would do so 1.27
times; but either takes less time than main memory, and threads would wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Final

from ...ops.types import f64
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_contraction import Unfit, objection
from .gpu_model import Chip, Work, chip_of, seconds
from .gpu_strips_body import Strips, taps_held
from .gpu_strips_problem import Windows, windows_of
from .inplace import overwritable
from .ir import Kernel, Launch
from .pieces import Buffers, buffer_loads, operations, trip_count
from .reductions import reduces
from .template import Config, traffic

ROWS: Final = (1, 2, 4, 7)
COLUMNS: Final = (1, 2, 4, 7)
THREADS: Final = (64, 128, 256)
MOST_VALUES: Final = 256
"""Results, weights and inputs of a thread: assemblers read far ahead of what is needed, and with
more of them some end up in local memory."""
MOST_TAPS: Final = 128  # of a row of a window: all of them are written out
SHARE: Final = 0.6  # of these values are in registers at once: what assemblers leave
OTHER_REGISTERS: Final = 16
PER_ACCESS: Final = 4.0  # instructions, for its place and its guard among others
PER_THREAD: Final = 40.0  # instructions, to find out what it computes
EFFICIENCY: Final = 0.5  # of the multipliers' rate
AHEAD: Final = 3  # rows of inputs that are on their way at once


class GpuStrips:
    """Configs: `rows`, `columns` of results and `lanes`, channels, of a thread; `threads` of a
    block. All of them combine the taps of a result in the same order."""

    name = "gpu_strips"
    version = 1

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return not self.objection(graph, ops, outputs)

    def objection(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> str:
        """Why it does not take a group, "" where it does."""
        return objection(lambda: _windows(graph, ops, outputs))

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return _configs(_windows(graph, ops, outputs))

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """The one that should take the least time, the first of equals."""
        p, chip = _windows(graph, ops, outputs), chip_of(device)
        return min(_configs(p), key=lambda c: _seconds(p, c, chip))

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds (see `gpu_model`)."""
        return _seconds(_windows(graph, ops, outputs), config, chip_of(device))

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        buffers = Buffers(graph)
        p = windows_of(graph, ops, outputs, buffers)
        phases = (Strips(p, config).phase(),)
        params, args = buffers.parameters()
        kernel = Kernel(
            self.name, self.version, tuple(sorted(config.items())), params, phases,
            operations(p.piece), traffic(graph, params, args), overwritable(params, phases),
        )  # fmt: skip
        return Launch(kernel, args, ())


def _windows(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> Windows:
    """Found once for a group of a graph: every estimate asks. Raises Unfit."""
    key = _windows, tuple(map(id, ops)), tuple(outputs)
    if key not in graph.derived:  # with the ops, whose ids are nobody else's then
        try:
            found: Windows | str = _fitting(graph, ops, outputs)
        except Unfit as e:
            found = str(e)
        graph.derived[key] = tuple(ops), found
    result: Windows | str = graph.derived[key][1]
    if isinstance(result, str):
        raise Unfit(result)
    return result


def _fitting(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> Windows:
    p = windows_of(graph, ops, outputs, Buffers(graph))
    if p.across.taps > MOST_TAPS or not _configs(p):
        raise Unfit(f"windows of {p.taps} taps, which take too many registers")
    return p


def _configs(p: Windows) -> list[Config]:
    """All whose registers suffice, of 16 bytes of channels where those lie so. No strip is larger
    than the axis; of large windows, several share a row's weights."""
    n = p.most_lanes
    large = taps_held(p, n) < p.taps
    rows = [r for r in ROWS if r <= min(p.down.most, p.down.count) and not (large and r > 1)]
    columns = [c for c in COLUMNS if c <= min(p.across.most, p.across.count)]
    columns = columns[1:] or columns if large else columns
    return [{"rows": r, "columns": c, "lanes": n, "threads": t}
            for r, c in product(rows, columns) if _values(p, r, c, n) <= MOST_VALUES
            for t in THREADS]  # fmt: skip


def _values(p: Windows, rows: int, columns: int, lanes: int) -> int:
    """Of 32 bits, of a thread: results, weights, and inputs, of a row of large windows. Halves are
    widened."""
    words = p.node.dtype.bytes // 4 or 1
    weights, looks = taps_held(p, lanes), p.across.looks(columns)
    looks *= p.down.looks(rows) if weights == p.taps else 1
    return (rows * columns + weights * len(p.weights) + looks) * lanes * words


def _seconds(p: Windows, config: Config, chip: Chip) -> float:
    """About how long a kernel takes. Strips of one row that a block computes share what they look
    at in the first cache."""
    rows, columns, lanes, threads = (config[k] for k in ("rows", "columns", "lanes", "threads"))
    strips = prod(map(trip_count, p.others)) * -(-p.down.count // rows)
    strips *= -(-p.across.count // columns)
    blocks = -(-strips * (p.channels // lanes) // threads)
    reads, stores = buffer_loads(p.reads), p.piece.assignments
    looks = p.down.looks(rows) * p.across.looks(columns)
    results = rows * columns
    accesses = looks * len(reads) + p.taps * len(p.weights) + results * len(stores)
    work = results * p.taps * lanes + PER_ACCESS * accesses + PER_THREAD
    wide = sum(n.dtype.bytes for n in reads)
    beside = max(min(threads * lanes // p.channels, -(-p.across.count // columns)), 1)
    copied = p.down.looks(rows) * p.across.looks(columns * beside) / beside * wide
    stored = results * sum(a.buffer.dtype.bytes for a in stores)
    kind = "f64" if p.node.dtype is f64 else "f32"
    registers = int(SHARE * _values(p, rows, columns, lanes)) + OTHER_REGISTERS
    return seconds(chip, Work(
        blocks, threads, registers, 0, kind, threads * work,
        threads * lanes * (copied + stored), _moved(p), EFFICIENCY, p.down.looks(rows), AHEAD,
    ))  # fmt: skip


def _moved(p: Windows) -> float:
    """Bytes of what is read and stored, each once."""
    values = [a.value for a in p.piece.assignments]
    inside = [n for r in reduces(values) for n in buffer_loads(r)]
    loads = {n.payload for v in (*inside, *values) for n in buffer_loads(v)}
    return sum(b.nbytes for b in (*loads, *(a.buffer for a in p.piece.assignments)))
