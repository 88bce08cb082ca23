"""Operations of the expression language as Python text in the dialect of CUDA kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ....ops.expr import Expr
from ....ops.types import DType, bf16, boolean, f16, f32, i64, u8, u16

TERNARY, NOT, COMPARE, UNARY, ATOM = 1, 2, 3, 9, 10
_SIGNS: Final = {"or": ("|", 4), "xor": ("^", 5), "and": ("&", 6), "add": ("+", 7), "sub": ("-", 7),
                 "mul": ("*", 8), "div": ("/", 8)}  # fmt: skip
_COMPARE: Final = {"lt": "<", "le": "<=", "eq": "==", "ne": "!="}
_HALF: Final = (f16, bf16)
_WRAPPED: Final = ("add", "sub", "mul", "and", "or", "xor")


@dataclass(frozen=True, slots=True)
class Text:
    """An expression, and how tightly its outermost sign binds."""

    text: str
    rank: int

    def within(self, rank: int) -> str:
        """As an operand of a sign that binds as tightly as `rank`."""
        return self.text if self.rank >= rank else f"({self.text})"


def stored_as(dtype: DType) -> DType:
    """The element type of memory: half floats are kept as their bits, booleans as bytes."""
    return u16 if dtype in _HALF else u8 if dtype is boolean else dtype


def storage(dtype: DType) -> str:
    """The same as numpy's, in source."""
    return f"np.{stored_as(dtype).numpy.name}"


def in_memory(text: str, dtype: DType) -> str:
    """A value as memory holds it."""
    return f"u8({text})" if dtype is boolean else text


def from_memory(text: str, dtype: DType) -> str:
    """An element of memory as a value."""
    return f"bool({text})" if dtype is boolean else text


def literal(e: Expr) -> Text:
    """A constant of exactly its element type; Python's integers and booleans are i64 and bool."""
    dtype, value = e.dtype, e.payload
    if dtype is boolean or dtype is i64:
        return Text(str(value), ATOM if dtype is boolean or value >= 0 else UNARY)
    if not dtype.is_float:
        return Text(f"{dtype}({value})", ATOM)
    shown = repr(float(value)) if math.isfinite(value) else "nan" if value != value else "inf"
    shown = f"-{shown}" if value == -math.inf else shown
    return Text(f"to_{dtype}({shown})" if dtype in _HALF else f"{dtype}({shown})", ATOM)


def operation(e: Expr, args: Sequence[Text], small: bool) -> Text:
    """e over arguments that are written already. small: all are indices from 0 to 2**32 - 1.

    Half floats are computed with in f32, and rounded after every operation.
    """
    kinds = [a.dtype for a in e.args]
    if e.op == "cast":
        return _cast(args[0], kinds[0], e.dtype)
    if kinds[0] in _HALF:
        wide = [_widened(a, t) for a, t in zip(args, kinds, strict=True)]
        made = _applied(e.op, wide, f32, small)
        return made if e.dtype is boolean else Text(f"to_{e.dtype}({made.text})", ATOM)
    return _applied(e.op, args, kinds[0], small)


def paired(op: str, a: Text, b: Text, dtype: DType) -> Text:
    """A binary operation on two values of one type."""
    if dtype not in _HALF:
        return _applied(op, [a, b], dtype, False)
    made = _applied(op, [_widened(a, dtype), _widened(b, dtype)], f32, False)
    return Text(f"to_{dtype}({made.text})", ATOM)


def _widened(x: Text, dtype: DType) -> Text:
    return Text(f"from_{dtype}({x.text})", ATOM) if dtype in _HALF else x


def _cast(x: Text, source: DType, to: DType) -> Text:
    x = _widened(x, source)
    return Text(f"to_{to}({x.text})" if to in _HALF else f"{to}({x.text})", ATOM)


def _applied(op: str, args: Sequence[Text], dtype: DType, small: bool) -> Text:
    if op in _COMPARE:
        a, b = (x.within(COMPARE + 1) for x in args)
        return Text(f"{a} {_COMPARE[op]} {b}", COMPARE)
    if op == "not" and dtype is boolean:
        return Text(f"not {args[0].within(COMPARE)}", NOT)
    if op == "neg" and dtype.is_float:
        return Text(f"-{args[0].within(UNARY)}", UNARY)
    if op in _SIGNS and _has_sign(op, dtype):
        return _wrapped(_infix(op, *args), dtype)
    if op in ("floordiv", "mod") and dtype is i64 and small:
        op = {"floordiv": "udiv", "mod": "umod"}[op]
    return Text(f"{op}({', '.join(x.text for x in args)})", ATOM)


def _has_sign(op: str, dtype: DType) -> bool:
    if dtype.is_float:
        return op in ("add", "sub", "mul", "div")
    return op in (_WRAPPED[3:] if dtype is boolean else _WRAPPED)


def _infix(op: str, a: Text, b: Text) -> Text:
    sign, rank = _SIGNS[op]
    right = b.within(rank + 1)
    if op == "add" and right.startswith("-"):
        return Text(f"{a.within(rank)} - {right[1:]}", rank)
    return Text(f"{a.within(rank)} {sign} {right}", rank)


def _wrapped(made: Text, dtype: DType) -> Text:
    """Arithmetic of narrower integers is done in 64 bits: cut it to its width again."""
    if dtype.is_float or dtype is i64 or dtype is boolean:
        return made
    return Text(f"{dtype}({made.text})", ATOM)
