"""One spelling for equal things, and nothing that does nothing.

Every rule looks at one op that is about to be added, over inputs that are canonical already, and
may replace it; what a rule adds goes through the rules again. One sweep over the graph suffices.
What rules leave unread is for `DeadCode` to drop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from ...ops.operator import REGISTRY, Operator, View
from ...ops.types import TensorType
from ..graph.builder import Value
from ..graph.ir import Array, Graph
from .base import UNLIMITED, Fuel, OptionalPass
from .rewrite import SourceRewriter

_SMALL = 1 << 20  # bytes of a constant that is worth looking into


@dataclass(frozen=True)
class Canonicalize(OptionalPass):
    """Drops copies, merges transposes and reshapes, splits variadic arithmetic into binary ops,
    and rewrites arithmetic with constants where the result is the same to the last bit.

    Four rules are not exact: x ** 3 becomes two products (1.5 ulp), x ** 0.5 becomes sqrt(x),
    which differs for x = -inf (NaN instead of inf) and x = -0.0 (the sign of zero), erf(x / c)
    and tanh(x / c) multiply by 1 / c (1.5 ulp), and (a s) @ b becomes (a @ b) s (1.5 ulp of every
    term, before as after).
    """

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        rewriter = _Canonicalizer(graph, fuel)
        return rewriter.run(rewriter.keep)


@dataclass(frozen=True)
class _Call:
    """An op that is about to be added."""

    build: _Canonicalizer
    operator: str
    inputs: tuple[Value | None, ...]
    attrs: dict[str, Any]

    @property
    def definition(self) -> Operator:
        return REGISTRY[self.operator]

    @property
    def x(self) -> Value:
        """Input 0."""
        assert self.inputs[0] is not None
        return self.inputs[0]

    @cached_property
    def types(self) -> tuple[TensorType, ...]:
        ins = [None if v is None else v.type for v in self.inputs]
        return self.definition.infer_types(ins, self.attrs)

    @property
    def keeps_type(self) -> bool:
        """Whether there is one output, and it has the type of input 0."""
        return len(self.types) == 1 and self.types[0] == self.x.type

    @property
    def reads_alone(self) -> bool:
        """Whether nothing else reads what the op of the old graph has as input 0."""
        op, old = self.build.current, self.build.old
        if op is None:
            return False
        return len(old.consumers[op.reads[0]]) == 1 and op.reads[0] not in old.outputs

    def small_constant(self) -> Array | None:
        """Input 1 as an array of numbers if it is a constant of modest size, input 0 is none, and
        the result has the type of input 0."""
        if len(self.inputs) != 2 or not self.keeps_type or self.build.array(self.x) is not None:
            return None
        array = self.build.array(self.inputs[1])
        if array is None or array.nbytes > _SMALL or array.size == 0:
            return None
        return array if array.dtype.kind in "fiu" else None


Result = Callable[[], Any]  # adds the replacement
Rule = Callable[[_Call], Result | None]


class _Canonicalizer(SourceRewriter):
    def __init__(self, old: Graph, fuel: Fuel) -> None:
        super().__init__(old)
        self.fuel = fuel

    def op(self, operator: str, *inputs: Any, **kwargs: Any) -> Any:
        definition = REGISTRY.get(operator)
        # `current` is None while the outputs are marked: those copies are needed
        if self.current is not None and self.current.group is None and definition is not None:
            values = tuple(
                v if v is None or isinstance(v, Value) else self.constant(v) for v in inputs
            )
            given = {k: v for k, v in kwargs.items() if k in definition.attrs}
            blocked = any(t.is_blocked for t in kwargs.get("layouts", ())) or any(
                v is not None and v.type.layout.is_blocked for v in values
            )
            # rules are about what happens to input 0
            if not blocked and values and values[0] is not None:
                call = _Call(self, operator, values, definition.bind(given))
                for rule in RULES:
                    replace = rule(call)
                    if replace and self.fuel.take(f"canonicalize: {rule.__name__} {operator}"):
                        return replace()
            inputs = values
        return super().op(operator, *inputs, **kwargs)


# --------------------------------------------------------------------------- copies


def drop_copy(c: _Call) -> Result | None:
    """Ops whose result is input 0, element by element."""
    if not c.keeps_type:
        return None
    attrs = c.attrs
    nothing = (
        c.definition.has(View)
        or c.operator in ("cast", "expand", "tile")
        or (c.operator in ("concat", "split", *_VARIADIC) and len(c.inputs) == 1)
        or (c.operator == "transpose" and _order(c) == tuple(range(c.x.type.rank)))
        or (c.operator == "slice" and min(attrs["steps"] or (1,)) > 0)
        or (c.operator == "pad" and not any(attrs["pads"]))
    )
    return (lambda: c.x) if nothing else None


def drop_dropout(c: _Call) -> Result | None:
    """At inference dropout copies, and its mask keeps everything."""
    if c.operator != "dropout":
        return None

    def replace() -> tuple[Value, Value | None]:
        op = c.build.current
        assert op is not None
        mask = op.outputs[1]
        if not c.build.old.consumers[mask] and mask not in c.build.old.outputs:
            return c.x, None
        shape = c.x.type.dims
        return c.x, c.build.op("constant_of_shape", shape=shape, value=True, dtype="bool")

    return replace


def cancel_involution(c: _Call) -> Result | None:
    """--x, not not x, ~~x."""
    if c.operator not in ("neg", "logical_not", "bitwise_not"):
        return None
    inner = c.build.producer(c.x)
    if inner is None or inner.operator != c.operator:
        return None
    return lambda: c.build.handle(inner.reads[0])


# --------------------------------------------------------------------------- movement


def _order(c: _Call) -> tuple[int, ...]:
    """The permutation of a transpose, which may leave it to the default."""
    perm: tuple[int, ...] | None = c.attrs["perm"]
    return tuple(reversed(range(c.x.type.rank))) if perm is None else perm


def merge_transposes(c: _Call) -> Result | None:
    inner = c.build.producer(c.x)
    if c.operator != "transpose" or inner is None or inner.operator != "transpose":
        return None
    first = inner.attr("perm")
    order = tuple(reversed(range(c.x.type.rank))) if first is None else first
    perm = tuple(order[p] for p in _order(c))
    return lambda: c.build.op("transpose", c.build.handle(inner.reads[0]), perm=perm)


def split_before_transpose(c: _Call) -> Result | None:
    """The parts of a transposed blob as transposes of its parts, which whatever reads one part only
    can take in."""
    inner = c.build.producer(c.x) if c.operator == "split" else None
    if inner is None or inner.operator != "transpose" or not c.reads_alone:
        return None
    x = c.build.handle(inner.reads[0])
    perm = inner.attr("perm") or tuple(reversed(range(x.type.rank)))
    axis = perm[c.attrs["axis"] % x.type.rank]

    def replace() -> tuple[Value, ...]:
        parts = c.build.op("split", x, *c.inputs[1:], **{**c.attrs, "axis": axis})
        return tuple(c.build.op("transpose", part, perm=perm) for part in parts)

    return replace


def transpose_to_reshape(c: _Call) -> Result | None:
    """A transpose that only moves axes of extent 1 leaves all elements in place."""
    if c.operator != "transpose":
        return None
    dims = c.x.type.dims
    moved = [p for p in _order(c) if dims[p] != 1]
    if moved != sorted(moved):
        return None
    return lambda: _reshape(c.build, c.x, c.types[0].dims)


def merge_views(c: _Call) -> Result | None:
    """A view of a view is one reshape."""
    inner = c.build.producer(c.x) if c.definition.has(View) else None
    if inner is None or not inner.has(View):
        return None
    x = c.build.handle(inner.reads[0])
    if x.type.dtype is not c.types[0].dtype or x.type.layout.is_blocked:
        return None
    return lambda: _reshape(c.build, x, c.types[0].dims)


def _reshape(b: _Canonicalizer, x: Value, shape: tuple[int, ...]) -> Any:
    return b.op("reshape", x, shape=shape, allowzero=int(0 in shape))


# --------------------------------------------------------------------------- arithmetic

_VARIADIC: Final = {"sum": "add", "mean": "add", "min": "min", "max": "max"}


def split_variadic(c: _Call) -> Result | None:
    """Sums, means, minima and maxima of many as chains of binary ops, from the left."""
    few = 1 if c.operator in ("sum", "mean") else 2
    if c.operator not in _VARIADIC or len(c.inputs) <= few:
        return None

    def replace() -> Any:
        out: Any = c.x
        for v in c.inputs[1:]:
            out = c.build.op(_VARIADIC[c.operator], out, v)
        if c.operator == "mean":
            out = c.build.op("div", out, np.asarray(len(c.inputs), out.type.dtype.numpy))
        return out

    return replace


def drop_neutral(c: _Call) -> Result | None:
    """x * 1, x / 1, x - 0, x + (-0.0); for integers x + 0. For floats x + 0.0 is no copy: it turns
    -0.0 into 0.0."""
    for k in (1, 0) if c.operator in ("mul", "add") else (1,):
        if c.operator not in ("mul", "div", "sub", "add") or len(c.inputs) != 2:
            return None
        call = c if k else _Call(c.build, c.operator, c.inputs[::-1], c.attrs)
        y = call.small_constant()
        if y is None:
            continue
        if c.operator in ("mul", "div"):
            neutral = bool((y == 1).all())
        else:
            sign = c.operator == "add"
            neutral = bool((y == 0).all()) and (
                y.dtype.kind != "f" or bool((np.signbit(y) == sign).all())
            )
        if neutral:
            return lambda call=call: call.x  # type: ignore[misc]
    return None


def divide_by_power_of_two(c: _Call) -> Result | None:
    """x / 2**k = x * 2**-k exactly, as long as 2**-k can be written."""
    y = c.small_constant() if c.operator == "div" else None
    if y is None or y.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        inverse = np.asarray(1 / y, y.dtype)
        exact = (np.abs(np.frexp(y)[0]) == 0.5) & np.isfinite(inverse) & (1 / inverse == y)
    return (lambda: c.build.op("mul", c.x, inverse)) if exact.all() else None


def divide_before_function(c: _Call) -> Result | None:
    """f(x / c) = f(x * (1 / c)) for erf and tanh: a division takes as long as half of their
    polynomials. The argument is off by 1.5 ulp instead of 0.5, and their condition numbers are at
    most 1. Elsewhere a quotient stays as it is: rounding it would show the difference."""
    inner = c.build.producer(c.x) if c.operator in ("erf", "tanh") else None
    if inner is None or inner.operator != "div":
        return None
    x, y = (c.build.handle(b) for b in inner.reads)
    divisor = _Call(c.build, "div", (x, y), {}).small_constant()
    if divisor is None or divisor.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        inverse = np.asarray(1 / divisor, divisor.dtype)
    tiny = np.finfo(divisor.dtype).tiny  # smaller numbers have fewer digits
    sizes = np.abs(np.stack([divisor, inverse]))
    if not ((sizes >= tiny) & np.isfinite(sizes)).all():
        return None
    return lambda: c.build.op(c.operator, c.build.op("mul", x, inverse))


def scale_after_product(c: _Call) -> Result | None:
    """(a s) @ b = (a @ b) s for one number s: the product scales what it stores, while scaling an
    operand may take a pass over it. In attention, a root of the scale is often on either side."""
    if c.operator != "matmul" or c.x.type.dtype.bytes < 4:  # sums of short floats may overflow
        return None
    for k, v in enumerate(c.inputs):
        inner = c.build.producer(v) if v is not None else None
        if inner is None or inner.operator != "mul":
            continue
        factors = tuple(c.build.handle(b) for b in inner.reads)
        for x, s in (factors, factors[::-1]):
            scale = _Call(c.build, "mul", (x, s), {}).small_constant()
            if scale is None or scale.size != 1 or scale.dtype.kind != "f":
                continue
            if 2.0**-20 <= abs(float(scale.reshape(()))) <= 2.0**20:  # no over- or underflow
                return _scaled(c, k, x, scale.reshape(()))
    return None


def _scaled(c: _Call, k: int, x: Value, scale: Array) -> Result:
    """The op with x as input k, then its result times scale."""
    inputs = (*c.inputs[:k], x, *c.inputs[k + 1 :])
    return lambda: c.build.op("mul", c.build.op(c.operator, *inputs, **c.attrs), scale)


def subtract_constant(c: _Call) -> Result | None:
    """x - c = x + (-c), for floats."""
    y = c.small_constant() if c.operator == "sub" else None
    if y is None or y.dtype.kind != "f":
        return None
    return lambda: c.build.op("add", c.x, np.negative(y))


def expand_power(c: _Call) -> Result | None:
    """x ** 1, 2, 3 and 0.5, for floats."""
    y = c.small_constant() if c.operator == "pow" else None
    if y is None or not c.x.type.dtype.is_float or not (y == y.reshape(-1)[0]).all():
        return None
    x, power = c.x, float(y.reshape(-1)[0])
    if power == 1:
        return lambda: x
    if power == 2:
        return lambda: c.build.op("mul", x, x)
    if power == 3:
        return lambda: c.build.op("mul", c.build.op("mul", x, x), x)
    if power == 0.5:
        return lambda: c.build.op("sqrt", x)
    return None


RULES: Final[tuple[Rule, ...]] = (
    drop_copy,
    drop_dropout,
    cancel_involution,
    merge_transposes,
    split_before_transpose,
    transpose_to_reshape,
    merge_views,
    split_variadic,
    drop_neutral,
    divide_by_power_of_two,
    divide_before_function,
    scale_after_product,
    subtract_constant,
    expand_power,
)
