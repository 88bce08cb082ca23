"""Updates written into a copy of a tensor, or into zeros, at places known only at run time.

Updates of one place are applied in row-major order of the updates; items and lanes only share out
places that cannot meet. Indices outside a tensor are moved to its edge (ONNX leaves them
undefined), so that no model can write outside its buffers.
"""

from __future__ import annotations

from math import prod

from ...ops.expr import Expr, binary, index, var
from ...ops.indexing import position
from ...ops.types import TensorType, i64, row_major_strides
from ..graph.ir import Op
from .address import offset
from .device import Device
from .ir import Buffer, Declare, Launch, Local, Phase, Set, Stmt, Store, loop
from .single import OpaqueTemplate, Parameters, fill, shared

_COMBINE = {"add": "add", "mul": "mul", "min": "min", "max": "max"}


def _updated(out: Buffer, at: Expr, update: Expr, reduction: str) -> Stmt:
    if reduction == "none":
        return Store(out, at, update)
    return Store(out, at, binary(_COMBINE[reduction], out[at], update))


class Scatter(OpaqueTemplate):
    """A parallel copy, then the updates."""

    name = "scatter"
    kind = "scatter"

    def build(self, op: Op, params: Parameters, device: Device) -> Launch:
        data, indices, updates = op.reads
        types = tuple(map(params.graph.type, op.reads))
        x, ix, u = map(params.read, op.reads)
        y = params.write(op.outputs[0])
        phases = []
        if y.elements:
            phases.append(fill(y, lambda at: x[at], device))
        if y.elements and u.elements:
            if op.operator == "scatter_nd":
                phases.append(_slices(types, ix, u, y, op.attr("reduction"), device))
            else:
                axis = op.attr("axis") % types[0].rank
                phases.append(_elements(types, axis, ix, u, y, op.attr("reduction"), device))
        alone = data not in (indices, updates)
        return params.launch(self.name, self.version, {}, phases, u.elements,
                             [(y, x)] if alone else [])  # fmt: skip


def _slices(
    types: tuple[TensorType, ...], ix: Buffer, u: Buffer, y: Buffer, reduction: str, device: Device
) -> Phase:
    """Slice after slice; long slices are split between items."""
    data, indices, _ = types
    depth = indices.dims[-1]
    count, size = prod(indices.dims[:-1]), prod(data.dims[depth:])
    lanes = device.lanes(y.dtype)
    m, s, row = var("m", count), var("s", size), Local("row", i64)
    where = index(0)
    for k, step in enumerate(row_major_strides(data.dims[:depth])):
        where = where + position(ix[m * depth + k], data.dims[k]) * step

    def part(lo: Expr, hi: Expr) -> tuple[Stmt, ...]:
        put = _updated(y, row.value * size + s, u[m * size + s], reduction)
        along = loop(s, (put,), "vector", lo=lo, hi=hi, lanes=lanes) if size > 1 else (
            loop(s, (put,))
        )  # fmt: skip
        return (Declare(row), loop(m, (Set(row, (), where), along)))

    # short pieces of a slice would cost more to find than to write
    return shared(size, u.elements if size >= 8 * lanes else 0, part, device, align=lanes)


def _elements(
    types: tuple[TensorType, ...], axis: int, ix: Buffer, u: Buffer, y: Buffer, reduction: str,
    device: Device,
) -> Phase:  # fmt: skip
    """Only updates along the axis can meet: all other axes may go to items and lanes."""
    data, indices, _ = types
    dims = indices.dims
    rank = len(dims)
    at = tuple(var(f"i{k}", d) for k, d in enumerate(dims))
    source = offset(indices, at)
    place = (*at[:axis], position(ix[source], data.dims[axis]), *at[axis + 1 :])
    lane = rank - 1 if axis != rank - 1 and dims[-1] > 1 else None
    lanes = device.lanes(y.dtype)
    free = [k for k in range(rank) if k not in (axis, lane) and dims[k] > 1]
    split = max(free, key=lambda k: dims[k], default=lane)
    if split is not None and lane is not None and dims[split] < dims[lane] // lanes:
        split = lane

    def part(lo: Expr, hi: Expr) -> tuple[Stmt, ...]:
        body: tuple[Stmt, ...] = (_updated(y, offset(data, place), u[source], reduction),)
        for k in reversed(range(rank)):
            first, end = (lo, hi) if k == split else (None, None)
            if k == lane:
                body = (loop(at[k], body, "vector", lo=first, hi=end, lanes=lanes),)
            else:
                body = (loop(at[k], body, lo=first, hi=end),)
        return body

    total = 1 if split is None else dims[split]
    return shared(total, 4 * u.elements, part, device, align=lanes if split == lane else 1)
