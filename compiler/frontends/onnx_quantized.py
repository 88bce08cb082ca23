"""Converters of quantisation: what is stored in few bits is computed in float32, and in float64
where sums of integers have to be exact that float32 cannot hold.

A tensor q stands for (q - zero_point) * scale, with one scale per tensor, per index of an axis, or
per block of indices of an axis.
"""

from __future__ import annotations

from math import prod
from typing import Final

import numpy as np

from ...ops.types import DType, TensorType, f32, f64, i8, i32, u8
from ..errors import ModelError
from ..graph.builder import Value
from .onnx_call import Call, Result, converts
from .onnx_compute import check_kernel_shape, element_type

_NARROW: Final = (8, 16)  # bits of integers that float32 represents with room to spare


@converts("DequantizeLinear")
def _dequantize(c: Call) -> Result:
    x, scale = c.need(0, "x"), c.need(1, "x_scale")
    dtype = _output_type(c, scale.type.dtype)
    wide = _cast(c, x, f32)
    if c.has(2):
        zero = _cast(c, c.need(2, "x_zero_point"), f32)
        wide = c.op("sub", wide, _spread(c, zero, x.type))
    product = c.op("mul", wide, _spread(c, _cast(c, scale, f32), x.type))
    result: Result = c.emit("cast", product, to=dtype.name)
    return result


@converts("QuantizeLinear")
def _quantize(c: Call) -> Result:
    x, scale = c.need(0, "x"), c.need(1, "y_scale")
    zero = c.value(2)
    dtype = _output_type(c, u8 if zero is None else zero.type.dtype)
    ratio = c.op("div", _cast(c, x, f32), _spread(c, _cast(c, scale, f32), x.type))
    return _rounded(c, ratio, None if zero is None else _spread(c, zero, x.type), dtype)


@converts("QLinearMatMul")
def _matmul(c: Call) -> Result:
    a, a_zero, b, b_zero, factor, y_zero = _operands(c, "a", "b")
    total = _cast(c, c.op("matmul_integer", a, b, a_zero, b_zero), f32)
    return _rounded(c, c.op("mul", total, factor), y_zero, y_zero.type.dtype)


@converts("ConvInteger")
def _conv_integer(c: Call) -> Result:
    x, w = c.need(0, "x"), c.need(1, "w")
    result: Result = c.emit("cast", _sums(c, x, w, c.value(2), c.value(3)), to=i32.name)
    return result


@converts("QLinearConv")
def _conv(c: Call) -> Result:
    x, x_zero, w, w_zero, factor, y_zero = _operands(c, "x", "w")
    total = _sums(c, x, w, x_zero, w_zero)
    bias = c.value(8)
    if bias is not None:
        total = c.op("add", _cast(c, total, i32), _column(c, bias, w.type.rank - 2))
    ratio = c.op("mul", _cast(c, total, f32), _column(c, factor, w.type.rank - 2))
    return _rounded(c, ratio, _column(c, y_zero, 0), y_zero.type.dtype)


def _operands(c: Call, first: str, second: str) -> tuple[Value, Value, Value, Value, Value, Value]:
    """Both operands of a product with their zero points; what its sums are to be multiplied by; and
    the zero point of its result."""
    names = (f"{n}{part}" for n in (first, second) for part in ("", "_scale", "_zero_point"))
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (
        c.need(k, name) for k, name in enumerate((*names, "y_scale", "y_zero_point"))
    )
    factor = c.op("div", c.op("mul", _cast(c, a_scale, f32), _cast(c, b_scale, f32)),
                  _cast(c, y_scale, f32))  # fmt: skip
    return a, a_zero, b, b_zero, factor, y_zero


def _sums(c: Call, x: Value, w: Value, x_zero: Value | None, w_zero: Value | None) -> Value:
    """The convolution of integers of 8 bits: whole numbers, in float32 where it holds them all,
    else in float64."""
    check_kernel_shape(c, w.type)
    kind = f32 if prod(w.type.dims[1:]) << 16 <= 1 << 24 else f64
    wide = []
    for v, zero, behind in ((x, x_zero, 0), (w, w_zero, w.type.rank - 1)):
        if v.type.dtype not in (u8, i8):
            raise ModelError(f"{c.where}: expected integers of 8 bits, got {v.type}")
        y = _cast(c, v, kind)
        if zero is not None:
            y = c.op("sub", y, _column(c, _cast(c, zero, kind), behind))
        wide.append(y)
    attrs = {k: c.attr(k, None) for k in c.attrs if k != "kernel_shape"}
    result: Value = c.op("conv", *wide, **attrs)
    return result


def _column(c: Call, v: Value, behind: int) -> Value:
    """A number, or one per channel with so many axes behind the channels'."""
    return _reshape(c, v, () if v.type.size == 1 else (v.type.size, *(1,) * behind))


def _rounded(c: Call, ratio: Value, zero: Value | None, dtype: DType) -> Result:
    """round(ratio) + zero, saturated to what dtype holds; halves go to the even neighbour."""
    if dtype.kind not in "iu" or dtype.bits not in _NARROW:
        raise ModelError(f"{c.where}: a tensor cannot be quantised to {dtype}")
    y = c.op("round", ratio)
    if zero is not None:
        y = c.op("add", y, _cast(c, zero, f32))
    limits = np.iinfo(dtype.numpy)
    y = c.op("clip", y, c.like(limits.min, y), c.like(limits.max, y))
    result: Result = c.emit("cast", y, to=dtype.name)
    return result


def _output_type(c: Call, default: DType) -> DType:
    number = c.attr("output_dtype", 0)
    return element_type(c, number) if number else default


def _cast(c: Call, v: Value, dtype: DType) -> Value:
    if v.type.dtype is dtype:
        return v
    result: Value = c.op("cast", v, to=dtype.name)
    return result


def _spread(c: Call, v: Value, x: TensorType) -> Value:
    """A scale or zero point in a shape that broadcasts against x."""
    if v.type.size == 1:
        return v if v.type.rank == 0 else _reshape(c, v, ())
    axis = c.attr("axis", 1)
    if not -x.rank <= axis < x.rank:
        raise ModelError(f"{c.where}: axis {axis} is out of range for {x}")
    axis %= x.rank
    block = c.attr("block_size", 0)
    if not block:
        if v.type.dims != (x.dims[axis],):
            raise ModelError(f"{c.where}: {v.type} does not fit axis {axis} of {x}")
        return _reshape(c, v, tuple(d if k == axis else 1 for k, d in enumerate(x.dims)))
    dims = v.type.dims
    if block < 0 or len(dims) != x.rank or dims[axis] * block < x.dims[axis]:
        raise ModelError(f"{c.where}: {v.type} has no element for each block of {block} of {x}")
    split = _reshape(c, v, (*dims[: axis + 1], 1, *dims[axis + 1 :]))
    wide = c.op("expand", split, shape=(*dims[: axis + 1], block, *dims[axis + 1 :]))
    flat = _reshape(c, wide, (*dims[:axis], dims[axis] * block, *dims[axis + 1 :]))
    cut: Value = c.op("slice", flat, starts=(0,), ends=(x.dims[axis],), axes=(axis,))
    return cut


def _reshape(c: Call, v: Value, shape: tuple[int, ...]) -> Value:
    result: Value = c.op("reshape", v, shape=shape, allowzero=1)
    return result
