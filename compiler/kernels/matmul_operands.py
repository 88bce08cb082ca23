"""The operands of a matrix product, as its tiles read them.

The left one is read where it lies when its offset is affine in row and column, and copied to
scratch in a phase of its own when not. The right one is packed into panels as wide as the register
tile: at link time when it is constant, in a phase when it is not and enough rows read it; or, to
save memory, by every item for itself, a part at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any

import numpy.typing as npt

from ...ops.expr import Expr, compare, const, floordiv, index, minimum, var
from ...ops.traverse import substitute
from ...ops.types import DType, row_major_strides
from ..graph.evaluate import evaluate_op
from ..graph.ir import Op
from ..text import Scanner, format_value
from .compose import Indices, broadcast
from .device import Device
from .epilogue import Params
from .ir import Buffer, If, Local, Phase, Prepared, Stmt, Store, loop, seq
from .matmul_group import MatmulGroup, affine, formal, pack_panels, unflatten, variable
from .microkernel import MicroKernel
from .pieces import Assignment
from .recipe import prepared, recipe
from .template import Config
from .tiles import square

Array = npt.NDArray[Any]
PAGE = 4096  # bytes between addresses that share a cache set
PACK_ELEMENTS = 8192  # elements that one item packs: 1 to 3 microseconds

_Step = tuple[str, tuple[int | None, ...], int, tuple[tuple[str, str], ...]]
"""An operator, what it reads, how many results it has, its attributes as text."""


@dataclass(frozen=True, slots=True)
class Left:
    """How rows of the left operand are read: base(batch) + m * row + k * step."""

    buffer: Buffer
    base: Expr
    row: int
    step: int


@dataclass(frozen=True, slots=True)
class Right:
    """How panels are read: `base(batch)`, then `panel` elements from one to the next and `step`
    from one k to the next; packed panels have their own step."""

    buffer: Buffer
    base: Expr
    packed: bool
    step: int


def own_matrix(p: MatmulGroup) -> Indices:
    """Which matrix of the right operand a product takes, in terms of the product's number."""
    q, m, _ = formal(p)
    at = broadcast(p.logical(q, m), p.own_batch) if p.own_batch else ()
    return tuple(i if d > 1 else index(0) for i, d in zip(at, p.own_batch, strict=True))


def where_it_lies(p: MatmulGroup, params: Params) -> Right | None:
    """The right operand without a copy of it, if its columns lie side by side."""
    (_, _, n), k = formal(p), variable("k", p.k)
    found = affine(params.lower(p.b_element(own_matrix(p), k, n)), (k, n))
    if found is None or found[1][n] != 1:
        return None
    return Right(found[0], found[2], False, found[1][k])


class Operands:
    """Both operands of one product for one config. left: the left one, if it is there already.

    Of the config, `pack` says what happens to a right operand that is not constant. True: panels of
    it are made in a phase before. False: it is read where it lies if that is possible. "item": the
    same, but if it is not, items pack what they need for themselves (`fill`), one part after the
    other into the same place. item: its variable. whole: these parts are matrices, else panels.
    """

    def __init__(
        self, p: MatmulGroup, device: Device, config: Config, params: Params,
        left: Left | None = None, *, item: Expr, whole: bool = False,
    ) -> None:  # fmt: skip
        self.item, self.whole = item, whole
        self.p, self.config, self.params = p, config, params
        self.lanes = device.lanes(p.dtype)
        self.blocks = config["nb"]
        self.width = self.blocks * self.lanes
        self.panels, rest = divmod(p.n, self.width)
        self.rest_blocks, self.rest_tail = -(-rest // self.lanes), rest % self.lanes
        self.q, self.m, self.n = formal(p)
        self.packing: list[Phase] = []
        self.left = left or self._left()
        self.fill: Callable[[Expr, Expr], tuple[Stmt, ...]] | None = None
        self.right = self._right()

    @property
    def panel_elements(self) -> int:
        """Elements of all packed panels of one matrix."""
        return self.p.k * (self.panels * self.width + self.rest_blocks * self.lanes)

    def _left(self) -> Left:
        p = self.p
        k = variable("k", p.k)
        value = self.params.lower(p.a_element(self.q, self.m, k))
        found = affine(value, (self.m, k))
        if found is not None:
            buffer, strides, base = found
            return Left(buffer, base, strides[self.m], strides[k])
        rows = prod(p.batch) * p.m
        scratch = self.params.scratch(p.dtype, rows * p.k)
        share = max(1, PACK_ELEMENTS // p.k)
        item, t = var("item", -(-rows // share)), variable("t", rows)
        at = {self.q: floordiv(t, p.m), self.m: t % p.m}
        value = substitute(value, {v: e for v, e in at.items() if v.op == "var"})
        copy: tuple[Stmt, ...] = (Store(scratch, t * p.k + k, value),)
        if k.op == "var":
            copy = (loop(k, copy, "vector", lanes=self.lanes),)
        self.packing.append(Phase(item.payload[2], item, share_out(t, item, share, rows, copy)))
        return Left(scratch, self.q * (p.m * p.k), p.k, 1)

    def _right(self) -> Right:
        p = self.p
        at = own_matrix(p)
        matrix = index(0)
        for i, s in zip(at, row_major_strides(p.own_batch), strict=True):
            matrix = matrix + i * s
        base = matrix * self.panel_elements
        total = prod(p.own_batch) * self.panel_elements
        if p.constant:
            return Right(self.params.prepared(self._prepared(), p.dtype, total), base, True, 0)
        if self.config["pack"] is not True:
            found = where_it_lies(p, self.params)
            if found is not None:
                return found
        if self.config["pack"] == "item":
            return self._packed_by_items(at)
        scratch = self.params.scratch(p.dtype, total)
        self.packing.append(self._pack(scratch))
        return Right(scratch, base, True, 0)

    def _packed_by_items(self, at: Indices) -> Right:
        """at: indices of the matrix in terms of `self.q`."""
        item = self.item
        each = self.panel_elements if self.whole else self.p.k * self.width
        scratch = self.params.scratch(self.p.dtype, item.payload[2] * each)
        base = item * each

        def fill(matrix: Expr, g: Expr) -> tuple[Stmt, ...]:
            own = tuple(substitute(i, {self.q: matrix} if self.q.op == "var" else {}) for i in at)
            to = base + g * (self.p.k * self.width) if self.whole else base
            return self.panel(scratch, own, g, to)

        self.fill = fill
        return Right(scratch, base, True, 0)

    def _prepared(self) -> Prepared:
        """The constant right operand in panels."""
        p, lanes, width = self.p, self.lanes, self.width
        made = {o: op for op in p.before for o in op.outputs}
        order: list[str] = []
        steps: list[Op] = []

        def need(blob: str) -> None:
            op = made.get(blob)
            if op is None:
                if blob not in order:
                    order.append(blob)
            elif op not in steps:
                for n in op.reads:
                    need(n)
                steps.append(op)

        need(p.b)
        number = {n: k for k, n in enumerate(order)}
        for op in steps:
            number |= {o: len(number) + k for k, o in enumerate(op.outputs)}
        done = tuple(
            (op.operator, tuple(None if n is None else number[n] for n in op.inputs),
             len(op.outputs), tuple((k, format_value(v)) for k, v in op.attrs))
            for op in steps
        )  # fmt: skip
        return prepared(order, "panels", lanes=lanes, width=width, k=p.k, n=p.n, steps=done,
                        of=number[p.b])  # fmt: skip

    def _pack(self, scratch: Buffer) -> Phase:
        """All panels of a right operand that changes from call to call."""
        p = self.p
        matrices = prod(p.own_batch)
        panels = self.panels + (self.rest_blocks > 0)
        total = matrices * panels
        share = max(1, PACK_ELEMENTS // (p.k * self.width))
        item, t = var("item", -(-total // share)), variable("t", total)
        own = unflatten(floordiv(t, panels), p.own_batch)
        g = t % panels
        base = floordiv(t, panels) * self.panel_elements + g * (p.k * self.width)
        body = self.panel(scratch, own, g, base)
        return Phase(item.payload[2], item, share_out(t, item, share, total, body))

    def panel(self, scratch: Buffer, own: Indices, g: Expr, base: Expr) -> tuple[Stmt, ...]:
        """Pack panel g of one matrix. own: its indices, base: where the panel goes. Lanes past the
        last column are set to zero: what they would hold by chance can be slow to compute with."""
        p = self.p
        k = variable("k", p.k)
        first = self.params.lower(p.b_element(own, k, self.n))
        along = affine(first, (k, self.n))
        by_column = along is not None and along[1][k] == 1 != along[1][self.n]

        def element(column: Expr) -> Expr:
            return substitute(first, {self.n: g * self.width + column})

        def columns(blocks: int, tail: int) -> tuple[Stmt, ...]:
            """Row by row, lanes along the columns."""
            step = blocks * self.lanes
            micro = MicroKernel(p.dtype, self.lanes, (1,), blocks)

            def copy(j: Expr, lane: Expr) -> tuple[Stmt, ...]:
                at = j * self.lanes + lane
                return (Store(scratch, base + k * step + at, element(at)),)

            out = list(micro.each_vector(copy, tail))
            if tail:
                z = var("z", self.lanes, 0)
                at = base + k * step + (step - self.lanes) + z
                fill = Store(scratch, at, const(0, p.dtype))
                out.append(loop(z, (fill,), "vector", lo=tail, lanes=self.lanes))
            return (loop(k, out),) if k.op == "var" else tuple(out)

        tags = count(1)

        def local(dtype: DType, shape: tuple[int, ...], lanes: int) -> Local:
            return Local(f"square{next(tags)}", dtype, shape, lanes)

        def squares(blocks: int, tail: int) -> tuple[Stmt, ...]:
            """Lanes along the rows where they are read, transposed in registers."""
            step, n = blocks * self.lanes, self.lanes
            row, column = var("kp", n), var("c", n)

            def block(j: Expr, columns: int) -> tuple[Stmt, ...]:
                def part(ks: Expr, rows: int) -> tuple[Stmt, ...]:
                    here, lane = ks * n + row, j * n + column
                    value = substitute(element(lane), {k: here})
                    done = Assignment(scratch, base + here * step + lane, value)
                    return square(n, (row, column), [done], (rows, columns), local)

                whole, rest = divmod(p.k, n)
                ks = variable("ks", whole) if whole else index(0)
                out = part(ks, n) if whole else ()
                if ks.op == "var":
                    out = (loop(ks, out),)
                return seq(out, part(index(whole), rest) if rest else ())

            last = blocks - (tail > 0)
            j = variable("j", last) if last else index(0)
            out = block(j, n) if last else ()
            if j.op == "var":
                out = (loop(j, out),)
            if not tail:
                return out
            z = var("z", n)
            fill = Store(scratch, base + k * step + last * n + z, const(0, p.dtype))
            zeros = loop(k, (loop(z, (fill,), "vector", lo=tail, lanes=n),))
            return seq(out, block(index(last), tail), zeros)

        transposed = by_column and p.dtype.bytes in (4, 8)
        write = squares if transposed else columns
        return self.either(g, lambda _, blocks, tail: write(blocks, tail))

    def either(
        self, g: Expr, body: Callable[[Expr, int, int], tuple[Stmt, ...]]
    ) -> tuple[Stmt, ...]:
        """body(panel, blocks, lanes of the last block or 0) for a full panel or the last one."""
        if not self.rest_blocks:
            return body(g, self.blocks, 0)
        last = body(index(self.panels), self.rest_blocks, self.rest_tail)
        if not self.panels:
            return last
        return (If(compare("lt", g, self.panels), body(g, self.blocks, 0), last),)


@recipe("panels", into=True)
def _panels(
    *arrays: Array, lanes: int, width: int, k: int, n: int, steps: tuple[_Step, ...], of: int,
    out: Array | None = None,
) -> Array:  # fmt: skip
    """What a few operators make of constants, as panels of matrices [k, n]. Arrays are numbered:
    first those given, then results in order; steps say which each operator reads."""
    values = list(arrays)
    for operator, reads, results, attrs in steps:
        given = tuple((name, Scanner(text).value()) for name, text in attrs)
        op = Op(operator, tuple(map(str, reads)), ("",) * results, given)
        ins = [None if i is None else values[i] for i in reads]
        values += evaluate_op(op, ins, wide=False)
    return pack_panels(values[of].reshape(-1, k, n), lanes, width, out)


def share_out(
    t: Expr, item: Expr, share: int, total: int, body: tuple[Stmt, ...]
) -> tuple[Stmt, ...]:
    """body for an item's part of 0..total."""
    if t.op != "var":
        return body
    first = item * share
    return (loop(t, body, lo=first, hi=minimum(first + share, total)),)
