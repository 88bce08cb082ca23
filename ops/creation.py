"""Operators whose results do not depend on any element of their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from .expr import Expr, cast, const, index, select
from .operator import REQUIRED, TensorArg, operator, require
from .samples import Array, Case, Sampler
from .types import DType, TensorType, bf16, boolean, dtype_of, i64

At = Callable[..., Expr]
Ints = tuple[int, ...]
Number = int | float | bool


def table(values: Ints, i: Expr) -> Expr:
    """values[i] as a tree of selects."""

    def pick(lo: int, hi: int) -> Expr:
        if hi - lo == 1:
            return index(values[lo])
        middle = (lo + hi) // 2
        return select(i < middle, pick(lo, middle), pick(middle, hi))

    return pick(0, len(values)) if values else index(0)


@operator("shape", attrs={"start": 0, "end": None})
class Shape:
    """The dimensions of x from `start` to `end` (exclusive, clamped), as i64. ONNX: Shape."""

    def infer(x: TensorType, *, start: int, end: int | None) -> TensorType:
        return TensorType(i64, (len(x.dims[start:end]),))

    def compute(out: TensorType, x: TensorArg, *, start: int, end: int | None) -> At:
        return lambda i: table(x.shape[start:end], i)

    def reference(x: Array, *, start: int, end: int | None) -> Array:
        return np.array(x.shape[start:end], np.int64)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3, 5))
        yield s.case(s.numbers(2, 3, 5, 7, 1), start=1, end=-1)
        yield s.case(s.numbers(2, 3), start=-1)
        yield s.case(s.numbers(2, 3), start=5, end=9)
        yield s.case(s.numbers())


@operator("size")
class Size:
    """The number of elements of x, an i64 scalar. ONNX: Size."""

    def infer(x: TensorType) -> TensorType:
        return TensorType(i64, ())

    def compute(out: TensorType, x: TensorArg) -> At:
        return lambda: index(x.type.size)

    def reference(x: Array) -> Array:
        return np.array(x.size, np.int64)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3, 5))
        yield s.case(s.numbers())
        yield s.case(s.numbers(3, 0))


def _writable(dtype: str) -> DType:
    kind = dtype_of(dtype)
    require(kind is not bf16, "constants of bf16 are not supported; use f32 and cast")
    return kind


def require_fits(value: Number, kind: DType) -> None:
    """Raises OperatorError when an integer type cannot hold the value."""
    if kind.is_integer:
        limits = np.iinfo(kind.numpy)
        require(
            math.isfinite(value) and limits.min <= value <= limits.max,
            f"{value} does not fit into {kind}",
        )


@operator("constant_of_shape", inputs=(), attrs={"shape": REQUIRED, "value": 0.0, "dtype": "f32"})
class ConstantOfShape:
    """A tensor filled with one value. ONNX: ConstantOfShape.

    dtype: a name such as "f32".
    """

    def infer(*, shape: Ints, value: Number, dtype: str) -> TensorType:
        kind = _writable(dtype)
        require(min(shape, default=0) >= 0, f"shape {list(shape)} has a negative dimension")
        require_fits(value, kind)
        return TensorType(kind, shape)

    def compute(out: TensorType, *, shape: Ints, value: Number, dtype: str) -> At:
        return lambda *idx: const(value, out.dtype)

    def reference(*, shape: Ints, value: Number, dtype: str) -> Array:
        return np.broadcast_to(np.asarray(value).astype(dtype_of(dtype).numpy), shape)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(shape=(2, 3))
        yield s.case(shape=(), value=-2.5)
        yield s.case(shape=(7,), value=3, dtype="i64")
        yield s.case(shape=(1, 13), value=True, dtype="bool")
        yield s.case(shape=(3, 0, 2), value=1)


@operator("range", inputs=(), attrs={"start": 0, "limit": REQUIRED, "delta": 1, "dtype": "i64"})
class Range:
    """start, start + delta, ... up to `limit` (exclusive). ONNX: Range.

    dtype: a name such as "i64". Floats are start + i * delta, rounded once per operation.
    """

    def infer(*, start: Number, limit: Number, delta: Number, dtype: str) -> TensorType:
        kind = _writable(dtype)
        require(kind is not boolean, "a range holds numbers, not bool")
        for name, v in (("start", start), ("limit", limit), ("delta", delta)):
            require(math.isfinite(v), f"{name} must be finite, got {v}")
            require(kind.is_float or v == int(v), f"{name} must be an integer for {kind}, got {v}")
        require(delta != 0, "delta must not be 0")
        require_fits(start, kind)
        n = _count(start, limit, delta)
        if n:
            require_fits(int(start) + (n - 1) * int(delta), kind)
        return TensorType(kind, (n,))

    def compute(out: TensorType, *, start: Number, limit: Number, delta: Number, dtype: str) -> At:
        if out.dtype.is_float:
            return lambda i: cast(i, out.dtype) * float(delta) + float(start)
        return lambda i: cast(i * int(delta) + int(start), out.dtype)

    def reference(*, start: Number, limit: Number, delta: Number, dtype: str) -> Array:
        kind = dtype_of(dtype)
        steps = np.arange(_count(start, limit, delta))
        if kind.is_float:
            return (steps * float(delta) + float(start)).astype(kind.numpy)
        return (steps * int(delta) + int(start)).astype(kind.numpy)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(limit=7)
        yield s.case(start=10, limit=-4, delta=-3, dtype="i32")
        yield s.case(start=1.0, limit=2.5, delta=0.25, dtype="f32")
        yield s.case(start=0.5, limit=-1.0, delta=-0.125, dtype="f64")
        yield s.case(start=3, limit=3)


def _count(start: Number, limit: Number, delta: Number) -> int:
    # exact: the float quotient of 0.3 / 0.1 would round up to one element too many, or too few
    return max(0, math.ceil((Fraction(limit) - Fraction(start)) / Fraction(delta)))
