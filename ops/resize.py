"""Resampling at a regular grid of positions.

Positions are rational numbers, so they stay exact: position(x) = (slope * x + start) / unit in
integers, and the source index is a floor division that the index simplifier understands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from .creation import require_fits
from .expr import Expr, cast, const, floordiv, logical_and, maximum, minimum, mod, select
from .operator import ChannelLocal, TensorArg, operator, require, require_float
from .samples import Array, Case, Sampler
from .types import DType, TensorType, boolean

At = Callable[..., Expr]
Ints = tuple[int, ...]
Floats = tuple[float, ...]

_COORDINATES: Final = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_crop_and_resize",
)  # fmt: skip
_ROUNDING: Final = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_TAPS: Final = {"nearest": 1, "linear": 2, "cubic": 4}


# --------------------------------------------------------------------------- positions


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis is resampled: extents, scale, coordinate mode and crop window."""

    size: int
    out: int
    scale: Fraction
    mode: str
    roi: tuple[Fraction, Fraction]

    @property
    def untouched(self) -> bool:
        cropped = self.mode == "tf_crop_and_resize" and self.roi != (Fraction(0), Fraction(1))
        return self.size == self.out and self.scale == 1 and not cropped

    def position(self, x: int) -> Fraction:
        """Where output element x lies on the input axis. Affine in x."""
        half = Fraction(1, 2)
        if self.mode == "asymmetric":
            return x / self.scale
        if self.mode == "align_corners":
            return Fraction(x * (self.size - 1), self.out - 1) if self.out > 1 else Fraction(0)
        if self.mode == "tf_crop_and_resize":
            begin, end = self.roi
            if self.out > 1:
                return (begin + (end - begin) * x / (self.out - 1)) * (self.size - 1)
            return half * (begin + end) * (self.size - 1)
        if self.mode == "pytorch_half_pixel" and self.out <= 1:
            return Fraction(0)
        at = (x + half) / self.scale - half
        if self.mode == "half_pixel_symmetric":
            # the extents asked for may be rounded: keep the middle where it is
            at += Fraction(self.size, 2) * (1 - self.out / (self.scale * self.size))
        return at

    def line(self) -> tuple[int, int, int]:
        """Integers (slope, start, unit) with position(x) = (slope * x + start) / unit."""
        start = self.position(0)
        slope = self.position(1) - start
        unit = math.lcm(start.denominator, slope.denominator)
        return int(slope * unit), int(start * unit), unit


def rational(value: float) -> Fraction:
    """The simplest fraction that rounds to the same float32: 0.6 as a float32 means 3/5.

    So that 5 * 0.6 is 3, and positions on the border between two pixels stay there.
    """
    for limit in (1000, 1_000_000):
        simple = Fraction(value).limit_denominator(limit)
        if np.float32(simple) == np.float32(value):
            return simple
    return Fraction(value).limit_denominator(1 << 24)


def plan(
    dims: Ints, sizes: Ints | None, scales: Floats | None, mode: str, roi: Floats | None
) -> list[Axis]:
    """One Axis per axis. Raises OperatorError where attributes do not fit."""
    rank = len(dims)
    require(sizes is not None or scales is not None, "needs sizes or scales")
    for name, given in (("sizes", sizes), ("scales", scales)):
        require(given is None or len(given) == rank, f"{name} {given} must cover all {rank} axes")
    if sizes is not None:
        require(min(sizes, default=1) > 0, f"sizes {list(sizes)} must be positive")
    if scales is not None:
        require(
            all(math.isfinite(s) and s > 0 for s in scales),
            f"scales {list(scales)} must be positive",
        )
    require(
        mode in _COORDINATES,
        f"unknown coordinate_transformation_mode {mode!r}; known are {', '.join(_COORDINATES)}",
    )
    require(
        mode != "tf_crop_and_resize"
        or (roi is not None and len(roi) == 2 * rank and all(map(math.isfinite, roi))),
        f"tf_crop_and_resize needs a roi of {rank} begins and {rank} ends, got {roi}",
    )
    out = []
    for k, d in enumerate(dims):
        require(d > 0, f"axis {k} of a tensor of shape {list(dims)} is empty")
        factors = [rational(s) for s in scales] if scales is not None else []
        size = sizes[k] if sizes is not None else math.floor(factors[k] * d)
        require(size > 0, f"scale {scales} leaves nothing of axis {k} of shape {list(dims)}")
        scale = factors[k] if factors else Fraction(size, d)
        window = (rational(roi[k]), rational(roi[rank + k])) if roi else (Fraction(0), Fraction(1))
        out.append(Axis(d, size, scale, mode, window))
    return out


def one_by_one(dims: Ints, attrs: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The axes along which a resize with these attributes resamples, from the last to the first,
    each with the attributes of a resize along it alone. One after the other they give the same
    values: `blend` adds up the taps of the last axis first. Empty where values depend on several
    axes at once (extrapolation)."""
    mode = attrs["coordinate_transformation_mode"]
    if mode == "tf_crop_and_resize":
        return []
    axes = plan(dims, attrs["sizes"], attrs["scales"], mode, attrs["roi"])
    sizes, found = list(dims), []
    for k in reversed(range(len(dims))):
        if axes[k].untouched:
            continue
        sizes[k] = axes[k].out
        scales = attrs["scales"] and tuple(
            s if j == k else 1.0 for j, s in enumerate(attrs["scales"])
        )
        found.append((k, {**attrs, "sizes": tuple(sizes), "scales": scales}))
    return found


def nearest(slope: int, start: int, unit: int, rounding: str) -> tuple[int, int, int]:
    """Integers (a, b, c) such that (a * x + b) // c is the rounded position."""
    if rounding == "floor":
        return slope, start, unit
    if rounding == "ceil":
        return slope, start + unit - 1, unit
    # floor(p + 1/2) rounds halves up; ceil(p - 1/2) rounds them down
    shift = unit if rounding == "round_prefer_ceil" else unit - 1
    return 2 * slope, 2 * start + shift, 2 * unit


# --------------------------------------------------------------------------- weights


def cubic_weights(t: Expr, a: float) -> tuple[Expr, Expr, Expr, Expr]:
    """Keys' cubic convolution weights of the pixels at -1, 0, 1 and 2 for a position t in [0, 1).

    R. Keys, Cubic convolution interpolation for digital image processing, 1981; a is its free
    parameter.
    """

    def near(d: Expr) -> Expr:
        return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0

    def far(d: Expr) -> Expr:
        return ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a

    return far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)


def blend(
    taps: list[list[tuple[Expr, Expr | None]]], read: Callable[[tuple[Expr, ...]], Expr]
) -> Expr:
    """The weighted sum over all combinations of one (index, weight) per axis."""

    def along(k: int, where: tuple[Expr, ...]) -> Expr:
        if k == len(taps):
            return read(where)
        total: Expr | None = None
        for i, weight in taps[k]:
            part = along(k + 1, (*where, i))
            part = part if weight is None else part * weight
            total = part if total is None else total + part
        assert total is not None
        return total

    return along(0, ())


def _taps(
    axis: Axis, x: Expr, kind: str, rounding: str, a: float, exclude: bool, dtype: DType
) -> list[tuple[Expr, Expr | None]]:
    """The (index, weight) pairs that output position x reads along one axis."""
    if axis.untouched:
        return [(x, None)]

    def inside(i: Expr) -> Expr:
        return maximum(minimum(i, axis.size - 1), 0)

    slope, start, unit = axis.line()
    if kind == "nearest":
        slope, start, unit = nearest(slope, start, unit, rounding)
        return [(inside(floordiv(x * slope + start, unit)), None)]
    place = x * slope + start
    first = floordiv(place, unit)
    t = cast(mod(place, unit), dtype) * (1.0 / unit)
    if kind == "linear":
        return [(inside(first), 1.0 - t), (inside(first + 1), t)]
    weights = cubic_weights(t, a)
    if exclude:
        zero = const(0.0, dtype)
        weights = tuple(  # type: ignore[assignment]
            select(logical_and(first + (k - 1) >= 0, first + (k - 1) < axis.size), w, zero)
            for k, w in enumerate(weights)
        )
        total = weights[0] + weights[1] + weights[2] + weights[3]
        weights = tuple(w / total for w in weights)  # type: ignore[assignment]
    return [(inside(first + (k - 1)), w) for k, w in enumerate(weights)]


# --------------------------------------------------------------------------- the operator


# ChannelLocal holds where axes 0 and 1 keep their extents, which the shapes tell.
@operator(
    "resize",
    attrs={
        "mode": "nearest", "sizes": None, "scales": None, "roi": None,
        "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor",
        "cubic_coeff_a": -0.75, "exclude_outside": 0, "extrapolation_value": 0.0, "antialias": 0,
    },
    traits=(ChannelLocal(),),
)  # fmt: skip
class Resize:
    """x resampled along every axis by "nearest", "linear" or "cubic" interpolation. ONNX: Resize.

    sizes, scales: one number per axis. With sizes alone the scales follow; with scales alone the
    extents are floor(extent * scale); with both, sizes give the extents and scales the positions.
    Pixels outside repeat the border, except with exclude_outside=1 (cubic): they count for nothing.
    With tf_crop_and_resize, positions outside the tensor give extrapolation_value.
    """

    def infer(
        x: TensorType, *, mode: str, sizes: Ints | None, scales: Floats | None, roi: Floats | None,
        coordinate_transformation_mode: str, nearest_mode: str, cubic_coeff_a: float,
        exclude_outside: int, extrapolation_value: float, antialias: int,
    ) -> TensorType:  # fmt: skip
        require(mode in _TAPS, f"unknown mode {mode!r}; known are {', '.join(_TAPS)}")
        require(
            nearest_mode in _ROUNDING,
            f"unknown nearest_mode {nearest_mode!r}; known are {', '.join(_ROUNDING)}",
        )
        require(not antialias, "antialias=1 is not supported; export the model with antialias=0")
        if mode != "nearest":
            require_float(x)
        require_fits(extrapolation_value, x.dtype)
        axes = plan(x.dims, sizes, scales, coordinate_transformation_mode, roi)
        return x.with_shape(a.out for a in axes)

    def compute(
        out: TensorType, x: TensorArg, *, mode: str, sizes: Ints | None, scales: Floats | None,
        roi: Floats | None, coordinate_transformation_mode: str, nearest_mode: str,
        cubic_coeff_a: float, exclude_outside: int, extrapolation_value: float, antialias: int,
    ) -> At:  # fmt: skip
        axes = plan(x.shape, sizes, scales, coordinate_transformation_mode, roi)
        dtype = x.type.dtype

        def at(*idx: Expr) -> Expr:
            taps = [
                _taps(a, i, mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), dtype)
                for a, i in zip(axes, idx, strict=True)
            ]
            value = blend(taps, lambda where: x[where])
            if coordinate_transformation_mode != "tf_crop_and_resize":
                return value
            covered = const(True, boolean)
            for a, i in zip(axes, idx, strict=True):
                slope, start, unit = a.line()
                place = i * slope + start
                covered = logical_and(
                    covered, logical_and(place >= 0, place <= (a.size - 1) * unit)
                )
            return select(covered, value, const(extrapolation_value, dtype))

        return at

    def reference(
        x: Array, *, mode: str, sizes: Ints | None, scales: Floats | None, roi: Floats | None,
        coordinate_transformation_mode: str, nearest_mode: str, cubic_coeff_a: float,
        exclude_outside: int, extrapolation_value: float, antialias: int,
    ) -> Array:  # fmt: skip
        y = x
        outside = np.zeros((1,) * x.ndim, np.bool_)
        axes = plan(x.shape, sizes, scales, coordinate_transformation_mode, roi)
        for k, axis in enumerate(axes):
            places = [axis.position(i) for i in range(axis.out)]
            lost = np.array([not 0 <= p <= axis.size - 1 for p in places])
            outside = outside | np.expand_dims(lost, [j for j in range(x.ndim) if j != k])
            if mode == "nearest":
                rows = [min(max(_round(p, nearest_mode), 0), axis.size - 1) for p in places]
                y = np.take(y, rows, k)
            elif not axis.untouched:
                matrix = np.array([
                    _weight_row(p, axis.size, mode, cubic_coeff_a, bool(exclude_outside))
                    for p in places
                ], x.dtype)  # fmt: skip
                y = np.moveaxis(np.tensordot(matrix, y, (1, k)), 0, k)
        if coordinate_transformation_mode == "tf_crop_and_resize":
            y = np.where(outside, x.dtype.type(extrapolation_value), y)
        return y

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(
            s.numbers(1, 2, 3, 5),
            scales=(1.0, 1.0, 2.0, 2.0),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        for coordinates in _COORDINATES[:-1]:
            yield s.case(
                s.numbers(2, 1, 5, 7),
                sizes=(2, 1, 3, 13),
                coordinate_transformation_mode=coordinates,
            )
            yield s.case(
                s.floats(1, 2, 5, 7),
                sizes=(1, 2, 8, 3),
                mode="linear",
                coordinate_transformation_mode=coordinates,
            )
            yield s.case(
                s.floats(1, 3, 4, 5),
                scales=(1.0, 1.0, 2.5, 0.6),
                mode="cubic",
                coordinate_transformation_mode=coordinates,
            )
        for rounding in _ROUNDING:
            yield s.case(
                s.numbers(7),
                sizes=(14,),
                nearest_mode=rounding,
                coordinate_transformation_mode="align_corners",
            )
            yield s.case(s.numbers(1, 1, 6), scales=(1.0, 1.0, 1.5), nearest_mode=rounding)
        for mode in _TAPS:
            yield s.case(
                s.floats(1, 2, 5, 7),
                sizes=(1, 2, 4, 6),
                mode=mode,
                coordinate_transformation_mode="tf_crop_and_resize",
                roi=(0.0, 0.0, 0.25, -0.5, 1.0, 1.0, 0.75, 1.25),
                extrapolation_value=3.5,
            )
        yield s.case(
            s.floats(1, 1, 5, 4),
            sizes=(1, 1, 9, 2),
            mode="cubic",
            exclude_outside=1,
            cubic_coeff_a=-0.5,
        )
        yield s.case(
            s.floats(3, 4, 5),
            sizes=(5, 3, 1),
            mode="linear",
            coordinate_transformation_mode="pytorch_half_pixel",
        )


def _round(p: Fraction, rounding: str) -> int:
    if rounding == "floor":
        return math.floor(p)
    if rounding == "ceil":
        return math.ceil(p)
    half = Fraction(1, 2)
    return math.ceil(p - half) if rounding == "round_prefer_floor" else math.floor(p + half)


def _weight_row(p: Fraction, size: int, mode: str, a: float, exclude: bool) -> list[float]:
    """How much each input element counts at position p."""
    row = [0.0] * size
    first, reach = math.floor(p), _TAPS[mode] // 2
    total = 0.0
    for i in range(first - reach + 1, first + reach + 1):
        d = abs(float(p - i))
        if mode == "linear":
            w = 1 - d
        elif d <= 1:
            w = (a + 2) * d**3 - (a + 3) * d**2 + 1
        else:
            w = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        if exclude and mode == "cubic" and not 0 <= i < size:
            continue
        total += w
        row[min(max(i, 0), size - 1)] += w
    return [w / total for w in row]
