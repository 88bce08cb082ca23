"""Overlapping patches of an image, added up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from .expr import Expr, cast, compare, const, floordiv, in_single, index, mod, reduce, select, var
from .operator import REQUIRED, ChannelLocal, Reduction, TensorArg, operator, require
from .samples import Array, Case, Sampler
from .types import TensorType, boolean

At = Callable[..., Expr]
Ints = tuple[int, ...]


@operator(
    "col2im",
    attrs={"image_shape": REQUIRED, "block_shape": REQUIRED, "dilations": None, "pads": None,
           "strides": None},
    traits=(Reduction(), ChannelLocal()),
)  # fmt: skip
class Col2Im:
    """Adds up overlapping patches into images. ONNX: Col2Im.

    x is [N, C * prod(block_shape), L] with L patches in row-major order; the result is
    [N, C, *image_shape]. pads: all begins, then all ends.
    """

    def infer(
        x: TensorType, *, image_shape: Ints, block_shape: Ints, dilations: Ints | None,
        pads: Ints | None, strides: Ints | None,
    ) -> TensorType:  # fmt: skip
        n = len(image_shape)
        require(x.rank == 3, f"needs patches [N, C * block elements, patches], got {x}")
        require(x.dtype.kind != "b", f"cannot add up bool patches {x}")
        require(
            n > 0 and len(block_shape) == n,
            f"image_shape {list(image_shape)} and block_shape {list(block_shape)} must have "
            "one length, at least 1",
        )
        d, p, s = _patches(n, dilations, pads, strides)
        require(
            len(d) == n and len(s) == n and len(p) == 2 * n,
            f"dilations {list(d)}, strides {list(s)} and pads {list(p)} do not fit {n} axes",
        )
        require(
            min(image_shape) >= 0
            and min(block_shape) > 0
            and min(d) > 0
            and min(s) > 0
            and min(p) >= 0,
            "block_shape, dilations and strides must be positive, image_shape "
            "and pads not negative",
        )
        channels, rest = divmod(x.dims[1], prod(block_shape))
        require(
            rest == 0,
            f"axis 1 of {x} does not divide by the {prod(block_shape)} elements of "
            f"the block {list(block_shape)}",
        )
        counts = _patch_counts(image_shape, block_shape, d, p, s)
        require(
            min(counts) >= 0 and prod(counts) == x.dims[2],
            f"{x} holds {x.dims[2]} patches, the image {list(image_shape)} has {list(counts)}",
        )
        return x.with_shape((x.dims[0], channels, *image_shape))

    def compute(
        out: TensorType, x: TensorArg, *, image_shape: Ints, block_shape: Ints,
        dilations: Ints | None, pads: Ints | None, strides: Ints | None,
    ) -> At:  # fmt: skip
        d, p, s = _patches(len(image_shape), dilations, pads, strides)
        counts = _patch_counts(image_shape, block_shape, d, p, s)
        taps = tuple(var(f"r{k}", n) for k, n in enumerate(block_shape))

        def at(n: Expr, c: Expr, *place: Expr) -> Expr:
            inside = const(True, boolean)
            element, patch = c, index(0)
            for k, i in enumerate(place):
                start = i + p[k] - taps[k] * d[k]
                number = floordiv(start, s[k])
                inside = inside & (start >= 0) & (number < counts[k])
                inside = inside & compare("eq", mod(start, s[k]), 0)
                element = element * block_shape[k] + taps[k]
                patch = patch * counts[k] + number
            taken = in_single(select(inside, x[n, element, patch], const(0, x.type.dtype)))
            return cast(reduce("sum", taps, taken), out.dtype)

        return at

    def reference(
        x: Array, *, image_shape: Ints, block_shape: Ints, dilations: Ints | None,
        pads: Ints | None, strides: Ints | None,
    ) -> Array:  # fmt: skip
        n = len(image_shape)
        d, p, s = _patches(n, dilations, pads, strides)
        counts = _patch_counts(image_shape, block_shape, d, p, s)
        size = prod(block_shape)
        padded = tuple(image_shape[k] + p[k] + p[n + k] for k in range(n))
        y = np.zeros((x.shape[0], x.shape[1] // size, *padded), x.dtype)
        cols = x.reshape(x.shape[0], -1, size, *counts)
        for e, tap in enumerate(np.ndindex(*block_shape)):
            window = tuple(
                slice(tap[k] * d[k], tap[k] * d[k] + counts[k] * s[k], s[k]) for k in range(n)
            )
            y[(slice(None), slice(None), *window)] += cols[:, :, e]
        image = tuple(slice(p[k], p[k] + image_shape[k]) for k in range(n))
        return y[(slice(None), slice(None), *image)]

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(1, 5, 5), image_shape=(5, 5), block_shape=(1, 5))
        yield s.case(s.numbers(2, 9, 4), image_shape=(5, 5), block_shape=(3, 3), strides=(2, 2))
        yield s.case(
            s.numbers(1, 18, 15), image_shape=(5, 3), block_shape=(3, 3), pads=(1, 1, 1, 1)
        )
        yield s.case(s.numbers(1, 6, 5), image_shape=(9,), block_shape=(3,), dilations=(2,))


def _patches(
    n: int, dilations: Ints | None, pads: Ints | None, strides: Ints | None
) -> tuple[Ints, Ints, Ints]:
    return dilations or (1,) * n, pads or (0,) * (2 * n), strides or (1,) * n


def _patch_counts(image: Ints, block: Ints, dilations: Ints, pads: Ints, strides: Ints) -> Ints:
    n = len(image)
    return tuple(
        (image[k] + pads[k] + pads[n + k] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1
        for k in range(n)
    )
