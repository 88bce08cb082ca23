"""bfloat16 values between numpy's types: numpy has none, arrays hold their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def values_of(bits: Array) -> Array:
    """The values of bf16 bits, in float32: the same numbers."""
    return np.asarray(np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def bits_of(values: Array) -> Array:
    """The bits of the nearest bf16 values, ties to even; NaN stays NaN."""
    with np.errstate(all="ignore"):
        x = np.asarray(values, np.float32)
        raw = x.view(np.uint32)
        rounded = (raw + np.uint32(0x7FFF) + (raw >> 16 & np.uint32(1))) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)
