"""Operators that write updates into a copy of a tensor, at places known only at run time.

The updates are applied one after the other in row-major order, so the last of several to one place
stays; a kernel template does that. Places count from the end where negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from .indexing import check_elements, require_indices
from .operator import Opaque, operator, require, require_same_dtype
from .samples import Array, Case, Sampler
from .types import TensorType

_UPDATE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "none": lambda old, new: new,
    "add": np.add,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
}


def _check_update(data: TensorType, updates: TensorType, reduction: str) -> None:
    require_same_dtype(data, updates)
    require(reduction in _UPDATE, f"unknown reduction {reduction!r}; known are {list(_UPDATE)}")
    require(
        reduction == "none" or data.dtype.kind != "b",
        f"reduction {reduction!r} needs numbers, got {data}",
    )


@operator("scatter_elements", inputs=("data", "indices", "updates"),
          attrs={"axis": 0, "reduction": "none"}, traits=(Opaque("scatter"),))  # fmt: skip
class ScatterElements:
    """data with data[indices[i, j], j] (for axis 0, and so on) replaced by updates[i, j], or
    combined with it: reduction "none", "add", "mul", "min" or "max". ONNX: ScatterElements."""

    def infer(
        data: TensorType, indices: TensorType, updates: TensorType, *, axis: int, reduction: str
    ) -> TensorType:
        _check_update(data, updates, reduction)
        a = check_elements(data, indices, axis)
        require(
            indices.dims == updates.dims,
            f"indices {indices} and updates {updates} must have one shape",
        )
        require(data.dims[a] > 0 or indices.size == 0, f"axis {a} of {data} has nothing to index")
        return data.with_shape(data.dims)

    def reference(
        data: Array, indices: Array, updates: Array, *, axis: int, reduction: str
    ) -> Array:
        y = np.array(data)
        update = _UPDATE[reduction]
        a = axis % data.ndim
        for place in np.ndindex(*indices.shape):
            at = (*place[:a], indices[place], *place[a + 1 :])
            y[at] = update(y[at], updates[place])
        return y

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(5, 3), s.ints(2, 3, lo=-5, hi=5), s.numbers(2, 3))
        yield s.case(
            s.numbers(3, 7), s.ints(2, 13, lo=0, hi=7, dtype="i32"), s.numbers(2, 13), axis=1
        )
        for reduction in ("add", "mul", "min", "max"):
            yield s.case(
                s.numbers(2, 3, 5),
                s.ints(2, 1, 7, lo=-5, hi=5),
                s.numbers(2, 1, 7),
                axis=-1,
                reduction=reduction,
            )


@operator("scatter_nd", inputs=("data", "indices", "updates"), attrs={"reduction": "none"},
          traits=(Opaque("scatter"),))  # fmt: skip
class ScatterND:
    """data with the slices at the positions in the last axis of `indices` replaced by, or combined
    with, those of `updates`: reduction "none", "add", "mul", "min" or "max". ONNX: ScatterND."""

    def infer(
        data: TensorType, indices: TensorType, updates: TensorType, *, reduction: str
    ) -> TensorType:
        _check_update(data, updates, reduction)
        require_indices(indices)
        require(data.rank > 0 and indices.rank > 0, f"{data} and {indices} must have axes")
        depth = indices.dims[-1]
        require(
            1 <= depth <= data.rank,
            f"indices {indices} give {depth} positions, {data} has {data.rank} axes",
        )
        wanted = (*indices.dims[:-1], *data.dims[depth:])
        require(
            updates.dims == wanted,
            f"updates {updates} must have shape {list(wanted)} for {data} and {indices}",
        )
        require(
            min(data.dims[:depth]) > 0 or indices.size == 0, f"axes of {data} have nothing to index"
        )
        return data.with_shape(data.dims)

    def reference(data: Array, indices: Array, updates: Array, *, reduction: str) -> Array:
        y = np.array(data)
        update = _UPDATE[reduction]
        for place in np.ndindex(*indices.shape[:-1]):
            at = tuple(indices[place])
            y[at] = update(y[at], updates[place])
        return y

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(7), s.ints(3, 1, lo=-7, hi=7), s.numbers(3))
        yield s.case(s.numbers(5, 3), s.ints(2, 2, 1, lo=0, hi=5, dtype="i32"), s.numbers(2, 2, 3))
        for reduction in ("add", "mul", "min", "max"):
            yield s.case(
                s.numbers(3, 2, 5), s.ints(7, 2, lo=-2, hi=2), s.numbers(7, 5), reduction=reduction
            )
