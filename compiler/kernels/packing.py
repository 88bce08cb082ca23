"""Weights on their way into the order in which kernels read them.

Panels hold a few rows of weights side by side, so packing turns rows into columns. Rows of weights
often lie powers of two apart, and would all meet in a few sets of the caches. So a few at a time
are first brought into a buffer whose rows lie an odd number of cache lines apart, small enough to
stay in the second cache. Weights that are computed are computed into it: they never lie in memory
as a whole.
"""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..graph.arrays import aligned_empty
from ..graph.ir import Deferred

Array = npt.NDArray[Any]
Weights = Array | Deferred

STAGE_BYTES: Final = 1 << 18
_LINE: Final = 64


class Stage:
    """A buffer for some rows of at most so many elements."""

    def __init__(self, rows: int, elements: int, dtype: npt.DTypeLike) -> None:
        each = _LINE // np.dtype(dtype).itemsize
        self._all = np.empty((rows, (-(-elements // each) | 1) * each), dtype)

    def rows(self, *shape: int) -> Array:
        """The first elements of the first rows, as an array of that shape."""
        return self._all[: shape[0], : prod(shape[1:])].reshape(shape)


def room(out: Array | None, elements: int, dtype: npt.DTypeLike) -> Array:
    """Flat memory for so many elements: `out` if it is that, new where it is None."""
    if out is None:
        return aligned_empty((elements,), dtype)
    if (out.shape, out.dtype) != ((elements,), dtype):
        raise ValueError(f"packing makes {dtype}[{elements}], not {out.dtype}{list(out.shape)}")
    return out


def write(w: Weights, out: Array, *where: slice) -> None:
    """out = w[where], for slices along the first axes."""
    if isinstance(w, Deferred):
        w.write(out, where)
    else:
        out[...] = w[where]


def staged(rows: int, width: int, itemsize: int, unit: int = 1) -> int:
    """How many times `unit` columns of `rows` rows go through the stage at once. width: elements
    per column."""
    return max(1, STAGE_BYTES // max(1, rows * width * itemsize * unit)) * unit


def turned(w: Array, out: Array) -> None:
    """out[k, n] = w[n, k]."""
    n, k = w.shape
    step = staged(n, 1, w.itemsize)
    stage = Stage(n, min(step, k), w.dtype)
    for lo in range(0, k, step):
        part = stage.rows(n, min(step, k - lo))
        part[...] = w[:, lo : lo + step]
        out[lo : lo + step] = part.T
