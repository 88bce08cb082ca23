"""Converters of operators that make, move and index elements."""

from __future__ import annotations

from math import floor

import numpy as np

from ...ops.types import bf16
from ..errors import ModelError
from .onnx_call import Call, Result, Unsupported, converts
from .onnx_compute import element_type
from .onnx_tensors import Known, checked_size, known

_SMALL = 1 << 16


@converts("Constant")
def _constant(c: Call) -> Result:
    for name, value in c.attrs.items():
        if isinstance(value, Known):
            return value
        if name in ("value_int", "value_ints"):
            return known(np.array(c.attr(name, None), np.int64))
        if name in ("value_float", "value_floats"):
            return known(np.array(c.attr(name, None), np.float32))
        if name.startswith("value_string"):
            raise Unsupported("strings are not supported")
        c.attr(name, None)
    raise ModelError(f"{c.where} has no value")


@converts("ConstantOfShape")
def _constant_of_shape(c: Call) -> Result:
    shape = c.ints(0, "input")
    if shape is None:
        raise ModelError(f"{c.where} lacks its input 0 (the shape)")
    fill = c.attr("value", None)
    fill = known(np.zeros(1, np.float32)) if fill is None else fill
    if not isinstance(fill, Known) or fill.array.size != 1:
        raise ModelError(f"{c.where}: its value must be a tensor of one element")
    size = checked_size(shape, fill.dtype, f"{c.where}: its result")
    if size <= _SMALL or fill.dtype is bf16:
        return Known(np.broadcast_to(fill.array.reshape(()), shape), fill.dtype)
    number = fill.array.reshape(()).item()
    result: Result = c.emit("constant_of_shape", shape=shape, value=number, dtype=fill.dtype.name)
    return result


@converts("Shape")
def _shape(c: Call) -> Result:
    start, end = c.attr("start", 0), c.attr("end", None)
    return known(np.array(c.type(0).dims[start:end], np.int64))


@converts("Size")
def _size(c: Call) -> Result:
    return known(np.array(c.type(0).size, np.int64))


@converts("Range")
def _range(c: Call) -> Result:
    return c.forward(dtype=c.type(0).dtype.name)


@converts("EyeLike")
def _eye_like(c: Call) -> Result:
    number = c.attr("dtype", None)
    return c.forward(dtype=None if number is None else element_type(c, number).name)


@converts("OneHot")
def _one_hot(c: Call) -> Result:
    depth = c.scalar(1, "depth")
    if depth is None or depth != floor(depth):
        raise ModelError(f"{c.where}: depth must be a whole number, not {depth}")
    return c.forward(depth=int(depth))


@converts("Split")
def _split(c: Call) -> Result:
    parts = c.ints(1, "split") or c.attr("split", ())
    x = c.need(0, "input")
    axis = c.attr("axis", 0)
    if not parts:
        rank = x.type.rank
        if not -rank <= axis < rank:
            raise ModelError(f"{c.where}: axis {axis} is out of range for {x.type}")
        extent = x.type.dims[axis]
        n = len(c.outputs)
        if c.attr("num_outputs", n) != n:
            raise ModelError(f"{c.where} has {n} outputs, but num_outputs={c.attrs['num_outputs']}")
        if "num_outputs" not in c.attrs and extent % n:
            raise ModelError(f"{c.where}: axis {axis} of {x.type} cannot be split into {n} parts")
        each = -(-extent // n)
        parts = tuple(max(min(each, extent - k * each), 0) for k in range(n))
    if len(parts) < len(c.outputs):
        raise ModelError(f"{c.where} splits into {len(parts)}, but has {len(c.outputs)} outputs")
    result: Result = c.emit("split", x, axis=axis, split=parts)
    return result


@converts("SpaceToDepth")
def _space_to_depth(c: Call) -> Result:
    """Opset 27 brought the mode that pixel-unshuffle needs."""
    mode = c.attr("mode", "DCR")
    if mode == "DCR":
        return c.forward(drop=("mode",))
    x, b = c.need(0, "input"), c.attr("blocksize", 0)
    if mode != "CRD" or x.type.rank != 4 or b < 1 or x.type.dims[2] % b or x.type.dims[3] % b:
        raise ModelError(f"{c.where}: mode {mode!r} and blocksize {b} do not fit {x.type}")
    n, channels, height, width = x.type.dims
    blocks = c.op("reshape", x, shape=(n, channels, height // b, b, width // b, b), allowzero=1)
    turned = c.op("transpose", blocks, perm=(0, 1, 3, 5, 2, 4))
    shape = (n, channels * b * b, height // b, width // b)
    result: Result = c.emit("reshape", turned, shape=shape, allowzero=1)
    return result


@converts("Scatter")
def _scatter(c: Call) -> Result:
    return c.forward("scatter_elements")


@converts("GridSample")
def _grid_sample(c: Call) -> Result:
    """Opset 20 renamed the modes for more than two axes."""
    mode = c.attr("mode", "linear")
    return c.forward(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


@converts("Upsample")
def _upsample(c: Call) -> Result:
    scales = c.array(1, "scales")
    factors = c.attr("scales", ()) if scales is None else tuple(scales.reshape(-1).tolist())
    return _resize_like_opset_10(c, factors)


def _resize_like_opset_10(c: Call, scales: tuple[float, ...]) -> Result:
    mode = c.attr("mode", "nearest")
    result: Result = c.emit(
        "resize", c.need(0, "X"), scales=scales, nearest_mode="floor",
        mode={"bilinear": "linear"}.get(mode, mode), coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    return result


@converts("Resize")
def _resize(c: Call) -> Result:
    if c.version < 11:
        scales = c.array(1, "scales")
        return _resize_like_opset_10(c, () if scales is None else tuple(scales.tolist()))
    x = c.need(0, "X")
    rank = x.type.rank
    axes = c.attr("axes", tuple(range(rank)))
    if any(not -rank <= a < rank for a in axes):
        raise ModelError(f"{c.where}: axes {list(axes)} are out of range for {x.type}")
    axes = tuple(a % rank for a in axes)
    mode = c.attr("coordinate_transformation_mode", "half_pixel")
    roi = c.array(1, "roi") if mode == "tf_crop_and_resize" else None
    scales, sizes = c.array(2, "scales"), c.ints(3, "sizes")
    scales = None if scales is None or scales.size == 0 else scales.astype(np.float64)
    for name, given in (("roi", roi), ("scales", scales), ("sizes", sizes)):
        n = len(axes) * (2 if name == "roi" else 1)
        if given is not None and len(given) not in (n, 0):
            raise ModelError(f"{c.where}: {len(given)} {name} for {len(axes)} axes of {x.type}")
    dims = x.type.dims
    full_scales: list[float] | None = None
    full_sizes: list[int] | None = None
    if scales is not None:
        full_scales = [1.0] * rank
        for a, s in zip(axes, scales, strict=True):
            full_scales[a] = float(s)
    elif sizes:
        full_sizes = list(dims)
        policy = c.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [size / max(dims[a], 1) for a, size in zip(axes, sizes, strict=True)]
            factor = (min if policy == "not_larger" else max)(factors)
            full_scales = [factor if a in axes else 1.0 for a in range(rank)]
            sizes = tuple(int(factor * dims[a] + 0.5) for a in axes)
        for a, size in zip(axes, sizes, strict=True):
            full_sizes[a] = size
    else:
        raise ModelError(f"{c.where} has neither scales nor sizes")
    full_roi: list[float] | None = None
    if roi is not None and roi.size:
        full_roi = [0.0] * rank + [1.0] * rank
        for k, a in enumerate(axes):
            full_roi[a], full_roi[rank + a] = float(roi[k]), float(roi[len(axes) + k])
    result: Result = c.emit(
        "resize", x, sizes=full_sizes, scales=full_scales, roi=full_roi,
        mode=c.attr("mode", "nearest"),
        coordinate_transformation_mode=mode,
        nearest_mode=c.attr("nearest_mode", "round_prefer_floor"),
        cubic_coeff_a=c.attr("cubic_coeff_a", -0.75),
        exclude_outside=c.attr("exclude_outside", 0),
        extrapolation_value=c.attr("extrapolation_value", 0.0),
        antialias=c.attr("antialias", 0),
    )  # fmt: skip
    return result
