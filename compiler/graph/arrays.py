"""Memory for constants: arrays that start where kernels want them."""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ALIGNMENT: Final = 64
"""Bytes of a cache line and of the widest vector: where a kernel's buffers start."""


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised row-major array whose first byte lies on a cache line."""
    kind = np.dtype(dtype)
    nbytes = prod(shape) * kind.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(kind).reshape(shape)


def freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, which from now on nobody can change, through its owner neither."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        owner = owner.base
    return array
