"""Resampling at positions that are known only at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import numpy as np

from .expr import (
    Expr,
    as_expr,
    cast,
    const,
    index,
    logical_and,
    maximum,
    minimum,
    mod,
    select,
    unary,
)
from .operator import ChannelLocal, TensorArg, operator, require, require_float, require_same_dtype
from .resize import blend, cubic_weights
from .samples import Array, Case, Sampler
from .types import TensorType, boolean, i64

At = Callable[..., Expr]

# how far from a position the furthest pixel lies that counts, to the left and to the right
_REACH: Final = {"nearest": (0, 0), "linear": (0, 1), "cubic": (1, 2)}
_PADDING: Final = ("zeros", "border", "reflection")
_FAR: Final = 1 << 24  # positions further out than this are cut off: they must fit an integer
_CUBIC: Final = -0.75


def _clamp(x: Expr, lo: float, hi: float) -> Expr:
    """x in [lo, hi], and lo for a NaN."""
    bounded = select(x > lo, x, as_expr(lo, x.dtype))
    return select(bounded < hi, bounded, as_expr(hi, x.dtype))


def _pixel(i: Expr, size: int, padding: str, align_corners: int) -> tuple[Expr, Expr]:
    """The pixel that pixel i of the padded axis copies, and whether there is one."""
    inside = const(True, boolean)
    if padding == "zeros":
        inside = logical_and(i >= 0, i < size)
    elif padding == "reflection" and align_corners:
        i = mod(i, max(2 * (size - 1), 1))
        i = minimum(i, 2 * (size - 1) - i)
    elif padding == "reflection":
        i = mod(i, 2 * size)
        i = minimum(i, 2 * size - 1 - i)
    return maximum(minimum(i, size - 1), 0), inside


def _taps(
    position: Expr, size: int, mode: str, padding: str, align_corners: int
) -> list[tuple[Expr, Expr | None]]:
    """(pixel of the padded axis, weight) for a normalised position on one axis."""
    if align_corners:
        x = (position + 1.0) * ((size - 1) / 2)
    else:
        x = ((position + 1.0) * float(size) - 1.0) * 0.5
    left, right = _REACH[mode]
    if padding == "reflection":
        x = _clamp(x, -_FAR, _FAR)
    elif padding == "border" and mode != "cubic":
        x = _clamp(x, 0, size - 1)
    else:
        x = _clamp(x, -1 - right, size + left)
    if mode == "nearest":
        return [(cast(unary("round", x), i64), None)]
    floor = unary("floor", x)
    first, t = cast(floor, i64), x - floor
    weights = (1.0 - t, t) if mode == "linear" else cubic_weights(t, _CUBIC)
    return [(first + (k - left), w) for k, w in enumerate(weights)]


@operator("grid_sample", inputs=("x", "grid"),
          attrs={"mode": "linear", "padding_mode": "zeros", "align_corners": 0},
          traits=(ChannelLocal(),))  # fmt: skip
class GridSample:
    """x [N, C, spatial...] read at the positions grid [N, out..., spatial rank]. ONNX: GridSample.

    A position holds one number in [-1, 1] per spatial axis, the last axis first. -1 and 1 are the
    middles of the border pixels with align_corners=1, else their outer edges. mode "linear",
    "nearest" (halves to even) or "cubic" (a = -0.75); outside lie zeros, the repeated border or
    the reflected tensor.
    """

    def infer(
        x: TensorType, grid: TensorType, *, mode: str, padding_mode: str, align_corners: int
    ) -> TensorType:
        require_float(x, grid)
        require_same_dtype(x, grid)
        require(mode in _REACH, f"unknown mode {mode!r}; known are {', '.join(_REACH)}")
        require(
            padding_mode in _PADDING,
            f"unknown padding_mode {padding_mode!r}; known are {', '.join(_PADDING)}",
        )
        require(
            x.rank >= 3 and grid.rank == x.rank,
            f"needs x [N, C, spatial...] and a grid of the same rank, got {x} and {grid}",
        )
        require(
            grid.dims[0] == x.dims[0] and grid.dims[-1] == x.rank - 2,
            f"grid {grid} must be [{x.dims[0]}, out..., {x.rank - 2}] to fit {x}",
        )
        require(min(x.dims[2:]) > 0, f"{x} has no pixels")
        return x.with_shape((*x.dims[:2], *grid.dims[1:-1]))

    def compute(
        out: TensorType, x: TensorArg, grid: TensorArg, *, mode: str, padding_mode: str,
        align_corners: int,
    ) -> At:  # fmt: skip
        sizes = x.shape[2:]
        zero = const(0.0, x.type.dtype)

        def at(n: Expr, c: Expr, *place: Expr) -> Expr:
            taps = []
            for k, size in enumerate(sizes):
                position = grid[(n, *place, index(len(sizes) - 1 - k))]
                taps.append(_taps(position, size, mode, padding_mode, align_corners))

            def read(where: tuple[Expr, ...]) -> Expr:
                exists = const(True, boolean)
                pixels = []
                for i, size in zip(where, sizes, strict=True):
                    pixel, inside = _pixel(i, size, padding_mode, align_corners)
                    exists = logical_and(exists, inside)
                    pixels.append(pixel)
                return select(exists, x[(n, c, *pixels)], zero)

            return blend(taps, read)

        return at

    def reference(
        x: Array, grid: Array, *, mode: str, padding_mode: str, align_corners: int
    ) -> Array:
        sizes, last = x.shape[2:], np.moveaxis(x, 1, -1)
        taps = []
        for k, size in enumerate(sizes):
            v = grid[..., len(sizes) - 1 - k]
            v = (v + 1) / 2 * (size - 1) if align_corners else ((v + 1) * size - 1) / 2
            taps.append(_reference_taps(v, size, mode, padding_mode, align_corners))
        batch = np.arange(x.shape[0]).reshape(-1, *(1,) * len(sizes))
        total = np.zeros((*grid.shape[:-1], x.shape[1]), x.dtype)
        for combination in product(*taps):
            weight = np.ones(grid.shape[:-1], x.dtype)
            for _, w in combination:
                weight = weight * w
            pixels = last[(batch, *(i for i, _ in combination))]
            total += pixels * weight[..., None]
        return np.moveaxis(total, -1, 1)

    def samples(s: Sampler) -> Iterator[Case]:
        for mode, padding in product(_REACH, _PADDING):
            yield s.case(
                s.floats(2, 3, 5, 4),
                s.floats(2, 3, 7, 2, lo=-1.7, hi=1.7),
                mode=mode,
                padding_mode=padding,
            )
            yield s.case(
                s.floats(1, 2, 3, 7),
                s.floats(1, 5, 1, 2, lo=-3.5, hi=3.5),
                mode=mode,
                padding_mode=padding,
                align_corners=1,
            )
        yield s.case(s.floats(1, 2, 3, 4, 5), s.floats(1, 2, 3, 2, 3, lo=-1.2, hi=1.2))
        yield s.case(s.floats(1, 1, 13), s.floats(1, 7, 1, lo=-1.2, hi=1.2), mode="cubic")
        yield s.case(
            s.floats(1, 1, 1, 1), s.floats(1, 3, 3, 2), padding_mode="reflection", align_corners=1
        )


def _reference_taps(
    v: Array, size: int, mode: str, padding: str, align_corners: int
) -> list[tuple[Array, Array]]:
    """(pixel, weight) arrays; a pixel that does not exist has weight 0."""
    if padding == "border" and mode != "cubic":
        v = np.clip(v, 0, size - 1)
    left, right = _REACH[mode]
    base = np.rint(v) if mode == "nearest" else np.floor(v)
    out = []
    for step in range(-left, right + 1):
        i = (base + step).astype(np.int64)
        d = np.abs(v - (base + step))
        if mode == "nearest":
            w = np.ones_like(v)
        elif mode == "linear":
            w = 1 - d
        else:
            a = _CUBIC
            w = np.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1,
                         a * (d**3 - 5 * d**2 + 8 * d - 4))  # fmt: skip
        if padding == "zeros":
            w = np.where((i >= 0) & (i < size), w, 0)
        elif padding == "reflection":
            mirror = np.r_[:size, size - 2 : 0 : -1] if align_corners else (
                np.r_[:size, size - 1 : -1 : -1])  # fmt: skip
            i = mirror[i % len(mirror)]
        out.append((np.clip(i, 0, size - 1), w))
    return out
