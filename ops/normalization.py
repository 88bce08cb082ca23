"""Normalisations and softmax: mostly compositions of reductions and elementwise operators, which
fusion turns into one kernel again. Half floats are float32 within them, but for softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .expr import Expr, cast, in_single, reduce, select, unary, var
from .operator import (
    REQUIRED,
    Builder,
    ChannelLocal,
    Reduction,
    TensorArg,
    Value,
    narrowed,
    normal_axes,
    normal_axis,
    operator,
    require,
    require_float,
    require_same_dtype,
    widened,
)
from .pointwise import over_power
from .samples import Case, Sampler
from .types import TensorType, broadcast_shapes, f16

Array = npt.NDArray[Any]


def _check_epsilon(epsilon: float) -> None:
    require(epsilon >= 0, f"epsilon must not be negative, got {epsilon}")


def _check_channels(x: TensorType, least: int, *vectors: TensorType | None) -> None:
    """x is [N, C, ...] of rank `least` or more, the vectors are [C], and all are floats of one
    type."""
    require_float(x, *vectors)
    require_same_dtype(x, *vectors)
    require(x.rank >= least, f"x must be [N, C, ...] of rank {least} or more, got {x}")
    for v in vectors:
        fits = v is None or v.dims == x.dims[1:2]
        require(fits, f"{v} must have one element for each of the channels of {x}")


def _scalar(b: Builder, x: Value, number: float) -> Any:
    return b.constant(np.asarray(number, x.type.dtype.numpy))


def _channels_first(b: Builder, v: Value, rank: int) -> Any:
    """A vector [C] as [C, 1, ...], to broadcast over [N, C, spatial...]."""
    return b.op("reshape", v, shape=(v.type.dims[0], *(1,) * (rank - 2)))


def _standardise(
    b: Builder, x: Value, axes: tuple[int, ...], epsilon: float
) -> tuple[Any, Any, Any]:
    """((x - mean) / sqrt(variance + epsilon), mean, 1 / sqrt(..)), with two passes over x: the
    difference of squares would cancel where the mean is large."""
    mean = b.op("reduce_mean", x, axes=axes, keepdims=1)
    centred = b.op("sub", x, mean)
    variance = b.op("reduce_mean", b.op("mul", centred, centred), axes=axes, keepdims=1)
    deviation = b.op("sqrt", b.op("add", variance, _scalar(b, x, epsilon)))
    inverse = b.op("div", _scalar(b, x, 1.0), deviation)
    return b.op("mul", centred, inverse), mean, inverse


def _standard(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + x.dtype.type(epsilon)))


# --------------------------------------------------------------------------- given statistics


@operator(
    "batch_normalization",
    inputs=("x", "scale", "b", "mean", "var"),
    attrs={"epsilon": 1e-5},
    traits=(ChannelLocal(),),
)
class BatchNormalization:
    """(x - mean) / sqrt(var + epsilon) * scale + b, all four given per channel (axis 1).
    ONNX: BatchNormalization, inference."""

    def infer(
        x: TensorType, scale: TensorType, b: TensorType, mean: TensorType, var: TensorType, *,
        epsilon: float,
    ) -> TensorType:  # fmt: skip
        _check_channels(x, 2, scale, b, mean, var)
        _check_epsilon(epsilon)
        return x.with_shape(x.dims)

    def compute(
        out: TensorType, x: TensorArg, scale: TensorArg, b: TensorArg, mean: TensorArg,
        var: TensorArg, *, epsilon: float,
    ) -> Callable[..., Expr]:  # fmt: skip
        def at(n: Expr, c: Expr, *where: Expr) -> Expr:
            factor = scale[c] / unary("sqrt", var[c] + epsilon)
            return (x[n, c, *where] - mean[c]) * factor + b[c]

        return at

    def reference(
        x: Array, scale: Array, b: Array, mean: Array, var: Array, *, epsilon: float
    ) -> Array:
        shape = (-1, *(1,) * (x.ndim - 2))
        s, o, m, v = (a.reshape(shape) for a in (scale, b, mean, var))
        return np.asarray((x - m) / np.sqrt(v + x.dtype.type(epsilon)) * s + o)

    def samples(s: Sampler) -> Iterator[Case]:
        for shape, epsilon in (
            ((2, 3, 5, 7), 1e-5), ((1, 17, 3), 1e-3), ((5, 13), 0.1), ((1, 2, 3, 2, 3), 1e-5)
        ):  # fmt: skip
            c = shape[1]
            yield s.case(
                s.floats(*shape), s.floats(c), s.floats(c), s.floats(c), s.floats(c, lo=0.5, hi=2),
                epsilon=epsilon, constant=(1, 2, 3, 4),
            )  # fmt: skip


@operator(
    "lrn",
    attrs={"size": REQUIRED, "alpha": 1e-4, "beta": 0.75, "bias": 1.0},
    traits=(Reduction(), ChannelLocal()),
)
class Lrn:
    """x / (bias + alpha / size * s) ** beta, where s is the sum of squares over the `size` nearest
    channels. ONNX: LRN."""

    def infer(x: TensorType, *, size: int, alpha: float, beta: float, bias: float) -> TensorType:
        _check_channels(x, 2)
        require(size >= 1, f"size must be at least 1, got {size}")
        return x.with_shape(x.dims)

    def compute(
        out: TensorType, x: TensorArg, *, size: int, alpha: float, beta: float, bias: float
    ) -> Callable[..., Expr]:
        tap = var("r0", size)

        def at(n: Expr, c: Expr, *where: Expr) -> Expr:
            k = c + tap - (size - 1) // 2
            v = in_single(select((k >= 0) & (k < x.shape[1]), x[n, k, *where], 0))
            total = reduce("sum", (tap,), v * v)
            base = total * (alpha / size) + bias
            return cast(over_power(in_single(x[n, c, *where]), base, beta), out.dtype)

        return at

    def reference(x: Array, *, size: int, alpha: float, beta: float, bias: float) -> Array:
        squares, total = x * x, np.zeros_like(x)
        for c in range(x.shape[1]):
            first = max(0, c - (size - 1) // 2)
            total[:, c] = squares[:, first : c + size // 2 + 1].sum(1)
        return np.asarray(x / (bias + alpha / size * total) ** beta, x.dtype)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(1, 7, 5, 3), size=5)
        yield s.case(s.floats(2, 3, 13), size=4, alpha=0.5, beta=0.5, bias=2.0)
        yield s.case(s.floats(2, 17, 1, 2), size=3, alpha=1.0, beta=0.75)
        yield s.case(s.floats(3, 2), size=1, alpha=0.1)


# --------------------------------------------------------------------------- own statistics


@operator(
    "layer_normalization",
    inputs=("x", "scale", "b?"),
    attrs={"axis": -1, "epsilon": 1e-5, "outputs": 1},
)
class LayerNormalization:
    """(x - mean) / sqrt(variance + epsilon) * scale + b over the axes from `axis` on.

    outputs: 2 also returns the mean, 3 also 1 / sqrt(variance + epsilon), both with size 1 on the
    normalised axes. scale and b broadcast to x. ONNX: LayerNormalization.
    """

    def infer(
        x: TensorType, scale: TensorType, b: TensorType | None, *, axis: int, epsilon: float,
        outputs: int,
    ) -> tuple[TensorType, ...]:  # fmt: skip
        first = _check_scaled(x, axis, epsilon, scale, b)
        require(outputs in (1, 2, 3), f"outputs must be 1, 2 or 3, got {outputs}")
        row = x.with_shape((*x.dims[:first], *(1,) * (x.rank - first)))
        return (x.with_shape(x.dims), row, row)[:outputs]

    def decompose(
        b: Builder, x: Value, scale: Value, bias: Value | None = None, *, axis: int,
        epsilon: float, outputs: int,
    ) -> Any:  # fmt: skip
        axes = _trailing(axis, x.type.rank)
        wide, scale, bias = widened(b, x, scale, bias)
        y, mean, inverse = _standardise(b, wide, axes, epsilon)
        y = b.op("mul", y, scale)
        if bias is not None:
            y = b.op("add", y, bias)
        results = tuple(narrowed(b, v, x) for v in (y, mean, inverse)[:outputs])
        return results if outputs > 1 else results[0]

    def reference(
        x: Array, scale: Array, b: Array | None = None, *, axis: int, epsilon: float, outputs: int
    ) -> tuple[Array, ...]:
        axes = _trailing(axis, x.ndim)
        y = _standard(x, axes, epsilon) * scale
        inverse = 1 / np.sqrt(x.var(axes, keepdims=True) + x.dtype.type(epsilon))
        return (y if b is None else y + b, x.mean(axes, keepdims=True), inverse)[:outputs]

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats
        yield s.case(f(2, 7, 13), f(13), f(13), constant=(1, 2))
        yield s.case(f(3, 5, 4), f(5, 4), axis=1, epsilon=1e-3, constant=(1,))
        yield s.case(f(2, 3, 5), f(2, 3, 5), f(5), axis=0)
        yield s.case(
            f(5, 33) + 30, f(33), f(33), outputs=3, constant=(1, 2), tolerance=1e-4
        )  # fmt: skip  (a mean far from 0 costs 5 bits)
        yield s.case(f(4, 3, 2), f(3, 2), axis=-2, outputs=2)


def _trailing(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(range(normal_axis(axis, rank), rank))


def _check_scaled(x: TensorType, axis: int, epsilon: float, *factors: TensorType | None) -> int:
    require_float(x, *factors)
    require_same_dtype(x, *factors)
    _check_epsilon(epsilon)
    for t in factors:
        fits = t is None or broadcast_shapes(x.dims, t.dims) == x.dims
        require(fits, f"{t} does not broadcast to {x}")
    first = normal_axis(axis, x.rank)
    require(prod(x.dims[first:]) > 0, f"there is nothing to normalise in {x} from axis {axis} on")
    return first


@operator("rms_normalization", inputs=("x", "scale"), attrs={"axis": -1, "epsilon": 1e-5})
class RmsNormalization:
    """x / sqrt(mean(x * x) + epsilon) * scale over the axes from `axis` on; scale broadcasts to x.
    ONNX: RMSNormalization."""

    def infer(x: TensorType, scale: TensorType, *, axis: int, epsilon: float) -> TensorType:
        _check_scaled(x, axis, epsilon, scale)
        return x.with_shape(x.dims)

    def decompose(b: Builder, x: Value, scale: Value, *, axis: int, epsilon: float) -> Any:
        axes = _trailing(axis, x.type.rank)
        wide, scale = widened(b, x, scale)
        square = b.op("reduce_mean", b.op("mul", wide, wide), axes=axes, keepdims=1)
        root = b.op("sqrt", b.op("add", square, _scalar(b, wide, epsilon)))
        y = b.op("mul", wide, b.op("div", _scalar(b, wide, 1.0), root))
        return narrowed(b, b.op("mul", y, scale), x)

    def reference(x: Array, scale: Array, *, axis: int, epsilon: float) -> Array:
        square = (x * x).mean(_trailing(axis, x.ndim), keepdims=True)
        return np.asarray(x / np.sqrt(square + x.dtype.type(epsilon)) * scale)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(2, 7, 13), s.floats(13), constant=(1,))
        yield s.case(s.floats(3, 5, 4), s.floats(5, 4), axis=-2, epsilon=1e-3)
        yield s.case(s.floats(17), s.floats(1), axis=0)


def _spatial(x: TensorType | Array) -> tuple[int, ...]:
    return tuple(range(2, len(x.shape)))


@operator("instance_normalization", inputs=("x", "scale", "b"), attrs={"epsilon": 1e-5})
class InstanceNormalization:
    """Each channel of each image minus its mean, over its deviation, times scale[c] plus b[c].
    ONNX: InstanceNormalization."""

    def infer(x: TensorType, scale: TensorType, b: TensorType, *, epsilon: float) -> TensorType:
        _check_channels(x, 3, scale, b)
        _check_epsilon(epsilon)
        require(prod(x.dims[2:]) > 0, f"x {x} has an empty spatial axis")
        return x.with_shape(x.dims)

    def decompose(b: Builder, x: Value, scale: Value, bias: Value, *, epsilon: float) -> Any:
        wide, scale, bias = widened(b, x, scale, bias)
        y, _, _ = _standardise(b, wide, _spatial(x.type), epsilon)
        return narrowed(b, _affine(b, y, scale, bias), x)

    def reference(x: Array, scale: Array, b: Array, *, epsilon: float) -> Array:
        shape = (-1, *(1,) * (x.ndim - 2))
        return _standard(x, _spatial(x), epsilon) * scale.reshape(shape) + b.reshape(shape)

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats
        yield s.case(f(2, 3, 5, 7), f(3), f(3), constant=(1, 2))
        yield s.case(f(1, 17, 13), f(17), f(17), epsilon=1e-2, constant=(1, 2))
        yield s.case(f(2, 1, 3, 2, 3), f(1), f(1))


def _affine(b: Builder, y: Value, scale: Value, bias: Value) -> Any:
    rank = y.type.rank
    y = b.op("mul", y, _channels_first(b, scale, rank))
    return b.op("add", y, _channels_first(b, bias, rank))


@operator(
    "group_normalization",
    inputs=("x", "scale", "bias"),
    attrs={"num_groups": REQUIRED, "epsilon": 1e-5},
)
class GroupNormalization:
    """Channels in num_groups groups, each of one image minus its mean, over its deviation; then
    times scale[c] plus bias[c]. ONNX: GroupNormalization as of opset 21."""

    def infer(
        x: TensorType, scale: TensorType, bias: TensorType, *, num_groups: int, epsilon: float
    ) -> TensorType:
        _check_channels(x, 2, scale, bias)
        _check_epsilon(epsilon)
        require(num_groups >= 1 and x.dims[1] % num_groups == 0,
                f"{x.dims[1]} channels cannot be split into {num_groups} groups")  # fmt: skip
        require(prod(x.dims[1:]) > 0, f"there is nothing to normalise in {x}")
        return x.with_shape(x.dims)

    def decompose(
        b: Builder, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float
    ) -> Any:
        dims = x.type.dims
        wide, scale, bias = widened(b, x, scale, bias)
        shape = (dims[0], num_groups, prod(dims[1:]) // num_groups)
        y, _, _ = _standardise(b, b.op("reshape", wide, shape=shape), (2,), epsilon)
        return narrowed(b, _affine(b, b.op("reshape", y, shape=dims), scale, bias), x)

    def reference(x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float) -> Array:
        shape = (-1, *(1,) * (x.ndim - 2))
        size = prod(x.shape[1:]) // num_groups
        y = _standard(x.reshape(x.shape[0], num_groups, size), (2,), epsilon).reshape(x.shape)
        return y * scale.reshape(shape) + bias.reshape(shape)

    def samples(s: Sampler) -> Iterator[Case]:
        f = s.floats
        yield s.case(f(2, 6, 5, 3), f(6), f(6), num_groups=3, constant=(1, 2))
        yield s.case(f(1, 4, 13), f(4), f(4), num_groups=1, epsilon=1e-2)
        yield s.case(f(3, 15), f(15), f(15), num_groups=5)
        yield s.case(f(1, 2, 3, 2, 3), f(2), f(2), num_groups=2)


@operator("mean_variance_normalization", attrs={"axes": (0, 2, 3)})
class MeanVarianceNormalization:
    """(x - mean) / (sqrt(variance) + 1e-9) over `axes`. ONNX: MeanVarianceNormalization."""

    def infer(x: TensorType, *, axes: Any) -> TensorType:
        require_float(x)
        over = normal_axes(axes, x.rank)
        require(all(x.dims[a] for a in over), f"there is nothing to normalise in {x}")
        return x.with_shape(x.dims)

    def decompose(b: Builder, x: Value, *, axes: Any) -> Any:
        over = normal_axes(axes, x.type.rank)
        (wide,) = widened(b, x)
        centred = b.op("sub", wide, b.op("reduce_mean", wide, axes=over, keepdims=1))
        variance = b.op("reduce_mean", b.op("mul", centred, centred), axes=over, keepdims=1)
        deviation = b.op("add", b.op("sqrt", variance), _scalar(b, wide, 1e-9))
        return narrowed(b, b.op("div", centred, deviation), x)

    def reference(x: Array, *, axes: Any) -> Array:
        deviation = x.std(tuple(axes), keepdims=True) + x.dtype.type(1e-9)
        return np.asarray((x - x.mean(tuple(axes), keepdims=True)) / deviation)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(3, 2, 5, 7))
        yield s.case(s.floats(3, 13), axes=(-1,))
        yield s.case(s.floats(2, 3, 5), axes=(0, -1))


@operator("lp_normalization", attrs={"axis": -1, "p": 2})
class LpNormalization:
    """x over its L1 or L2 norm along `axis`; 0 where the norm is 0. ONNX: LpNormalization."""

    def infer(x: TensorType, *, axis: int, p: int) -> TensorType:
        require_float(x)
        require(p in (1, 2), f"p must be 1 or 2, got {p}")
        normal_axis(axis, x.rank)
        return x.with_shape(x.dims)

    def decompose(b: Builder, x: Value, *, axis: int, p: int) -> Any:
        (wide,) = widened(b, x)
        norm = b.op("reduce_l1" if p == 1 else "reduce_l2", wide, axes=(axis,), keepdims=1)
        zero = b.op("equal", norm, _scalar(b, wide, 0.0))
        norm = b.op("where", zero, _scalar(b, wide, 1.0), norm)
        return narrowed(b, b.op("div", wide, norm), x)

    def reference(x: Array, *, axis: int, p: int) -> Array:
        norm = np.linalg.norm(x, p, axis, keepdims=True)
        return np.asarray(x / np.where(norm == 0, x.dtype.type(1), norm))

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(3, 13))
        yield s.case(s.floats(2, 5, 3), axis=1, p=1)
        yield s.case(s.floats(7), axis=0)
        yield s.case(s.floats(3, 5) * np.array([[1], [0], [1]], s.floats().dtype))


# --------------------------------------------------------------------------- softmax

MOST_POWERS: Final = 65504
"""Powers, none above 1, whose sum f16 can surely hold: its largest number."""


def _along(x: TensorType, *, axis: int) -> TensorType:
    require_float(x)
    normal_axis(axis, x.rank)
    return x.with_shape(x.dims)


def _softmax_samples(s: Sampler) -> Iterator[Case]:
    yield s.case(s.floats(3, 17))
    yield s.case(s.floats(2, 5, 3), axis=1)
    yield s.case(s.floats(13), axis=0)
    yield s.case(s.floats(2, 3, 4, 7) * 30, axis=-3)
    yield s.case(s.floats(3, 1) - 500)


@operator("softmax", attrs={"axis": -1})
class Softmax:
    """exp(x) over its sum along `axis`. ONNX: Softmax as of opset 13."""

    infer = _along
    samples = _softmax_samples

    def decompose(b: Builder, x: Value, *, axis: int) -> Any:
        # kernels for attention keep powers of f16 in registers, and their sums in float32
        fits = x.type.dtype is f16 and x.type.dims[axis] <= MOST_POWERS
        (wide,) = (x,) if fits else widened(b, x)
        e = b.op("exp", b.op("sub", wide, b.op("reduce_max", wide, axes=(axis,), keepdims=1)))
        return narrowed(b, b.op("div", e, b.op("reduce_sum", e, axes=(axis,), keepdims=1)), x)

    def reference(x: Array, *, axis: int) -> Array:
        e = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
        return np.asarray(e / e.sum(axis, keepdims=True))


@operator("log_softmax", attrs={"axis": -1})
class LogSoftmax:
    """x minus the logarithm of the sum of exp(x) along `axis`. ONNX: LogSoftmax as of opset 13."""

    infer = _along
    samples = _softmax_samples

    def decompose(b: Builder, x: Value, *, axis: int) -> Any:
        (wide,) = widened(b, x)
        shifted = b.op("sub", wide, b.op("reduce_max", wide, axes=(axis,), keepdims=1))
        total = b.op("reduce_sum", b.op("exp", shifted), axes=(axis,), keepdims=1)
        return narrowed(b, b.op("sub", shifted, b.op("log", total)), x)

    def reference(x: Array, *, axis: int) -> Array:
        return np.asarray(x - np.logaddexp.reduce(x, axis, keepdims=True))
