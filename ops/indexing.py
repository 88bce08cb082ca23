"""Operators that pick elements by index, or by their position relative to a diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from .expr import Expr, cast, compare, const, index, maximum, minimum, select
from .operator import REQUIRED, Injective, TensorArg, normal_axis, operator, require
from .samples import Array, Case, Sampler
from .types import TensorType, dtype_of, i32, i64

At = Callable[..., Expr]


def require_indices(*types: TensorType) -> None:
    """Raises OperatorError unless all hold i32 or i64."""
    for t in types:
        require(t.dtype in (i32, i64), f"indices must be i32 or i64, got {t}")


def position(raw: Expr, extent: int) -> Expr:
    """An index from data as a position in 0..extent: negative ones count from the end.

    Clamped, so that no index can read outside the tensor.
    """
    i = cast(raw, i64)
    return maximum(minimum(select(i < 0, i + extent, i), extent - 1), 0)


# --------------------------------------------------------------------------- gather


@operator("gather", inputs=("data", "indices"), attrs={"axis": 0}, traits=(Injective(),))
class Gather:
    """Slices of `data` along `axis`, one for each index. ONNX: Gather."""

    def infer(data: TensorType, indices: TensorType, *, axis: int) -> TensorType:
        require_indices(indices)
        require(data.rank > 0, f"cannot index the scalar {data}")
        a = normal_axis(axis, data.rank)
        require(data.dims[a] > 0 or indices.size == 0, f"axis {a} of {data} has nothing to index")
        return data.with_shape((*data.dims[:a], *indices.dims, *data.dims[a + 1 :]))

    def compute(out: TensorType, data: TensorArg, indices: TensorArg, *, axis: int) -> At:
        a, n = axis % data.rank, indices.rank

        def at(*idx: Expr) -> Expr:
            i = position(indices[idx[a : a + n]], data.shape[a])
            return data[(*idx[:a], i, *idx[a + n :])]

        return at

    def reference(data: Array, indices: Array, *, axis: int) -> Array:
        return np.take(data, indices, axis)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(7, 3), s.ints(5, lo=-7, hi=7))
        yield s.case(s.numbers(3, 5), s.ints(2, 3, lo=0, hi=5, dtype="i32"), axis=1)
        yield s.case(s.numbers(2, 13, 3), s.ints(lo=-13, hi=13), axis=-2)
        yield s.case(s.numbers(17), s.ints(1, 1, lo=0, hi=17))
        yield s.case(s.numbers(2, 3), s.ints(0), axis=1)


@operator("gather_elements", inputs=("data", "indices"), attrs={"axis": 0},
          traits=(Injective(),))  # fmt: skip
class GatherElements:
    """out[i, j] = data[indices[i, j], j] for axis 0, and so on. ONNX: GatherElements."""

    def infer(data: TensorType, indices: TensorType, *, axis: int) -> TensorType:
        a = check_elements(data, indices, axis)
        require(data.dims[a] > 0 or indices.size == 0, f"axis {a} of {data} has nothing to index")
        return data.with_shape(indices.dims)

    def compute(out: TensorType, data: TensorArg, indices: TensorArg, *, axis: int) -> At:
        a = axis % data.rank

        def at(*idx: Expr) -> Expr:
            i = position(indices[idx], data.shape[a])
            return data[(*idx[:a], i, *idx[a + 1 :])]

        return at

    def reference(data: Array, indices: Array, *, axis: int) -> Array:
        a = axis % data.ndim
        kept = tuple(slice(None) if k == a else slice(n) for k, n in enumerate(indices.shape))
        return np.take_along_axis(data[kept], indices, a)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(5, 3), s.ints(7, 3, lo=-5, hi=5))
        yield s.case(s.numbers(5, 3), s.ints(2, 13, lo=0, hi=3, dtype="i32"), axis=1)
        yield s.case(s.numbers(3, 2, 7), s.ints(1, 2, 4, lo=-7, hi=7), axis=-1)
        yield s.case(s.numbers(3), s.ints(1, lo=0, hi=3))


def check_elements(data: TensorType, indices: TensorType, axis: int) -> int:
    """The axis made non-negative, for an index tensor that runs along with `data`.

    Raises OperatorError where their shapes do not fit.
    """
    require_indices(indices)
    require(
        data.rank > 0 and data.rank == indices.rank,
        f"data {data} and indices {indices} must have one rank, at least 1",
    )
    a = normal_axis(axis, data.rank)
    for k, (n, d) in enumerate(zip(indices.dims, data.dims, strict=True)):
        require(k == a or n <= d, f"indices {indices} reach past axis {k} of {data}")
    return a


@operator("gather_nd", inputs=("data", "indices"), attrs={"batch_dims": 0}, traits=(Injective(),))
class GatherND:
    """Slices of `data`, each at the position that a row of `indices` gives. ONNX: GatherND.

    The last axis of `indices` holds positions along the first axes of `data` after batch_dims; the
    batch_dims leading axes of both run along.
    """

    def infer(data: TensorType, indices: TensorType, *, batch_dims: int) -> TensorType:
        require_indices(indices)
        b = batch_dims
        require(data.rank > 0 and indices.rank > 0, f"{data} and {indices} must have axes")
        require(
            0 <= b < min(data.rank, indices.rank),
            f"batch_dims {b} does not fit {data} and {indices}",
        )
        require(
            data.dims[:b] == indices.dims[:b],
            f"the first {b} axes of {data} and {indices} must agree",
        )
        depth = indices.dims[-1]
        require(
            1 <= depth <= data.rank - b,
            f"indices {indices} give {depth} positions, {data} has {data.rank - b} axes left",
        )
        indexed = data.dims[b : b + depth]
        require(min(indexed) > 0 or indices.size == 0, f"axes of {data} have nothing to index")
        return data.with_shape((*indices.dims[:-1], *data.dims[b + depth :]))

    def compute(out: TensorType, data: TensorArg, indices: TensorArg, *, batch_dims: int) -> At:
        b, lead, depth = batch_dims, indices.rank - 1, indices.shape[-1]

        def at(*idx: Expr) -> Expr:
            where = tuple(
                position(indices[(*idx[:lead], index(k))], data.shape[b + k]) for k in range(depth)
            )
            return data[(*idx[:b], *where, *idx[lead:])]

        return at

    def reference(data: Array, indices: Array, *, batch_dims: int) -> Array:
        b = batch_dims
        batches = prod(data.shape[:b])
        rows = indices.reshape(batches, -1, indices.shape[-1])
        parts = data.reshape(batches, *data.shape[b:])
        picked = [parts[k][tuple(rows[k].T)] for k in range(batches)]
        shape = (*indices.shape[:-1], *data.shape[b + indices.shape[-1] :])
        return np.reshape(np.array(picked, data.dtype), shape)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(5, 7), s.ints(3, 2, lo=-5, hi=5))
        yield s.case(s.numbers(5, 2, 3), s.ints(2, 4, 1, lo=0, hi=5))
        yield s.case(s.numbers(2, 3, 7), s.ints(2, 5, 1, lo=-3, hi=3), batch_dims=1)
        yield s.case(s.numbers(2, 3, 4, 5), s.ints(2, 3, 1, lo=0, hi=4), batch_dims=2)
        yield s.case(s.numbers(13), s.ints(1, lo=0, hi=13))


# --------------------------------------------------------------------------- one hot


@operator("one_hot", inputs=("indices", "values"), attrs={"depth": REQUIRED, "axis": -1},
          traits=(Injective(),))  # fmt: skip
class OneHot:
    """values[1] at the place that each index names along a new axis, values[0] elsewhere.

    Indices outside [-depth, depth) give no hot element. ONNX: OneHot.
    """

    def infer(indices: TensorType, values: TensorType, *, depth: int, axis: int) -> TensorType:
        require(indices.dtype.kind != "b", f"indices must be numbers, got {indices}")
        require(values.dims == (2,), f"values must be [off, on], got {values}")
        require(depth > 0, f"depth must be positive, got {depth}")
        a = normal_axis(axis, indices.rank + 1)
        return values.with_shape((*indices.dims[:a], depth, *indices.dims[a:]))

    def compute(
        out: TensorType, indices: TensorArg, values: TensorArg, *, depth: int, axis: int
    ) -> At:
        a = axis % out.rank

        def at(*idx: Expr) -> Expr:
            i = cast(indices[(*idx[:a], *idx[a + 1 :])], i64)
            hot = compare("eq", select(i < 0, i + depth, i), idx[a])
            return select(hot, values[index(1)], values[index(0)])

        return at

    def reference(indices: Array, values: Array, *, depth: int, axis: int) -> Array:
        i = np.asarray(indices).astype(np.int64)
        i = np.where(i < 0, i + depth, i)
        return np.moveaxis(np.where(i[..., None] == np.arange(depth), values[1], values[0]),
                           -1, axis)  # fmt: skip

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.ints(7, lo=-5, hi=5), s.numbers(2), depth=5)
        yield s.case(s.ints(2, 3, lo=-9, hi=9, dtype="i32"), s.numbers(2), depth=3, axis=1)
        yield s.case(s.ints(2, 3, lo=0, hi=4).astype(np.float32), s.numbers(2), depth=4, axis=0)
        yield s.case(s.ints(lo=0, hi=3), s.numbers(2), depth=3)


# --------------------------------------------------------------------------- diagonals


@operator("trilu", attrs={"upper": 1, "k": 0}, traits=(Injective(),))
class Trilu:
    """The upper (or lower) triangle of the last two axes, bounded by diagonal k; 0 elsewhere.

    ONNX: Trilu.
    """

    def infer(x: TensorType, *, upper: int, k: int) -> TensorType:
        require(x.rank >= 2, f"needs matrices, got {x}")
        require(isinstance(k, int), f"the diagonal k must be a whole number, got {k}")
        return x.with_shape(x.dims)

    def compute(out: TensorType, x: TensorArg, *, upper: int, k: int) -> At:
        def at(*idx: Expr) -> Expr:
            row, column = idx[-2], idx[-1]
            keep = row + k <= column if upper else column <= row + k
            return select(keep, x[idx], const(0, x.type.dtype))

        return at

    def reference(x: Array, *, upper: int, k: int) -> Array:
        return np.triu(x, k) if upper else np.tril(x, k)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(5, 7))
        yield s.case(s.numbers(2, 3, 3), upper=0)
        yield s.case(s.numbers(5, 3), k=-2)
        yield s.case(s.numbers(1, 3, 13), upper=0, k=4)
        yield s.case(s.numbers(3, 3), k=9)


@operator("eye_like", attrs={"dtype": None, "k": 0})
class EyeLike:
    """A matrix of x's shape with ones on diagonal k. ONNX: EyeLike.

    dtype: a name such as "f32"; x's own when absent.
    """

    def infer(x: TensorType, *, dtype: str | None, k: int) -> TensorType:
        require(x.rank == 2, f"needs a matrix, got {x}")
        return TensorType(x.dtype if dtype is None else dtype_of(dtype), x.dims)

    def compute(out: TensorType, x: TensorArg, *, dtype: str | None, k: int) -> At:
        one, zero = const(1, out.dtype), const(0, out.dtype)
        return lambda i, j: select(compare("eq", i + k, j), one, zero)

    def reference(x: Array, *, dtype: str | None, k: int) -> Array:
        kind = x.dtype if dtype is None else dtype_of(dtype).numpy
        return np.eye(x.shape[0], x.shape[1], k=k, dtype=kind)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 5))
        yield s.case(s.numbers(7, 3), k=-2, dtype="f32")
        yield s.case(s.numbers(1, 13), k=4, dtype="i64")
