"""float32 elementary functions as vector code, and which library function serves everything else.

Range reduction follows Cephes (Moshier) for exp and log, as do the polynomials of log; tanh is the
rational approximation that Eigen uses; log1p corrects log for the rounding of 1 + x (Kahan). Worst
errors found, in units in the last place of the result, against float64:

    exp 1.1   expm1 1.6   log 0.8   log1p 1.5   power 0.6
    tanh 5.0 (6.7 on targets without fused multiply-add)   erf 5.7 (6.9)
    rsqrt 1.1 (1.5 on targets without AVX-512, which round a square root and a division)

Every float32 number was tried for exp (1/8 to the ends of its range), tanh (1/16 to 8.5), erf
(1/16 to 4) and rsqrt (two octaves, which stand for all); the other functions and smaller arguments
are sampled.

Infinities, NaN, signed zeros and subnormal numbers give what IEEE 754 and C say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from ....ops.types import boolean, f32, f64, i8, i16, i32, i64
from .llvm_text import Function, Value, poison


def _horner(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    out = f.const(coefficients[0], f32, x.lanes)
    for c in coefficients[1:]:
        out = f.fma(out, x, f.const(c, f32, x.lanes))
    return out


def _clamp(f: Function, x: Value, lo: float, hi: float) -> Value:
    """x limited to lo..hi; NaN stays NaN."""
    low, high = f.const(lo, f32, x.lanes), f.const(hi, f32, x.lanes)
    x = f.select(f.compare("olt", x, low), low, x)
    return f.select(f.compare("ogt", x, high), high, x)


def _power_of_two(f: Function, n: Value) -> Value:
    """2.0 ** n for integers n in the exponent range."""
    biased = f.op("add", n, f.const(127, i32, n.lanes))
    return f.convert("bitcast", f.op("shl", biased, f.const(23, i32, n.lanes)), f32)


def _reduced(f: Function, x: Value) -> tuple[Value, Value]:
    """(exp(r) - 1, bits) with x = r + k log 2 and |r| <= log(2) / 2, for |x| up to 110. The low 22
    bits of `bits` are k + 254.

    exp(r) is 1 + r + r**2 q(r), q of degree 4 with the least relative error, 3e-9.
    """
    # adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits
    magic = f.const(12582912.0 + _BIAS, f32, x.lanes)
    shifted = f.fma(x, f.const(1.44269504088896341, f32, x.lanes), magic)
    n = f.op("fsub", shifted, magic)
    r = f.fma(n, f.const(-0.693359375, f32, x.lanes), x)
    r = f.fma(n, f.const(2.12194440e-4, f32, x.lanes), r)
    p = _horner(f, r, _EXP)
    return f.fma(p, f.op("fmul", r, r), r), f.convert("bitcast", shifted, i32)


def _scale(f: Function, x: Value, bits: Value) -> Value:
    """x * 2**k in two factors, so that results near overflow and subnormal ones come out right.
    bits: with k + 254, twice the bias of exponents, in the low bits; shifting drops the others."""
    n = x.lanes
    half = f.op("lshr", bits, f.const(1, i32, n))
    for biased in (half, f.op("sub", bits, half)):
        factor = f.op("shl", biased, f.const(23, i32, n))
        x = f.op("fmul", x, f.convert("bitcast", factor, f32))
    return x


def exp(f: Function, x: Value) -> Value:
    p, bits = _reduced(f, _clamp(f, x, -104.0, 89.0))
    return _scale(f, f.op("fadd", p, f.const(1.0, f32, x.lanes)), bits)


def rsqrt(f: Function, x: Value) -> Value:
    """1 / sqrt(x): the target's estimate y and one step of Newton's method, y + y h / 2 with
    h = 1 - x y**2, which is NaN where the estimate is exact: for zeros and infinity."""
    n, one = x.lanes, f.const(1.0, x.dtype, x.lanes)
    if x.dtype is not f32 or not f.target.rsqrt14:
        return f.op("fdiv", one, f.call(f.intrinsic("sqrt", x), x.dtype, n, x))
    y = _rsqrt14(f, x)
    h = f.fma(f.make(f"fneg {f.op('fmul', x, y)}", f32, n), y, one)
    better = f.fma(f.op("fmul", y, f.const(0.5, f32, n)), h, y)
    return f.select(f.compare("ord", h, h), better, y)


def _rsqrt14(f: Function, x: Value) -> Value:
    n = max(x.lanes, 4)
    vector = x if x.lanes else f.make(f"insertelement {poison(f32, 4)}, {x}, i64 0", f32, 4)
    rest, lanes = f.const(0.0, f32, n), Value("-1", i8 if n < 16 else i16)
    name = f"llvm.x86.avx512.rsqrt14.ps.{32 * n}"
    y = f.call(name, f32, n, vector, rest, lanes)
    return y if x.lanes else f.extract(y, 0)


def expm1(f: Function, x: Value) -> Value:
    """exp(x) - 1 = (exp(r) - 1 + (1 - 2**-k)) * 2**k."""
    p, bits = _reduced(f, _clamp(f, x, -18.0, 89.0))
    k = f.op("sub", bits, f.const(0x4B400000 + _BIAS, i32, x.lanes))
    one = f.const(1.0, f32, x.lanes)
    # from k = 25 on 2**-k is lost beside 1
    far = f.op(
        "sub",
        f.const(0, i32, x.lanes),
        f.call(f.intrinsic("smin", k), i32, x.lanes, k, f.const(26, i32, x.lanes)),
    )
    rest = f.op("fsub", one, _power_of_two(f, far))
    out = _scale(f, f.op("fadd", p, rest), bits)
    zero = f.const(0.0, f32, x.lanes)
    return f.select(f.compare("oeq", x, zero), x, out)  # -0 stays -0


def log(f: Function, x: Value) -> Value:
    n = x.lanes
    tiny = f.compare("olt", x, f.const(1.1754943508222875e-38, f32, n))
    m = f.select(tiny, f.op("fmul", x, f.const(8388608.0, f32, n)), x)
    bits = f.convert("bitcast", m, i32)
    e = f.op("sub", f.op("lshr", bits, f.const(23, i32, n)), f.const(126, i32, n))
    e = f.op("sub", e, f.select(tiny, f.const(23, i32, n), f.const(0, i32, n)))
    mantissa = f.op("or", f.op("and", bits, f.const(0x007FFFFF, i32, n)),
                    f.const(0x3F000000, i32, n))  # fmt: skip
    y = f.convert("bitcast", mantissa, f32)  # in [0.5, 1)
    low = f.compare("olt", y, f.const(0.707106781186547524, f32, n))
    e = f.op("sub", e, f.select(low, f.const(1, i32, n), f.const(0, i32, n)))
    y = f.select(low, f.op("fadd", y, y), y)
    y = f.op("fsub", y, f.const(1.0, f32, n))
    z = f.op("fmul", y, y)
    p = _horner(f, y, (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1,
                       1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
                       3.3333331174e-1))  # fmt: skip
    p = f.op("fmul", f.op("fmul", p, y), z)
    k = f.convert("sitofp", e, f32)
    p = f.fma(k, f.const(-2.12194440e-4, f32, n), p)
    p = f.fma(z, f.const(-0.5, f32, n), p)
    out = f.fma(k, f.const(0.693359375, f32, n), f.op("fadd", y, p))
    inf = f.const(float("inf"), f32, n)
    out = f.select(f.compare("oeq", x, inf), inf, out)
    zero = f.const(0.0, f32, n)
    out = f.select(f.compare("oeq", x, zero), f.const(float("-inf"), f32, n), out)
    return f.select(f.compare("ult", x, zero), f.const(float("nan"), f32, n), out)


def log1p(f: Function, x: Value) -> Value:
    """log(u) with u = 1 + x rounded, plus what the rounding lost."""
    n = x.lanes
    one, inf = f.const(1.0, f32, n), f.const(float("inf"), f32, n)
    u = f.op("fadd", x, one)
    lost = f.op("fsub", x, f.op("fsub", u, one))
    rough = log(f, u)
    usable = f.op("and", f.compare("ogt", u, f.const(0.0, f32, n)), f.compare("olt", u, inf))
    out = f.select(usable, f.op("fadd", rough, f.op("fdiv", lost, u)), rough)
    return f.select(f.compare("oeq", u, one), x, out)


def _saturate(f: Function, x: Value, limit: float, inner: Value) -> Value:
    """inner, but exactly 1 with x's sign where |x| >= limit."""
    n = x.lanes
    one, minus = f.const(1.0, f32, n), f.const(-1.0, f32, n)
    out = f.select(f.compare("oge", x, f.const(limit, f32, n)), one, inner)
    return f.select(f.compare("ole", x, f.const(-limit, f32, n)), minus, out)


def tanh(f: Function, x: Value) -> Value:
    c = 7.90531110763549805
    whole = x
    x = _clamp(f, x, -c, c)
    z = f.op("fmul", x, x)
    p = _horner(f, z, (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11,
                       5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04,
                       4.89352455891786e-03))  # fmt: skip
    q = _horner(f, z, (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03,
                       4.89352518554385e-03))  # fmt: skip
    return _saturate(f, whole, 8.4, f.op("fmul", x, f.op("fdiv", p, q)))


def erf(f: Function, x: Value) -> Value:
    """x P(x**2) / Q(x**2) with the least relative error, 2e-8, on |x| < 3.5. At 3.9, where erf
    rounds to 1, it lies above 1 by more than it may round, so that cutting it gives exactly 1."""
    x = _clamp(f, x, -3.9, 3.9)
    z = f.op("fmul", x, x)
    p = _horner(f, z, (3.09838629e-6, 4.30376211e-4, 5.70654450e-3, 7.93361738e-2,
                       2.86799729e-1, 1.69256866))  # fmt: skip
    q = _horner(f, z, (5.75104168e-5, 1.76035392e-3, 2.25790702e-2, 1.71704635e-1,
                       7.54168630e-1, 1.5))  # fmt: skip
    return _clamp(f, f.op("fmul", x, f.op("fdiv", p, q)), -1.0, 1.0)


def power(f: Function, x: Value, y: Value) -> Value:
    """x**y as 2**(y * log2 |x|) in float64, which leaves float32 its last place; then the sign."""
    x, y = f.match(x, y)
    n = x.lanes
    size = f.call(f.intrinsic("fabs", x), f32, n, x)
    exponent = f.op("fmul", f.convert("fpext", y, f64), _log2(f, size))
    out = _exp2(f, exponent)
    one, zero = f.const(1.0, f32, n), f.const(0.0, f32, n)
    inf = f.const(float("inf"), f32, n)
    out = f.select(f.compare("oeq", size, one), one, out)
    whole = f.compare("oeq", f.call(f.intrinsic("trunc", y), f32, n, y), y)
    half = f.op("fmul", y, f.const(0.5, f32, n))
    odd = f.op(
        "and", whole, f.compare("une", f.call(f.intrinsic("trunc", half), f32, n, half), half)
    )
    sign = f.op("and", f.convert("bitcast", x, i32), f.const(-(1 << 31), i32, n))
    sign = f.select(odd, sign, f.const(0, i32, n))
    out = f.convert("bitcast", f.op("xor", f.convert("bitcast", out, i32), sign), f32)
    finite = f.op("and", f.compare("olt", x, zero), f.compare("une", size, inf))
    undefined = f.op("and", finite, f.op("xor", whole, f.const(True, boolean, n)))
    out = f.select(undefined, f.const(float("nan"), f32, n), out)
    return f.select(f.compare("oeq", y, zero), one, out)


def _log2(f: Function, size: Value) -> Value:
    """log2 of a float32 >= 0 as a float64, 40 bits right; of infinity and NaN the same."""
    n = size.lanes
    wide = f.convert("fpext", size, f64)
    bits = f.convert("bitcast", wide, i64)
    # an integer below 2**52 in the low bits of the float 2**52 is that integer plus 2**52
    e = f.op("or", f.op("lshr", bits, f.const(52, i64, n)), f.const(0x4330 << 48, i64, n))
    k = f.op("fsub", f.convert("bitcast", e, f64), f.const(2.0**52 + 1023, f64, n))
    m = f.op("or", f.op("and", bits, f.const((1 << 52) - 1, i64, n)), f.const(0x3FF << 52, i64, n))
    m = f.convert("bitcast", m, f64)
    one = f.const(1.0, f64, n)
    high = f.compare("ogt", m, f.const(2.0**0.5, f64, n))
    m = f.select(high, f.op("fmul", m, f.const(0.5, f64, n)), m)
    k = f.select(high, f.op("fadd", k, one), k)
    s = f.op("fdiv", f.op("fsub", m, one), f.op("fadd", m, one))
    z = f.op("fmul", s, s)
    p = f.const(_LOG2[0], f64, n)
    for c in _LOG2[1:]:
        p = f.fma(p, z, f.const(c, f64, n))
    usual = f.op("and", f.compare("ogt", size, f.const(0.0, f32, n)),
                 f.compare("olt", size, f.const(float("inf"), f32, n)))  # fmt: skip
    none = f.compare("oeq", size, f.const(0.0, f32, n))
    other = f.select(none, f.const(float("-inf"), f64, n), wide)
    return f.select(usual, f.fma(s, p, k), other)


def _exp2(f: Function, x: Value) -> Value:
    """2.0**x of a float64, as a float32; overflow and subnormal results by the conversion."""
    n = x.lanes
    low, high = f.const(-300.0, f64, n), f.const(300.0, f64, n)
    x = f.select(f.compare("olt", x, low), low, x)
    x = f.select(f.compare("ogt", x, high), high, x)
    magic = f.const(1.5 * 2.0**52, f64, n)
    shifted = f.op("fadd", x, magic)
    r = f.op("fsub", x, f.op("fsub", shifted, magic))
    p = f.const(_EXP2[0], f64, n)
    for c in _EXP2[1:]:
        p = f.fma(p, r, f.const(c, f64, n))
    biased = f.op("add", f.convert("bitcast", shifted, i64), f.const(1023, i64, n))
    scale = f.convert("bitcast", f.op("shl", biased, f.const(52, i64, n)), f64)
    return f.convert("fptrunc", f.op("fmul", p, scale), f32)


_BIAS: Final = 254
_EXP: Final = (1.3814467e-3, 8.3687808e-3, 4.1668393e-2, 1.66665196e-1, 4.9999994e-1)

# log2((1 + s) / (1 - s)) = 2 / log(2) * (s + s**3 / 3 + ...) and 2**r = 1 + r log(2) + ...
_LOG2: Final = tuple(2 / math.log(2) / (2 * k + 1) for k in range(7, -1, -1))
_EXP2: Final = tuple(math.log(2) ** k / math.factorial(k) for k in range(7, -1, -1))

VECTOR: Final[dict[str, Callable[[Function, Value], Value]]] = {
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "tanh": tanh, "erf": erf,
    "rsqrt": rsqrt,
}  # fmt: skip

# LLVM intrinsics that every target expands, in lanes where it has the instruction.
INTRINSIC: Final = {
    "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint",
    "abs": "fabs",
}  # fmt: skip

# Functions of the C library, called lane by lane; "f" is appended for float32.
LIBRARY: Final = {
    "exp": "exp", "log": "log", "tanh": "tanh", "erf": "erf", "sin": "sin", "cos": "cos",
    "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh",
    "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "log1p": "log1p", "expm1": "expm1",
    "pow": "pow", "fmod": "fmod",
}  # fmt: skip


def library_call(f: Function, op: str, *args: Value) -> Value:
    """Call the C library's function for each lane."""
    args = f.match(*args)
    dtype, lanes = args[0].dtype, args[0].lanes
    name = LIBRARY[op] + ("f" if dtype is f32 else "")
    if not lanes:
        return f.call(name, dtype, 0, *args)
    out = Value("poison", dtype, lanes)
    for k in range(lanes):
        one = f.call(name, dtype, 0, *(f.extract(a, k) for a in args))
        out = f.make(f"insertelement {out}, {one}, i64 {k}", dtype, lanes)
    return out
