"""How a reduction starts and goes on: what templates that reduce have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...ops.expr import Expr, apply, binary, const
from ...ops.traverse import walk
from ...ops.types import DType, boolean

_START: Final = {"sum": 0.0, "prod": 1.0, "max": float("-inf"), "min": float("inf")}
_COMBINE: Final = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def reduces(values: Iterable[Expr]) -> list[Expr]:
    """Every `reduce` node, inner ones before those around them."""
    return [n for n in walk(*values) if n.op == "reduce"]


def identity(combine: str, dtype: DType) -> Expr:
    """The value that changes nothing it is combined with."""
    if dtype.is_float:
        return const(_START[combine], dtype)
    if dtype is boolean:
        return const(combine in ("min", "prod"), dtype)
    if combine in ("sum", "prod"):
        return const(int(combine == "prod"), dtype)
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0
    return const(low if combine == "max" else low + (1 << dtype.bits) - 1, dtype)


def combined(combine: str, acc: Expr, value: Expr) -> Expr:
    """acc with one more value; products are added in one rounding."""
    if value.dtype is boolean:
        return binary("or" if combine in ("max", "sum") else "and", acc, value)
    if combine == "sum" and value.op == "mul" and value.dtype.is_float:
        return apply("fma", (*value.args, acc), value.dtype)
    return binary(_COMBINE[combine], acc, value)


def across_lanes(combine: str, dtype: DType) -> str:
    """The operation of the Kernel IR that combines the lanes of a local."""
    if dtype is boolean:
        return "hmax" if combine in ("max", "sum") else "hmin"
    return f"h{combine}"
