"""Operands of an attention in shared memory: lines of terms, or of columns, a few at a time.

A line begins an odd number of pieces of 16 bytes behind the one before it, so that eight lines that
are read at once are in different banks, whatever their length. It is as long as matrix
instructions take it, in steps of 32 bytes, with zeros behind the last element; lines beyond the
operand are zeros altogether.

Where 16 bytes of a line are 16 bytes of a buffer they are copied asynchronously. Elsewhere (odd
sizes, keys that lie across memory, operands that are computed on the way) each thread loads
element by element and stores 16 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, const, index, logical_and, select, var
from ...ops.traverse import substitute
from ...ops.types import DType, boolean
from .gpu_mma_operands import numbered
from .ir import Call, Declare, If, Local, Set, Stmt, loop
from .pieces import Buffers, buffer_loads, stride, trip_count
from .vectors import aligned

PIECE: Final = 16  # bytes
STEP: Final = 2  # pieces that a matrix instruction takes of a line


def pitch_of(length: int, dtype: DType, unit: int = STEP) -> int:
    """Elements from one line of so many to the next."""
    return (_pieces(length, dtype, unit) | 1) * (PIECE // dtype.bytes)


def _pieces(length: int, dtype: DType, unit: int) -> int:
    return -(-length * dtype.bytes // (PIECE * unit)) * unit


class Lines:
    """A block's lines of an operand, `count` of them in each of `stages` tiles.

    element: of the operand, over blobs; lines: the loops over its lines; along: the loops within
    one. threads: of the block that copies. unit: pieces that a line's length is a multiple of.
    """

    def __init__(
        self, buffers: Buffers, name: str, element: Expr, lines: Sequence[Expr],
        along: Sequence[Expr], count: int, threads: int, stages: int, unit: int = STEP,
    ) -> None:  # fmt: skip
        self.lines, self.along = tuple(lines), tuple(along)
        self.count, self.threads, self.name = count, threads, name
        self.dtype = element.dtype
        self.chunk = PIECE // self.dtype.bytes
        self.total, self.length = (prod(map(trip_count, x)) for x in (lines, along))
        self.pieces = _pieces(self.length, self.dtype, unit)
        self.width, self.pitch = self.pieces * self.chunk, pitch_of(self.length, self.dtype, unit)
        self.size = count * self.pitch
        self.held = Local(name, self.dtype, (stages * self.size,), shared=True)
        self.word = Local(f"{name}_word", self.dtype, (self.chunk,))
        self.element = buffers.lower(element, None)
        self.by_piece = self._is_copied()

    def _read(self) -> Expr | None:
        """The load that an element is, but for zeros in some places."""
        e = self.element
        if e.op == "select" and e.args[2].is_const and e.args[2].payload == 0:
            e = e.args[1]
        return e if e.op == "load" else None

    def _is_copied(self) -> bool:
        """Whether pieces of lines are neighbours in memory, at a multiple of their size."""
        read = self._read()
        if read is None or self.length % self.chunk or len(self.along) != 1:
            return False
        (v,) = self.along
        if v.payload[1] or (read is not self.element and v in self.element.args[0].free):
            return False
        u, p = var("u", self.chunk), var("p", self.length // self.chunk)
        return aligned(substitute(read.args[0], {v: p * self.chunk + u}), u)

    @property
    def _by_line(self) -> bool:
        """Whether neighbouring threads copy from different lines, as neighbours in memory are."""
        if self.by_piece or not self.lines or not self.along:
            return False
        steps = [[stride(n.args[0], v) for n in buffer_loads(self.element)]
                 for v in (self.lines[-1], self.along[-1])]  # fmt: skip
        return steps[0].count(1) > steps[1].count(1)

    def declared(self) -> tuple[Stmt, ...]:
        return Declare(self.held), *(() if self.by_piece else (Declare(self.word),))

    def copied(
        self, thread: Expr, stage: Expr, first: Expr, where: Mapping[Expr, Expr]
    ) -> Stmt:  # fmt: skip
        """A thread's share of a tile that begins with line `first`. where: its batch."""
        pieces = self.count * self.pieces
        part = var(f"{self.name}_part", -(-pieces // self.threads))
        number = thread + part * self.threads
        line, piece = number // self.pieces, number % self.pieces
        if self._by_line:
            line, piece = number % self.count, number // self.count
        to = stage * self.size + line * self.pitch + piece * self.chunk
        by = self._by_piece if self.by_piece else self._by_element
        body = by(to, first + line, piece * self.chunk, where)
        if pieces % self.threads:
            body = (If(number < pieces, body),)
        return loop(part, body, "unroll")

    def _by_piece(
        self, to: Expr, line: Expr, place: Expr, where: Mapping[Expr, Expr]
    ) -> tuple[Stmt, ...]:
        value, inside = self._element(line, place, where)
        if value.op == "select":
            inside, value = logical_and(inside, value.args[0]), value.args[1]
        args = (self.held, to, value.payload, value.args[0], PIECE)
        if inside.is_const:
            return (Call("cp_async", args),)
        return (Call("cp_async_zero", (*args, inside)),)

    def _by_element(
        self, to: Expr, line: Expr, place: Expr, where: Mapping[Expr, Expr]
    ) -> tuple[Stmt, ...]:
        e = var(f"{self.name}_e", self.chunk)
        value, inside = self._element(line, place + e, where)
        taken = value if inside.is_const else select(inside, value, const(0, self.dtype))
        return (
            loop(e, (Set(self.word, (e,), taken),), "unroll"),
            Call("store_vector", (self.held, to, self.word, index(0), self.chunk)),
        )

    def _element(
        self, line: Expr, place: Expr, where: Mapping[Expr, Expr]
    ) -> tuple[Expr, Expr]:  # fmt: skip
        """An element of a line, and whether there is one."""
        inside = const(True, boolean)
        if self.total % self.count:
            inside = logical_and(inside, line < self.total)
        if self.length < self.width:
            inside = logical_and(inside, place < self.length)
        value = numbered(numbered(self.element, self.lines, line), self.along, place)
        return substitute(value, dict(where)), inside
