"""What the matrix product kernel must compute: the product, and the ops around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy.typing as npt

from ...ops.expr import Expr, floordiv, index, linear, var
from ...ops.operator import Contraction, Injective, View
from ...ops.traverse import substitute
from ...ops.types import DType, f32, f64, row_major_strides
from ..graph.ir import Graph, Op
from .compose import Composer, Indices, broadcast
from .epilogue import Result, results
from .ir import Buffer
from .packing import room, turned

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class MatmulGroup:
    """One product with the ops around it.

    batch: of the result, () when its axes are rows. bound: the matrices of the right operand that
    differ, as b's own batch axes.
    """

    graph: Graph
    before: tuple[Op, ...]
    anchor: Op
    after: tuple[Op, ...]
    outputs: tuple[str, ...]
    batch: tuple[int, ...]
    m: int
    n: int
    k: int

    @property
    def a(self) -> str:
        return self.anchor.reads[0]

    @property
    def b(self) -> str:
        return self.anchor.reads[1]

    @property
    def result(self) -> str:
        return self.anchor.outputs[0]

    @property
    def dtype(self) -> DType:
        return self.graph.type(self.result).dtype

    @property
    def flops(self) -> int:
        return 2 * prod(self.batch) * self.m * self.n * self.k

    @property
    def own_batch(self) -> tuple[int, ...]:
        """Batch axes of the right operand itself."""
        return self.graph.type(self.b).dims[:-2]

    @property
    def constant(self) -> bool:
        """Whether the right operand is known when the program is linked."""
        made = {o: op for op in self.before for o in op.outputs}

        def known(blob: str) -> bool:
            if blob in made:
                return all(known(n) for n in made[blob].reads)
            return self.graph.is_constant(blob)

        return known(self.b)

    # ---------------------------------------------------------------- index expressions

    def a_element(self, bt: Expr, m: Expr, k: Expr) -> Expr:
        """The left operand's element; a blob load or an expression over some."""
        dims = self.graph.type(self.a).dims
        at = (*self.logical(bt, m)[: len(self.full_batch)], self.row(m), k)
        at = (k,) if len(dims) == 1 else at
        return Composer(self.graph, self.before).element(self.a, broadcast(at, dims))

    def b_element(self, own: Indices, k: Expr, n: Expr) -> Expr:
        at = (k,) if self.graph.type(self.b).rank == 1 else (*own, k, n)
        dims = self.graph.type(self.b).dims
        return Composer(self.graph, self.before).element(self.b, broadcast(at, dims))

    @property
    def full_batch(self) -> tuple[int, ...]:
        """Batch axes of the result, rows or not."""
        kind = self.graph.type(self.result)
        return kind.dims[: kind.rank - (self.graph.type(self.a).rank > 1)
                         - (self.graph.type(self.b).rank > 1)]  # fmt: skip

    def row(self, m: Expr) -> Expr:
        return m % self.rows_each if not self.batch else m

    @property
    def rows_each(self) -> int:
        """Rows of one matrix."""
        a = self.graph.type(self.a)
        return a.dims[-2] if a.rank > 1 else 1

    def logical(self, bt: Expr, m: Expr) -> Indices:
        """Batch indices of the result."""
        if self.batch:
            return unflatten(bt, self.batch)
        return unflatten(floordiv(m, self.rows_each), self.full_batch)

    def result_at(self, bt: Expr, m: Expr, n: Expr) -> Indices:
        a_rank, b_rank = self.graph.type(self.a).rank, self.graph.type(self.b).rank
        rows = (self.row(m),) if a_rank > 1 else ()
        columns = (n,) if b_rank > 1 else ()
        at = (*self.logical(bt, m), *rows, *columns)
        return broadcast(at, self.graph.type(self.result).dims)


def unflatten(flat: Expr, dims: tuple[int, ...]) -> Indices:
    """Row-major indices of a flat one."""
    return tuple(
        floordiv(flat, s) % d if k else floordiv(flat, s)
        for k, (d, s) in enumerate(zip(dims, row_major_strides(dims), strict=True))
    )


def variable(name: str, extent: int) -> Expr:
    return var(name, extent) if extent > 1 else index(0)


def formal(p: MatmulGroup) -> tuple[Expr, Expr, Expr]:
    """Variables for the batch, row and column that a result element's indices are made of."""
    return variable("q", prod(p.batch)), variable("m", p.m), variable("n", p.n)


def matmul_group(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> MatmulGroup | None:
    found = [
        k
        for k, op in enumerate(ops)
        if (t := op.definition.trait(Contraction)) is not None and t.kind == "matmul"
    ]
    if len(found) != 1 or not outputs:
        return None
    anchor = ops[found[0]]
    needed = {anchor.reads[0], anchor.reads[1]}
    before = []
    for op in reversed(ops[: found[0]]):
        if needed.intersection(op.outputs):
            before.append(op)
            needed.update(op.reads)
    after = [op for op in ops if op is not anchor and op not in before]
    a, b, y = (graph.type(n) for n in (*anchor.reads[:2], anchor.outputs[0]))
    full = y.dims[: y.rank - (a.rank > 1) - (b.rank > 1)]
    rows = a.dims[-2] if a.rank > 1 else 1
    alone = prod(b.dims[:-2]) == 1
    p = MatmulGroup(
        graph, tuple(reversed(before)), anchor, tuple(after), tuple(outputs),
        () if alone else full, rows * prod(full) if alone else rows,
        b.dims[-1] if b.rank > 1 else 1, a.dims[-1],
    )  # fmt: skip
    fits = (
        y.dtype in (f32, f64)
        and min(prod(full), p.m, p.k) > 0
        and p.n > 1
        and all(op.has(Injective) or op.has(View) for op in before)
        and all(op.definition.compute is not None for op in before)
        and not any(graph.type(o).layout.is_blocked for o in outputs)
        and not set(outputs).intersection(o for op in before for o in op.outputs)
    )
    return p if fits and matmul_results(p) is not None else None


def matmul_results(p: MatmulGroup) -> list[Result] | None:
    return results(p.graph, p.after, p.result, p.outputs, p.result_at(*formal(p)))


def affine(value: Expr, variables: Sequence[Expr]) -> tuple[Buffer, dict[Expr, int], Expr] | None:
    """(buffer, stride per variable, remaining offset) of a plain load whose offset moves evenly
    along the variables."""
    if value.op != "load" or not isinstance(value.payload, Buffer):
        return None
    terms, _ = linear(value.args[0])
    moving = [v for v in variables if v.op == "var"]
    for atom in terms:
        if atom not in moving and not atom.free.isdisjoint(moving):
            return None
    rest = substitute(value.args[0], {v: index(0) for v in moving})
    return value.payload, {v: terms.get(v, 0) for v in variables}, rest


def pack_panels(b: Array, lanes: int, width: int, out: Array | None = None) -> Array:
    """Matrices [B, K, N] as panels [B][N / width][K][width], the last as wide as it needs to be in
    whole vectors, zeros behind the last column. b may be strided: every element is moved once."""
    count, k, n = b.shape
    full = n // width
    middle = full * width
    rest = -(-(n - middle) // lanes) * lanes
    out = room(out, count * k * (middle + rest), b.dtype).reshape(count, k * (middle + rest))
    panels = out[:, : k * middle].reshape(count, full, k, width)
    last = out[:, k * middle :].reshape(count, k, rest)
    last[:, :, n - middle :] = 0
    if b.strides[1] >= b.strides[2]:
        panels[...] = b[:, :, :middle].reshape(count, k, full, width).transpose(0, 2, 1, 3)
        last[:, :, : n - middle] = b[:, :, middle:]
        return out.reshape(-1)
    for i in range(count):  # columns lie as rows of memory
        for j in range(full):
            turned(b[i, :, j * width : (j + 1) * width].T, panels[i, j])
        if middle < n:
            turned(b[i, :, middle:].T, last[i, :, : n - middle])
    return out.reshape(-1)
