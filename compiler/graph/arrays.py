"""Memory for constants and arenas: arrays that start where kernels want them."""

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
"""Bytes that x86 and ARM translate at once, beside ordinary pages of a few KiB."""


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised row-major array whose first byte lies on a cache line."""
    kind = np.dtype(dtype)
    nbytes = prod(shape) * kind.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(kind).reshape(shape)


def large_empty(nbytes: int) -> npt.NDArray[np.uint8]:
    """Uninitialised bytes of their own, in large pages as far as those would be more than half
    used, if the system has them: neighbours in them are neighbours in the caches, too. Ordinary
    pages lie anywhere, and many of one buffer may share a few sets of the second cache.

    Raises MemoryError.
    """
    pages = (nbytes + LARGE_PAGE // 2) // LARGE_PAGE
    if not pages or not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned_empty((nbytes,), np.uint8)
    try:
        room = mmap.mmap(-1, nbytes + 2 * LARGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as e:
        raise MemoryError(str(e)) from e
    raw = np.frombuffer(room, np.uint8)
    start = -raw.ctypes.data % LARGE_PAGE
    with suppress(OSError):  # a kernel without large pages
        room.madvise(mmap.MADV_HUGEPAGE, start, pages * LARGE_PAGE)
    return raw[start : start + nbytes]


def freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, which from now on nobody can change, through its owner neither."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        owner = owner.base
    return array
