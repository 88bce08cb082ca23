"""Operations of the expression language as LLVM instructions, scalar or in lanes."""

from __future__ import annotations

from typing import Final

from ....ops.types import DType, bf16, boolean, f16, f32, f64, i16, i32
from ...errors import LoweringError
from . import vector_math
from .llvm_text import Function, Value, literal, scalar_type

_FLOAT: Final = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INTEGER: Final = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}
_PREDICATE: Final = {"lt": ("olt", "slt", "ult"), "le": ("ole", "sle", "ule"),
                     "eq": ("oeq", "eq", "eq"), "ne": ("une", "ne", "ne")}  # fmt: skip


def call(f: Function, op: str, args: list[Value], dtype: DType, nonnegative: bool) -> Value:
    """op over lowered arguments. nonnegative: integer arguments are known to be >= 0."""
    if args[0].dtype in (f16, bf16) and op not in _PREDICATE:
        wide = call(f, op, [convert(f, a, f32) for a in args], f32, nonnegative)
        return wide if wide.dtype is boolean else convert(f, wide, dtype)
    if op in _PREDICATE:
        return _compare(f, op, args)
    if args[0].dtype.is_float:
        return _float(f, op, args)
    return _integer(f, op, args, nonnegative)


def _compare(f: Function, op: str, args: list[Value]) -> Value:
    if args[0].dtype is bf16:
        args = [convert(f, a, f32) for a in args]
    kind = args[0].dtype.kind
    return f.compare(_PREDICATE[op]["fi".find(kind) if kind in "fi" else 2], *args)


def _float(f: Function, op: str, args: list[Value]) -> Value:
    x = args[0]
    if op in _FLOAT:
        return f.op(_FLOAT[op], args[0], args[1])
    if op == "fma":
        return f.fma(*args)
    if op == "neg":
        return f.make(f"fneg {x}", x.dtype, x.lanes)
    if op in ("max", "min"):
        return extremum(f, op, *args)
    if op == "isnan":
        return f.compare("uno", x, x)
    if op == "isinf":
        size = f.call(f.intrinsic("fabs", x), x.dtype, x.lanes, x)
        return f.compare("oeq", size, f.const(float("inf"), x.dtype, x.lanes))
    if op in vector_math.INTRINSIC:
        return f.call(f.intrinsic(vector_math.INTRINSIC[op], x), x.dtype, x.lanes, x)
    if op in vector_math.VECTOR and (x.dtype is f32 or op == "rsqrt"):
        return vector_math.VECTOR[op](f, x)
    if op == "pow" and x.dtype is f32:
        return vector_math.power(f, *args)
    if op == "mod":
        return _floored_float_mod(f, *args)
    if op in vector_math.LIBRARY:
        return vector_math.library_call(f, op, *args)
    raise LoweringError(f"the operation {op!r} is not defined for {x.dtype}")


def extremum(f: Function, op: str, a: Value, b: Value) -> Value:
    """max or min; NaN wins."""
    if _is_number(a) and not _is_number(b):
        a, b = b, a
    least = literal(float("-inf" if op == "max" else "inf"), a.dtype)
    if b.text in (least, f"splat ({scalar_type(b.dtype)} {least})"):
        return a
    a, b = f.match(a, b)
    out = f.select(f.compare("olt" if op == "max" else "ogt", a, b), b, a)
    if _is_number(b):
        return out
    # b unless ordered: where lanes are masked, the maximum itself leaves b in the others
    return f.select(f.compare("ord", b, b), out, b)


def _is_number(x: Value) -> bool:
    """Whether x is a literal other than NaN."""
    return not x.text.startswith("%") and x.text not in _literal_nans(x)


def _literal_nans(x: Value) -> tuple[str, str]:
    nan = literal(float("nan"), x.dtype)
    return nan, f"splat ({scalar_type(x.dtype)} {nan})"


def _floored_float_mod(f: Function, a: Value, b: Value) -> Value:
    a, b = f.match(a, b)
    r = vector_math.library_call(f, "fmod", a, b)
    zero = f.const(0.0, r.dtype, r.lanes)
    opposite = f.op("xor", f.compare("olt", r, zero), f.compare("olt", b, zero))
    wrong = f.op("and", opposite, f.compare("une", r, zero))
    return f.select(wrong, f.op("fadd", r, b), r)


def _integer(f: Function, op: str, args: list[Value], nonnegative: bool) -> Value:
    x = args[0]
    signed = x.dtype.kind == "i"
    if op == "add":
        return f.add(*args)
    if op == "sub":
        return f.sub(*args)
    if op == "mul":
        return f.mul(*args)
    if op in _INTEGER:
        return f.op(_INTEGER[op], args[0], args[1])
    if op == "neg":
        return f.op("sub", f.const(0, x.dtype, x.lanes), x)
    if op in ("not", "bitnot"):
        ones = True if x.dtype is boolean else -1
        return f.op("xor", x, Value(literal(ones, x.dtype), x.dtype) if not x.lanes
                    else f.const(ones, x.dtype, x.lanes))  # fmt: skip
    if op == "abs":
        if not signed:
            return x
        below = f.compare("slt", x, f.const(0, x.dtype, x.lanes))
        return f.select(below, f.op("sub", f.const(0, x.dtype, x.lanes), x), x)
    if op in ("max", "min"):
        if all(a.number is not None for a in args):
            pick = max if op == "max" else min
            return f.const(pick(a.number for a in args if a.number is not None), x.dtype)
        a, b = f.match(*args)
        name = ("s" if signed else "u") + op
        return f.call(f.intrinsic(name, a), a.dtype, a.lanes, a, b)
    if op in ("truncdiv", "floordiv", "div", "mod", "fmod"):
        return divide(f, op, args[0], args[1], nonnegative or not signed)
    if op in ("shl", "shr"):
        return _shift(f, op, *args)
    if op == "pow":
        wide = [convert(f, a, f64) for a in args]
        return convert(f, vector_math.library_call(f, "pow", *wide), x.dtype)
    if op in ("floor", "ceil", "round", "trunc"):
        return x
    raise LoweringError(f"the operation {op!r} is not defined for {x.dtype}")


def _shift(f: Function, op: str, a: Value, b: Value) -> Value:
    """Shifting by the width or more leaves 0, or the sign of a signed number, as numpy does."""
    a, b = f.match(a, b)
    inside = f.compare("ult", b, f.const(a.dtype.bits, a.dtype, a.lanes))
    if op == "shr" and a.dtype.kind == "i":
        return f.op("ashr", a, f.select(inside, b, f.const(a.dtype.bits - 1, a.dtype, a.lanes)))
    zero = f.const(0, a.dtype, a.lanes)
    moved = f.op("shl" if op == "shl" else "lshr", a, f.select(inside, b, zero))
    return f.select(inside, moved, zero)


def divide(f: Function, op: str, a: Value, b: Value, unsigned: bool) -> Value:
    """Integer division that never traps: x / 0 = 0 and x mod 0 = 0, as numpy has it.

    floordiv and mod round down; truncdiv, div and fmod toward zero.
    """
    if a.number is not None and b.number:
        whole = abs(a.number) // abs(b.number) * (1 if a.number * b.number >= 0 else -1)
        known = {"floordiv": a.number // b.number, "mod": a.number % b.number,
                 "fmod": a.number - whole * b.number}.get(op, whole)  # fmt: skip
        return f.const(known, a.dtype)
    a, b = f.match(a, b)
    n, t = a.lanes, a.dtype
    remainder = op in ("mod", "fmod")
    if unsigned:
        word = "urem" if remainder else "udiv"
        none = f.const(0, t, n)
        if b.text == none.text:
            return none
        if not b.text.startswith("%"):
            return f.op(word, a, b)
        zero = f.compare("eq", b, none)
        out = f.op(word, a, f.select(zero, f.const(1, t, n), b))
        return f.select(zero, none, out)
    zero, one, minus = f.const(0, t, n), f.const(1, t, n), f.const(-1, t, n)
    by_zero, by_minus = f.compare("eq", b, zero), f.compare("eq", b, minus)
    safe = f.select(f.op("or", by_zero, by_minus), one, b)  # INT_MIN / -1 would trap as well
    q = f.op("sdiv", a, safe)
    q = f.select(by_minus, f.op("sub", zero, a), q)
    r = f.op("sub", a, f.op("mul", q, b))
    if op in ("floordiv", "mod"):
        off = f.op("and", f.compare("ne", r, zero),
                   f.op("xor", f.compare("slt", r, zero), f.compare("slt", b, zero)))  # fmt: skip
        r = f.select(off, f.op("add", r, b), r)
        q = f.select(off, f.op("sub", q, one), q)
    return f.select(by_zero, zero, r if remainder else q)


# --------------------------------------------------------------------------- conversions


def convert(f: Function, x: Value, to: DType) -> Value:
    """x as another element type: floats to integers truncate and saturate, anything to bool is
    x != 0."""
    src = x.dtype
    if src is to:
        return x
    if src is bf16:
        return convert(f, _from_bf16(f, x), to)
    if to is bf16:
        return _to_bf16(f, convert(f, x, f32))
    if to is boolean:
        zero = f.const(0, src, x.lanes)
        return f.compare("une" if src.is_float else "ne", x, zero)
    if src.is_float and to.is_float:
        return f.convert("fpext" if to.bits > src.bits else "fptrunc", x, to)
    if src.is_float:
        return _to_integer(f, x, to)
    if to.is_float:
        return f.convert("sitofp" if src.kind == "i" else "uitofp", x, to)
    width = 1 if src is boolean else src.bits
    if x.number is not None and to.bits >= 32:
        return Value(x.text, to, 0, None)
    if to.bits == width:
        return Value(x.text, to, x.lanes)
    return f.convert("trunc" if to.bits < width else "sext" if src.kind == "i" else "zext", x, to)


def _to_integer(f: Function, x: Value, to: DType) -> Value:
    way = "fptosi" if to.kind == "i" else "fptoui"
    source = f"{'v' + str(x.lanes) if x.lanes else ''}f{x.dtype.bits}"
    target = f"{'v' + str(x.lanes) if x.lanes else ''}i{to.bits}"
    return f.call(f"llvm.{way}.sat.{target}.{source}", to, x.lanes, x)


def _from_bf16(f: Function, x: Value) -> Value:
    wide = f.convert("zext", x, i32)
    return f.convert("bitcast", f.op("shl", wide, f.const(16, i32, x.lanes)), f32)


def _to_bf16(f: Function, x: Value) -> Value:
    """Round to nearest even; NaN stays NaN."""
    bits = f.convert("bitcast", x, i32)
    n = x.lanes
    odd = f.op("and", f.op("lshr", bits, f.const(16, i32, n)), f.const(1, i32, n))
    rounded = f.op("add", bits, f.op("add", odd, f.const(0x7FFF, i32, n)))
    quiet = f.op("or", bits, f.const(0x400000, i32, n))
    out = f.select(f.compare("uno", x, x), quiet, rounded)
    low = f.convert("trunc", f.op("lshr", out, f.const(16, i32, n)), i16)
    return Value(low.text, bf16, n)


# --------------------------------------------------------------------------- lanes


def lanes_reduce(f: Function, combine: str, x: Value) -> Value:
    """Combine all lanes pairwise, halves first, in a fixed order."""
    if not x.lanes:
        raise LoweringError("only a local with lanes can be reduced over lanes")
    n = x.lanes
    half = n // 2
    while half:
        other = f.shuffle(x, None, [(k + half) % n for k in range(n)])
        x = _combine(f, combine, x, other)
        half //= 2
    return f.extract(x, 0)


def _combine(f: Function, combine: str, a: Value, b: Value) -> Value:
    if a.dtype is boolean:
        return f.op("or" if combine in ("max", "sum") else "and", a, b)
    op = {"sum": "add", "prod": "mul"}.get(combine, combine)
    return call(f, op, [a, b], a.dtype, False)


__all__ = ["call", "convert", "divide", "extremum", "lanes_reduce", "scalar_type"]
