"""Convolution, transposed convolution, and the zero-stuffing that the latter is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from .expr import Expr, cast, const, in_single, reduce, select, var
from .operator import (
    REQUIRED,
    Builder,
    Contraction,
    Injective,
    TensorArg,
    Value,
    operator,
    require,
    require_float,
    require_same_dtype,
)
from .samples import Case, Sampler
from .types import TensorType, boolean
from .windows import WINDOW_ATTRS, Window, check_auto_pad, share, slide, spread, spread_pads

Array = npt.NDArray[Any]


def _check(x: TensorType, w: TensorType, b: TensorType | None) -> None:
    require_float(x, w, b)
    require_same_dtype(x, w, b)
    require(x.rank >= 3, f"x must be [N, C, spatial...] with 1 or more spatial axes, got {x}")
    require(x.rank == w.rank, f"x {x} and w {w} must have the same rank")
    require(min(w.dims) >= 1, f"w {w} must not be empty")


def _check_group(group: int) -> None:
    require(isinstance(group, int) and group >= 1, f"group must be at least 1, got {group!r}")


@operator(
    "conv",
    inputs=("x", "w", "b?"),
    attrs={**WINDOW_ATTRS, "group": 1, "winograd": 0},
    traits=(Contraction("conv"),),
)
class Conv:
    """x [N, C, spatial...] * w [O, C / group, kernel...] + b [O], over 1 or more spatial axes.

    pads: begins then ends, or one number per axis, or one number. ONNX: Conv, whose kernel_shape is
    given by w here. winograd: results per axis that kernels compute at once with Winograd's
    algorithm, 0 for a plain sum; a choice of how to round, which changes nothing else.
    """

    def infer(
        x: TensorType, w: TensorType, b: TensorType | None, *, group: int, winograd: int,
        **window: Any,
    ) -> TensorType:  # fmt: skip
        _check(x, w, b)
        require(winograd in (0, 2, 4), f"winograd must be 0, 2 or 4, got {winograd!r}")
        _check_group(group)
        channels, out, per_group = x.dims[1], w.dims[0], w.dims[1]
        require(
            channels == per_group * group,
            f"x {x} has {channels} channels, but w {w} wants {per_group} for each of {group} "
            f"group{'s' if group > 1 else ''}",
        )
        require(out % group == 0, f"{out} output channels cannot be split into {group} groups")
        require(b is None or b.dims == (out,), f"b must be [{out}] to fit w {w}, got {b}")
        return x.with_shape((x.dims[0], out, *slide(x.dims[2:], w.dims[2:], **window).output))

    def compute(
        out: TensorType,
        x: TensorArg,
        w: TensorArg,
        b: TensorArg | None = None,
        *,
        group: int,
        winograd: int,
        **window: Any,
    ) -> Callable[..., Expr]:
        win = slide(x.shape[2:], w.shape[2:], **window)
        per_group, out_per_group = w.shape[1], w.shape[0] // group
        channel = var("r0", per_group)
        taps = win.vars(first=1)

        def at(n: Expr, o: Expr, *where: Expr) -> Expr:
            places, inside = win.at(where, taps)
            c = o // out_per_group * per_group + channel
            taken = select(inside, x[n, c, *places], 0)
            term = in_single(taken) * in_single(w[o, channel, *taps])
            total = reduce("sum", (channel, *taps), term)
            return cast(total if b is None else total + in_single(b[o]), out.dtype)

        return at

    def reference(
        x: Array, w: Array, b: Array | None = None, *, group: int, winograd: int, **window: Any
    ) -> Array:
        win = slide(x.shape[2:], w.shape[2:], **window)
        return _convolve(x, w, b, group, win)

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats
        yield s.case(f(2, 3, 7, 9), f(5, 3, 3, 3), f(5), pads=1, constant=(1, 2))
        yield s.case(f(1, 3, 13), f(4, 3, 5), strides=2, pads=(1, 3), constant=(1,))
        yield s.case(f(1, 2, 4, 5, 3), f(3, 2, 2, 3, 1), f(3), strides=(1, 2, 1),
                     pads=(0, 1, 0, 1, 1, 0), constant=(1, 2))  # fmt: skip
        yield s.case(f(1, 6, 9, 8), f(4, 3, 3, 2), f(4), group=2, dilations=(2, 3), pads=(2, 1),
                     constant=(1, 2))  # fmt: skip
        yield s.case(f(2, 5, 7, 7), f(10, 1, 3, 3), group=5, strides=(2, 1), constant=(1,))
        yield s.case(f(1, 17, 5, 5), f(17, 17, 1, 1), f(17), constant=(1, 2))
        yield s.case(f(1, 3, 7, 8), f(2, 3, 4, 2), strides=3, auto_pad="SAME_UPPER")
        yield s.case(f(1, 3, 7, 8), f(2, 3, 4, 2), strides=(1, 2), auto_pad="SAME_LOWER")
        yield s.case(f(1, 1, 3, 4), f(1, 1, 3, 4), auto_pad="VALID")
        yield s.case(f(1, 3, 1, 2), f(16, 3, 7, 7), f(16), strides=2, pads=(3, 3, 3, 3))


# Elements of the unfolded input that one matrix product of the reference reads: 16 MiB of float64.
_BLOCK = 1 << 21


def _convolve(x: Array, w: Array, b: Array | None, group: int, win: Window) -> Array:
    """Unfold the input for a few output rows at a time, which bounds the memory it takes, and leave
    the rest to matrix products."""
    rank, (n, c), o = win.rank, x.shape[:2], w.shape[0]
    spots = sliding_window_view(win.pad(x, 0), win.extent, tuple(range(2, 2 + rank)))
    moves: list[slice] = [slice(0, (m - 1) * s + 1, s)
                          for m, s in zip(win.output, win.strides, strict=True)]  # fmt: skip
    taps: list[slice] = [slice(None, None, d) for d in win.dilations]
    spots = spots[(slice(None), slice(None), *moves, *taps)]
    spots = np.moveaxis(spots, range(2, 2 + rank), range(-rank, 0))  # [N, C, kernel, output]
    flat = w.reshape(group, o // group, -1)
    out = np.empty((n, group, o // group, *win.output), x.dtype)
    rows = max(1, _BLOCK // max(1, flat.shape[2] * prod(win.output[1:])))
    for i, g, top in product(range(n), range(group), range(0, win.output[0], rows)):
        block = slice(top, min(top + rows, win.output[0]))
        channels = slice(g * c // group, (g + 1) * c // group)
        where: tuple[Any, ...] = (i, channels, *(slice(None),) * rank, block)
        part = spots[where]
        y = flat[g] @ part.reshape(flat.shape[2], -1)
        out[i, g, :, block] = y.reshape(-1, block.stop - top, *win.output[1:])
    out = out.reshape(n, o, *win.output)
    return out if b is None else out + b.reshape(o, *(1,) * rank)


@operator("dilate", attrs={"factors": REQUIRED}, traits=(Injective(),))
class Dilate:
    """Put factor - 1 zeros between neighbours on each axis; one factor per axis of x."""

    def infer(x: TensorType, *, factors: Any) -> TensorType:
        fs = spread(factors, x.rank, "factors", 1)
        return x.with_shape(max((n - 1) * f + 1, 0) for n, f in zip(x.dims, fs, strict=True))

    def compute(out: TensorType, x: TensorArg, *, factors: Any) -> Callable[..., Expr]:
        fs = spread(factors, x.rank, "factors", 1)

        def at(*where: Expr) -> Expr:
            hit = const(True, boolean)
            for i, f in zip(where, fs, strict=True):
                hit = hit & _equal_zero(i % f)
            load = x[tuple(i // f for i, f in zip(where, fs, strict=True))]
            return select(hit, load, 0)

        return at

    def reference(x: Array, *, factors: Any) -> Array:
        fs = spread(factors, x.ndim, "factors", 1)
        out = np.zeros([max((n - 1) * f + 1, 0) for n, f in zip(x.shape, fs, strict=True)], x.dtype)
        out[tuple(slice(None, None, f) for f in fs)] = x
        return out

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3, 5, 7), factors=(1, 1, 2, 3))
        yield s.case(s.numbers(1, 13), factors=(4, 1))
        yield s.case(s.numbers(3, 3), factors=1)
        yield s.case(s.numbers(2, 0, 3), factors=2)


def _equal_zero(e: Expr) -> Expr:
    return e <= 0  # a remainder is never negative


def transpose_window(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    strides: Any,
    pads: Any,
    dilations: Any,
    auto_pad: str,
    output_padding: Any,
    output_shape: Any,
) -> Window:
    """The window that a transposed convolution moves over its *output*: `input` are the sizes of
    the result and `output` those of x. `end` may be negative: then the result ends in elements that
    only the bias reaches. Raises OperatorError."""
    rank = len(size)
    ss = spread(strides, rank, "strides", 1)
    ds = spread(dilations, rank, "dilations", 1)
    begin, end = spread_pads(pads, rank)
    extra = spread(output_padding, rank, "output_padding", 0)
    for k, p in enumerate(extra):
        small = p < max(ss[k], ds[k])
        require(small, f"output_padding {list(extra)} must be below the stride or the dilation")
    check_auto_pad(auto_pad, begin + end)
    reach = tuple(
        (n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(size, kernel, ss, ds, strict=True)
    )
    full = tuple(r + p for r, p in zip(reach, extra, strict=True))
    wanted: tuple[int, ...] = ()
    if output_shape:
        wanted = spread(output_shape, rank, "output_shape", 1)
    elif auto_pad.startswith("SAME"):
        # a kernel shorter than the stride does not reach that far
        wanted = tuple(min(n * s, f) for n, s, f in zip(size, ss, full, strict=True))
    if wanted:
        total = tuple(max(f - n, 0) for f, n in zip(full, wanted, strict=True))
        begin, _ = share(total, auto_pad)
    else:
        wanted = tuple(f - p - q for f, p, q in zip(full, begin, end, strict=True))
        require(min(wanted) >= 1,
                f"pads {list(begin + end)} leave nothing of the result's {list(full)}")  # fmt: skip
    end = tuple(r - p - n for r, p, n in zip(reach, begin, wanted, strict=True))
    return Window(wanted, kernel, ss, ds, begin, end, size)


@operator(
    "conv_transpose",
    inputs=("x", "w", "b?"),
    attrs={**WINDOW_ATTRS, "group": 1, "output_padding": 0, "output_shape": ()},
)
class ConvTranspose:
    """The transpose of `conv` as a linear map: x [N, C, spatial...], w [C, O / group, kernel...].

    output_shape: spatial sizes wanted; pads are then worked out from them. ONNX: ConvTranspose.
    """

    def infer(
        x: TensorType, w: TensorType, b: TensorType | None, *, group: int, **window: Any
    ) -> TensorType:
        _check(x, w, b)
        _check_group(group)
        channels, out = x.dims[1], w.dims[1] * group
        require(channels == w.dims[0], f"x {x} has {channels} channels, but w {w} wants "
                                       f"{w.dims[0]}")  # fmt: skip
        require(channels % group == 0, f"{channels} channels cannot be split into {group} groups")
        require(b is None or b.dims == (out,), f"b must be [{out}] to fit w {w}, got {b}")
        require(min(x.dims[2:]) >= 1, f"x {x} has an empty spatial axis")
        win = transpose_window(x.dims[2:], w.dims[2:], **window)
        return x.with_shape((x.dims[0], out, *win.input))

    def decompose(
        b: Builder, x: Value, w: Value, bias: Value | None = None, *, group: int, **window: Any
    ) -> Any:
        """A convolution with stride 1 of the zero-stuffed input and the flipped weights."""
        win = transpose_window(x.type.dims[2:], w.type.dims[2:], **window)
        rank = win.rank
        if set(win.strides) != {1}:
            x = b.op("dilate", x, factors=(1, 1, *win.strides))
        flipped = _flipped_weights(b, w, group)
        before = tuple(e - 1 - p for e, p in zip(win.extent, win.begin, strict=True))
        after = tuple(e - 1 - p for e, p in zip(win.extent, win.end, strict=True))
        pads = tuple(max(p, 0) for p in before + after)
        y = b.op("conv", x, flipped, bias, pads=pads, dilations=win.dilations, group=group)
        if min(before + after) < 0:
            # with stride 1, cropping the input of a convolution equals cropping its result
            starts = tuple(max(-p, 0) for p in before)
            ends = tuple(p + n for p, n in zip(starts, win.input, strict=True))
            axes = tuple(range(2, 2 + rank))
            y = b.op("slice", y, starts=starts, ends=ends, axes=axes, steps=(1,) * rank)
        return y

    def reference(
        x: Array, w: Array, b: Array | None = None, *, group: int, **window: Any
    ) -> Array:
        win = transpose_window(x.shape[2:], w.shape[2:], **window)
        n, c, o = x.shape[0], x.shape[1], w.shape[1] * group
        # scatter-add each input element times the kernel into the uncropped result
        whole = tuple(
            max((m - 1) * s + e, p + size)
            for m, s, e, p, size in zip(
                win.output, win.strides, win.extent, win.begin, win.input, strict=True
            )
        )
        out = np.zeros((n, o, *whole), x.dtype)
        xs = x.reshape(n, group, c // group, -1)
        taps = w.reshape(group, c // group, o // group, -1).transpose(0, 2, 1, 3)
        for k, view in enumerate(win.views(out)):
            view += (taps[..., k] @ xs).reshape(view.shape)
        crop: Any = tuple(slice(p, p + size) for p, size in zip(win.begin, win.input, strict=True))
        out = out[(..., *crop)]
        return out if b is None else out + b.reshape(o, *(1,) * win.rank)

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats
        yield s.case(f(2, 3, 5, 4), f(3, 4, 3, 3), f(4), strides=2, pads=1, output_padding=1,
                     constant=(1, 2))  # fmt: skip
        yield s.case(f(1, 3, 7), f(3, 2, 4), strides=3, pads=(1, 2), constant=(1,))
        yield s.case(f(1, 2, 3, 2, 3), f(2, 3, 2, 2, 3), f(3), strides=(1, 2, 1), constant=(1, 2))
        yield s.case(f(1, 6, 4, 5), f(6, 2, 3, 2), group=3, dilations=(2, 1), pads=(1, 0, 2, 1),
                     constant=(1,))  # fmt: skip
        yield s.case(f(1, 4, 3, 3), f(4, 1, 2, 2), f(4), group=4, strides=2)
        yield s.case(f(1, 1, 3, 3), f(1, 2, 3, 3), strides=(3, 2), output_shape=(10, 8))
        yield s.case(f(1, 1, 3, 4), f(1, 2, 3, 3), f(2), strides=2, auto_pad="SAME_UPPER")
        yield s.case(f(1, 1, 3, 4), f(1, 2, 4, 2), f(2), strides=3, auto_pad="SAME_LOWER")
        # pads beyond the kernel crop what the kernel reaches
        yield s.case(f(1, 2, 7, 7), f(2, 1, 1, 2), f(1), pads=(1, 2, 2, 1))


def _flipped_weights(b: Builder, w: Value, group: int) -> Any:
    """[C, O / group, kernel...] -> [O, C / group, kernel reversed...]."""
    c, per_group, *kernel = w.type.dims
    rank = len(kernel)
    if any(k > 1 for k in kernel):
        axes = tuple(range(2, 2 + rank))
        w = b.op("slice", w, starts=(-1,) * rank, ends=tuple(-k - 1 for k in kernel), axes=axes,
                 steps=(-1,) * rank)  # fmt: skip
    split = b.op("reshape", w, shape=(group, c // group, per_group, *kernel))
    swapped = b.op("transpose", split, perm=(0, 2, 1, *range(3, 3 + rank)))
    return b.op("reshape", swapped, shape=(group * per_group, c // group, *kernel))
