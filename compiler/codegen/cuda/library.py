"""LLVM definitions of the dialect's functions, made from the code generator for CPUs.

Elementary functions that it has no polynomials for (trigonometry, anything in float64) are
NVIDIA's: libdevice, a file of LLVM bitcode in the package nvidia-nvvm and in CUDA toolkits.
"""

from __future__ import annotations

import re
from typing import Final

from ....ops.types import DTYPES, DType, bf16, f16, f32, i32, u16, u32
from ...errors import LoweringError
from ..cpu import arithmetic, vector_math
from ..cpu.llvm_text import Arithmetic, Function, Value, register_type
from .dialect import ARITY, result_type
from .intrinsic import PREFIX, definition_of
from .intrinsics import INTRINSICS

GPU: Final = Arithmetic(fma=True, rsqrt14=False)
_NAME: Final = re.compile(rf"{re.escape(PREFIX)}(\w+)\.(\w+)\Z")
_LIBRARY: Final = re.compile(r"@(" + "|".join(sorted({*vector_math.LIBRARY.values()})) + r")(f?)\(")
_FIRST: Final = "llvm.nvvm.shfl.sync.idx.i32"
_SHUFFLE: Final = "llvm.nvvm.shfl.sync.bfly.i32"
_TOGETHER: Final = ("shuffle_xor", "uniform")  # what the threads of a warp do at once


def definition(name: str) -> tuple[str, frozenset[str]]:
    """(the text of one function, the declarations that it needs). name: as `dialect.symbol` makes
    it. Raises LoweringError where the operation is not defined for the type."""
    if (intrinsic := INTRINSICS.get(name.removeprefix(PREFIX).partition(".")[0])) is not None:
        return definition_of(name, intrinsic)
    found = _NAME.match(name)
    if found is None or found[1] not in ARITY or found[2] not in DTYPES:
        raise LoweringError(f"no function of the dialect is called {name}")
    op, kind = found[1], DTYPES[found[2]]
    if op in ("from_f16", "from_bf16"):
        kind = f16 if op == "from_f16" else bf16
    kinds = [kind] * ARITY[op]
    if op == "shuffle_xor":
        kinds[1] = DTYPES["i64"]
    args = [Value(f"%a{k}", t) for k, t in enumerate(kinds)]
    parameters = ", ".join(map(str, args))
    how = "alwaysinline nounwind" + " convergent" * (op in _TOGETHER)
    f = Function(f'"{name}"', parameters, how, GPU)
    out = _body(f, op, args)
    result = register_type(result_type(op, u16 if op.startswith("from") else kind), 0)
    head = f.head.replace("define void", f"define linkonce_odr {result}")
    lines = [head, "entry:", *f.entry, "  br label %start", "start:", *f.lines,
             f"  ret {result} {out.text}", "}"]  # fmt: skip
    text = "\n".join(lines)
    if op == "from_f16":  # held as bits
        text = text.replace("(half %a0)", "(i16 %b)").replace(
            "start:\n", "start:\n  %a0 = bitcast i16 %b to half\n", 1)  # fmt: skip
    return _with_libdevice(text), frozenset(map(_with_libdevice, f.declarations))


def _body(f: Function, op: str, args: list[Value]) -> Value:
    x = args[0]
    if op in ("from_f16", "from_bf16"):
        return arithmetic.convert(f, x, f32)
    if op in ("to_f16", "to_bf16"):
        made = arithmetic.convert(f, x, f16 if op == "to_f16" else bf16)
        return f.convert("bitcast", made, u16) if op == "to_f16" else made
    if op in DTYPES:
        return arithmetic.convert(f, x, DTYPES[op])
    if op == "shuffle_xor":
        return _shuffled(f, x, args[1])
    if op == "unknown":
        return f.make(f'call i64 asm "mov.u64 $0, $1;", "=l,l"({x})', x.dtype, 0)
    if op == "near":
        text = f'call float asm "div.full.f32 $0, $1, $2;", "=f,f,f"({x}, {args[1]})'
        return f.make(text, x.dtype, 0)
    if op == "near_exp2":
        return f.make(f'call float asm "ex2.approx.f32 $0, $1;", "=f,f"({x})', x.dtype, 0)
    if op == "uniform":
        word = f.convert("trunc", x, i32)
        zero, every, last = Value("0", i32), Value("-1", i32), Value("31", i32)
        return f.convert("sext", f.call(_FIRST, i32, 0, every, word, zero, last), x.dtype)
    if op in ("udiv", "umod"):
        a, b = (f.convert("trunc", a, u32) for a in args)
        made = f.op("udiv" if op == "udiv" else "urem", a, b)
        return f.convert("zext", made, x.dtype)
    if op in ("max", "min") and x.dtype is f32:  # one instruction, which lets NaN win
        return f.call(f"llvm.{op}imum.f32", f32, 0, *args)
    return arithmetic.call(f, op, args, x.dtype, False)


def _shuffled(f: Function, x: Value, distance: Value) -> Value:
    """Words of 32 bits are exchanged; narrower values are widened, wider ones cut in two."""
    d = f.convert("trunc", distance, i32)

    def word(w: Value) -> Value:
        every, last = Value("-1", i32), Value("31", i32)
        return f.call(_SHUFFLE, i32, 0, every, w, d, last)

    plain = _bits(x.dtype)
    raw = f.convert("bitcast", x, plain) if x.dtype.is_float else x
    width = 1 if x.dtype.kind == "b" else x.dtype.bits
    if width < 32:
        moved = f.convert("trunc", word(f.convert("zext", raw, i32)), plain)
    elif width == 32:
        moved = word(raw)
    else:
        high = f.op("lshr", raw, Value("32", plain))
        parts = [word(f.convert("trunc", half, i32)) for half in (raw, high)]
        low, high = (f.convert("zext", p, plain) for p in parts)
        moved = f.op("or", low, f.op("shl", high, Value("32", plain)))
    return f.convert("bitcast", moved, x.dtype) if x.dtype.is_float else moved


def _bits(dtype: DType) -> DType:
    """The integer type that holds the bits of another."""
    return DTYPES[f"i{dtype.bits}"] if dtype.is_float else dtype


def _with_libdevice(text: str) -> str:
    """Calls into the C library as calls into libdevice."""
    return _LIBRARY.sub(r"@__nv_\1\2(", text)
