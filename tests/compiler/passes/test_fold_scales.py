"""Scales are not folded into weights that they would make infinite."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.compiler.graph.ir import Blob, Role
from tilewright.compiler.passes.fold_scales import _PART, _stays_finite
from tilewright.ops.types import TensorType, f32

LARGEST = float(np.finfo(np.float32).max)


def stays_finite(w: np.ndarray, factor: float) -> bool:
    blob = Blob("w", TensorType(f32, w.shape), Role.CONSTANT, w)
    return _stays_finite(blob, np.array([0.5, -factor]))


@pytest.mark.parametrize("n", [1, 7, _PART, _PART + 1, 3 * _PART - 5])
@pytest.mark.parametrize(
    ("size", "factor"),
    [
        (1.0, 1.5), (1.0, 1e38), (1.0, 4e38), (1e10, 1e20), (1e10, 1e29), (1e30, 1e8), (1e30, 1e9),
        (LARGEST, 1.0), (LARGEST, 1.01), (1e-30, 1e60), (1e-30, 1e70), (0.0, 1e300),
    ],
)  # fmt: skip
def test_the_largest_product_decides(n: int, size: float, factor: float) -> None:
    w = np.zeros(n, np.float32)
    w[n // 2] = -size
    assert stays_finite(w, factor) == (float(np.float32(size)) * factor <= LARGEST)


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_left_alone(strange: float) -> None:
    assert not stays_finite(np.array([1, strange, 2], np.float32), 2.0)


def test_weights_may_lie_anywhere() -> None:
    raw = np.zeros(4 * (_PART + 9) + 1, np.uint8)
    w = raw[1:].view(np.float32)
    w[-1] = 1e38
    assert stays_finite(w, 3.0) and not stays_finite(w, 4.0)
