"""Reductions over axes: the ONNX Reduce* family.

axes=None or () means all axes, unless noop_with_empty_axes is set: then no axis is reduced, and
only the elementwise part of the operator remains. A reduction of no elements gives the
combination's identity (0, 1, the lowest or the highest value); a mean of none is NaN. Half floats
are added and multiplied in float32, and results rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .expr import Expr, Scalar, binary, cast, const, in_single, reduce, unary, var
from .operator import (
    Builder,
    Reduction,
    TensorArg,
    Value,
    narrowed,
    normal_axes,
    operator,
    require,
    widened,
)
from .samples import Case, Sampler
from .types import DType, TensorType, boolean, dtype_of, f64

Array = npt.NDArray[Any]
Infer = Callable[..., TensorType]

REDUCE_ATTRS: Final[dict[str, Any]] = {"axes": None, "keepdims": 1, "noop_with_empty_axes": 0}


def lowest(dtype: DType) -> Scalar:
    """The identity of max: -inf, False, or the smallest integer."""
    if dtype.is_float:
        return float("-inf")
    return False if dtype is boolean else int(np.iinfo(dtype.numpy).min)


def highest(dtype: DType) -> Scalar:
    """The identity of min: inf, True, or the largest integer."""
    if dtype.is_float:
        return float("inf")
    return True if dtype is boolean else int(np.iinfo(dtype.numpy).max)


def reduced_axes(axes: Any, rank: int, noop: int) -> tuple[int, ...]:
    """The axes to reduce, sorted. Raises OperatorError."""
    if axes is None or axes == ():
        return () if noop else tuple(range(rank))
    return tuple(sorted(normal_axes((axes,) if isinstance(axes, int) else axes, rank)))


def fold(
    combine: str, x: TensorArg, axes: tuple[int, ...], keepdims: int,
    term: Callable[[Expr], Expr] = lambda e: e,
) -> Callable[..., Expr]:  # fmt: skip
    """What `compute` returns for a reduction of term(x) over axes of x."""
    over = {a: var(f"r{k}", x.shape[a]) for k, a in enumerate(axes)}

    def at(*where: Expr) -> Expr:
        rest = iter(w for k, w in enumerate(where) if not keepdims or k not in over)
        place = tuple(over[a] if a in over else next(rest) for a in range(x.rank))
        return reduce(combine, tuple(over.values()), term(x[place]))

    return at


def _infer(allowed: str, of_none: bool = True) -> Infer:
    """allowed: the kinds of element types ("f", "i", "u", "b") that the operator takes."""

    def infer(x: TensorType, *, axes: Any, keepdims: int, noop_with_empty_axes: int) -> TensorType:
        require(x.dtype.kind in allowed, f"is not defined for {x.dtype} elements, got {x}")
        over = reduced_axes(axes, x.rank, noop_with_empty_axes)
        dims = x.dims
        if not of_none and not x.dtype.is_float:
            require(all(dims[a] for a in over), f"the mean of no integers is undefined: {x}")
        if keepdims:
            return x.with_shape(1 if a in over else d for a, d in enumerate(dims))
        return x.with_shape(d for a, d in enumerate(dims) if a not in over)

    return infer


def _samples(s: Sampler) -> Iterator[Case]:
    # enough terms for the order of summation to matter, few enough for 1e-5 to hold
    yield s.case(_numbers(s, 3, 7, 5), axes=(1,))
    yield s.case(_numbers(s, 2, 3, 4, 5), axes=(-1, 1), keepdims=0)
    yield s.case(_numbers(s, 17, 13))
    yield s.case(_numbers(s, 3, 33), axes=(1,), keepdims=0)
    yield s.case(_numbers(s, 33, 3), axes=0)
    yield s.case(_numbers(s, 5, 1, 3), keepdims=0)
    yield s.case(_numbers(s, 3, 4), axes=(), noop_with_empty_axes=1)
    yield s.case(_numbers(s, 7), axes=())
    yield s.case(_numbers(s))


def _numbers(s: Sampler, *shape: int) -> Array:
    """Positive floats (for logarithms) around 1, so that products neither vanish nor explode."""
    return s.floats(*shape, lo=0.5, hi=1.5) if s.dtype.is_float else s.numbers(*shape)


def _signed_samples(s: Sampler) -> Iterator[Case]:
    yield from _samples(s)
    yield s.case(s.numbers(3, 5, 7), axes=(-2, 0))
    yield s.case(s.numbers(2, 0, 3), axes=(1,))


def _declare(
    name: str,
    doc: str,
    combine: str,
    reference: Callable[..., Any],
    *,
    allowed: str = "fiu",
    before: Callable[[Expr], Expr] = lambda e: e,
    after: Callable[[Expr, int], Expr] = lambda e, n: e,
    samples: Callable[[Sampler], Iterator[Case]] = _signed_samples,
) -> None:
    """Register after(combine of before(x), number of elements combined).

    reference(x, axis, keepdims) is numpy's; its result is brought back to x's element type.
    """

    def compute(
        out: TensorType, x: TensorArg, *, axes: Any, keepdims: int, noop_with_empty_axes: int
    ) -> Callable[..., Expr]:
        over = reduced_axes(axes, x.rank, noop_with_empty_axes)
        wide = in_single if combine in ("sum", "prod") else lambda e: e
        total = fold(combine, x, over, keepdims, lambda e: before(wide(e)))
        count = prod(x.shape[a] for a in over)
        return lambda *where: cast(after(total(*where), count), out.dtype)

    def truth(x: Array, *, axes: Any, keepdims: int, noop_with_empty_axes: int) -> Array:
        over = reduced_axes(axes, x.ndim, noop_with_empty_axes)
        return np.asarray(reference(x, over, bool(keepdims))).astype(x.dtype)

    parts = {
        "__doc__": doc, "infer": _infer(allowed, of_none=name != "reduce_mean"),
        "compute": compute, "reference": truth, "samples": samples,
    }  # fmt: skip
    operator(name, attrs=REDUCE_ATTRS, traits=(Reduction(),))(type(name, (), parts))


def _square(e: Expr) -> Expr:
    return e * e


def _in_f64(function: str) -> Callable[[Expr, int], Expr]:
    """A float function of a float, or of an integer: there by way of f64, truncated."""

    def apply(e: Expr, _: int) -> Expr:
        if e.dtype.is_float:
            return unary(function, e)
        return cast(unary(function, cast(e, f64)), e.dtype)

    return apply


def _divide(e: Expr, count: int) -> Expr:
    n = const(count, e.dtype)
    return e / n if e.dtype.is_float else binary("truncdiv", e, n)


def _mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    total = np.sum(x, axis, x.dtype, keepdims=keepdims)
    count = prod(x.shape[a] for a in axis)
    if x.dtype.kind == "f":
        return total / x.dtype.type(count)
    return np.sign(total) * (np.abs(total) // count)


_declare(
    "reduce_sum", "Sum over axes. ONNX: ReduceSum.", "sum",
    lambda x, axis, keepdims: np.sum(x, axis, x.dtype, keepdims=keepdims),
)  # fmt: skip
_declare(
    "reduce_prod", "Product over axes. ONNX: ReduceProd.", "prod",
    lambda x, axis, keepdims: np.prod(x, axis, x.dtype, keepdims=keepdims),
)  # fmt: skip
_declare(
    "reduce_max", "Maximum over axes; NaN wins. ONNX: ReduceMax.", "max",
    lambda x, axis, keepdims: np.max(x, axis, keepdims=keepdims, initial=lowest(dtype_of(x.dtype))),
    allowed="fiub",
)  # fmt: skip
_declare(
    "reduce_min", "Minimum over axes; NaN wins. ONNX: ReduceMin.", "min",
    lambda x, axis, keepdims: np.min(x, axis, keepdims=keepdims,
                                     initial=highest(dtype_of(x.dtype))),
    allowed="fiub",
)  # fmt: skip
_declare(
    "reduce_mean", "Mean over axes; for integers truncated toward zero. ONNX: ReduceMean.", "sum",
    _mean, after=_divide, samples=_samples,
)  # fmt: skip
_declare(
    "reduce_l1", "Sum of absolute values over axes. ONNX: ReduceL1.", "sum",
    lambda x, axis, keepdims: np.sum(np.abs(x), axis, x.dtype, keepdims=keepdims),
    before=lambda e: unary("abs", e),
)  # fmt: skip
_declare(
    "reduce_l2", "Square root of the sum of squares over axes. ONNX: ReduceL2.", "sum",
    lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis, x.dtype, keepdims=keepdims)),
    before=_square, after=_in_f64("sqrt"),
)  # fmt: skip
_declare(
    "reduce_sum_square", "Sum of squares over axes. ONNX: ReduceSumSquare.", "sum",
    lambda x, axis, keepdims: np.sum(x * x, axis, x.dtype, keepdims=keepdims),
    before=_square,
)  # fmt: skip
_declare(
    "reduce_log_sum", "Logarithm of the sum over axes. ONNX: ReduceLogSum.", "sum",
    lambda x, axis, keepdims: np.log(np.sum(x, axis, x.dtype, keepdims=keepdims)),
    allowed="f", after=_in_f64("log"), samples=_samples,
)  # fmt: skip


@operator("reduce_log_sum_exp", attrs=REDUCE_ATTRS)
class ReduceLogSumExp:
    """log(sum(exp(x))) over axes, without overflow. Floats only. ONNX: ReduceLogSumExp."""

    infer = _infer("f")
    samples = _signed_samples

    def decompose(
        b: Builder, x: Value, *, axes: Any, keepdims: int, noop_with_empty_axes: int
    ) -> Any:
        over = reduced_axes(axes, x.type.rank, noop_with_empty_axes)
        if not over:
            return x
        (wide,) = widened(b, x)
        top = b.op("reduce_max", wide, axes=over, keepdims=1)
        # an infinite maximum must not be subtracted from itself
        finite = np.finfo(wide.type.dtype.numpy)
        top = b.op("max", b.op("min", top, b.constant(finite.max)), b.constant(finite.min))
        total = b.op(
            "reduce_sum", b.op("exp", b.op("sub", wide, top)), axes=over, keepdims=keepdims
        )
        if not keepdims:
            top = b.op("squeeze", top, axes=over)
        return narrowed(b, b.op("add", b.op("log", total), top), x)

    def reference(x: Array, *, axes: Any, keepdims: int, noop_with_empty_axes: int) -> Array:
        over = reduced_axes(axes, x.ndim, noop_with_empty_axes)
        out = np.logaddexp.reduce(x[..., None], -1, keepdims=False)
        if over:
            out = np.logaddexp.reduce(
                np.moveaxis(x, over, range(len(over))).reshape(
                    prod(x.shape[a] for a in over), *(d for k, d in enumerate(x.shape)
                                                      if k not in over)), 0)  # fmt: skip
            if keepdims:
                out = np.expand_dims(out, over)
        return np.asarray(out, x.dtype)
