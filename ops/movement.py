"""Operators that rearrange elements without choosing among them: reshapes, transposes, repetition.

`slicing.py` holds the ones that cut and join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from .expr import Expr, cast, floordiv, index, maximum, minimum, mod, select
from .operator import (
    REQUIRED,
    Injective,
    TensorArg,
    View,
    normal_axes,
    operator,
    require,
)
from .samples import Array, Case, Sampler
from .types import TensorType, broadcast_shapes, i32, i64

At = Callable[..., Expr]
Ints = tuple[int, ...]


# --------------------------------------------------------------------------- views


def regroup(old: Ints, new: Ints) -> list[tuple[range, range]]:
    """Runs of old and new axes that hold the same number of elements, in order.

    A row-major reshape moves elements inside each run only, so each run can be indexed alone:
    (2, 3, 4) -> (6, 4) is [0, 1] -> [0] and [2] -> [1]. Both shapes must hold the same number of
    elements, and more than none.
    """
    out = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0, a, b = i, j, 1, 1
        while True:
            if (a <= b and i < len(old)) or j >= len(new):
                a *= old[i]
                i += 1
            else:
                b *= new[j]
                j += 1
            if a == b or (i >= len(old) and j >= len(new)):
                break
        while i < len(old) and old[i] == 1:
            i += 1
        while j < len(new) and new[j] == 1:
            j += 1
        out.append((range(i0, i), range(j0, j)))
    return out


def reshaped(x: TensorArg, new: Ints) -> At:
    """x seen under another shape of as many elements."""
    old = x.shape
    runs = regroup(old, new) if prod(old) else []

    def at(*idx: Expr) -> Expr:
        where = [index(0)] * len(old)
        for src, dst in runs:
            flat = index(0)
            for k in dst:
                flat = flat * new[k] + idx[k]
            inner = 1
            for k in reversed(src):
                above = floordiv(flat, inner)
                where[k] = above if k == src[0] else mod(above, old[k])
                inner *= old[k]
        return x[tuple(where)]

    return at


def resolve_shape(old: Ints, shape: Ints, allowzero: int = 0) -> Ints:
    """The shape that ONNX's Reshape means: 0 copies a dimension, -1 takes what is left.

    Raises OperatorError when it does not hold as many elements.
    """
    for d in shape:
        require(d >= -1, f"shape {list(shape)} has the negative dimension {d}")
    require(shape.count(-1) <= 1, f"shape {list(shape)} leaves more than one dimension open")
    require(
        not (allowzero and -1 in shape and 0 in shape),
        f"shape {list(shape)} with allowzero=1 has a 0 and a -1: the -1 could be anything",
    )
    new = list(shape)
    for k, d in enumerate(shape):
        if d == 0 and not allowzero:
            require(k < len(old), f"shape {list(shape)} copies dimension {k} of {list(old)}")
            new[k] = old[k]
    total = prod(old)
    if -1 in new:
        rest = prod(d for d in new if d != -1)
        require(
            rest > 0 and total % rest == 0,
            f"{list(old)} ({total} elements) does not divide into the shape {list(shape)}",
        )
        new[new.index(-1)] = total // rest
    require(
        prod(new) == total,
        f"{list(old)} has {total} elements, the shape {list(new)} holds {prod(new)}",
    )
    return tuple(new)


@operator("reshape", attrs={"shape": REQUIRED, "allowzero": 0}, traits=(View(),))
class Reshape:
    """The same elements in row-major order under another shape. ONNX: Reshape.

    In `shape`, -1 takes what is left and 0 copies the input's dimension (unless allowzero=1).
    """

    def infer(x: TensorType, *, shape: Ints, allowzero: int) -> TensorType:
        return x.with_shape(resolve_shape(x.dims, shape, allowzero))

    def compute(out: TensorType, x: TensorArg, **_: Any) -> At:
        return reshaped(x, out.dims)

    def reference(x: Array, *, shape: Ints, allowzero: int) -> Array:
        if not allowzero:
            shape = tuple(x.shape[k] if d == 0 else d for k, d in enumerate(shape))
        return x.reshape(shape)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3, 4), shape=(4, 6))
        yield s.case(s.numbers(2, 3, 4), shape=(0, -1))
        yield s.case(s.numbers(6, 7), shape=(3, 1, 14))
        yield s.case(s.numbers(2, 3, 5, 7), shape=(6, 35, 1, 1))
        yield s.case(s.numbers(1, 1), shape=())
        yield s.case(s.numbers(0, 3), shape=(3, 0), allowzero=1)
        yield s.case(s.numbers(13, 1, 2), shape=(1, 2, 13))


@operator("flatten", attrs={"axis": 1}, traits=(View(),))
class Flatten:
    """A matrix: the axes before `axis` become rows, the others columns. ONNX: Flatten."""

    def infer(x: TensorType, *, axis: int) -> TensorType:
        require(-x.rank <= axis <= x.rank, f"axis {axis} is out of range for {x}")
        a = axis + x.rank if axis < 0 else axis
        return x.with_shape((prod(x.dims[:a]), prod(x.dims[a:])))

    def compute(out: TensorType, x: TensorArg, **_: Any) -> At:
        return reshaped(x, out.dims)

    def reference(x: Array, *, axis: int) -> Array:
        a = axis + x.ndim if axis < 0 else axis
        return x.reshape(prod(x.shape[:a]), prod(x.shape[a:]))

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3, 5))
        yield s.case(s.numbers(2, 3, 5), axis=0)
        yield s.case(s.numbers(2, 3, 5), axis=3)
        yield s.case(s.numbers(2, 3, 5, 7), axis=-2)
        yield s.case(s.numbers(), axis=0)


@operator("squeeze", attrs={"axes": None}, traits=(View(),))
class Squeeze:
    """Drops dimensions of extent 1: those in `axes`, or all of them. ONNX: Squeeze."""

    def infer(x: TensorType, *, axes: Ints | None) -> TensorType:
        if axes is None:
            return x.with_shape(d for d in x.dims if d != 1)
        drop = normal_axes(axes, x.rank)
        for a in drop:
            require(x.dims[a] == 1, f"axis {a} of {x} has extent {x.dims[a]}, not 1")
        return x.with_shape(d for k, d in enumerate(x.dims) if k not in drop)

    def compute(out: TensorType, x: TensorArg, **_: Any) -> At:
        return reshaped(x, out.dims)

    def reference(x: Array, *, axes: Ints | None) -> Array:
        return np.squeeze(x, axes)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(1, 3, 1, 5))
        yield s.case(s.numbers(1, 3, 1, 5), axes=(2,))
        yield s.case(s.numbers(1, 3, 1, 1), axes=(-1, 0))
        yield s.case(s.numbers(1), axes=(0,))
        yield s.case(s.numbers(2, 3), axes=())


@operator("unsqueeze", attrs={"axes": REQUIRED}, traits=(View(),))
class Unsqueeze:
    """Inserts dimensions of extent 1 at `axes` of the result. ONNX: Unsqueeze."""

    def infer(x: TensorType, *, axes: Ints) -> TensorType:
        rank = x.rank + len(axes)
        put = normal_axes(axes, rank)
        rest = iter(x.dims)
        return x.with_shape(1 if k in put else next(rest) for k in range(rank))

    def compute(out: TensorType, x: TensorArg, **_: Any) -> At:
        return reshaped(x, out.dims)

    def reference(x: Array, *, axes: Ints) -> Array:
        return np.expand_dims(x, axes)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 5), axes=(0,))
        yield s.case(s.numbers(3, 5), axes=(-1, 1))
        yield s.case(s.numbers(7), axes=(2, 0, 3))
        yield s.case(s.numbers(), axes=(0,))


# --------------------------------------------------------------------------- permutation


@operator("transpose", attrs={"perm": None}, traits=(Injective(),))
class Transpose:
    """Axis k of the result is axis perm[k] of x; reversed without `perm`. ONNX: Transpose."""

    def infer(x: TensorType, *, perm: Ints | None) -> TensorType:
        order = tuple(reversed(range(x.rank))) if perm is None else perm
        require(
            sorted(order) == list(range(x.rank)),
            f"perm {list(order)} does not permute the {x.rank} axes of {x}",
        )
        return x.with_shape(x.dims[p] for p in order)

    def compute(out: TensorType, x: TensorArg, *, perm: Ints | None) -> At:
        order = tuple(reversed(range(x.rank))) if perm is None else perm
        return lambda *idx: x[tuple(idx[order.index(k)] for k in range(x.rank))]

    def reference(x: Array, *, perm: Ints | None) -> Array:
        return np.transpose(x, perm)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 5))
        yield s.case(s.numbers(2, 3, 5), perm=(1, 2, 0))
        yield s.case(s.numbers(1, 7, 3, 2), perm=(0, 2, 3, 1))
        yield s.case(s.numbers(2, 3, 1, 5), perm=(0, 1, 2, 3))
        yield s.case(s.numbers())


def _check_blocks(x: TensorType, blocksize: int) -> None:
    require(x.rank == 4, f"needs a tensor [N, C, H, W], got {x}")
    require(blocksize > 0, f"blocksize must be positive, got {blocksize}")


@operator("depth_to_space", attrs={"blocksize": REQUIRED, "mode": "DCR"}, traits=(Injective(),))
class DepthToSpace:
    """Channels become blocks of blocksize x blocksize pixels. ONNX: DepthToSpace.

    mode "DCR": a pixel's place in the block is the outer part of the channel number; "CRD": the
    inner part (pixel shuffle).
    """

    def infer(x: TensorType, *, blocksize: int, mode: str) -> TensorType:
        _check_blocks(x, blocksize)
        require(mode in ("DCR", "CRD"), f'mode must be "DCR" or "CRD", got {mode!r}')
        n, c, h, w = x.dims
        require(
            c % blocksize**2 == 0,
            f"{c} channels of {x} do not divide by blocksize squared, {blocksize**2}",
        )
        return x.with_shape((n, c // blocksize**2, h * blocksize, w * blocksize))

    def compute(out: TensorType, x: TensorArg, *, blocksize: int, mode: str) -> At:
        b, channels = blocksize, out.dims[1]

        def at(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
            place = mod(h, b) * b + mod(w, b)
            source = place * channels + c if mode == "DCR" else c * (b * b) + place
            return x[n, source, floordiv(h, b), floordiv(w, b)]

        return at

    def reference(x: Array, *, blocksize: int, mode: str) -> Array:
        n, c, h, w = x.shape
        b, k = blocksize, c // blocksize**2
        if mode == "DCR":
            y = x.reshape(n, b, b, k, h, w).transpose(0, 3, 4, 1, 5, 2)
        else:
            y = x.reshape(n, k, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
        return y.reshape(n, k, h * b, w * b)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(1, 8, 2, 3), blocksize=2)
        yield s.case(s.numbers(1, 8, 2, 3), blocksize=2, mode="CRD")
        yield s.case(s.numbers(2, 9, 1, 5), blocksize=3)
        yield s.case(s.numbers(2, 9, 1, 5), blocksize=3, mode="CRD")
        yield s.case(s.numbers(1, 3, 2, 2), blocksize=1)


@operator("space_to_depth", attrs={"blocksize": REQUIRED}, traits=(Injective(),))
class SpaceToDepth:
    """Blocks of blocksize x blocksize pixels become channels, the place in the block being the
    outer part of the channel number. ONNX: SpaceToDepth."""

    def infer(x: TensorType, *, blocksize: int) -> TensorType:
        _check_blocks(x, blocksize)
        n, c, h, w = x.dims
        require(
            h % blocksize == 0 and w % blocksize == 0,
            f"height {h} and width {w} of {x} do not both divide by blocksize {blocksize}",
        )
        return x.with_shape((n, c * blocksize**2, h // blocksize, w // blocksize))

    def compute(out: TensorType, x: TensorArg, *, blocksize: int) -> At:
        b, channels = blocksize, max(x.shape[1], 1)

        def at(n: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
            place = floordiv(c, channels)
            return x[n, mod(c, channels), h * b + floordiv(place, b), w * b + mod(place, b)]

        return at

    def reference(x: Array, *, blocksize: int) -> Array:
        n, c, h, w = x.shape
        b = blocksize
        y = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * b * b, h // b, w // b)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(1, 2, 4, 6), blocksize=2)
        yield s.case(s.numbers(2, 3, 3, 9), blocksize=3)
        yield s.case(s.numbers(1, 1, 5, 1), blocksize=1)


# --------------------------------------------------------------------------- repetition


@operator("expand", attrs={"shape": REQUIRED}, traits=(Injective(),))
class Expand:
    """x broadcast together with `shape`, numpy's way in both directions. ONNX: Expand."""

    def infer(x: TensorType, *, shape: Ints) -> TensorType:
        require(min(shape, default=0) >= 0, f"shape {list(shape)} has a negative dimension")
        return x.with_shape(broadcast_shapes(x.dims, shape))

    def compute(out: TensorType, x: TensorArg, **_: Any) -> At:
        skip = out.rank - x.rank

        def at(*idx: Expr) -> Expr:
            return x[
                tuple(index(0) if d == 1 else i for d, i in zip(x.shape, idx[skip:], strict=True))
            ]

        return at

    def reference(x: Array, *, shape: Ints) -> Array:
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape))

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 1), shape=(2, 3, 7))
        yield s.case(s.numbers(1, 5), shape=(3, 1))
        yield s.case(s.numbers(2, 3, 5), shape=(1, 1))
        yield s.case(s.numbers(), shape=(13,))
        yield s.case(s.numbers(3, 1), shape=(3, 0))


@operator("tile", attrs={"repeats": REQUIRED}, traits=(Injective(),))
class Tile:
    """x repeated repeats[k] times along axis k. ONNX: Tile."""

    def infer(x: TensorType, *, repeats: Ints) -> TensorType:
        require(len(repeats) == x.rank, f"{len(repeats)} repeats for the {x.rank} axes of {x}")
        require(min(repeats, default=0) >= 0, f"repeats {list(repeats)} must not be negative")
        return x.with_shape(d * r for d, r in zip(x.dims, repeats, strict=True))

    def compute(out: TensorType, x: TensorArg, **_: Any) -> At:
        return lambda *idx: x[tuple(mod(i, max(d, 1)) for i, d in zip(idx, x.shape, strict=True))]

    def reference(x: Array, *, repeats: Ints) -> Array:
        return np.tile(x, repeats)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 5), repeats=(2, 1))
        yield s.case(s.numbers(2, 1, 3), repeats=(1, 7, 2))
        yield s.case(s.numbers(7), repeats=(3,))
        yield s.case(s.numbers(3, 2), repeats=(0, 2))
        yield s.case(s.numbers(), repeats=())


# --------------------------------------------------------------------------- reversal


@operator("reverse_sequence", inputs=("x", "sequence_lens"),
          attrs={"time_axis": 0, "batch_axis": 1}, traits=(Injective(),))  # fmt: skip
class ReverseSequence:
    """Reverses the first sequence_lens[b] steps of each batch entry b. ONNX: ReverseSequence."""

    def infer(x: TensorType, lens: TensorType, *, time_axis: int, batch_axis: int) -> TensorType:
        require(x.rank >= 2, f"needs a time and a batch axis, got {x}")
        require(
            {time_axis, batch_axis} == {0, 1},
            f"time_axis and batch_axis must be 0 and 1, got {time_axis} and {batch_axis}",
        )
        require(lens.dtype in (i32, i64), f"sequence_lens must be integers, got {lens}")
        require(
            lens.dims == (x.dims[batch_axis],),
            f"sequence_lens {lens} must hold one length for each batch entry of {x}",
        )
        return x.with_shape(x.dims)

    def compute(
        out: TensorType, x: TensorArg, lens: TensorArg, *, time_axis: int, batch_axis: int
    ) -> At:
        steps = x.shape[time_axis]

        def at(*idx: Expr) -> Expr:
            t = idx[time_axis]
            n = maximum(minimum(cast(lens[idx[batch_axis]], i64), steps), 0)
            back = select(t < n, n - 1 - t, t)
            return x[tuple(back if k == time_axis else i for k, i in enumerate(idx))]

        return at

    def reference(x: Array, lens: Array, *, time_axis: int, batch_axis: int) -> Array:
        y = np.array(x)
        source, target = np.moveaxis(x, batch_axis, 0), np.moveaxis(y, batch_axis, 0)
        for b, n in enumerate(lens):
            target[b][:n] = source[b][:n][::-1]
        return y

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(5, 3), s.ints(3, lo=0, hi=6))
        yield s.case(s.numbers(3, 7, 2), s.ints(3, lo=1, hi=8), time_axis=1, batch_axis=0)
        yield s.case(s.numbers(1, 1), s.ints(1, lo=1, hi=2))
