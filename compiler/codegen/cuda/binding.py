"""Intrinsics as Numba sees them: calls of an LLVM function named after what it is made for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from llvmlite import ir

from ....ops.types import DType, boolean, i64
from .intrinsic import POINTERS, PREFIX, TYPED, Intrinsic, Parameter
from .intrinsics import INTRINSICS


def bound(kinds: Mapping[DType, Any]) -> dict[str, Any]:
    """Every intrinsic as a function of generated source. kinds: Numba's element types."""
    return {name: _bound(found, kinds) for name, found in INTRINSICS.items()}


def _bound(found: Intrinsic, kinds: Mapping[DType, Any]) -> Any:
    from numba import types
    from numba.cuda.extending import intrinsic

    back = {kind: t for t, kind in kinds.items()}
    result = types.CPointer(kinds[found.returned]) if found.returned else types.void

    def typed(context: Any, *args: Any) -> Any:
        if len(args) != len(found.parameters):
            return None
        given = list(zip(found.parameters, args, strict=True))
        if not all(hasattr(a, "literal_value") for p, a in given if p.kind == "literal"):
            return None  # Numba then asks again, with the values of what is written out
        literals = {p.name: a.literal_value for p, a in given if p.kind == "literal"}
        known = {p.name: _element(p, a, back, types) for p, a in given if p.kind in TYPED}
        taken = [_taken(p, a, kinds, types) for p, a in given]
        name = PREFIX + found.symbol(known, literals)

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            passed = [_value(context, builder, t, v)
                      for p, t, v in zip(found.parameters, signature.args, values, strict=True)
                      if p.kind != "literal"]  # fmt: skip
            kind = ir.FunctionType(
                context.get_value_type(result) if found.returned else ir.VoidType(),
                [v.type for v in passed],
            )
            callee = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            made = builder.call(callee, passed)
            return made if found.returned else context.get_dummy_value()

        return result(*taken), emit

    typed.__name__ = found.name
    names = ["context", *(p.name for p in found.parameters)]  # Numba looks at the signature
    listed = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    typed.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    return intrinsic(typed)


def _element(p: Parameter, a: Any, back: Mapping[Any, DType], types: Any) -> DType:
    if p.kind == "registers":
        return back[a.dtype]
    return back[a.dtype if p.kind in POINTERS else types.unliteral(a)]


def _taken(p: Parameter, a: Any, kinds: Mapping[DType, Any], types: Any) -> Any:
    """The type that Numba hands an argument over as."""
    fixed = {"index": i64, "flag": boolean}
    if p.kind in fixed:
        return kinds[fixed[p.kind]]
    return types.unliteral(a) if p.kind == "value" else a


def _value(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """An argument as the LLVM function takes it: of an array, the address of its first element."""
    if hasattr(kind, "ndim"):
        return context.make_array(kind)(context, builder, value).data
    return value
