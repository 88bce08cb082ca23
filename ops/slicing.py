"""Operators that cut and join tensors: slice, split, concat, pad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

import numpy as np

from .creation import require_fits
from .expr import Expr, const, logical_and, maximum, minimum, mod, select
from .operator import (
    REQUIRED,
    Builder,
    Injective,
    Opaque,
    TensorArg,
    Value,
    normal_axes,
    normal_axis,
    operator,
    require,
    require_same_dtype,
)
from .samples import Array, Case, Sampler
from .types import TensorType, boolean

At = Callable[..., Expr]
Ints = tuple[int, ...]

# --------------------------------------------------------------------------- slice


def _ranges(
    dims: Ints, starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None
) -> list[tuple[int, int, int]]:
    """(first index, step, count) per axis of the input. Raises OperatorError."""
    along = tuple(range(len(starts))) if axes is None else axes
    by = (1,) * len(starts) if steps is None else steps
    require(
        len(starts) == len(ends) == len(along) == len(by),
        f"starts {list(starts)}, ends {list(ends)}, axes {list(along)} and steps {list(by)} "
        "must have one length",
    )
    out = [(0, 1, d) for d in dims]
    for a, start, end, step in zip(normal_axes(along, len(dims)), starts, ends, by, strict=True):
        require(step != 0, f"the step along axis {a} is 0")
        d = dims[a]
        first, last = (0, d) if step > 0 else (-1, d - 1)
        lo = min(max(start + d if start < 0 else start, max(first, 0)), last)
        hi = min(max(end + d if end < 0 else end, first), last)
        out[a] = (lo, step, max(0, -((lo - hi) // step)))
    return out


@operator("slice", attrs={"starts": REQUIRED, "ends": REQUIRED, "axes": None, "steps": None},
          traits=(Injective(),))  # fmt: skip
class Slice:
    """Elements starts[k] to ends[k] (exclusive) by steps[k] along axes[k]. ONNX: Slice.

    Negative positions count from the end and positions outside are clamped, as Python slices do.
    """

    def infer(
        x: TensorType, *, starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None
    ) -> TensorType:
        return x.with_shape(n for _, _, n in _ranges(x.dims, starts, ends, axes, steps))

    def compute(
        out: TensorType, x: TensorArg, *, starts: Ints, ends: Ints, axes: Ints | None,
        steps: Ints | None,
    ) -> At:  # fmt: skip
        ranges = _ranges(x.shape, starts, ends, axes, steps)
        return lambda *idx: x[
            tuple(i * step + lo for i, (lo, step, _) in zip(idx, ranges, strict=True))
        ]

    def reference(
        x: Array, *, starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None
    ) -> Array:
        cut = [slice(None)] * x.ndim
        for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
            cut[axes[k] if axes else k] = slice(start, end, steps[k] if steps else 1)
        return x[tuple(cut)]

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(7, 13), starts=(1, 2), ends=(5, 11))
        yield s.case(s.numbers(7, 13), starts=(-3,), ends=(1 << 62,), axes=(-1,))
        yield s.case(s.numbers(3, 17), starts=(15,), ends=(2,), axes=(1,), steps=(-3,))
        yield s.case(s.numbers(7, 3), starts=(-1, 0), ends=(-(1 << 62), 99), steps=(-1, 2))
        yield s.case(s.numbers(5, 3), starts=(-99,), ends=(-1,), axes=(0,), steps=(2,))
        yield s.case(s.numbers(5, 3), starts=(4,), ends=(2,))
        yield s.case(s.numbers(5, 3), starts=(99,), ends=(-99,), steps=(-4,))
        yield s.case(s.numbers(0, 3), starts=(0,), ends=(-5,), steps=(-1,))


# --------------------------------------------------------------------------- concat and split


@operator("concat", inputs=("xs*",), attrs={"axis": REQUIRED},
          traits=(Injective(), Opaque("concat")))  # fmt: skip
class Concat:
    """The inputs one after the other along `axis`. ONNX: Concat."""

    def infer(*xs: TensorType | None, axis: int) -> TensorType:
        require(bool(xs) and None not in xs, "needs at least one input, and none of them absent")
        parts = [x for x in xs if x is not None]
        require_same_dtype(*parts)
        first = parts[0]
        a = normal_axis(axis, first.rank)
        for x in parts[1:]:
            require(
                x.rank == first.rank
                and x.dims[:a] + x.dims[a + 1 :] == first.dims[:a] + first.dims[a + 1 :],
                f"{x} and {first} differ along another axis than {a}",
            )
        return first.with_shape(
            sum(x.dims[a] for x in parts) if k == a else d for k, d in enumerate(first.dims)
        )

    def compute(out: TensorType, *xs: TensorArg, axis: int) -> At:
        a = axis % out.rank
        ends = list(accumulate(x.shape[a] for x in xs))

        def at(*idx: Expr) -> Expr:
            def pick(lo: int, hi: int) -> Expr:
                # halving keeps the tree of selects shallow for any number of inputs
                if hi - lo == 1:
                    start = ends[lo] - xs[lo].shape[a]
                    return xs[lo][(*idx[:a], idx[a] - start, *idx[a + 1 :])]
                middle = (lo + hi) // 2
                return select(idx[a] < ends[middle - 1], pick(lo, middle), pick(middle, hi))

            return pick(0, len(xs))

        return at

    def reference(*xs: Array, axis: int) -> Array:
        return np.concatenate(xs, axis)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3), s.numbers(2, 5), axis=1)
        yield s.case(s.numbers(1, 3, 2), s.numbers(7, 3, 2), s.numbers(2, 3, 2), axis=0)
        yield s.case(s.numbers(2, 3, 1), s.numbers(2, 3, 0), s.numbers(2, 3, 17), axis=-1)
        yield s.case(s.numbers(1, 3, 5), axis=1)
        yield s.case(*(s.numbers(2, k, 3) for k in (1, 3, 2, 5, 1)), axis=-2)


@operator("split", attrs={"axis": 0, "split": REQUIRED}, traits=(Injective(),))
class Split:
    """Consecutive parts of x along `axis`, of the extents in `split`. ONNX: Split."""

    def infer(x: TensorType, *, axis: int, split: Ints) -> tuple[TensorType, ...]:
        a = normal_axis(axis, x.rank)
        require(
            bool(split) and min(split) >= 0,
            f"split {list(split)} must hold extents that are not negative",
        )
        require(
            sum(split) == x.dims[a],
            f"split {list(split)} adds up to {sum(split)}, axis {a} of {x} has {x.dims[a]}",
        )
        return tuple(x.with_shape((*x.dims[:a], n, *x.dims[a + 1 :])) for n in split)

    def compute(
        out: tuple[TensorType, ...], x: TensorArg, *, axis: int, split: Ints
    ) -> tuple[At, ...]:
        a = axis % x.rank

        def part(start: int) -> At:
            return lambda *idx: x[(*idx[:a], idx[a] + start, *idx[a + 1 :])]

        return tuple(part(sum(split[:k])) for k in range(len(split)))

    def reference(x: Array, *, axis: int, split: Ints) -> tuple[Array, ...]:
        return tuple(np.split(x, np.cumsum(split)[:-1], axis))

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(6, 3), split=(2, 4))
        yield s.case(s.numbers(2, 7, 3), axis=1, split=(1, 3, 0, 3))
        yield s.case(s.numbers(2, 13), axis=-1, split=(13,))
        yield s.case(s.numbers(2, 6), axis=-1, split=(2, 2, 2))


# --------------------------------------------------------------------------- pad


def _padding(dims: Ints, pads: Ints, axes: Ints | None) -> list[tuple[int, int]]:
    """(before, after) per axis of the input. Raises OperatorError."""
    along = tuple(range(len(dims))) if axes is None else normal_axes(axes, len(dims))
    require(
        len(pads) == 2 * len(along),
        f"pads {list(pads)} must hold a begin and an end for each of the {len(along)} axes",
    )
    out = [(0, 0)] * len(dims)
    for k, a in enumerate(along):
        out[a] = (pads[k], pads[len(along) + k])
    return out


def _fold(j: Expr, n: int, mode: str, reach: int) -> Expr:
    """The position in 0..n that position j of the padded axis copies; |j| overshoots by at most
    `reach`."""
    if mode == "edge":
        return maximum(minimum(j, n - 1), 0)
    if mode == "wrap":
        return mod(j, n)
    if n == 1:
        return j * 0
    if reach >= n:  # bounces several times
        period = 2 * (n - 1)
        j = mod(j, period)
        return minimum(j, period - j)
    j = maximum(j, -j)
    return minimum(j, 2 * (n - 1) - j)


@operator("pad", attrs={"pads": REQUIRED, "mode": "constant", "value": 0.0, "axes": None},
          traits=(Injective(),))  # fmt: skip
class Pad:
    """x with elements added before and after each axis; negative pads crop. ONNX: Pad.

    pads: all begins, then all ends, of `axes` (all axes when absent). mode: "constant" (`value`),
    "reflect" (without repeating the border), "edge" or "wrap". Cropping happens first.
    """

    def infer(
        x: TensorType, *, pads: Ints, mode: str, value: float, axes: Ints | None
    ) -> TensorType:
        require(mode in ("constant", "reflect", "edge", "wrap"), f"unknown mode {mode!r}")
        require_fits(value, x.dtype)
        dims = []
        for a, (before, after) in enumerate(_padding(x.dims, pads, axes)):
            kept = x.dims[a] + min(before, 0) + min(after, 0)
            require(kept >= 0, f"pads {before} and {after} crop more than axis {a} of {x} has")
            require(
                kept > 0 or mode == "constant" or max(before, after) <= 0,
                f"axis {a} of {x} has no elements left to pad with in mode {mode!r}",
            )
            dims.append(kept + max(before, 0) + max(after, 0))
        return x.with_shape(dims)

    def compute(
        out: TensorType, x: TensorArg, *, pads: Ints, mode: str, value: float, axes: Ints | None
    ) -> At:
        padding = _padding(x.shape, pads, axes)

        def at(*idx: Expr) -> Expr:
            inside = const(True, boolean)
            where = []
            for i, d, (before, after) in zip(idx, x.shape, padding, strict=True):
                kept = d + min(before, 0) + min(after, 0)
                crop, j = max(-before, 0), i - max(before, 0)
                if mode == "constant":
                    inside = logical_and(inside, logical_and(j >= 0, j < kept))
                elif max(before, after) > 0:
                    j = _fold(j, kept, mode, max(before, after))
                where.append(j + crop)
            return select(inside, x[tuple(where)], const(value, x.type.dtype))

        return at

    def reference(x: Array, *, pads: Ints, mode: str, value: float, axes: Ints | None) -> Array:
        padding = _padding(x.shape, pads, axes)
        x = x[
            tuple(
                slice(max(-b, 0), d - max(-a, 0))
                for d, (b, a) in zip(x.shape, padding, strict=True)
            )
        ]
        more = [(max(b, 0), max(a, 0)) for b, a in padding]
        if mode == "constant":
            return np.pad(x, more, constant_values=x.dtype.type(value))
        return np.pad(x, more, mode=mode)  # type: ignore[call-overload,no-any-return]

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 5), pads=(1, 2, 0, 3))
        yield s.case(s.numbers(1, 2, 7), pads=(3, 1), axes=(-1,), value=1.0)
        yield s.case(s.numbers(7, 5), pads=(-1, 2, -2, -3), value=2.0)
        for mode in ("reflect", "edge", "wrap"):
            yield s.case(s.numbers(3, 5), pads=(2, 0, 1, 4), mode=mode)
            yield s.case(s.numbers(3, 7), pads=(-1, 9, 1, -2), mode=mode)
            yield s.case(s.numbers(1, 3), pads=(2, 5, 1, 11), mode=mode)
        yield s.case(s.numbers(0, 3), pads=(1, 0, 1, 0))


@operator("center_crop_pad", attrs={"shape": REQUIRED, "axes": None})
class CenterCropPad:
    """Crops or zero-pads around the middle to the extents `shape` of `axes`. ONNX: CenterCropPad.

    An odd element is cut, or added, at the end.
    """

    def infer(x: TensorType, *, shape: Ints, axes: Ints | None) -> TensorType:
        pads = _centered(x.dims, shape, axes)
        return x.with_shape(d + sum(p) for d, p in zip(x.dims, pads, strict=True))

    def decompose(b: Builder, x: Value, *, shape: Ints, axes: Ints | None) -> Value:
        pads = _centered(x.type.dims, shape, axes)
        out: Value = b.op("pad", x, pads=(*(p for p, _ in pads), *(p for _, p in pads)))
        return out

    def reference(x: Array, *, shape: Ints, axes: Ints | None) -> Array:
        for size, a in zip(shape, range(x.ndim) if axes is None else axes, strict=True):
            d = x.shape[a]
            if d >= size:
                x = np.take(x, np.arange((d - size) // 2, (d - size) // 2 + size), a)
            else:
                more = [(0, 0)] * x.ndim
                more[a] = ((size - d) // 2, (size - d + 1) // 2)
                x = np.pad(x, more)
        return x

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(7, 5, 3), shape=(4, 8, 3))
        yield s.case(s.numbers(7, 5, 3), shape=(10, 2), axes=(0, -1))
        yield s.case(s.numbers(6, 1), shape=(3, 2))


def _centered(dims: Ints, shape: Ints, axes: Ints | None) -> list[tuple[int, int]]:
    """(before, after) padding per axis, negative where it crops. Raises OperatorError."""
    along = normal_axes(range(len(dims)) if axes is None else axes, len(dims))
    require(len(shape) == len(along), f"shape {list(shape)} must give {len(along)} extents")
    require(min(shape, default=0) >= 0, f"shape {list(shape)} has a negative extent")
    out = [(0, 0)] * len(dims)
    for size, a in zip(shape, along, strict=True):
        gap = abs(size - dims[a])
        sign = 1 if size > dims[a] else -1
        out[a] = (sign * (gap // 2), sign * (gap - gap // 2))
    return out
