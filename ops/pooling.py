"""Pooling over sliding windows and over all spatial axes, and the inverse of max pooling.

Half floats are added up in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .expr import Expr, binary, cast, compare, const, in_single, index, reduce, select, unary, var
from .operator import (
    REQUIRED,
    ChannelLocal,
    Opaque,
    Reduction,
    TensorArg,
    operator,
    require,
    require_float,
)
from .pointwise import power_of_positive
from .reduction import lowest
from .samples import Case, Sampler
from .types import TensorType, dtype_of, i64, row_major_strides
from .windows import WINDOW_ATTRS, Window, slide, spread, spread_pads

Array = npt.NDArray[Any]
At = Callable[..., Expr]

POOL_ATTRS: Final[dict[str, Any]] = {"kernel_shape": REQUIRED, **WINDOW_ATTRS, "ceil_mode": 0}
_NO_INDEX: Final = int(np.iinfo(np.int64).max)


def pool_window(x: TensorType | TensorArg | Array, kernel_shape: Any, **window: Any) -> Window:
    """The window of a pooling operator over x [N, C, spatial...]. Raises OperatorError."""
    shape = x.dims if isinstance(x, TensorType) else x.shape
    require(len(shape) >= 3, f"x must be [N, C, spatial...] with 1 or more spatial axes, "
                             f"got {list(shape)}")  # fmt: skip
    require(kernel_shape != (), "kernel_shape must not be empty")
    win = slide(tuple(shape[2:]), kernel_shape, **window)
    for p in (*zip(win.begin, win.extent, strict=True), *zip(win.end, win.extent, strict=True)):
        require(p[0] < p[1], f"pads {list(win.begin + win.end)} must be smaller than the window "
                             f"{list(win.extent)}")  # fmt: skip
    return win


def _pooled(x: TensorType, **window: Any) -> TensorType:
    return x.with_shape((*x.dims[:2], *pool_window(x, **window).output))


# --------------------------------------------------------------------------- maximum


@operator(
    "max_pool",
    attrs={**POOL_ATTRS, "storage_order": 0, "indices": False},
    traits=(Reduction(), ChannelLocal()),
)
class MaxPool:
    """Maximum of each window; padding never wins, NaN does. ONNX: MaxPool.

    indices: a second output, i64, says where the (first) maximum is: a flat position in the whole
    of x, its spatial axes in row-major order (storage_order 0) or column-major order (1).
    """

    def infer(
        x: TensorType, *, storage_order: int, indices: bool, **window: Any
    ) -> TensorType | tuple[TensorType, ...]:
        require(x.dtype.kind != "b", f"is not defined for bool, got {x}")
        require(storage_order in (0, 1), f"storage_order must be 0 or 1, got {storage_order}")
        out = _pooled(x, **window)
        return (out, out.with_dtype(i64)) if indices else out

    def compute(
        out: Any, x: TensorArg, *, storage_order: int, indices: bool, **window: Any
    ) -> At | tuple[At, At]:
        win = pool_window(x, **window)
        least = const(lowest(x.type.dtype), x.type.dtype)

        def largest(taps: tuple[Expr, ...], *at: Expr) -> Expr:
            places, inside = win.at(at[2:], taps)
            return reduce("max", taps, select(inside, x[at[0], at[1], *places], least))

        def value(*at: Expr) -> Expr:
            return largest(win.vars("r"), *at)

        def position(*at: Expr) -> Expr:
            taps = win.vars("p")
            places, inside = win.at(at[2:], taps)
            v = select(inside, x[at[0], at[1], *places], least)
            hit = compare("eq", v, largest(win.vars("r"), *at))
            if x.type.dtype.is_float:
                hit = hit | unary("isnan", v)
            flat = _flatten(places, row_major_strides(win.input))
            first = reduce("min", taps, select(inside & hit, flat, _NO_INDEX))
            if storage_order:
                first = _column_major(first, win.input)
            return (at[0] * x.shape[1] + at[1]) * prod(win.input) + first

        return (value, position) if indices else value

    def reference(x: Array, *, storage_order: int, indices: bool, **window: Any) -> Any:
        win = pool_window(x, **window)
        least = lowest(dtype_of(x.dtype))
        best = np.full((*x.shape[:2], *win.output), least, x.dtype)
        if not indices:
            for view in win.views(win.pad(x, least)):
                np.maximum(best, view, out=best)
            return best
        strides = row_major_strides(win.input[::-1])[::-1] if storage_order else (
            row_major_strides(win.input)
        )  # fmt: skip
        flat = sum(
            np.arange(n).reshape(-1, *(1,) * (win.rank - 1 - k)) * strides[k]
            for k, n in enumerate(win.input)
        ) + np.arange(prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * win.rank) * prod(win.input)
        where = np.full(best.shape, -1, np.int64)  # -1 until a tap inside the input is met
        values, places = win.views(win.pad(x, least)), win.views(win.pad(flat, -1))
        for v, p in zip(values, places, strict=True):
            better = (p >= 0) & ((where < 0) | (v > best) | (np.isnan(v) & ~np.isnan(best)))
            best = np.where(better, v, best)
            where = np.where(better, p, where)
        return best, where

    def samples(s: Sampler) -> Iterator[Case]:
        n = s.numbers
        yield s.case(n(2, 3, 9, 7), kernel_shape=3, strides=2, pads=1)
        yield s.case(n(1, 17, 6, 6), kernel_shape=(2, 2), strides=(2, 2))
        yield s.case(n(1, 2, 13), kernel_shape=(4,), strides=3, pads=(1, 2), ceil_mode=1)
        yield s.case(n(1, 3, 5, 4, 3), kernel_shape=(2, 3, 2), pads=(0, 1, 0, 1, 0, 1))
        yield s.case(n(1, 3, 9, 10), kernel_shape=(3, 2), dilations=(2, 3), strides=(1, 2))
        yield s.case(n(1, 3, 7, 8), kernel_shape=3, strides=2, auto_pad="SAME_UPPER")
        yield s.case(n(1, 3, 8, 7), kernel_shape=2, strides=(2, 1), auto_pad="SAME_LOWER")
        yield s.case(n(2, 3, 7, 5), kernel_shape=3, strides=2, pads=1, indices=True)
        yield s.case(n(2, 2, 5, 7, 3), kernel_shape=2, strides=(2, 1, 1), indices=True,
                     storage_order=1)  # fmt: skip
        ties = np.round(s.floats(1, 2, 6, 6, lo=0, hi=2)).astype(s.dtype.numpy)
        yield s.case(ties, kernel_shape=(3, 2), pads=1, indices=True)
        yield s.case(ties, kernel_shape=3, strides=2, ceil_mode=1, indices=True, storage_order=1)


def _flatten(places: tuple[Expr, ...], strides: tuple[int, ...]) -> Expr:
    total = index(0)
    for p, s in zip(places, strides, strict=True):
        total = total + p * s
    return total


def _column_major(flat: Expr, sizes: tuple[int, ...]) -> Expr:
    """A row-major position over `sizes` as a column-major one."""
    rows, columns = row_major_strides(sizes), row_major_strides(sizes[::-1])[::-1]
    return _flatten(tuple(flat // r % n for r, n in zip(rows, sizes, strict=True)), columns)


@operator(
    "max_unpool",
    inputs=("x", "indices"),
    attrs={"kernel_shape": (), "strides": 1, "pads": 0, "output_shape": ()},
    traits=(Opaque("unpool"),),
)
class MaxUnpool:
    """Zeros, except that element indices[i] of the flat result is x[i]. ONNX: MaxUnpool.

    output_shape: the shape of the result, [N, C, spatial...]; without it, the smallest one from
    which a pooling with kernel_shape, strides and pads makes x. A position outside the result is
    dropped; among equal positions the last one wins.
    """

    def infer(
        x: TensorType, indices: TensorType, *, kernel_shape: Any, strides: Any, pads: Any,
        output_shape: Any,
    ) -> TensorType:  # fmt: skip
        require(indices.dtype is i64, f"indices must be i64, got {indices}")
        require(x.dims == indices.dims, f"x {x} and indices {indices} must have one shape")
        return x.with_shape(_unpooled(x.dims, kernel_shape, strides, pads, output_shape))

    def reference(
        x: Array, indices: Array, *, kernel_shape: Any, strides: Any, pads: Any, output_shape: Any
    ) -> Array:
        shape = _unpooled(x.shape, kernel_shape, strides, pads, output_shape)
        out = np.zeros(prod(shape), x.dtype)
        where, values = indices.reshape(-1), x.reshape(-1)
        fits = (where >= 0) & (where < out.size)
        out[where[fits]] = values[fits]
        return out.reshape(shape)

    def samples(s: Sampler) -> Iterator[Case]:
        def spots(size: int, *shape: int) -> Array:
            return s.rng.permutation(size)[: prod(shape)].reshape(shape).astype(np.int64)

        n = s.numbers
        yield s.case(n(1, 2, 3, 3), spots(72, 1, 2, 3, 3), kernel_shape=2, strides=2)
        yield s.case(n(1, 1, 5), spots(13, 1, 1, 5), kernel_shape=3, strides=3, pads=1)
        yield s.case(n(2, 1, 2, 2), spots(50, 2, 1, 2, 2), output_shape=(2, 1, 5, 5))
        outside = np.array([[[3, -1, 99]]], np.int64)
        yield s.case(n(1, 1, 3), outside, output_shape=(1, 1, 7))


def _unpooled(
    dims: tuple[int, ...], kernel_shape: Any, strides: Any, pads: Any, output_shape: Any
) -> tuple[int, ...]:
    rank = len(dims) - 2
    require(rank >= 1, f"x must be [N, C, spatial...], got {list(dims)}")
    if output_shape:
        return spread(output_shape, rank + 2, "output_shape", 0)
    require(kernel_shape != (), "needs kernel_shape or output_shape")
    ks, ss = spread(kernel_shape, rank, "kernel_shape", 1), spread(strides, rank, "strides", 1)
    begin, end = spread_pads(pads, rank)
    sizes = tuple(
        (n - 1) * s + k - p - q for n, s, k, p, q in zip(dims[2:], ss, ks, begin, end, strict=True)
    )
    require(min(sizes) >= 1, f"pads {list(begin + end)} leave nothing of {list(dims)}")
    return (*dims[:2], *sizes)


# --------------------------------------------------------------------------- averages and norms


@operator(
    "average_pool",
    attrs={**POOL_ATTRS, "count_include_pad": 0},
    traits=(Reduction(), ChannelLocal()),
)
class AveragePool:
    """Mean of each window over its elements inside the input, or with count_include_pad inside the
    input and its padding. ONNX: AveragePool."""

    def infer(x: TensorType, *, count_include_pad: int, **window: Any) -> TensorType:
        require_float(x)
        return _pooled(x, **window)

    def compute(out: TensorType, x: TensorArg, *, count_include_pad: int, **window: Any) -> At:
        win = pool_window(x, **window)
        taps = win.vars()

        def at(n: Expr, c: Expr, *where: Expr) -> Expr:
            places, inside = win.at(where, taps)
            total = reduce("sum", taps, in_single(select(inside, x[n, c, *places], 0)))
            count = cast(win.count(where, bool(count_include_pad)), total.dtype)
            return cast(total / count, out.dtype)

        return at

    def reference(x: Array, *, count_include_pad: int, **window: Any) -> Array:
        win = pool_window(x, **window)
        total = sum(win.views(win.pad(x, 0)))
        counted = win.pad(np.ones(win.input, x.dtype), 0)
        if count_include_pad:
            # what ceil mode reaches beyond the padding does not count
            sizes = zip(win.begin, win.input, win.end, strict=True)
            counted[tuple(slice(sum(parts)) for parts in sizes)] = 1
        return np.asarray(total / sum(win.views(counted)))

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats
        yield s.case(f(2, 3, 9, 7), kernel_shape=3, strides=2, pads=1)
        yield s.case(f(2, 3, 9, 7), kernel_shape=3, strides=2, pads=1, count_include_pad=1)
        yield s.case(f(1, 17, 6, 6), kernel_shape=(2, 2), strides=(2, 2))
        yield s.case(f(1, 2, 13), kernel_shape=(4,), strides=3, pads=(1, 2), ceil_mode=1)
        yield s.case(f(1, 2, 12, 9), kernel_shape=4, strides=3, pads=(1, 2), ceil_mode=1,
                     count_include_pad=1)  # fmt: skip
        yield s.case(f(1, 3, 5, 4, 3), kernel_shape=(2, 3, 2), pads=(0, 1, 0, 1, 0, 1))
        yield s.case(f(1, 3, 9, 10), kernel_shape=(3, 2), dilations=(2, 3), pads=(2, 1))
        yield s.case(f(1, 3, 7, 8), kernel_shape=3, strides=2, auto_pad="SAME_UPPER")
        yield s.case(f(1, 3, 8, 7), kernel_shape=2, auto_pad="SAME_LOWER", count_include_pad=1)


def _powered(x: Expr, p: int) -> Expr:
    """|x| ** p."""
    if p == 1:
        return unary("abs", x)
    return x * x if p == 2 else binary("pow", unary("abs", x), float(p))


def _rooted(x: Expr, p: int) -> Expr:
    return power_of_positive(x, 1.0 / p)


@operator("lp_pool", attrs={**POOL_ATTRS, "p": 2}, traits=(Reduction(), ChannelLocal()))
class LpPool:
    """(sum of |x| ** p) ** (1 / p) of each window. ONNX: LpPool."""

    def infer(x: TensorType, *, p: int, **window: Any) -> TensorType:
        require_float(x)
        require(p >= 1, f"p must be at least 1, got {p}")
        return _pooled(x, **window)

    def compute(out: TensorType, x: TensorArg, *, p: int, **window: Any) -> At:
        win = pool_window(x, **window)
        taps = win.vars()

        def at(n: Expr, c: Expr, *where: Expr) -> Expr:
            places, inside = win.at(where, taps)
            power = _powered(in_single(x[n, c, *places]), p)
            return cast(_rooted(reduce("sum", taps, select(inside, power, 0)), p), out.dtype)

        return at

    def reference(x: Array, *, p: int, **window: Any) -> Array:
        win = pool_window(x, **window)
        return np.asarray(sum(win.views(win.pad(np.abs(x) ** p, 0))) ** (1.0 / p), x.dtype)

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats
        yield s.case(f(2, 3, 9, 7), kernel_shape=3, strides=2, pads=1)
        yield s.case(f(1, 3, 13), kernel_shape=4, p=1, strides=3, ceil_mode=1)
        yield s.case(f(1, 2, 7, 6), kernel_shape=(3, 2), p=3, dilations=(2, 1))
        yield s.case(f(1, 2, 5, 4, 3), kernel_shape=2, auto_pad="SAME_UPPER")


# --------------------------------------------------------------------------- whole planes


def _plane(x: TensorType) -> TensorType:
    require(x.rank >= 3, f"x must be [N, C, spatial...] with 1 or more spatial axes, got {x}")
    require(min(x.dims[2:]) >= 1, f"x {x} has an empty spatial axis")
    return x.with_shape((*x.dims[:2], *(1,) * (x.rank - 2)))


def _float_plane(x: TensorType) -> TensorType:
    require_float(x)
    return _plane(x)


def _over_plane(combine: str, x: TensorArg, term: Callable[[Expr], Expr] = lambda e: e) -> At:
    over = tuple(var(f"r{k}", n) for k, n in enumerate(x.shape[2:]))
    return lambda n, c, *_: reduce(combine, over, term(x[n, c, *over]))


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _global_samples(s: Sampler) -> Iterator[Case]:
    yield s.case(s.floats(2, 3, 7, 5))
    yield s.case(s.floats(1, 17, 4, 4))
    yield s.case(s.floats(3, 1, 13))
    yield s.case(s.floats(1, 2, 3, 4, 5))
    yield s.case(s.floats(1, 2, 1, 1))


@operator("global_average_pool", traits=(Reduction(), ChannelLocal()))
class GlobalAveragePool:
    """Mean over all spatial axes, which stay as size 1. ONNX: GlobalAveragePool."""

    infer = _float_plane
    samples = _global_samples

    def compute(out: TensorType, x: TensorArg) -> At:
        total, count = _over_plane("sum", x, in_single), prod(x.shape[2:])
        return lambda *where: cast(total(*where) / count, out.dtype)

    def reference(x: Array) -> Array:
        return np.asarray(x.mean(_spatial(x), keepdims=True))


@operator("global_max_pool", traits=(Reduction(), ChannelLocal()))
class GlobalMaxPool:
    """Maximum over all spatial axes, which stay as size 1. ONNX: GlobalMaxPool."""

    infer = _float_plane
    samples = _global_samples

    def compute(out: TensorType, x: TensorArg) -> At:
        return _over_plane("max", x)

    def reference(x: Array) -> Array:
        return np.asarray(x.max(_spatial(x), keepdims=True))


@operator("global_lp_pool", attrs={"p": 2}, traits=(Reduction(), ChannelLocal()))
class GlobalLpPool:
    """(sum of |x| ** p) ** (1 / p) over all spatial axes, which stay as size 1.
    ONNX: GlobalLpPool."""

    def infer(x: TensorType, *, p: int) -> TensorType:
        require(p >= 1, f"p must be at least 1, got {p}")
        return _float_plane(x)

    def compute(out: TensorType, x: TensorArg, *, p: int) -> At:
        total = _over_plane("sum", x, lambda e: _powered(in_single(e), p))
        return lambda *where: cast(_rooted(total(*where), p), out.dtype)

    def reference(x: Array, *, p: int) -> Array:
        return np.asarray((np.abs(x) ** p).sum(_spatial(x), keepdims=True) ** (1.0 / p), x.dtype)

    def samples(s: Sampler) -> Iterator[Case]:
        for p in (1, 2, 3):
            yield s.case(s.floats(2, 3, 7, 5), p=p)
        yield s.case(s.floats(1, 17, 13))
