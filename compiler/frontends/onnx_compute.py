"""Converters of operators that compute with elements: arithmetic, activations, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.types import DType, TensorType
from ..errors import ModelError
from .onnx_call import Call, Result, Unsupported, converts
from .onnx_tensors import ForeignType, Known, dtype_named

_LOGICAL = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "Not": "logical_not"}


@converts(*_LOGICAL)
def _logical(c: Call) -> Result:
    return c.forward(_LOGICAL[c.op_type])


@converts("Identity")
def _identity(c: Call) -> Result:
    entry = c.inputs[0] if c.inputs else None
    return entry if isinstance(entry, Known) else c.forward()


def element_type(c: Call, number: Any) -> DType:
    """The element type that an attribute names by its ONNX number."""
    if not isinstance(number, int):
        raise ModelError(f"{c.where}: an element type must be given as int, not {number!r}")
    try:
        return dtype_named(number, c.where)
    except ForeignType as e:
        raise Unsupported(f"element type {e} is not supported") from None


@converts("Cast")
def _cast(c: Call) -> Result:
    if "to" not in c.attrs:
        raise ModelError(f"{c.where} lacks its attribute 'to'")
    return _cast_to(c, element_type(c, c.attrs["to"]))


@converts("CastLike")
def _cast_like(c: Call) -> Result:
    return _cast_to(c, c.type(1).dtype)


def _cast_to(c: Call, dtype: DType) -> Result:
    entry = c.inputs[0] if c.inputs else None
    if isinstance(entry, Known) and entry.dtype is dtype:
        return entry
    result: Result = c.emit("cast", c.need(0, "input"), to=dtype.name)
    return result


@converts("Clip")
def _clip(c: Call) -> Result:
    """The limits became inputs in opset 11."""
    x = c.need(0, "input")
    limits = []
    for k, name in ((1, "min"), (2, "max")):
        number = c.attr(name, None)
        limits.append(c.value(k) if number is None else c.like(number, x))
    result: Result = c.emit("clip", x, *limits)
    return result


@converts("Dropout")
def _dropout(c: Call) -> Result:
    """Until opset 10 the mask had the type of the data."""
    if c.version < 10 and c.wants(1):
        raise Unsupported("its output 1 (the mask) is only there for training")
    training = c.scalar(2, "training_mode")
    ratio = c.scalar(1, "ratio") if training else 0.0
    if training and (ratio is None or ratio > 0):
        raise Unsupported("it is in training mode; export the model for inference")
    name = "dropout" if c.wants(1) else "identity"
    result: Result = c.emit(name, c.need(0, "data"))
    return result


@converts("Softmax", "LogSoftmax", "Hardmax")
def _softmax(c: Call) -> Result:
    """Before opset 13 the axes from `axis` on were taken as one."""
    name = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Hardmax": "hardmax"}[c.op_type]
    x = c.need(0, "input")
    rank = x.type.rank
    if c.version >= 13 or rank == 0:
        return c.forward(name, axis=c.attr("axis", -1))
    axis = c.attr("axis", 1)
    if not -rank <= axis <= rank:
        raise ModelError(f"{c.where}: axis {axis} is out of range for rank {rank}")
    axis = axis + rank if axis < 0 else axis
    long = [a for a in range(axis, rank) if x.type.dims[a] != 1]
    if len(long) <= 1 and axis < rank:
        result: Result = c.emit(name, x, axis=long[0] if long else axis)
        return result
    flat = c.op("flatten", x, axis=axis)
    result = c.emit("reshape", c.op(name, flat, axis=-1), shape=x.type.dims, allowzero=1)
    return result


@converts("BatchNormalization")
def _batch_normalization(c: Call) -> Result:
    if c.attr("training_mode", 0):
        raise Unsupported("it is in training mode; export the model for inference")
    if c.version < 9 and not c.attr("spatial", 1):
        raise Unsupported("statistics per element (spatial=0) are not supported")
    return c.forward(drop=("training_mode", "spatial", "momentum"))


@converts("LayerNormalization")
def _layer_normalization(c: Call) -> Result:
    """stash_type asks for at least float32 in between, which kernels do anyway."""
    outputs = max(k + 1 for k in range(3) if k == 0 or c.wants(k))
    return c.forward(drop=("stash_type",), outputs=outputs)


@converts("RMSNormalization")
def _rms_normalization(c: Call) -> Result:
    return c.forward(drop=("stash_type",))


@converts("GroupNormalization")
def _group_normalization(c: Call) -> Result:
    if c.version < 21:
        return _group_normalization_18(c)
    return c.forward(drop=("stash_type",))


def _group_normalization_18(c: Call) -> Result:
    """Opset 18 had scale and bias per group, opset 21 has them per channel."""
    x = c.need(0, "X")
    groups = c.attr("num_groups", 0)
    if groups < 1 or x.type.rank < 2 or x.type.dims[1] % groups:
        raise ModelError(f"{c.where}: {x.type} cannot be divided into {groups} groups")
    each = x.type.dims[1] // groups
    per_channel = []
    for k, what in ((1, "scale"), (2, "bias")):
        column = c.op("reshape", c.need(k, what), shape=(groups, 1))
        wide = c.op("expand", column, shape=(groups, each))
        per_channel.append(c.op("reshape", wide, shape=(groups * each,)))
    result: Result = c.emit(
        "group_normalization", x, *per_channel, num_groups=groups,
        epsilon=c.attr("epsilon", 1e-5),
    )  # fmt: skip
    return result


@converts("SimplifiedLayerNormalization")
def simplified_layer_normalization(c: Call) -> Result:
    if c.wants(1):
        raise Unsupported("its output 1 (inverse deviation) is only there for training")
    return c.forward("rms_normalization", drop=("stash_type",))


@converts("Conv", "ConvTranspose")
def _convolution(c: Call) -> Result:
    check_kernel_shape(c, c.need(1, "W").type)
    return c.forward(drop=("kernel_shape",))


def check_kernel_shape(c: Call, w: TensorType) -> None:
    """kernel_shape repeats what the weights say. Raises ModelError where it does not."""
    kernel = c.attr("kernel_shape", ())
    if kernel and tuple(kernel) != w.dims[2:]:
        raise ModelError(f"{c.where}: kernel_shape is {list(kernel)}, but the weights are {w}")


@converts("MaxPool")
def _max_pool(c: Call) -> Result:
    return c.forward(indices=c.wants(1))


@converts("NonZero")
def _non_zero(c: Call) -> Result:
    return Known(np.array(np.nonzero(_of_data(c)), np.int64), dtype_named(7, c.where))


def _of_data(c: Call) -> Any:
    entry = c.inputs[0] if c.inputs else None
    if not isinstance(entry, Known):
        raise Unsupported("the shape of its result depends on data")
    return entry.array


@converts("NonMaxSuppression", "Unique", "StringNormalizer")
def _shaped_by_data(c: Call) -> Result:
    raise Unsupported("the shape of its result depends on data")


@converts("Compress")
def _compress(c: Call) -> Result:
    keep = c.array(1, "condition")
    if keep is None:
        raise ModelError(f"{c.where} lacks its input 1 (condition)")
    x = c.need(0, "input")
    axis = c.attr("axis", None)
    if axis is None:
        x, axis = c.op("reshape", x, shape=(-1,)), 0
    where = np.flatnonzero(keep)
    result: Result = c.emit("gather", x, c.constant(where.astype(np.int64)), axis=axis)
    return result
