"""Sliding windows over spatial axes, shared by convolutions and pooling.

Attributes arrive as ONNX writes them or shorter: `strides=2`, `pads=1`, `pads=(1, 2)` (one number
per spatial axis, both sides) or `pads=(1, 1, 2, 2)` (all begins, then all ends). `slide` checks and
expands them and computes the output sizes; the `Window` it returns is all that inference, index
expressions, references and kernel templates need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import OperatorError
from .expr import Expr, const, floordiv, index, maximum, minimum, var
from .operator import require
from .types import boolean

Array = npt.NDArray[Any]

AUTO_PADS: Final = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")

# Defaults of the attributes that `slide` takes besides sizes.
WINDOW_ATTRS: Final[dict[str, Any]] = {
    "strides": 1, "pads": 0, "dilations": 1, "auto_pad": "NOTSET",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Window:
    """A window of `kernel` taps, `dilations` apart, moved by `strides` over `input` elements that
    are extended by `begin` and `end` on each spatial axis; it stops at `output` places."""

    input: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.input)

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def extent(self) -> tuple[int, ...]:
        """Input elements from the first to the last tap, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def is_pointwise(self) -> bool:
        """One tap, no padding, every element: output places are input places."""
        return self.taps == 1 and self.input == self.output and set(self.strides) <= {1}

    def vars(self, stem: str = "r", first: int = 0) -> tuple[Expr, ...]:
        """One reduction variable per spatial axis, over the taps."""
        return tuple(var(f"{stem}{first + k}", n) for k, n in enumerate(self.kernel))

    def at(self, where: tuple[Expr, ...], taps: tuple[Expr, ...]) -> tuple[tuple[Expr, ...], Expr]:
        """Input indices of these taps at output place `where`, and whether they are inside the
        input (the constant true where that is decidable, as it is without padding)."""
        inside = const(True, boolean)
        places = []
        for k, (o, t) in enumerate(zip(where, taps, strict=True)):
            p = o * self.strides[k] + t * self.dilations[k] - self.begin[k]
            inside = inside & (p >= 0) & (p < self.input[k])
            places.append(p)
        return tuple(places), inside

    def count(self, where: tuple[Expr, ...], padding: bool) -> Expr:
        """How many taps at output place `where` lie inside the input, or inside the input and its
        padding (taps beyond that exist in ceil mode)."""
        total = index(1)
        for k, o in enumerate(where):
            low = -self.begin[k] if padding else 0
            high = self.input[k] + self.end[k] if padding else self.input[k]
            start = o * self.strides[k] - self.begin[k]
            d = self.dilations[k]
            first = floordiv(maximum(low - start, 0) + (d - 1), d)
            last = minimum(floordiv(high - 1 - start, d), self.kernel[k] - 1)
            total = total * maximum(last - first + 1, 0)
        return total

    def pad(self, x: Array, fill: Any) -> Array:
        """x extended by `fill` on its last axes as far as any window reaches."""
        widths = [(0, 0)] * (x.ndim - self.rank)
        for k, n in enumerate(self.input):
            reach = (self.output[k] - 1) * self.strides[k] + self.extent[k]
            widths.append((self.begin[k], max(self.end[k], reach - n - self.begin[k])))
        return np.pad(x, widths, constant_values=fill) if np.any(widths) else x

    def views(self, padded: Array) -> Iterator[Array]:
        """For each tap, in row-major order, its value at every output place: a strided view of
        what `pad` returned."""
        for tap in product(*map(range, self.kernel)):
            where: tuple[Any, ...] = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, self.dilations, self.output, self.strides, strict=True)
            )
            yield padded[(..., *where)]


def spread(value: Any, rank: int, what: str, least: int) -> tuple[int, ...]:
    """An attribute as one integer per spatial axis; an empty one means `least` everywhere.

    Raises OperatorError for a wrong length, a number that is no integer, or one below `least`.
    """
    values = (value,) * rank if isinstance(value, int) else value
    if not isinstance(values, tuple) or not all(isinstance(v, int) for v in values):
        raise OperatorError(f"{what} must be an integer or {rank} integers, got {value!r}")
    values = values or (least,) * rank
    require(len(values) == rank, f"{what} {list(values)} must have {rank} numbers, one per "
                                 f"spatial axis")  # fmt: skip
    require(min(values) >= least, f"{what} {list(values)} must all be at least {least}")
    return values


def spread_pads(value: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(begins, ends) of an attribute `pads`. Raises OperatorError."""
    if isinstance(value, tuple) and len(value) == 2 * rank:
        both = spread(value, 2 * rank, "pads", 0)
        return both[:rank], both[rank:]
    fits = not isinstance(value, tuple) or len(value) in (0, rank)
    require(fits, f"pads {value!r} must be one number, {rank} or {2 * rank} numbers for {rank} "
                  f"spatial axes")  # fmt: skip
    one = spread(value, rank, "pads", 0)
    return one, one


def check_auto_pad(auto_pad: str, pads: tuple[int, ...]) -> None:
    """Raises OperatorError for an unknown mode, or for pads next to a mode that makes them."""
    if auto_pad not in AUTO_PADS:
        raise OperatorError(f"auto_pad {auto_pad!r} is not one of {', '.join(AUTO_PADS)}")
    if auto_pad != "NOTSET" and any(pads):
        raise OperatorError(f"pads {list(pads)} and auto_pad {auto_pad} exclude each other")


def slide(
    size: tuple[int, ...],
    kernel: Any,
    *,
    strides: Any = 1,
    pads: Any = 0,
    dilations: Any = 1,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Window:
    """The window over spatial sizes `size`; output sizes as ONNX defines them.

    auto_pad: SAME_UPPER and SAME_LOWER pad so that the output has ceil(size / stride) places, an
    odd number of pads having its larger half at the end or at the beginning.
    ceil_mode: a last, partly covered place counts unless it would start in the padding at the end.

    Raises OperatorError for attributes that are malformed, negative or zero where they may not be,
    or that leave no output.
    """
    rank = len(size)
    require(rank >= 1, "needs at least one spatial axis: x must be [N, C, spatial...]")
    ks = spread(kernel, rank, "kernel_shape", 1)
    ss = spread(strides, rank, "strides", 1)
    ds = spread(dilations, rank, "dilations", 1)
    begin, end = spread_pads(pads, rank)
    check_auto_pad(auto_pad, begin + end)
    extents = tuple((k - 1) * d + 1 for k, d in zip(ks, ds, strict=True))
    if auto_pad.startswith("SAME"):
        sizes = list(zip(size, ss, extents, strict=True))
        begin, end = share(
            tuple(max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in sizes), auto_pad
        )
    output = []
    for k, n in enumerate(size):
        room = n + begin[k] + end[k] - extents[k]
        places = (-(-room // ss[k]) if ceil_mode else room // ss[k]) + 1
        if ceil_mode and (places - 1) * ss[k] >= n + begin[k]:
            places -= 1
        if places < 1:
            raise OperatorError(
                f"the kernel {list(ks)} (dilations {list(ds)}) is larger than the input "
                f"{list(size)} padded by {list(begin)} and {list(end)}"
            )
        output.append(places)
    return Window(size, ks, ss, ds, begin, end, tuple(output))


def share(total: tuple[int, ...], auto_pad: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split pads into begins and ends; the larger half is at the end for SAME_UPPER only."""
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
