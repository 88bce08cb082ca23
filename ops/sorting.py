"""Operators over the order of elements along one axis: arg max, top k, running sums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .operator import (
    REQUIRED,
    Builder,
    Opaque,
    Value,
    normal_axis,
    operator,
    require,
)
from .pointwise import require_floats
from .samples import Array, Case, Sampler
from .types import TensorType, i64

# --------------------------------------------------------------------------- arg max, arg min

_ARG_ATTRS = {"axis": 0, "keepdims": 1, "select_last_index": 0}


def _infer_arg(x: TensorType, *, axis: int, keepdims: int, select_last_index: int) -> TensorType:
    require(x.dtype.kind != "b", f"needs numbers, got {x}")
    a = normal_axis(axis, x.rank)
    require(x.dims[a] > 0, f"axis {a} of {x} is empty: there is no index to return")
    kept = (1,) if keepdims else ()
    return TensorType(i64, (*x.dims[:a], *kept, *x.dims[a + 1 :]))


def _arg_samples(s: Sampler) -> Iterator[Case]:
    yield s.case(s.numbers(5, 3))
    yield s.case(s.numbers(2, 7, 3), axis=-2, keepdims=0)
    yield s.case(s.numbers(3, 17, lo=0, hi=3), axis=1)
    yield s.case(s.numbers(3, 17, lo=0, hi=3), axis=1, select_last_index=1)
    yield s.case(np.round(s.numbers(13, 1)), axis=0, select_last_index=1, keepdims=0)


@operator("arg_max", attrs=_ARG_ATTRS, traits=(Opaque("argreduce"),))
class ArgMax:
    """Index of the largest element along `axis`, the first or the last of equal ones; a NaN counts
    as the largest. ONNX: ArgMax."""

    infer = staticmethod(_infer_arg)

    def reference(x: Array, *, axis: int, keepdims: int, select_last_index: int) -> Array:
        if select_last_index:
            i = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis, keepdims=bool(keepdims))
        else:
            i = np.argmax(x, axis, keepdims=bool(keepdims))
        return np.asarray(i, np.int64)

    samples = staticmethod(_arg_samples)


@operator("arg_min", attrs=_ARG_ATTRS, traits=(Opaque("argreduce"),))
class ArgMin:
    """Index of the smallest element along `axis`, the first or the last of equal ones; a NaN counts
    as the smallest. ONNX: ArgMin."""

    infer = staticmethod(_infer_arg)

    def reference(x: Array, *, axis: int, keepdims: int, select_last_index: int) -> Array:
        if select_last_index:
            i = x.shape[axis] - 1 - np.argmin(np.flip(x, axis), axis, keepdims=bool(keepdims))
        else:
            i = np.argmin(x, axis, keepdims=bool(keepdims))
        return np.asarray(i, np.int64)

    samples = staticmethod(_arg_samples)


@operator("hardmax", attrs={"axis": -1})
class Hardmax:
    """1 at the first largest element along `axis`, 0 elsewhere. ONNX: Hardmax."""

    def infer(x: TensorType, *, axis: int) -> TensorType:
        require_floats(x)
        a = normal_axis(axis, x.rank)
        require(x.dims[a] > 0, f"axis {a} of {x} is empty")
        return x.with_shape(x.dims)

    def decompose(b: Builder, x: Value, *, axis: int) -> Value:
        a = axis % x.type.rank
        places = np.arange(x.type.dims[a]).reshape(-1, *(1,) * (x.type.rank - 1 - a))
        hot = b.op("equal", b.op("arg_max", x, axis=a), b.constant(places))
        kind = x.type.dtype.numpy
        out: Value = b.op("where", hot, b.constant(np.ones((), kind)),
                          b.constant(np.zeros((), kind)))  # fmt: skip
        return out

    def reference(x: Array, *, axis: int) -> Array:
        y = np.zeros_like(x)
        np.put_along_axis(y, np.argmax(x, axis, keepdims=True), 1, axis)
        return y

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(3, 7))
        yield s.case(s.floats(2, 5, 3), axis=1)
        yield s.case(np.round(s.floats(17, 1)), axis=0)


# --------------------------------------------------------------------------- top k


@operator("top_k", attrs={"k": REQUIRED, "axis": -1, "largest": 1, "sorted": 1},
          traits=(Opaque("sort"),))  # fmt: skip
class TopK:
    """The k largest (or smallest) elements along `axis` in order, and their indices as i64.

    Of equal elements the one with the lower index comes first; NaN counts as the largest. With
    sorted=0 any order would do; the sorted one is given. ONNX: TopK.
    """

    def infer(
        x: TensorType, *, k: int, axis: int, largest: int, sorted: int
    ) -> tuple[TensorType, TensorType]:
        require(x.dtype.kind != "b", f"needs numbers, got {x}")
        a = normal_axis(axis, x.rank)
        require(0 <= k <= x.dims[a], f"k is {k}, axis {a} of {x} has {x.dims[a]} elements")
        values = x.with_shape((*x.dims[:a], k, *x.dims[a + 1 :]))
        return values, values.with_dtype(i64)

    def reference(x: Array, *, k: int, axis: int, largest: int, sorted: int) -> tuple[Array, Array]:
        n = x.shape[axis]
        if largest:  # a stable ascending sort of the reversed axis, read backwards
            order = n - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
        else:
            order = np.argsort(x, axis, kind="stable")
        places = np.take(order, np.arange(k), axis).astype(np.int64)
        return np.take_along_axis(x, places, axis), places

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 13), k=5)
        yield s.case(s.numbers(7, 2, 3), k=3, axis=0, largest=0)
        yield s.case(np.round(s.numbers(3, 17)), k=17, axis=1)
        yield s.case(np.round(s.numbers(3, 17)), k=9, axis=1, largest=0)
        yield s.case(s.numbers(5), k=1, sorted=0)


# --------------------------------------------------------------------------- running sums


@operator("cum_sum", attrs={"axis": REQUIRED, "exclusive": 0, "reverse": 0},
          traits=(Opaque("scan"),))  # fmt: skip
class CumSum:
    """Running sums along `axis`: without the element itself when exclusive, from the end when
    reverse. ONNX: CumSum."""

    def infer(x: TensorType, *, axis: int, exclusive: int, reverse: int) -> TensorType:
        require(x.dtype.kind != "b", f"needs numbers, got {x}")
        normal_axis(axis, x.rank)
        return x.with_shape(x.dims)

    def reference(x: Array, *, axis: int, exclusive: int, reverse: int) -> Array:
        y = np.moveaxis(np.flip(x, axis) if reverse else x, axis, -1)
        y = np.cumsum(y, -1, dtype=x.dtype)
        if exclusive:
            y = np.concatenate([np.zeros_like(y[..., :1]), y[..., :-1]], -1)
        y = np.moveaxis(y, -1, axis)
        return np.flip(y, axis) if reverse else y

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 7), axis=1)
        yield s.case(s.numbers(13, 2), axis=0, exclusive=1)
        yield s.case(s.numbers(2, 3, 5), axis=-2, reverse=1)
        yield s.case(s.numbers(2, 17), axis=-1, exclusive=1, reverse=1)
        yield s.case(s.numbers(1), axis=0)
