"""Sums of products in parts, whatever multiplies: what blocks leave of them, and a phase that adds
that up.

A long sum of few elements falls into parts where its tiles would leave most of a GPU idle. Each is
a block's, which writes its sums as they are; a thread of the second phase adds all parts of some
neighbours, from the first to the last, and makes results of them. So nothing depends on which block
is done first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from ...ops.expr import Expr, const, var
from ...ops.types import DType
from .gpu_model import LAUNCH, Chip
from .ir import Buffer, Declare, If, Local, Phase, Set, Stmt, Store, loop

SUMS: Final = 4  # in the second phase, of a thread: 16 bytes


@dataclass(frozen=True, slots=True)
class Element:
    """What is stored for one sum, and where."""

    value: Expr
    at: Expr


class Finished(Protocol):
    """What becomes of whole sums: elements of a type in `out`."""

    out: Buffer
    dtype: DType

    def element(self, total: Expr, batch: Expr, row: Expr, column: Expr) -> Element:
        """Of one sum."""

    def exists(self, row: Expr) -> Expr:
        """Whether there is such a row, where rows are numbered that do not exist."""


def rounds_of(rounds: int, parts: int) -> tuple[int, int]:
    """(rounds of a part, how many parts that takes): the last one may have fewer."""
    each = -(-rounds // parts)
    return each, -(-rounds // each)


def scratch_bytes(parts: int, sums: int, dtype: DType) -> int:
    """Of a launch: the parts of so many sums; none where they are in one."""
    return parts * sums * dtype.bytes if parts > 1 else 0


def adding(chip: Chip, scratch: int) -> float:
    """Seconds of the second phase, which reads what the first one wrote; 0 without scratch."""
    return LAUNCH + 2 * scratch / chip.cache if scratch else 0.0


class Parts:
    """Sums of a type as they are, part after part, of each batch after batch, row after row. part:
    the block's number of one."""

    def __init__(
        self, batch: int, rows: int, columns: int, dtype: DType, parts: int, part: Expr
    ) -> None:  # fmt: skip
        self.rows, self.columns = rows, columns
        self.dtype, self.parts, self.part = dtype, parts, part
        self.size = batch * rows * columns
        self.out = Buffer("s0", dtype, parts * self.size, "scratch")

    def element(self, total: Expr, batch: Expr, row: Expr, column: Expr) -> Element:
        """Of one sum."""
        at = self.part * self.size + (batch * self.rows + row) * self.columns + column
        return Element(total, at)

    def neighbours(self, count: int) -> bool:
        """Whether that many elements of a row, from a multiple of it on, are so in memory."""
        return self.columns % count == 0

    def added(self, results: Finished) -> Phase:
        """The results of all parts added up in order; an item is a thread."""
        g = next(k for k in (SUMS, 2, 1) if self.columns % k == 0)
        item, q, v = var("item", self.size // g), var("part", self.parts), var("v", g)
        sums, made = Local("total", self.dtype, (g,)), Local("made", results.dtype, (g,))
        row, column = item // (self.columns // g), item % (self.columns // g) * g
        batch, row = row // self.rows, row % self.rows
        e = results.element(sums[v], batch, row, column + v)
        more = sums[v] + self.out[q * self.size + item * g + v]
        body: tuple[Stmt, ...] = (
            loop(v, (Set(sums, (v,), const(0, self.dtype)),), "unroll"),
            loop(q, (loop(v, (Set(sums, (v,), more),), "unroll"),), "unroll"),
            loop(v, (Set(made, (v,), e.value),), "unroll"),
            loop(v, (Store(results.out, e.at, made[v]),), "unroll"),
        )
        there = results.exists(row)
        if not there.is_const:
            body = (If(there, body),)
        return Phase(self.size // g, item, (Declare(sums), Declare(made), *body))
