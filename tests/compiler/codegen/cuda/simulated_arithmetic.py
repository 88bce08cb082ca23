"""The functions of the dialect that compute, in plain Python, and values on their way to memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


class SimError(AssertionError):
    """What no CUDA kernel may do."""


def plain(x: Any) -> Any:
    """An element as the source computes with it: indices are Python's own integers."""
    return x.item() if x.dtype == np.int64 else x


def stored(value: Any, dtype: Any, name: str) -> Any:
    """A value on its way into memory. Raises SimError unless it has exactly the element's type."""
    if isinstance(value, bool):
        found: Any = np.dtype(np.bool_)
    elif isinstance(value, int):
        found, value = np.dtype(np.int64), wrapped(value, np.dtype(np.int64))
    else:
        found = np.asarray(value).dtype
    if found != dtype:
        raise SimError(f"{name} of {dtype} is given {value!r}, which is {found}")
    return value


def wrapped(x: Any, dtype: Any) -> Any:
    """An integer cut to the width of a type."""
    bits = dtype.itemsize * 8
    n = int(x) & ((1 << bits) - 1)
    return n - (1 << bits) if dtype.kind == "i" and n >> (bits - 1) else n


def _conversion(name: str, dtype: Any) -> Callable[[Any], Any]:
    def convert(x: Any) -> Any:
        if dtype.kind == "b":
            return bool(x != 0)
        if dtype.kind == "f":
            return dtype.type(x)
        if isinstance(x, (float, np.floating)):
            info = np.iinfo(dtype)
            held = min(max(float(x), float(info.min)), float(info.max))
            n = 0 if x != x else min(math.trunc(held), info.max)
        else:
            n = wrapped(x, dtype)
        return n if dtype == np.int64 else dtype.type(n)

    return convert


def _wide(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of floats, computed in float64 and rounded once."""

    def call(*args: Any) -> Any:
        return type(args[0])(f(*map(np.float64, args)))

    return call


def _float_or_integer(floats: Callable[..., Any], integers: Callable[..., Any]) -> Any:
    def call(*args: Any) -> Any:
        if isinstance(args[0], np.floating):
            return type(args[0])(floats(*args))
        made = integers(*map(int, args))
        kind = type(args[0])
        return made if kind in (int, bool) else kind(wrapped(made, np.dtype(kind)))

    return call


def _integer_shift(a: Any, b: Any, left: bool) -> Any:
    kind = type(a)
    bits = 64 if kind is int else np.dtype(kind).itemsize * 8
    signed = kind is int or np.dtype(kind).kind == "i"
    if not 0 <= int(b) < bits:
        n = -1 if not left and signed and a < 0 else 0
    else:
        n = int(a) << int(b) if left else int(a) >> int(b)
    n = wrapped(n, np.dtype(np.int64 if kind is int else kind))
    return n if kind is int else kind(n)


def _unsigned(name: str) -> Callable[[Any, Any], Any]:
    def call(a: Any, b: Any) -> Any:
        if not (0 <= a < 1 << 32 and 0 < b < 1 << 32):
            raise SimError(f"{name}({a}, {b}): both must be numbers from 0 to 2**32 - 1")
        return a // b if name == "udiv" else a % b

    return call


def _bf16(x: Any) -> Any:
    """The bits of the nearest bfloat16, ties to even."""
    bits = int(np.float32(x).view(np.uint32))
    if x != x:
        return np.uint16(bits >> 16 | 0x40)
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 & 0xFFFF)


def _truncated(a: int, b: int) -> int:
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _dialect() -> dict[str, Any]:
    types = {"f32": "f4", "f64": "f8", "bool": "?", **{f"i{8 * n}": f"i{n}" for n in (1, 2, 4, 8)},
             **{f"u{8 * n}": f"u{n}" for n in (1, 2, 4, 8)}}  # fmt: skip
    plain_names = ("exp log sqrt sin cos tan sinh cosh tanh log1p expm1").split()
    arcs = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh",
            "acosh": "arccosh", "atanh": "arctanh"}  # fmt: skip
    rounding = {"floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc}
    same: Callable[..., Any] = lambda x: x  # noqa: E731
    both = _float_or_integer
    return {
        **{n: _conversion(n, np.dtype(t)) for n, t in types.items()},
        **{n: _wide(getattr(np, n)) for n in plain_names},
        **{n: _wide(getattr(np, f)) for n, f in arcs.items()},
        **{n: both(f, same) for n, f in rounding.items()},
        "erf": _wide(math.erf), "rsqrt": _wide(lambda x: 1 / np.sqrt(x)),
        "fma": _wide(lambda a, b, c: a * b + c),
        "abs": both(np.abs, abs), "neg": both(np.negative, lambda x: -x),
        "max": both(np.maximum, max), "min": both(np.minimum, min),
        "pow": both(_wide(np.power), lambda a, b: int(np.power(float(a), float(b)))),
        "mod": both(np.mod, lambda a, b: a % b if b else 0),
        "fmod": both(np.fmod, lambda a, b: a - b * _truncated(a, b) if b else 0),
        "floordiv": both(np.floor_divide, lambda a, b: a // b if b else 0),
        "truncdiv": both(lambda a, b: np.trunc(a / b), _truncated),
        "div": both(np.divide, _truncated),
        "add": both(np.add, lambda a, b: a + b), "sub": both(np.subtract, lambda a, b: a - b),
        "mul": both(np.multiply, lambda a, b: a * b),
        "bitnot": both(np.invert, lambda x: ~x), "xor": lambda a, b: a ^ b,
        "shl": lambda a, b: _integer_shift(a, b, True),
        "shr": lambda a, b: _integer_shift(a, b, False),
        "isnan": lambda x: bool(np.isnan(x)), "isinf": lambda x: bool(np.isinf(x)),
        "unknown": same, "uniform": same, "near": np.divide,
        "near_exp2": _wide(np.exp2),
        "udiv": _unsigned("udiv"), "umod": _unsigned("umod"),
        "from_f16": lambda b: np.float32(b.view(np.float16)),
        "to_f16": lambda x: np.float16(x).view(np.uint16),
        "from_bf16": lambda b: np.array(int(b) << 16, np.uint32).view(np.float32)[()],
        "to_bf16": _bf16,
    }  # fmt: skip


DIALECT = _dialect()
