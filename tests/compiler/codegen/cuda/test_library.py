"""The LLVM functions behind the dialect do what the simulator takes them to do: compiled for this
machine's CPU, on random and on awkward numbers."""

from __future__ import annotations

import ctypes
import math
import re
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu.assemble import build_object
from tilewright.compiler.codegen.cpu.link import link
from tilewright.compiler.codegen.cpu.llvm_text import memory_type, register_type
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.codegen.cuda.dialect import ARITY, result_type, symbol
from tilewright.compiler.codegen.cuda.library import definition
from tilewright.compiler.errors import LoweringError
from tilewright.ops.types import DTYPES, DType, boolean, f32, f64, i8, i32, i64, u8, u16, u32, u64

from .simulated_arithmetic import DIALECT, plain, wrapped

FLOATS, INTEGERS = (f32, f64), (i8, i32, i64, u8, u32, u64)
VECTOR = "exp log log1p expm1 tanh erf rsqrt".split()  # in float32; the rest is libdevice's
CASES = [
    *((name, t) for name in ("max", "min", "floor", "ceil", "round", "trunc", "isnan", "isinf",
                             "abs", "sqrt") for t in FLOATS),
    *((name, f32) for name in (*VECTOR, "pow")),
    *((name, t) for name in ("fma",) for t in FLOATS),
    *((name, t) for name in ("max", "min", "abs", "floordiv", "mod", "truncdiv", "fmod", "shl",
                             "shr", "bitnot") for t in INTEGERS),
    *((to.name, t) for to in (*FLOATS, *INTEGERS, boolean) for t in (*FLOATS, *INTEGERS)),
    ("udiv", i64), ("umod", i64),
    ("from_f16", u16), ("to_f16", f32), ("from_bf16", u16), ("to_bf16", f32),
]  # fmt: skip


def numbers(name: str, t: DType, rng: np.random.Generator) -> Any:
    if t.is_float:
        odd = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.5, -2.5, 1e30, -1e30, 300.7, -129.2]
        return np.concatenate([odd, rng.standard_normal(40) * 5]).astype(t.numpy)
    info = np.iinfo(t.numpy)
    low, high = (0, 1 << 31) if name in ("udiv", "umod") else (int(info.min), int(info.max))
    odd = [n for n in (low, high, 0, 1, 2, 7, 31, -1, -8) if low <= n <= high]
    return np.concatenate([np.array(odd, t.numpy),
                           rng.integers(low, high, 40, t.numpy, endpoint=True)])  # fmt: skip


def compiled(name: str, t: DType, columns: list[Any]) -> Any:
    """The function on every row of arguments."""
    text, declared = definition(symbol(name, t))
    out = result_type(name, t)
    held, kept = memory_type(t, 0), memory_type(out, 0)
    given, result = register_type(t, 0), register_type(out, 0)
    lines = []
    for k in range(len(columns)):
        lines += [f"  %p{k} = getelementptr {held}, ptr %x, i64 {k}",
                  f"  %x{k} = load {held}, ptr %p{k}"]  # fmt: skip
    args = ", ".join(f"{given} %x{k}" for k in range(len(columns)))
    lines.append(f'  %r = call {result} @"{symbol(name, t)}"({args})')
    lines += ["  %w = zext i1 %r to i8"] * (out is boolean)
    lines += [f"  store {kept} %{'w' if out is boolean else 'r'}, ptr %y", "  ret void"]
    wrapper = "\n".join(["define void @f(ptr %x, ptr %y) {", *lines, "}"])
    target = host()
    linked = link([build_object("\n".join([text, *sorted(declared), wrapper]), target)], ["f"])
    f = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(linked.address("f"))
    rows = np.ascontiguousarray(np.stack(columns, 1))
    made = np.zeros(len(rows), out.numpy)
    for k in range(len(rows)):
        f(rows[k].ctypes.data, made[k : k + 1].ctypes.data)
    return made


@pytest.mark.parametrize(("name", "t"), CASES, ids=lambda v: str(v))
def test_functions_do_what_the_simulator_takes_them_to_do(name: str, t: DType) -> None:
    rng = np.random.default_rng(len(name) + t.bits)
    columns = [numbers(name, t, rng)]
    columns += [rng.permutation(columns[0]) for _ in range(ARITY[name] - 1)]
    if name in ("udiv", "umod"):
        columns[1] = np.maximum(columns[1], 1)
    got = compiled(name, t, columns)
    out = result_type(name, t)
    with np.errstate(all="ignore"):
        rows = [DIALECT[name](*map(plain, row)) for row in zip(*columns, strict=True)]
    whole = [wrapped(v, out.numpy) if out.is_integer else v for v in rows]
    want = np.array(whole, out.numpy)
    if out.is_float:
        near = {"rtol": 1e-6, "atol": 1e-37} if name in (*VECTOR, "pow", "fma") else {"rtol": 0.0}
        np.testing.assert_allclose(got, want, equal_nan=True, **near)
    else:
        np.testing.assert_array_equal(got, want)


def test_shuffles_serve_every_type() -> None:
    for t in DTYPES.values():
        if t.name not in ("f16", "bf16"):
            text, declared = definition(symbol("shuffle_xor", t))
            words = len(re.findall("call i32 @llvm.nvvm.shfl.sync.bfly.i32", text))
            assert words == (2 if t.bits == 64 else 1)
            assert declared


def test_what_libdevice_has_is_called_there() -> None:
    assert "@__nv_sinf(" in definition(symbol("sin", f32))[0]
    assert "@__nv_exp(" in definition(symbol("exp", f64))[0]
    assert "__nv_" not in definition(symbol("exp", f32))[0]


def test_unknown_functions_are_refused() -> None:
    with pytest.raises(LoweringError, match="no function of the dialect"):
        definition("tw.frobnicate.f32")
