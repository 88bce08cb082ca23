"""Logical indices to flat element offsets, for every memory layout."""

from __future__ import annotations

from ...ops.expr import Expr, index
from ...ops.types import TensorType


def offset(kind: TensorType, at: tuple[Expr, ...]) -> Expr:
    """The distance in elements of logical indices `at` from the first element of a tensor."""
    where = at
    if kind.layout.is_blocked:
        a, b = kind.layout.axis, kind.layout.block
        where = (*at[:a], at[a] // b, *at[a + 1 :], at[a] % b)
    out = index(0)
    for i, s in zip(where, kind.strides, strict=True):
        out = out + i * s
    return out
