"""Boxes of a buffer, as the unit of Hopper GPUs sees them that copies whole tiles (TMA).

A copy names the box by the coordinates of its first element; the unit computes addresses, fills
with zeros what lies outside of the tensor (also at negative coordinates), and completes a barrier
in shared memory when all bytes are there. What the tensor looks like stands in a descriptor of 128
bytes, which the driver encodes for an address and which is a parameter of the kernel.

In shared memory a box is dense, its innermost axis first. With a swizzle of 128 bytes, rows of 128
bytes have their 16-byte words exchanged: word w of row r lies in place w xor r % 8. So eight rows
of one column lie in different banks. The driver takes shorter rows as well, and does not say
whether these are dense then: nobody asks for them.
"""

from __future__ import annotations

from typing import Final

from .ir import TensorMap

MOST_AXES: Final = 5
WORD: Final = 16  # bytes that everything is a multiple of: addresses, strides, rows of boxes
MOST_BOX: Final = 256  # elements along one axis
MOST_STEP: Final = 8
MOST_DIM: Final = 1 << 31  # places of boxes are numbers of 32 bits with a sign
MOST_STRIDE: Final = 1 << 40  # bytes


def objection(t: TensorMap) -> str:
    """Why the unit does not take a tensor, "" where it does."""
    ones = (1,) * len(t.box)
    row = t.box[0] * t.buffer.dtype.bytes if t.box else 0
    if not 1 <= len(t.dims) <= MOST_AXES:
        return f"{len(t.dims)} axes; it takes 1 to {MOST_AXES}"
    if len(t.box) != len(t.dims) or len(t.strides) != len(t.dims) - 1:
        return f"dims {t.dims}, strides {t.strides} and box {t.box} do not go together"
    if not all(1 <= d <= MOST_DIM for d in t.dims):
        return f"dims {t.dims} must be from 1 to {MOST_DIM}"
    if t.steps and (len(t.steps) != len(t.dims) or not all(1 <= s <= MOST_STEP for s in t.steps)):
        return f"steps {t.steps} must be from 1 to {MOST_STEP}, one for every axis"
    if not all(1 <= b * s <= MOST_BOX for b, s in zip(t.box, t.steps or ones, strict=True)):
        return f"the box {t.box} must reach over 1 to {MOST_BOX} elements along every axis"
    if not all(0 < s < MOST_STRIDE and s % WORD == 0 for s in t.strides):
        return f"the strides {t.strides} must be multiples of {WORD} bytes"
    if row % WORD:
        return f"rows of {row} bytes; they must be multiples of {WORD} bytes"
    if t.swizzle not in (0, 128) or (t.swizzle and row != t.swizzle):
        return f"rows of {row} bytes do not go with a swizzle of {t.swizzle} bytes"
    end = sum((d - 1) * s for d, s in zip(t.dims[1:], t.strides, strict=True))
    end += t.dims[0] * t.buffer.dtype.bytes
    return f"it ends at byte {end} of {t.buffer.nbytes}" if end > t.buffer.nbytes else ""
