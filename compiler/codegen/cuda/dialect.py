"""The functions that generated CUDA source calls beside Numba's own: arithmetic exactly as
`ops.expr` defines it, conversions, and the shuffle.

In generated source `max`, `exp`, `f32` and the like are these, not Python's. Each is a call of an
LLVM function named after the operation and the type of its first argument, `tw.max.f32`; the
definitions come from the code generator for CPUs, so that both targets compute alike (`library`).

    f32(x), i8(x), bool(x), ...     x as another element type: floats to integers saturate
    from_f16(x), to_f16(x)          half floats, which are held as their bits; also of bf16
    udiv(x, y), umod(x, y)          quotient and remainder of numbers from 0 to 2**32 - 1
    shuffle_xor(x, d)               x of the thread of the warp whose lane differs by d
    unknown(x)                      x, of which the compiler forgets what it is: it does not unroll
    near(x, y)                      x / y in f32, with an error of 2 units in the last place
    near_exp2(x)                    2 to the power of x in f32, with an error of 2 units likewise
    uniform(x)                      x of the first thread of the warp, if it is the same in all
    fma(x, y, z), max(x, y), ...    the operations of `ops.expr`

What only phases written for one thread may call is in `intrinsics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import numpy as np
from llvmlite import ir

from ....ops.expr import BINARY, UNARY
from ....ops.types import DTYPES, DType, bf16, boolean, f16, f32, i64, u16
from ...errors import TargetError
from .binding import bound
from .intrinsic import PREFIX

ARITY: Final[Mapping[str, int]] = {
    **{name: 1 for name in DTYPES if name not in ("f16", "bf16")},
    **{f"{way}_{t}": 1 for way in ("from", "to") for t in (f16, bf16)},
    **{name: 1 for name in UNARY}, **{name: 2 for name in BINARY},
    "fma": 3, "udiv": 2, "umod": 2, "shuffle_xor": 2, "unknown": 1,
    "uniform": 1, "near": 2, "near_exp2": 1,
}  # fmt: skip
"""How many arguments each function takes. `not`, `and` and `or` are Python's own words."""
FUNCTIONS: Final = tuple(n for n in ARITY if n not in ("not", "and", "or"))


def result_type(name: str, argument: DType) -> DType:
    """What a function returns for a first argument of some type."""
    if name in ("isnan", "isinf"):
        return boolean
    if name.startswith("from_"):
        return f32
    if name.startswith("to_"):
        return u16
    return DTYPES.get(name, argument)


def symbol(name: str, argument: DType) -> str:
    """The LLVM function that serves a call."""
    return f"{PREFIX}{name}.{argument}"


@cache
def namespace() -> dict[str, Any]:
    """The globals of generated source. Raises TargetError where Numba CUDA is missing."""
    cuda, types, intrinsic = _numba()
    kinds = _numba_types()
    return {
        "cuda": cuda, "np": np, "inf": float("inf"), "nan": float("nan"),
        **{name: _function(name, kinds, types, intrinsic) for name in FUNCTIONS},
        **bound(kinds),
    }  # fmt: skip


def _numba() -> tuple[Any, Any, Any]:
    """Numba CUDA, its types and `intrinsic`. Importing it takes a second."""
    if not hasattr(np, "row_stack"):  # numpy 2.5 dropped what numba-cuda still registers
        np.row_stack = np.vstack
    try:
        from numba import cuda, types
        from numba.cuda.extending import intrinsic
    except ImportError as e:
        raise TargetError(
            f"GPU code is made with Numba CUDA, which cannot be imported ({e}):"
            " pip install numba numba-cuda"
        ) from e
    return cuda, types, intrinsic


@cache
def _numba_types() -> Mapping[DType, Any]:
    from numba import types

    names = {t: np.dtype(t.numpy).name for t in DTYPES.values() if t not in (f16, bf16, boolean)}
    return {boolean: types.boolean, **{t: getattr(types, n) for t, n in names.items()}}


def pointer(dtype: DType) -> Any:
    """Numba's type of a buffer whose elements are stored as `dtype`."""
    from numba import types

    return types.CPointer(_numba_types()[dtype])


def _function(name: str, kinds: Mapping[DType, Any], types: Any, intrinsic: Any) -> Any:
    """A function of the dialect as Numba sees it: it knows its types, and emits a call."""
    back = {kind: t for t, kind in kinds.items()}

    def typed(context: Any, *args: Any) -> Any:
        plain = [types.unliteral(a) for a in args]
        first = back.get(plain[0])
        if first is None:
            return None
        result = kinds[result_type(name, first)]
        others = [kinds[i64]] if name == "shuffle_xor" else plain[1:]

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = [context.get_value_type(a) for a in signature.args]
            kind = ir.FunctionType(context.get_value_type(result), given)
            module = builder.module
            callee = module.globals.get(symbol(name, first)) or ir.Function(
                module, kind, symbol(name, first)
            )
            return builder.call(callee, values)

        return result(plain[0], *others), emit

    return intrinsic(_with_arity(name, ARITY[name], typed))


def _with_arity(name: str, count: int, typed: Callable[..., Any]) -> Callable[..., Any]:
    """Numba reads the number of arguments off the function that it is given."""
    by_count: dict[int, Callable[..., Any]] = {
        1: lambda typingctx, a: typed(typingctx, a),
        2: lambda typingctx, a, b: typed(typingctx, a, b),
        3: lambda typingctx, a, b, c: typed(typingctx, a, b, c),
    }
    made = by_count[count]
    made.__name__ = name
    return made
