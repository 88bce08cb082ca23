"""Values for blobs of which a problem says the type alone.

Floats are normal, weights so small that sums of their products stay near 1. Integers are valid as
indices wherever they may be meant as such. All come from one table of random numbers, at places
that follow from the element's index: equal problems get equal values in every process, and any part
of a large constant can be had without the rest.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.types import DType, bf16, row_major_strides
from ..graph.ir import Blob, Deferred, Graph, Role

Array = npt.NDArray[Any]

_TABLE: Final = 65_537  # entries; a prime, so that no stride of a layout runs through a few of them
_STEP: Final = 7_919  # between the starts of two blobs


@cache
def _normal() -> Array:
    return np.random.default_rng(20_240_229).standard_normal(_TABLE).astype(np.float32)


def constant(graph: Graph, name: str, number: int) -> Blob:
    """The blob as a constant with made-up values, computed whenever somebody asks for them."""
    kind = graph.type(name)
    end, scale = _end(graph, name), _scale(kind.dims)

    def write(out: Array, where: tuple[slice, ...]) -> None:
        _fill(out, kind.dtype, kind.dims, where, number, end, scale)

    content = Deferred(kind.dtype.numpy, kind.dims, (), write)
    return Blob(name, kind, Role.CONSTANT, content)


def feed(graph: Graph, name: str, number: int) -> Array:
    """An array for an input of the graph, row-major. number: which of several sets of values."""
    kind = graph.type(name)
    out = np.empty(kind.dims, kind.dtype.numpy)
    _fill(out, kind.dtype, kind.dims, (), number, _end(graph, name), 1.0)
    return out


def _fill(
    out: Array, dtype: DType, dims: tuple[int, ...], where: tuple[slice, ...], number: int,
    end: int, scale: float,
) -> None:  # fmt: skip
    """The part of a tensor of `dims` that `where` chooses. end: integers are below it."""
    at = np.full((1,) * len(dims), number * _STEP % _TABLE, np.int32)
    for axis, (size, step) in enumerate(zip(dims, row_major_strides(dims), strict=True)):
        chosen = np.arange(size)[where[axis]] if axis < len(where) else np.arange(size)
        steps = (chosen * step % _TABLE).astype(np.int32)
        at = at + steps.reshape([-1 if k == axis else 1 for k in range(len(dims))])
    drawn = _normal()[at % _TABLE]
    if dtype is bf16:
        out[...] = (drawn * np.float32(scale)).view(np.uint32) >> 16
    elif dtype.is_float:
        out[...] = drawn * np.float32(scale)
    elif dtype.kind == "b":
        out[...] = drawn > 0
    else:
        out[...] = (np.abs(drawn) * 1e4).astype(np.int64) % end


def _scale(dims: tuple[int, ...]) -> float:
    """The share of the largest axis is what is summed up, about."""
    largest = max(dims, default=1)
    terms = int(np.prod(dims, dtype=np.int64)) // max(largest, 1)
    return 1.0 if len(dims) < 2 or terms < 1 else float(1 / np.sqrt(terms))


def _end(graph: Graph, name: str) -> int:
    """What integers stay below: the extent of the axis that a reader of the blob works along, or
    the least extent that it knows."""
    found = [128]
    for op in graph.consumers[name]:
        others = [graph.type(n) for n in (*op.reads, *op.outputs) if n != name]
        axis, first = op.attributes.get("axis"), graph.type(op.reads[0])
        if isinstance(axis, int) and -first.rank <= axis < first.rank:
            found.append(first.dims[axis])
        else:
            found += [d for t in others for d in t.dims]
    return max(min(found), 1)
