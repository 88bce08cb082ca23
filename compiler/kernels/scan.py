"""Running sums along one axis."""

from __future__ import annotations

from ...ops.expr import Expr, binary, cast, const, var
from ...ops.types import DType
from ..graph.ir import Op
from .device import Device
from .ir import Buffer, Declare, Launch, Local, Phase, Set, Stmt, Store, loop, seq
from .single import OpaqueTemplate, Parameters, around, columns, shared, wide

CHAINS = 8  # rows summed side by side: an addition waits 4 cycles for the one before it


class CumulativeSum(OpaqueTemplate):
    """Lanes along the contiguous axis where that is another one, else several rows at once. Every
    sum is taken in order, in the element type (half floats in float32)."""

    name = "scan"
    kind = "scan"

    def build(self, op: Op, params: Parameters, device: Device) -> Launch:
        x, y = params.read(op.reads[0]), params.write(op.outputs[0])
        dims = params.graph.type(op.reads[0]).dims
        scan = _Scan(x, y, around(dims, op.attr("axis")), op.attr("exclusive"), op.attr("reverse"))
        phases = [scan.phase(device)] if x.elements else []
        return params.launch(self.name, self.version, {}, phases, x.elements, [(y, x)])


class _Scan:
    def __init__(
        self, x: Buffer, y: Buffer, shape: tuple[int, int, int], exclusive: int, reverse: int
    ) -> None:
        self.x, self.y = x, y
        self.outer, self.n, self.inner = shape
        self.exclusive, self.reverse = exclusive, reverse

    def phase(self, device: Device) -> Phase:
        if self.inner == 1:
            return shared(self.outer, self.x.elements, self._rows, device)
        lanes = device.lanes(self.x.dtype)

        def column(o: Expr, i: Expr) -> tuple[Stmt, ...]:
            t = var("t", self.n)
            acc, seen = self._locals(wide(self.x[0]).dtype, (), lanes)
            at = (o * self.n + self._place(t)) * self.inner + i
            body = self._step(acc, seen, (), at)
            return (Declare(acc), Declare(seen), self._zero(acc, ()), loop(t, body))

        return columns(self.outer, self.inner, self.x.dtype, self.x.elements, column, device)

    def _rows(self, lo: Expr, hi: Expr) -> tuple[Stmt, ...]:
        """Rows in blocks of CHAINS, the last ones alone."""
        out: list[Stmt] = []
        limit = hi
        for width in (CHAINS, 1) if self.outer >= CHAINS else (1,):
            row, t, r = var(f"row{width}", self.outer), var("t", self.n), var("r", width)
            acc, seen = self._locals(wide(self.x[0]).dtype, (width,), 0)
            at = (row + r) * self.n + self._place(t)
            start = loop(r, (self._zero(acc, (r,)),), "unroll")
            step = loop(r, self._step(acc, seen, (r,), at), "unroll")
            whole = lo + (limit - lo) // width * width
            body = (start, loop(t, (step,)))
            out += [Declare(acc), Declare(seen), loop(row, body, lo=lo, hi=whole, step=width)]
            lo = whole
        return seq(out)

    def _locals(self, dtype: DType, shape: tuple[int, ...], lanes: int) -> tuple[Local, Local]:
        tag = shape[0] if shape else ""
        return Local(f"acc{tag}", dtype, shape, lanes), Local(f"seen{tag}", dtype, shape, lanes)

    def _place(self, t: Expr) -> Expr:
        return self.n - 1 - t if self.reverse else t

    def _zero(self, acc: Local, where: tuple[Expr, ...]) -> Stmt:
        return Set(acc, where, const(0, acc.dtype))

    def _step(self, acc: Local, seen: Local, where: tuple[Expr, ...], at: Expr) -> tuple[Stmt, ...]:
        """The element is read before the result is stored: they may be one piece of memory."""
        read = Set(seen, where, wide(self.x[at]))
        add = Set(acc, where, binary("add", acc[where], seen[where]))
        put = Store(self.y, at, cast(acc[where], self.y.dtype))
        return (read, put, add) if self.exclusive else (read, add, put)
