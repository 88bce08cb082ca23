"""Convolution windows laid out as matrix columns."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .expr import Expr, select
from .operator import Injective, TensorArg, operator, require
from .types import TensorType
from .windows import WINDOW_ATTRS, slide

Array = npt.NDArray[Any]


@operator(
    "unfold",
    attrs={**WINDOW_ATTRS, "kernel_shape": (1,), "group": 1},
    traits=(Injective(),),
)
class Unfold:
    """x [N, C, spatial...] -> [N, group, C / group * taps, places]: column p holds what the window
    at place p sees of one group of channels, zeros where it leaves x ("im2col"). A convolution is a
    matrix product with it."""

    def infer(
        x: TensorType, *, kernel_shape: tuple[int, ...], group: int, **window: Any
    ) -> TensorType:
        require(x.rank >= 3, f"x must have spatial axes, got {x}")
        require(group >= 1 and x.dims[1] % group == 0,
                f"{x.dims[1]} channels cannot be split into {group} groups")  # fmt: skip
        win = slide(x.dims[2:], kernel_shape, **window)
        rows = x.dims[1] // group * win.taps
        return x.with_shape((x.dims[0], group, rows, prod(win.output)))

    def compute(
        out: TensorType, x: TensorArg, *, kernel_shape: tuple[int, ...], group: int, **window: Any
    ) -> Callable[..., Expr]:
        win = slide(x.shape[2:], kernel_shape, **window)
        per_group = x.shape[1] // group

        def at(n: Expr, g: Expr, row: Expr, place: Expr) -> Expr:
            taps, channel = _digits(row, win.kernel)
            where, _ = _digits(place, win.output)
            places, inside = win.at(where, taps)
            return select(inside, x[(n, g * per_group + channel, *places)], 0)

        return at

    def reference(x: Array, *, kernel_shape: tuple[int, ...], group: int, **window: Any) -> Array:
        win = slide(x.shape[2:], kernel_shape, **window)
        taps = np.stack(list(win.views(win.pad(x, 0))), axis=2)
        n, c = x.shape[:2]
        return taps.reshape(n, group, c // group * win.taps, prod(win.output))

    def samples(s: Any) -> Any:
        yield s.case(s.floats(1, 3, 5, 6), kernel_shape=(3, 2), pads=1, strides=(2, 1))
        yield s.case(s.floats(2, 6, 7), kernel_shape=(3,), group=3, dilations=2)
        yield s.case(s.floats(1, 4, 3, 3), kernel_shape=(1, 1), group=2)


def _digits(value: Expr, sizes: tuple[int, ...]) -> tuple[tuple[Expr, ...], Expr]:
    """value as row-major digits of these sizes, and what is left over them."""
    digits = []
    for n in reversed(sizes):
        digits.append(value % n)
        value = value // n
    return tuple(reversed(digits)), value
