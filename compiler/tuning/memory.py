"""Blobs between logical arrays and the memory that kernels see: layouts, gaps, padding lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from ...ops.types import TensorType

Array = npt.NDArray[Any]


def store(flat: Array, kind: TensorType, value: Array) -> None:
    """Write a logical array as it lies in memory; gaps and padding lanes keep what they hold.

    flat: `kind.span` elements.
    """
    physical = _physical(flat, kind)
    if not kind.layout.is_blocked:
        physical[...] = value
        return
    a, b = kind.layout.axis, kind.layout.block
    lanes = np.moveaxis(physical, -1, a + 1)
    whole, rest = divmod(kind.dims[a], b)
    before: tuple[Any, ...] = (slice(None),) * a
    split = value[(*before, slice(0, whole * b))]
    lanes[(*before, slice(0, whole))] = split.reshape(*value.shape[:a], whole, b,
                                                      *value.shape[a + 1 :])  # fmt: skip
    if rest:
        lanes[(*before, whole, slice(0, rest))] = value[(*before, slice(whole * b, None))]


def logical(flat: Array, kind: TensorType) -> Array:
    """The logical array that lies in memory so."""
    physical = _physical(flat, kind)
    if not kind.layout.is_blocked:
        return physical
    a = kind.layout.axis
    lanes = np.moveaxis(physical, -1, a + 1)
    joined = lanes.reshape(*lanes.shape[:a], -1, *lanes.shape[a + 2 :])
    return joined[(*(slice(None),) * a, slice(0, kind.dims[a]))]


def _physical(flat: Array, kind: TensorType) -> Array:
    """The elements that are the blob's, as its layout orders them."""
    steps = tuple(s * flat.itemsize for s in kind.strides)
    return as_strided(flat, kind.physical_shape, steps)
