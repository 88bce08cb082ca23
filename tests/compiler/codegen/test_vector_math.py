"""Elementary functions in float32 keep the error bounds that `vector_math` states, everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu import vector_math
from tilewright.compiler.codegen.cpu.target import host
from tilewright.ops.expr import Expr, binary, const, exp, maximum, unary
from tilewright.ops.pointwise import over_power
from tilewright.ops.types import f16, f32, f64

from .running import apply_native

Array = np.ndarray[Any, Any]

erf = np.vectorize(math.erf, otypes=[np.float64])
TRUTH: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh, "erf": erf,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip
ULPS = {"exp": 1.1, "expm1": 1.6, "log": 0.8, "log1p": 1.5, "tanh": 5.0, "erf": 5.7, "rsqrt": 1.1}
WITHOUT_FMA = {"tanh": 6.7, "erf": 6.9}
WITHOUT_RSQRT14 = {"rsqrt": 1.5}

SPECIAL = np.array(
    [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-45, -1e-45, 1.1754943e-38,
     -1.1754942e-38, 88.7, 88.72283, 88.72284, 89.5, 3.4e38, -3.4e38, -87.4, -103.9, -103.97,
     -103.98, -104.5, 1.0, -1.0, -1.0000001, -0.99999994, 0.99999994, 1.0000001, 7.9, 8.4,
     9.0, 3.8, 4.0, -17.4, -18.5, 25.0, 16777216.0, 0.70710677, 5e-8, -5e-8, 1.2e-7],
    np.float32,
)  # fmt: skip


def arguments(step: int = 30011) -> Array:
    """All float32 values, `step` bit patterns apart, more where functions bend, and odd ends."""
    with np.errstate(invalid="ignore"):
        spread = np.arange(0, 1 << 32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)
        bends = np.linspace(-10, 10, 400_001, dtype=np.float32)
        steep = np.linspace(-105, 90, 20_001, dtype=np.float32)
        out = np.concatenate([SPECIAL, spread, bends, steep])
    return out if out.size % 2 else out[:-1]


def native(fn: Callable[[Expr], Expr], x: Array, lanes: int = 16) -> Array:
    return apply_native(fn, x, out=f32, kinds=[f32], lanes=lanes)


def ulps(y: Array, truth: Array) -> Array:
    """Distances in units in the last place of the float32 nearest to the truth. Non-finite results
    must be in their places."""
    with np.errstate(all="ignore"):
        nearest = truth.astype(np.float32)
        finite = np.isfinite(nearest)
        np.testing.assert_array_equal(y[~finite], nearest[~finite])
        unit = np.spacing(np.abs(nearest[finite])).astype(np.float64)
    assert np.isfinite(y[finite]).all()
    return np.abs(y[finite].astype(np.float64) - truth[finite]) / unit


@pytest.mark.parametrize("name", sorted(vector_math.VECTOR))
def test_functions_keep_their_bounds(name: str) -> None:
    x = arguments()
    y = native(lambda a: unary(name, a), x)
    with np.errstate(all="ignore"):
        truth = TRUTH[name](x.astype(np.float64))
    bound = ULPS[name] if host().has_fma else WITHOUT_FMA.get(name, ULPS[name])
    if not host().arithmetic.rsqrt14:
        bound = WITHOUT_RSQRT14.get(name, bound)
    assert ulps(y, truth).max() <= bound


@pytest.mark.parametrize("name", sorted(vector_math.VECTOR))
def test_functions_reach_their_limits_exactly(name: str) -> None:
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan], np.float32)
    y = native(lambda a: unary(name, a), x)
    with np.errstate(all="ignore"):
        want = TRUTH[name](x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(y, want)
    signed = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(y[signed]), np.signbit(want[signed]))


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_bounded_functions_stay_within_one(name: str) -> None:
    y = native(lambda a: unary(name, a), arguments())
    assert np.nanmax(np.abs(y)) == 1.0


@pytest.mark.parametrize("name", sorted(vector_math.VECTOR))
def test_results_do_not_depend_on_lanes_or_position(name: str) -> None:
    """Full rounds, masked tails of every length, and scalar code give the same bits."""
    x = np.concatenate([SPECIAL, np.linspace(-5, 5, 24, dtype=np.float32)])
    whole = native(lambda a: unary(name, a), x)
    for lanes in (0, 4, 8):
        got = native(lambda a: unary(name, a), x, lanes)
        np.testing.assert_array_equal(got.view(np.uint32), whole.view(np.uint32), f"{lanes} lanes")
    for n in (1, 7, 15, 17, 31, 33):
        got = native(lambda a: unary(name, a), x[-n:])
        np.testing.assert_array_equal(got.view(np.uint32), whole[-n:].view(np.uint32), f"{n}")


def test_powers_are_accurate_and_their_special_cases_those_of_c() -> None:
    special = [0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, 1e-45, -1e-45, 3e38, -3e38, math.inf,
               -math.inf, math.nan, 16777218, -1e10, 0.75, 127, -149, 1.0000001, 0.9999999,
               8388609]  # fmt: skip
    a, b = (v.reshape(-1) for v in np.meshgrid(special, special))
    rng, n = np.random.default_rng(0), 50_000
    x = [a, np.exp(rng.uniform(-88, 88, n)), np.exp(rng.uniform(-1e-3, 1e-3, n)),
         rng.integers(-50, 50, n), rng.uniform(0.5, 2, n)]  # fmt: skip
    y = [b, rng.uniform(-5, 5, n) * rng.choice([1, 0.1, 0.01], n), rng.uniform(-1e5, 1e5, n),
         rng.integers(-20, 20, n), np.full(n, 0.75)]  # fmt: skip
    u, v = np.concatenate(x).astype(np.float32), np.concatenate(y).astype(np.float32)
    got = apply_native(lambda p, q: binary("pow", p, q), u, v, out=f32, kinds=[f32, f32])
    with np.errstate(all="ignore"):
        want = np.power(u.astype(np.float64), v.astype(np.float64))
    assert ulps(got, want).max() <= 0.6
    there = ~np.isnan(got)
    np.testing.assert_array_equal(np.signbit(got[there]), np.signbit(want[there]))


def test_reciprocal_square_roots_of_every_mantissa_are_accurate() -> None:
    """Two octaves, which stand for all others, and the subnormal numbers, every 31st of them."""
    bits = np.concatenate([np.arange(126 << 23, 128 << 23, 31), np.arange(1, 1 << 23, 31)])
    x = bits.astype(np.uint32).view(np.float32)
    y = native(lambda a: unary("rsqrt", a), x)
    assert ulps(y, 1 / np.sqrt(x.astype(np.float64))).max() <= (
        1.1 if host().arithmetic.rsqrt14 else 1.5
    )


def test_division_by_the_power_three_quarters_is_accurate() -> None:
    """r = 1 / sqrt(x) is off by e, at most 1.5 * 2**-24 of it, and r * sqrt(r) by 1.5 e and two
    roundings: 4.3 * 2**-24 of the result, which is 4.3 units in the last place at most. Four
    octaves stand for all others."""
    x = np.arange(126 << 23, 130 << 23, 61).astype(np.uint32).view(np.float32)
    y = native(lambda a: over_power(const(1.0, f32), a, 0.75), x)
    assert ulps(y, x.astype(np.float64) ** -0.75).max() <= 4.3
    for special in (0.0, math.inf, math.nan):
        (got,) = native(lambda a: over_power(const(1.0, f32), a, 0.75), np.full(1, special, "f4"))
        with np.errstate(divide="ignore"):
            np.testing.assert_equal(got, np.float64(special) ** -0.75)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize(
    ("fn", "truth", "lo", "hi", "bound"),
    [
        # below -88.7 exp(-x) overflows and sigmoid is 0 instead of a subnormal number
        (lambda x: 1 / (1 + exp(-x)), sigmoid, -87.0, math.inf, 3.0),
        (lambda x: maximum(x, 0) + unary("log1p", exp(-unary("abs", x))),
         lambda x: np.logaddexp(0, x), -math.inf, math.inf, 3.0),
        (lambda x: x / (1 + exp(-x)), lambda x: x * sigmoid(x), -87.0, math.inf, 4.0),
    ],
    ids=["sigmoid", "softplus", "silu"],
)  # fmt: skip
def test_compositions_are_accurate(
    fn: Callable[[Expr], Expr], truth: Callable[[Array], Array], lo: float, hi: float, bound: float
) -> None:
    x = arguments()
    x = x[(x >= lo) & (x <= hi) & np.isfinite(x)]
    with np.errstate(all="ignore"):
        want = truth(x.astype(np.float64))
    assert ulps(native(fn, x), want).max() <= bound


def test_sigmoid_saturates_without_nan() -> None:
    x = np.array([-math.inf, -1e30, -104, -89, 104, 1e30, math.inf, math.nan], np.float32)
    y = native(lambda a: 1 / (1 + exp(-a)), x)
    np.testing.assert_array_equal(y[[0, 1, 2]], 0.0)
    assert 0 <= y[3] <= 3e-39
    np.testing.assert_array_equal(y[4:7], 1.0)
    assert math.isnan(y[7])


@pytest.mark.parametrize("approximate", ["erf", "tanh"])
def test_gelu_is_accurate_beside_its_argument(approximate: str) -> None:
    x = np.linspace(-12, 12, 20_001, dtype=np.float32)
    wide = x.astype(np.float64)
    if approximate == "erf":
        y = native(lambda a: 0.5 * a * (1 + unary("erf", a * math.sqrt(0.5))), x)
        want = 0.5 * wide * (1 + erf(wide * math.sqrt(0.5)))
    else:
        c = math.sqrt(2 / math.pi)
        y = native(lambda a: 0.5 * a * (1 + unary("tanh", c * (a + 0.044715 * (a * a * a)))), x)
        want = 0.5 * wide * (1 + np.tanh(c * (wide + 0.044715 * wide**3)))
    assert (np.abs(y - want) <= 4e-7 * np.maximum(np.abs(wide), 1e-30)).all()


@pytest.mark.parametrize("dtype", [f16, f64], ids=str)
def test_other_precisions_round_from_a_better_one(dtype: Any) -> None:
    """f16 computes in float32, f64 calls the C library."""
    x = np.concatenate([np.linspace(-9, 9, 501), [math.inf, -math.inf, math.nan]])
    x = x.astype(dtype.numpy)
    for name, fn in TRUTH.items():
        y = apply_native(lambda a, n=name: unary(n, a), x, out=dtype, kinds=[dtype])
        with np.errstate(all="ignore"):
            want = fn(x.astype(np.float64))
            unit = np.spacing(np.abs(want.astype(dtype.numpy))).astype(np.float64)
            worst = np.nanmax((np.abs(y.astype(np.float64) - want) / unit)[np.isfinite(want)])
        assert worst <= (0.51 if dtype is f16 else 3.0), name
        np.testing.assert_array_equal(np.isnan(y), np.isnan(want), name)
