"""Memory for constants: arrays that start where kernels want them."""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ALIGNMENT: Final = 64
"""Bytes of a cache line and of the widest vector: where a kernel's buffers start."""

LARGE_PAGE: Final = 2 << 20
"""Bytes of a page that one entry of the tables that translate addresses reaches, where the system
has any larger than the usual ones."""


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised row-major array whose first byte lies on a cache line."""
    kind = np.dtype(dtype)
    nbytes = prod(shape) * kind.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(kind).reshape(shape)


def paged_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The same in large pages, if it fills one and the system has them. Kernels that read a few
    lines from each of many places then wait for memory only, not for where it is, too.

    Raises MemoryError.
    """
    kind = np.dtype(dtype)
    nbytes = prod(shape) * kind.itemsize
    if nbytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned_empty(shape, dtype)
    whole = (nbytes + LARGE_PAGE // 2) // LARGE_PAGE * LARGE_PAGE  # one more where half is used
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, max(whole, nbytes) + LARGE_PAGE, flags=flags)
    except OSError as e:
        raise MemoryError(f"no memory for {nbytes} bytes: {e}") from e
    raw = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % LARGE_PAGE
    with suppress(OSError):  # a system without large pages
        memory.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return raw[start : start + nbytes].view(kind).reshape(shape)


def freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, which from now on nobody can change, through its owner neither."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        owner = owner.base
    return array
