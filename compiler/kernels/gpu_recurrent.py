"""The time loops of recurrent layers on GPUs: one block of threads for all steps of a sequence.

States and sums lie in shared memory. A thread keeps a column of the recurrent weights in registers,
from the first step to the last, where they fit; where they do not, it reads them again in every
step, from the second cache as a rule. What a step takes of the projected input is on its way from
memory while the states are multiplied. Nothing waits for another block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from ...ops.expr import Expr, apply, const, index, var
from ...ops.types import f32
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_model import REGISTERS, WARP
from .ir import Buffer, Declare, Launch, Local, Set, Stmt, Store, loop, seq
from .recurrent import CellStep, Product, Recurrent, ScanKernel, columns_of
from .template import Config

CHAINS: Final = 4  # partial sums of a column
MOST_SHARED: Final = 40 << 10  # bytes for states and sums
MOST_THREADS: Final = 1024
MOST_KEPT: Final = 200  # weights that a thread keeps in registers
OTHERS: Final = 32  # registers beside them


class GpuRecurrent(Recurrent):
    """Configs: chunks, as for CPUs; threads of a block."""

    name = "gpu_recurrent"
    version = 1

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        if not super().matches(graph, ops, outputs):
            return False
        directions, _, batch, width = graph.type(ops[0].reads[0]).dims
        words = 2 * width + 3 * _units(graph, ops[0]) + 2 * MOST_THREADS
        fits = words * graph.type(ops[0].reads[0]).dtype.bytes <= MOST_SHARED
        return fits and _units(graph, ops[0]) <= MOST_THREADS and directions * batch > 0

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        best = self.default(graph, ops, outputs, device)
        least = -(-_units(graph, ops[0]) // WARP) * WARP
        more = {best["threads"], least, min(2 * least, MOST_THREADS), MOST_THREADS}
        return [{**best, "threads": n} for n in sorted(more)]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """A block for every sequence, and as many threads as there are columns of weights."""
        batch = graph.type(ops[0].reads[0]).dims[2]
        columns = max(count for _, count in columns_of(ops[0], _units(graph, ops[0])))
        threads = min(-(-columns // WARP) * WARP, MOST_THREADS)
        return {"chunks": max(1, batch), "threads": threads}

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        scan = _Sequence(graph, ops[0], outputs, device, {**config, "rows": 1})
        return scan.params.launch(self.name, self.version, config, scan.phases(), scan.flops,
                                  scan.inplace())  # fmt: skip


def _units(graph: Graph, op: Op) -> int:
    return graph.type(op.reads[1]).dims[2]


class _Sequence(ScanKernel):
    """All steps of one sequence in one direction by one block."""

    def lanes_of(self, device: Device) -> int:
        threads: int = self.config["threads"]
        return threads

    def _products(self, device: Device) -> tuple[Product, ...]:
        """Products whose columns a thread takes one by one."""
        out: list[Product] = []
        for k, (first, count) in enumerate(self.columns()):
            at = out[-1].end if out else 0
            blocks = -(-count // self.lanes)
            out.append(Product(first, count, self.lanes, blocks, 1, CHAINS, at, str(k)))
        return tuple(out)

    def place_sums(self) -> None:
        """Shared memory instead of scratch."""
        self.inside = tuple(Local(f"state{k}", self.dtype, (self.h,))
                            for k in range(len(self.states)))  # fmt: skip
        self.row_sums = Local("sums", self.dtype, (self.row_size,))
        self.row_reset = Local("reset_state", self.dtype, (self.h,))

    @property
    def keeps(self) -> bool:
        """Whether all weights of a thread stay in its registers."""
        words = sum(p.blocks for p in self.products) * self.h * self.dtype.bytes // f32.bytes
        return words <= min(MOST_KEPT, REGISTERS // self.lanes - OTHERS)

    def _line(self, d: int, backward: bool, chunk: Expr) -> tuple[Stmt, ...]:
        s = var("s", self.steps)
        at = self.steps - 1 - s if backward else s
        step = _Step(self, d, at, chunk)
        split = len(self.products) > 1
        out: list[Stmt] = [*map(Declare, self.inside), Declare(self.row_sums)]
        out += [Declare(self.row_reset)] if split else []
        out += [s for p, packed in zip(self.products, self.packed, strict=True)
                for s in self._kept(d, p, packed)] if self.keeps else []  # fmt: skip
        body: list[Stmt] = [Declare(step.ahead), step.fetched()]
        for k, (p, stage) in enumerate(zip(self.products, step.stages(), strict=True)):
            source = self.row_reset if k else self.inside[0]
            body += self._multiplied(d, p, self.packed[k], source)
            body += step.running(stage, last=k == len(self.products) - 1)
        return seq(out, step.start(), loop(s, body), step.end())

    def _held(self, p: Product) -> Local:
        return Local(f"held{p.tag}", self.dtype, (p.blocks, self.h), self.lanes)

    def _vector(self, *body: Stmt) -> Stmt:
        return loop(var("lane", self.lanes), body, "vector", lanes=self.lanes)

    def _weight(self, d: int, p: Product, packed: Buffer, block: Expr, k: Expr) -> Expr:
        row = (d * p.blocks + block) * self.h + k
        return packed[row * p.width + var("lane", self.lanes)]

    def _kept(self, d: int, p: Product, packed: Buffer) -> tuple[Stmt, ...]:
        """A thread's columns of the weights, read once."""
        held, block, k = self._held(p), var("block", p.blocks), var("k", self.h)
        read = Set(held, (block, k), self._weight(d, p, packed, block, k))
        return (Declare(held),
                self._vector(loop(block, (loop(k, (read,), "unroll"),), "unroll")))  # fmt: skip

    def _multiplied(
        self, d: int, p: Product, packed: Buffer, source: Local
    ) -> tuple[Stmt, ...]:  # fmt: skip
        """A state times the thread's columns, each in a few partial sums."""
        acc = Local(f"acc{p.tag}", self.dtype, (CHAINS,), self.lanes)
        block, k = var("block", p.blocks), var("k", self.h)
        q, u = var("q", CHAINS), var("u", CHAINS)
        whole = self.h // CHAINS * CHAINS

        def add(at: Expr, chain: Expr) -> Stmt:
            w = self._held(p)[block, at] if self.keeps else self._weight(d, p, packed, block, at)
            return Set(acc, (chain,), apply("fma", (source[at], w, acc[chain]), self.dtype))

        kind: Literal["serial", "unroll"] = "unroll" if self.keeps else "serial"
        total = acc[index(0)]
        for n in range(1, CHAINS):
            total = total + acc[index(n)]
        place = p.at + block * p.width + var("lane", self.lanes)
        rest = loop(u, (add(u + whole, u),), "unroll", hi=self.h - whole)
        body = (
            loop(q, (Set(acc, (q,), const(0, self.dtype)),), "unroll"),
            loop(k, (loop(u, (add(k + u, u),), "unroll"),), kind, hi=whole, step=CHAINS),
            *((rest,) if whole < self.h else ()),
            Set(self.row_sums, (place,), total),
        )
        return Declare(acc), self._vector(loop(block, body, kind))


class _Step(CellStep):
    """The elementwise part of a step, with everything in shared memory."""

    scan: _Sequence

    def __init__(self, scan: _Sequence, d: int, at: Expr, b: Expr) -> None:
        super().__init__(scan, d, at, b)
        self.ahead = Local("ahead", scan.dtype, (scan.cell.gates,), scan.lanes)

    def start(self) -> tuple[Stmt, ...]:
        place = self.row * self.scan.h + self.u
        zero = const(0, self.scan.dtype)
        sets = [Set(s, (self.u,), zero if x is None else x[place])
                for s, x in zip(self.scan.inside, self.scan.initial, strict=True)]  # fmt: skip
        if len(self.scan.products) > 1:  # is multiplied behind the end of a sequence, too
            sets.append(Set(self.scan.row_reset, (self.u,), zero))
        return (self.units(*sets),)

    def fetched(self) -> Stmt:
        """What the step needs of the projected input, asked for early."""
        return self.units(*(Set(self.ahead, (index(g),), super(_Step, self)._gate(g))
                            for g in range(self.scan.cell.gates)))  # fmt: skip

    def end(self) -> tuple[Stmt, ...]:
        place = self.row * self.scan.h + self.u
        return (self.units(*(Store(y, place, s[self.u])
                             for y, s in zip(self.scan.states, self.scan.inside,
                                             strict=True))),)  # fmt: skip

    def _gate(self, g: int) -> Expr:
        return self.ahead[index(g)]

    def _state(self, k: int = 0) -> Expr:
        return self.scan.inside[k][self.u]

    def _keep_state(self, k: int, value: Expr) -> Stmt:
        return Set(self.scan.inside[k], (self.u,), value)

    def _sum(self, g: int) -> Expr:
        return self.scan.row_sums[self._sum_place(g)]

    def _keep_sum(self, g: int, value: Expr) -> Stmt:
        return Set(self.scan.row_sums, (self._sum_place(g),), value)

    def _keep_reset(self, value: Expr) -> Stmt:
        return Set(self.scan.row_reset, (self.u,), value)

    def _sum_place(self, g: int) -> Expr:
        s = self.scan
        p = next(q for q in s.products if q.first <= g * s.h < q.first + q.count)
        return p.at + g * s.h - p.first + self.u
