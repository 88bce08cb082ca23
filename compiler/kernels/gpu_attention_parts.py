"""Attention over few rows of queries, its keys in parts: a block each, and a phase that puts their
results together ("flash-decoding" of Dao, Haziza, Massa and Sizov 2023).

While a sequence is decoded there is one row of every head, and its blocks would leave most of a GPU
idle, however many keys each of them reads. So the keys of a row fall into parts. A part's block
writes its sums as they are, with the greatest score that they were scaled by and the sum of its
powers. A thread of the second phase scales some neighbours of all parts to the greatest score of
all, adds them up from the first part to the last, and makes results of them: nothing depends on
which block is done first. A part none of whose keys counts has zeros and minus
infinity, and a row of such parts is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...ops.expr import Expr, binary, const, var
from ...ops.types import DType, f32
from .gpu_attention_problem import Attention
from .gpu_sharing import unflattened
from .ir import Buffer, Declare, Local, Phase, Set, Stmt, Store, loop

COUNTS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Parts worth trying."""
AT_ONCE: Final = (8, 4, 3, 2, 1)
"""Parts that a thread of the second phase reads at once, as many as go into all of them."""
SUMS: Final = 4  # of such a thread: 16 bytes
LOWEST: Final = float("-inf")

Results = Callable[[dict[Expr, Expr], Expr, Expr, Expr], tuple[Expr, Expr]]
"""From a batch (its loops), row, column and what a sum is there to the result and its place."""


def at_once(parts: int) -> int:
    return next(k for k in AT_ONCE if parts % k == 0)


def scratch_bytes(p: Attention, parts: int) -> int:
    """Of a launch: sums of all parts, and what they are scaled by."""
    return parts * p.batch * p.m * (p.width + 2) * f32.bytes if parts > 1 else 0


class Parts:
    """What blocks leave of their parts of the keys. part: the block's number of one."""

    def __init__(self, p: Attention, parts: int, part: Expr) -> None:
        self.p, self.parts, self.part = p, parts, part
        self.rows = p.batch * p.m
        self.sums = Buffer("s0", f32, parts * self.rows * p.width, "scratch")
        self.scales = Buffer("s1", f32, parts * self.rows * 2, "scratch")

    @property
    def scratch(self) -> tuple[Buffer, ...]:
        return self.sums, self.scales

    def place(self, batch: Expr, row: Expr, column: Expr) -> Expr:
        """Of one of the block's sums."""
        return (self.part * self.rows + batch * self.p.m + row) * self.p.width + column

    def scaled(self, batch: Expr, row: Expr, top: Expr, total: Expr) -> tuple[Stmt, ...]:
        """A row's greatest score and the sum of its powers are left as well."""
        at = (self.part * self.rows + batch * self.p.m + row) * 2
        return Store(self.scales, at, top), Store(self.scales, at + 1, total)

    def added(
        self, out: Buffer, kind: DType, result: Results, raised: Callable[[Expr], Expr]
    ) -> Phase:  # fmt: skip
        """The results of all parts; an item is a thread. raised: the power of a score."""
        p, rows = self.p, self.rows
        g = next(k for k in (SUMS, 2, 1) if p.width % k == 0)
        item, v = var("item", rows * p.width // g), var("v", g)
        row, column = item // (p.width // g), item % (p.width // g) * g
        top, total = (Local(n, f32) for n in ("top", "total"))
        scale, sums = Local("scale", f32), Local("sums", f32, (g,))
        made = Local("made", kind, (g,))
        high = top.value

        def each_part(name: str, body: Callable[[Expr], tuple[Stmt, ...]]) -> Stmt:
            few = at_once(self.parts)
            outer, inner = var(f"{name}_parts", self.parts // few), var(f"{name}_part", few)
            return loop(outer, (loop(inner, body(outer * few + inner), "unroll"),))

        def other(q: Expr, k: int) -> Expr:
            return self.scales[(q * rows + row) * 2 + k]

        where = unflattened(row // p.m, p.batches)
        value, to = result(where, row % p.m, column + v, sums[v] * scale.value)
        body: tuple[Stmt, ...] = (
            *map(Declare, (top, total, scale, sums, made)),
            Set(top, (), const(LOWEST, f32)),
            each_part("high", lambda q: (Set(top, (), binary("max", high, other(q, 0))),)),
            Set(total, (), const(0, f32)),
            loop(v, (Set(sums, (v,), const(0, f32)),), "unroll"),
            each_part("some", lambda q: (
                Set(scale, (), raised(other(q, 0) - high)),
                Set(total, (), total.value + other(q, 1) * scale.value),
                loop(v, (Set(sums, (v,), sums[v] + self.sums[
                    (q * rows + row) * p.width + column + v] * scale.value),), "unroll"),
            )),
            Set(scale, (), 1.0 / total.value),
            loop(v, (Set(made, (v,), value),), "unroll"),
            loop(v, (Store(out, to, made[v]),), "unroll"),
        )  # fmt: skip
        return Phase(item.payload[2], item, body)
