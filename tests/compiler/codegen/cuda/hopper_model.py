"""What the asynchronous units of a Hopper GPU compute, in numpy: boxes of tensors with zeros around
them, the 128-byte swizzle, matrices behind descriptors of shared memory, and the places of an
accumulator's elements. As in the PTX ISA, "Asynchronous warpgroup level matrix" and "Tensors"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cuda.entry import DescribedTensor

ROW = 128  # bytes that a swizzle works on
ATOM = 1024  # bytes after which its pattern repeats


def swizzled(at: Any, swizzle: int) -> Any:
    """Where the bytes at offsets of shared memory lie: bits 4 to 6 are exchanged by bits 7 to 9."""
    return at ^ (at >> 7 & 7) << 4 if swizzle else at


def box_places(tensor: DescribedTensor, size: int, at: Sequence[int]) -> tuple[Any, Any]:
    """(offsets in the tensor in bytes, whether inside of it) of all elements of the box whose first
    one has the coordinates `at`, innermost first; both flat, as the box lies in shared memory."""
    pitches = (size, *tensor.strides)
    offset, inside = np.zeros((), np.int64), np.ones((), bool)
    steps = tensor.steps or (1,) * len(tensor.dims)
    axes = zip(tensor.dims, pitches, tensor.box, steps, at, strict=True)
    for d, pitch, extent, step, first in axes:
        where = first + np.arange(extent) * step
        held = (where >= 0) & (where < d)
        offset = (where * pitch)[:, None] + offset.reshape(1, -1)
        inside = held[:, None] & inside.reshape(1, -1)
        offset, inside = offset.reshape(-1), inside.reshape(-1)
    return offset, inside


def matrix_places(rows: int, along: int, size: int, across: bool, lead: int, step: int) -> Any:
    """Offsets in bytes [rows, along] of a swizzled matrix from its start, as a descriptor says.

    Elements of a row lie side by side in groups of eight rows, `step` bytes apart. across: those of
    a column do instead, in groups of eight columns, `step` bytes apart; `lead` bytes lie between
    stretches of 128 bytes of a column.
    """
    r, k = np.arange(rows)[:, None], np.arange(along)[None, :]
    if not across:
        return r // 8 * step + r % 8 * ROW + k * size
    wide = ROW // size
    return r // wide * lead + k // 8 * step + k % 8 * ROW + r % wide * size


def nearest_tf32(x: Any) -> Any:
    """Floats rounded to 10 bits behind the point, ties to even; infinities and NaN as they are."""
    words = x.view(np.uint32)
    rounded = (words + np.uint32(0xFFF) + (words >> 13 & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def accumulator_places(columns: int) -> tuple[Any, Any]:
    """(row, column) [128 threads, columns // 2 registers] of a warpgroup's 64 rows."""
    t = np.arange(128)[:, None]
    r = np.arange(columns // 2)[None, :]
    row = t // 32 * 16 + t % 32 // 4 + r // 2 % 2 * 8
    column = r // 4 * 8 + t % 4 * 2 + r % 2
    return row, column


def operand_places(terms: int) -> tuple[Any, Any]:
    """(row, term) [128 threads, terms // 4 registers] of the first of the two neighbours that a
    register holds of a left operand of 64 rows."""
    t = np.arange(128)[:, None]
    r = np.arange(terms // 4)[None, :]
    row = t // 32 * 16 + t % 32 // 4 + r % 2 * 8
    return row, r // 4 * 16 + r % 4 // 2 * 8 + t % 4 * 2
