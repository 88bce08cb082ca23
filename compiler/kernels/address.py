"""Logical indices to flat element offsets, for every memory layout."""

from __future__ import annotations

from ...ops.expr import Expr, index
from ...ops.types import TensorType, row_major_strides


def offset(kind: TensorType, at: tuple[Expr, ...]) -> Expr:
    """The flat offset in elements of logical indices `at` in a tensor of type `kind`."""
    shape = kind.physical_shape
    where = at
    if kind.layout.is_blocked:
        a, b = kind.layout.axis, kind.layout.block
        where = (*at[:a], at[a] // b, *at[a + 1 :], at[a] % b)
    out = index(0)
    for i, s in zip(where, row_major_strides(shape), strict=True):
        out = out + i * s
    return out
