"""Convolutions of quantised models: exact sums of integers, scales per tensor or channel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import tilewright as tw
from tilewright.compiler.errors import ModelError
from tilewright.compiler.frontends.onnx import read

rng = np.random.default_rng(5)
SCALE, ZERO = np.float32(0.25), np.uint8(99)


def model(op_type: str, arrays: list[np.ndarray | None], **attrs: object) -> onnx.ModelProto:
    """One node whose first input is the model's; the others are constants, None one that is not
    there."""
    names = ["" if a is None else f"i{k}" for k, a in enumerate(arrays)]
    x = arrays[0]
    assert x is not None
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    constants = [numpy_helper.from_array(np.asarray(a), n)
                 for a, n in zip(arrays[1:], names[1:], strict=True) if a is not None]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], name="n", **attrs)], "g",
        [helper.make_tensor_value_info("i0", kind, x.shape)],
        [onnx.ValueInfoProto(name="y")], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def sums(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution of integers, one group, no padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,mcij->nmhw", windows, w, dtype=np.int64)


@pytest.mark.parametrize("channels", [2, 66], ids=["float32", "float64"])
def test_sums_of_integers_are_exact(channels: int) -> None:
    """Those of 66 channels pass 2^24, from where on float32 leaves odd numbers out."""
    x = np.full((1, channels, 4, 5), 255, np.uint8)
    w = np.full((3, channels, 3, 3), 255, np.uint8)
    x[0, 0, ::2], w[1, 0, 0, 0] = 254, 3
    (y,) = tw.compile(model("ConvInteger", [x, w])).run({"i0": x}).values()
    want = sums(x.astype(np.int64), w.astype(np.int64))
    assert y.dtype == np.int32 and (want.max() > 1 << 24) == (channels == 66)
    np.testing.assert_array_equal(y, want)


def test_zero_points_are_what_borders_hold() -> None:
    x = rng.integers(0, 256, (1, 2, 3, 3)).astype(np.uint8)
    w = rng.integers(0, 256, (2, 2, 3, 3)).astype(np.uint8)
    m = model("ConvInteger", [x, w, ZERO, np.uint8(7)], pads=[1] * 4, kernel_shape=[3, 3])
    (y,) = tw.compile(m).run({"i0": x}).values()
    around = np.pad(x.astype(np.int64) - 99, ((0, 0), (0, 0), (1, 1), (1, 1)))
    np.testing.assert_array_equal(y, sums(around, w.astype(np.int64) - 7))


@pytest.mark.parametrize("each", [False, True])
def test_a_convolution_between_quantised_tensors(each: bool) -> None:
    """With powers of two as scales nothing rounds but the result."""
    x = rng.integers(0, 256, (2, 3, 5, 6)).astype(np.uint8)
    w = rng.integers(-128, 128, (4, 3, 2, 3)).astype(np.int8)
    scale = np.float32([0.5, 0.25, 1, 2]) if each else np.float32(0.5)
    zero = np.int8([0, 1, -2, 3]) if each else np.int8(0)
    bias = rng.integers(-9000, 9000, 4).astype(np.int32)
    m = model("QLinearConv",
              [x, SCALE, ZERO, w, scale, zero, np.float32(32), np.uint8(120), bias])  # fmt: skip
    (y,) = tw.compile(m).run({"i0": x}).values()
    column = (-1, 1, 1)
    total = sums(x.astype(np.int64) - 99, w - zero.astype(np.int64).reshape(-1, 1, 1, 1))
    exact = (total + bias.reshape(column)) * (scale.astype(np.float64) * 0.25 / 32).reshape(column)
    want = np.clip(np.rint(exact) + 120, 0, 255).astype(np.uint8)
    assert len(np.unique(want)) > 9
    np.testing.assert_array_equal(y, want)


def test_what_does_not_fit_is_refused() -> None:
    x, w = np.zeros((1, 2, 4, 4), np.uint8), np.zeros((1, 2, 3, 3), np.uint8)
    with pytest.raises(ModelError, match=r"'n'.*kernel_shape is \[2, 2\]"):
        read(model("ConvInteger", [x, w], kernel_shape=[2, 2]))
    with pytest.raises(ModelError, match=r"'n'.*8 bits.*i32"):
        read(model("ConvInteger", [x.astype(np.int32), w]))
