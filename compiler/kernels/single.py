"""What the templates for one op alone share: parameters, work split between items, flat loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, binary, cast, var
from ...ops.operator import Opaque
from ...ops.types import DType, bf16, f16, f32
from ..graph.ir import Graph, Op
from .device import Device, GpuDevice
from .ir import Buffer, Kernel, Launch, Phase, Prepared, Role, Stmt, Store, loop, seq
from .nest import items_for
from .template import Config, traffic

GPU_ITEMS: Final = 1 << 16


class Parameters:
    """The parameters of a kernel for one op and what they stand for, in order of first use.

    An output that nobody reads becomes scratch: the plan holds no memory for it.
    """

    def __init__(self, graph: Graph, outputs: Sequence[str]) -> None:
        self.graph = graph
        self.outputs = frozenset(outputs)
        self.table: dict[str | Prepared | int, Buffer] = {}

    def _add(
        self, key: str | Prepared | int, stem: str, dtype: DType, elements: int, role: Role
    ) -> Buffer:
        if key not in self.table:
            k = sum(1 for b in self.table.values() if b.name[0] == stem)
            self.table[key] = Buffer(f"{stem}{k}", dtype, elements, role)
        return self.table[key]

    def read(self, blob: str) -> Buffer:
        """A blob that the op reads; one buffer however often it is read."""
        b = self.graph.blobs[blob]
        role: Role = "const" if b.is_constant else "in"
        return self._add(blob, "x", b.type.dtype, b.type.span, role)

    def optional(self, blob: str | None) -> Buffer | None:
        return None if blob is None else self.read(blob)

    def write(self, blob: str) -> Buffer:
        """A blob that the op makes."""
        t = self.graph.type(blob)
        role: Role = "out" if blob in self.outputs else "scratch"
        return self._add(blob, "y", t.dtype, t.span, role)

    def prepared(self, what: Prepared, dtype: DType, elements: int) -> Buffer:
        """A constant in packed form."""
        return self._add(what, "p", dtype, elements, "const")

    def scratch(self, dtype: DType, elements: int) -> Buffer:
        return self._add(len(self.table), "s", dtype, elements, "scratch")

    def launch(
        self, template: str, version: int, config: Config, phases: Iterable[Phase], flops: int,
        inplace: Iterable[tuple[Buffer, Buffer]] = (),
    ) -> Launch:  # fmt: skip
        """The launch of a kernel with these parameters. inplace: pairs (written, read)."""
        params = tuple(self.table.values())
        args = tuple(
            key if isinstance(key, Prepared) or (isinstance(key, str) and b.role != "scratch")
            else None for key, b in self.table.items()
        )  # fmt: skip
        pairs = tuple(
            (params.index(y), params.index(x)) for y, x in inplace
            if (y.role, x.role) == ("out", "in") and y.nbytes == x.nbytes
        )  # fmt: skip
        kernel = Kernel(template, version, tuple(sorted(config.items())), params, tuple(phases),
                        flops, traffic(self.graph, params, args), pairs)  # fmt: skip
        return Launch(kernel, args, ())


class OpaqueTemplate:
    """Base of the templates for one op with an Opaque trait of one kind, row-major, untuned."""

    name = ""
    version = 1
    kind = ""

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        if len(ops) != 1:
            return False
        trait = ops[0].definition.trait(Opaque)
        return trait is not None and trait.kind == self.kind and is_row_major(graph, ops[0])

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        return {}

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return [{}]

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return self.build(ops[0], Parameters(graph, outputs), device)

    def build(self, op: Op, params: Parameters, device: Device) -> Launch:
        raise NotImplementedError


def is_row_major(graph: Graph, op: Op) -> bool:
    """Whether all that the op touches is row-major and without gaps."""
    types = [graph.type(n) for n in (*op.reads, *op.outputs)]
    return all(t.is_dense and not t.layout.is_blocked for t in types)


def around(dims: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(elements before, along and behind an axis)."""
    a = axis % len(dims)
    return prod(dims[:a]), dims[a], prod(dims[a + 1 :])


def wide(e: Expr) -> Expr:
    """Half floats as float32, in which they are compared and added; anything else as it is."""
    return cast(e, f32) if e.dtype in (f16, bf16) else e


def shared(
    total: int, work: int, body: Callable[[Expr, Expr], Iterable[Stmt]], device: Device,
    align: int = 1,
) -> Phase:  # fmt: skip
    """A phase over 0..total: body(lo, hi) computes one item's part of it.

    work: element operations of the whole phase, which decide how many items there are; on a GPU as
    many as there can be. align: every part but the last begins and ends at a multiple of it.
    """
    wanted = GPU_ITEMS if isinstance(device, GpuDevice) else items_for(work)
    part = max(1, -(-total // (wanted * align))) * align
    items = max(1, -(-total // part))
    item = var("item", items)
    lo = item * part
    hi = lo + part if items * part == total else binary("min", lo + part, total)
    return Phase(items, item, seq(body(lo, hi)))


def rows(
    total: int, work: int, body: Callable[[Expr], Iterable[Stmt]], device: Device
) -> Phase:  # fmt: skip
    """A phase that runs body(row) for every row in 0..total."""
    row = var("row", total)
    return shared(total, work, lambda lo, hi: (loop(row, body(row), lo=lo, hi=hi),), device)


def columns(
    outer: int, inner: int, dtype: DType, work: int,
    body: Callable[[Expr, Expr], Iterable[Stmt]], device: Device,
) -> Phase:  # fmt: skip
    """A phase that runs body(o, i) in lanes for all (o, i) in outer x inner, lanes along i."""
    lanes = device.lanes(dtype)
    blocks = -(-inner // lanes)
    block, lane = var("block", outer * blocks), var("lane", inner)

    def part(lo: Expr, hi: Expr) -> tuple[Stmt, ...]:
        first = block % blocks * lanes
        end = first + lanes if inner % lanes == 0 else binary("min", first + lanes, inner)
        vector = loop(lane, body(block // blocks, lane), "vector", lo=first, hi=end, lanes=lanes)
        return (loop(block, (vector,), lo=lo, hi=hi),)

    return shared(outer * blocks, work, part, device)


def fill(out: Buffer, value: Callable[[Expr], Expr], device: Device) -> Phase:
    """out[i] = value(i) everywhere."""
    at, lanes = var("at", out.elements), device.lanes(out.dtype)

    def part(lo: Expr, hi: Expr) -> tuple[Stmt, ...]:
        return (loop(at, (Store(out, at, value(at)),), "vector", lo=lo, hi=hi, lanes=lanes),)

    return shared(out.elements, out.elements, part, device, align=lanes)
