"""Half floats computed with in f32: rounded once, when they are stored, and not behind every
operation. Fewer instructions, and closer to the exact result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...ops.expr import COMPARE, Expr, cast, const
from ...ops.traverse import rebuild
from ...ops.types import bf16, f16, f32

HALF: Final = (f16, bf16)


def widened(e: Expr, known: Mapping[Expr, Expr]) -> Expr:
    """A value of the same type, of which everything inside that is a half float is f32. known:
    nodes that stand for something in f32."""
    done = dict(known)

    def go(n: Expr) -> Expr:
        if n not in done:
            done[n] = _wide(n, tuple(map(go, n.args)))
        return done[n]

    return cast(go(e), e.dtype)


def _wide(n: Expr, args: tuple[Expr, ...]) -> Expr:
    if n.op == "load":
        whole = rebuild(n, args)
        return cast(whole, f32) if n.dtype in HALF else whole
    if n.op == "const":
        return const(n.payload, f32) if n.dtype in HALF else n
    if n.dtype not in HALF:
        return rebuild(n, args)
    if n.op == "cast":
        return cast(args[0], f32)
    if n.op == "select" or n.op in COMPARE:
        return rebuild(n, args)
    return Expr(n.op, args, n.payload, f32)
