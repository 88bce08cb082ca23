"""Sums of half floats are computed in float32: neither many terms nor large ones spoil them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.ops.operator import REGISTRY

MANY = 3000  # ones; in f16 a sum of ones stops at 2048
LARGE = 300.0  # its square is more than f16 can hold
SPREAD = np.random.default_rng(0).standard_normal((3, 1, MANY)).astype(np.float16) * 100

CASES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "reduce_sum": (np.ones((MANY, 5)), {"axes": (0,)}),
    "reduce_mean": (np.full((70000, 3), 2.0), {"axes": (0,)}),  # no f16 counts so far
    "reduce_l1": (np.ones((MANY, 5)), {"axes": (0,)}),
    "reduce_l2": (np.full((5, 9), LARGE), {"axes": (1,)}),
    "reduce_prod": (np.tile([LARGE, 1 / LARGE], (2, 8))[:, ::-1].copy(), {"axes": (1,)}),
    "reduce_log_sum": (np.ones((70000, 3)), {"axes": (0,)}),
    "reduce_log_sum_exp": (np.zeros((70000, 3)), {"axes": (0,)}),
    "average_pool": (np.ones((1, 3, 300, 300)), {"kernel_shape": 300}),
    "global_average_pool": (np.ones((1, 3, 300, 300)), {}),
    "lp_pool": (np.full((1, 3, 4, 4), LARGE), {"kernel_shape": 2}),
    "global_lp_pool": (np.full((1, 3, 4, 4), LARGE), {}),
    "lrn": (np.full((1, 5, 2, 2), LARGE), {"size": 3, "beta": 0.5, "alpha": 1.0}),
    "softmax": (np.zeros((1, 70000)), {}),
    "log_softmax": (np.zeros((1, 70000)), {}),
    "lp_normalization": (np.full((2, 9), LARGE), {}),
    "mean_variance_normalization": (SPREAD, {"axes": (2,)}),
}


def check(name: str, x: np.ndarray, attrs: dict[str, Any], *more: np.ndarray) -> None:
    arrays = [a.astype(np.float16) for a in (x, *more)]
    g = tw.Graph(name)
    values = [g.input(f"x{k}", a.shape, "f16") for k, a in enumerate(arrays)]
    g.output(g.op(name, *values, **attrs), name="y")
    y = tw.compile(g)(*arrays)
    op = REGISTRY[name]
    want = op.reference(*(a.astype(np.float64) for a in arrays), **op.bind(attrs))
    want = np.asarray(want[0] if isinstance(want, tuple) else want)
    assert y.dtype == np.float16 and y.shape == want.shape
    atol = 2e-3 * np.abs(want).max()
    np.testing.assert_allclose(y.astype(np.float64), want, rtol=2e-3, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_sums_of_halves(name: str) -> None:
    check(name, *CASES[name])


@pytest.mark.parametrize("name", ["layer_normalization", "rms_normalization"])
def test_layer_norms_of_halves(name: str) -> None:
    check(name, SPREAD, {"epsilon": 1e-12}, np.full(MANY, 0.5))


def test_channel_norms_of_halves() -> None:
    scale, shift = np.full(1, 0.5), np.ones(1)
    check("instance_normalization", SPREAD, {}, scale, shift)
    check("group_normalization", SPREAD, {"num_groups": 1}, scale, shift)
