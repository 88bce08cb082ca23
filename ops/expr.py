"""One hash-consed expression language for scalars and indices.

Operators declare what they compute in it, fusion composes declarations by substitution, and kernels
carry it down to code generation. Nodes are interned: equal expressions are the same object, so `is`
compares them and every traversal can be memoised. Index arithmetic (i64) is simplified as it is
built, see `ops.index`; that keeps composed reshapes, transposes and slices affine.
"""

from __future__ import annotations

import math
import operator as _op
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Final

from .errors import OperatorError
from .interning import interned, table
from .types import HALF, DType, boolean, f32, i64

Scalar = int | float | bool


class Expr:
    """A node: an operation name, argument expressions, a payload and the element type."""

    __slots__ = (
        "__weakref__", "_bounds", "_free", "_linear", "_rank", "args", "dtype", "op", "payload"
    )  # fmt: skip
    op: str
    args: tuple[Expr, ...]
    payload: Any
    dtype: DType
    _free: frozenset[Expr] | None
    _bounds: tuple[int, int] | str | None
    _linear: tuple[Linear, int] | None
    _rank: tuple[int, str] | None

    def __new__(cls, op: str, args: tuple[Expr, ...], payload: Any, dtype: DType) -> Expr:
        # type(payload) tells 1 from 1.0 and True; repr tells 0.0 from -0.0 and keeps NaN findable
        tag = repr(payload) if isinstance(payload, float) else payload
        key = (op, args, type(payload), tag, dtype.name)
        entry = table.get(key)
        found = None if entry is None else entry()
        if found is not None:
            return found  # type: ignore[no-any-return]
        self = object.__new__(cls)
        self.op, self.args, self.payload, self.dtype = op, args, payload, dtype
        self._free = None
        self._bounds = "unknown"
        self._linear = self._rank = None
        return interned(key, self)  # type: ignore[no-any-return]

    # Arithmetic builds through the smart constructors below.
    def __add__(self, other: Expr | Scalar) -> Expr:
        return add(self, other)

    def __radd__(self, other: Expr | Scalar) -> Expr:
        return add(other, self)

    def __sub__(self, other: Expr | Scalar) -> Expr:
        return sub(self, other)

    def __rsub__(self, other: Expr | Scalar) -> Expr:
        return sub(other, self)

    def __mul__(self, other: Expr | Scalar) -> Expr:
        return mul(self, other)

    def __rmul__(self, other: Expr | Scalar) -> Expr:
        return mul(other, self)

    def __truediv__(self, other: Expr | Scalar) -> Expr:
        return binary("div", self, other)

    def __rtruediv__(self, other: Expr | Scalar) -> Expr:
        return binary("div", other, self)

    def __floordiv__(self, other: Expr | Scalar) -> Expr:
        return floordiv(self, other)

    def __mod__(self, other: Expr | Scalar) -> Expr:
        return mod(self, other)

    def __neg__(self) -> Expr:
        return mul(self, -1) if self.dtype is i64 else unary("neg", self)

    def __and__(self, other: Expr | Scalar) -> Expr:
        return logical_and(self, other)

    def __or__(self, other: Expr | Scalar) -> Expr:
        return logical_or(self, other)

    def __lt__(self, other: Expr | Scalar) -> Expr:
        return compare("lt", self, other)

    def __le__(self, other: Expr | Scalar) -> Expr:
        return compare("le", self, other)

    def __gt__(self, other: Expr | Scalar) -> Expr:
        return compare("lt", other, self)

    def __ge__(self, other: Expr | Scalar) -> Expr:
        return compare("le", other, self)

    def __bool__(self) -> bool:
        raise TypeError("an expression has no truth value; use select, logical_and, logical_or")

    def __repr__(self) -> str:
        return format_expr(self)

    @property
    def is_const(self) -> bool:
        return self.op == "const"

    @property
    def free(self) -> frozenset[Expr]:
        """The index variables that this expression reads and does not bind itself."""
        if self._free is None:
            out = (
                frozenset({self})
                if self.op == "var"
                else frozenset().union(*(a.free for a in self.args))
            )
            self._free = out - frozenset(self.payload[1]) if self.op == "reduce" else out
        return self._free


# --------------------------------------------------------------------------- leaves


def const(value: Scalar, dtype: DType) -> Expr:
    if dtype.is_float:
        return Expr("const", (), float(value), dtype)
    if dtype is boolean:
        return Expr("const", (), bool(value), dtype)
    if isinstance(value, float) and not value.is_integer():
        raise OperatorError(f"{value} is not a value of type {dtype}")
    return Expr("const", (), int(value), dtype)


@lru_cache(1 << 12)  # a third of what compiling makes are such constants, and few of them new
def index(value: int) -> Expr:
    return Expr("const", (), int(value), i64)


def var(name: str, extent: int, lo: int = 0) -> Expr:
    """An index variable with lo <= value < lo + extent."""
    return Expr("var", (), (name, lo, lo + extent), i64)


def load(source: Hashable, where: tuple[Expr, ...], dtype: DType) -> Expr:
    """One element of a tensor argument, a blob or a buffer; `source` says which."""
    return Expr("load", where, source, dtype)


def reduce(combine: str, over: tuple[Expr, ...], body: Expr) -> Expr:
    """Combine body over all values of the variables `over`.

    combine: "sum" | "prod" | "max" | "min" (max/min propagate NaN, as numpy does).
    """
    if combine not in ("sum", "prod", "max", "min"):
        raise OperatorError(f"unknown combination {combine!r}")
    if not over:
        return body
    return Expr("reduce", (body,), (combine, over), body.dtype)


def as_expr(value: Expr | Scalar, dtype: DType | None = None) -> Expr:
    """Lift a Python number; without a dtype: bool -> bool, int -> i64, float -> f32."""
    if isinstance(value, Expr):
        return value
    if dtype is None:
        dtype = boolean if isinstance(value, bool) else i64 if isinstance(value, int) else f32
    return const(value, dtype)


def _pair(a: Expr | Scalar, b: Expr | Scalar) -> tuple[Expr, Expr]:
    x = as_expr(a, b.dtype if isinstance(b, Expr) else None)
    y = as_expr(b, x.dtype)
    if x.dtype is not y.dtype:
        raise OperatorError(f"cannot combine {x.dtype} and {y.dtype} in one expression")
    return x, y


# --------------------------------------------------------------------------- calls

UNARY: Final = frozenset(
    "neg abs exp log sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf floor "
    "ceil round trunc log1p expm1 rsqrt not bitnot isnan isinf".split()
)
BINARY: Final = frozenset(
    "add sub mul div truncdiv floordiv mod fmod pow max min and or xor shl shr".split()
)
COMPARE: Final = frozenset("lt le eq ne".split())


def apply(op: str, args: tuple[Expr, ...], dtype: DType) -> Expr:
    """Any other call, e.g. kernel-level "fma" or "hsum"; no simplification."""
    return Expr(op, args, None, dtype)


def unary(op: str, x: Expr | Scalar) -> Expr:
    """`op` in UNARY. "round" is half-to-even, "not" is logical, "bitnot" is bitwise."""
    e = as_expr(x)
    if op not in UNARY:
        raise OperatorError(f"unknown unary operation {op!r}")
    if op == "not" and e.op == "const":
        return const(not e.payload, boolean)
    return Expr(op, (e,), None, boolean if op in ("isnan", "isinf") else e.dtype)


def binary(op: str, a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    """`op` in BINARY. "mod" is floored and "fmod" truncated; max and min propagate NaN."""
    x, y = _pair(a, b)
    special = SPECIAL.get(op)
    if special is not None:
        return special(x, y)
    if op not in BINARY:
        raise OperatorError(f"unknown binary operation {op!r}")
    return Expr(op, (x, y), None, x.dtype)


def compare(op: str, a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    """op in COMPARE; decided at once where index bounds allow."""
    x, y = _pair(a, b)
    if x.dtype is i64:
        bx, by = bounds(x), bounds(y)
        if bx and by:
            if op == "lt" and (bx[1] < by[0] or bx[0] >= by[1]):
                return const(bx[1] < by[0], boolean)
            if op == "le" and (bx[1] <= by[0] or bx[0] > by[1]):
                return const(bx[1] <= by[0], boolean)
            if op in ("eq", "ne") and (bx[1] < by[0] or by[1] < bx[0]):
                return const(op == "ne", boolean)
        if op in ("eq", "ne", "le", "lt") and x is y:
            return const(op in ("eq", "le"), boolean)
    return Expr(op, (x, y), None, boolean)


def logical_and(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    x, y = _pair(a, b)
    for p, q in ((x, y), (y, x)):
        if p.op == "const" and p.dtype is boolean:
            return q if p.payload else p
    return Expr("and", (x, y), None, x.dtype)


def logical_or(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    x, y = _pair(a, b)
    for p, q in ((x, y), (y, x)):
        if p.op == "const" and p.dtype is boolean:
            return p if p.payload else q
    return Expr("or", (x, y), None, x.dtype)


def select(cond: Expr | Scalar, yes: Expr | Scalar, no: Expr | Scalar) -> Expr:
    """yes where cond, else no. Only the chosen side is evaluated: it may guard a load."""
    c = as_expr(cond, boolean)
    y, n = _pair(yes, no)
    if c.op == "const":
        return y if c.payload else n
    if y is n:
        return y
    return Expr("select", (c, y, n), None, y.dtype)


def cast(x: Expr | Scalar, dtype: DType) -> Expr:
    e = as_expr(x)
    if e.dtype is dtype:
        return e
    if e.op == "const" and not (isinstance(e.payload, float) and not math.isfinite(e.payload)):
        if dtype.is_float or dtype is boolean:
            return const(e.payload, dtype)
        low = -(1 << 31) if dtype.kind == "i" else 0
        if not e.dtype.is_float and low <= int(e.payload) < 1 << 31 and dtype.bits >= 32:
            return const(int(e.payload), dtype)
    return Expr("cast", (e,), None, dtype)


def in_single(x: Expr) -> Expr:
    """Half floats as float32, in which products are added up; anything else as it is."""
    return cast(x, f32) if x.dtype in HALF else x


def maximum(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    return binary("max", a, b)


def minimum(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    return binary("min", a, b)


def exp(x: Expr) -> Expr:
    return unary("exp", x)


# --------------------------------------------------------------------------- index arithmetic
#
# i64 sums are kept as sorted linear combinations of atoms (anything that is not itself a sum or a
# product by a constant), so equal indices are the same object and divisions can be split.

Linear = dict[Expr, int]


def linear(e: Expr) -> tuple[Linear, int]:
    """e as sum of coefficient * atom, plus a constant. The terms are not to be changed."""
    if e.op == "const":
        return {}, int(e.payload)
    if e._linear is not None:
        return e._linear
    if e.op == "add":
        e._linear = _combined(e.args[0], e.args[1], 1)
        return e._linear
    if e.op == "mul" and e.args[1].op == "const":
        terms, c = linear(e.args[0])
        f = int(e.args[1].payload)
        e._linear = {k: v * f for k, v in terms.items()}, c * f
        return e._linear
    return {e: 1}, 0


def _combined(x: Expr, y: Expr, sign: int) -> tuple[Linear, int]:
    """x + sign * y."""
    left, c0 = linear(x)
    right, c1 = linear(y)
    out = dict(left)
    for k, v in right.items():
        total = out.get(k, 0) + sign * v
        if total:
            out[k] = total
        else:
            out.pop(k, None)
    return out, c0 + sign * c1


def _atom_key(e: Expr) -> tuple[int, str]:
    if e._rank is None:
        e._rank = (0 if e.op == "var" else 1, repr(e))
    return e._rank


def from_linear(terms: Linear, constant: int) -> Expr:
    """The canonical i64 expression of a linear combination."""
    terms = _recombine(terms)
    out: Expr | None = None
    for atom in terms if len(terms) == 1 else sorted(terms, key=_atom_key):
        f = terms[atom]
        if not f:
            continue
        t = atom if f == 1 else Expr("mul", (atom, index(f)), None, i64)
        out = t if out is None else Expr("add", (out, t), None, i64)
    if out is None:
        return index(constant)
    return out if constant == 0 else Expr("add", (out, index(constant)), None, i64)


def _recombine(terms: Linear) -> Linear:
    """c * (x mod d) + c * d * (x div d) = c * x."""
    mods = [a for a in terms if a.op == "mod" and a.args[1].op == "const"]
    if not mods:
        return terms
    terms = dict(terms)
    for m in mods:
        c = terms.get(m, 0)
        if not c:
            continue
        x, d = m.args
        q = floordiv(x, d)
        if terms.get(q, 0) == c * d.payload:
            del terms[m], terms[q]
            more, k = linear(x)
            if k:  # keep constants out of the term table: put the pair back
                terms[m], terms[q] = c, c * d.payload
                continue
            for a, f in more.items():
                terms[a] = terms.get(a, 0) + c * f
            return _recombine(terms)
    return terms


def _linear_sum(x: Expr, y: Expr, sign: int) -> Expr:
    return from_linear(*_combined(x, y, sign))


def add(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    x, y = _pair(a, b)
    return _linear_sum(x, y, 1) if x.dtype is i64 else Expr("add", (x, y), None, x.dtype)


def sub(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    x, y = _pair(a, b)
    return _linear_sum(x, y, -1) if x.dtype is i64 else Expr("sub", (x, y), None, x.dtype)


def mul(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    x, y = _pair(a, b)
    if x.dtype is i64:
        if x.op == "const":
            x, y = y, x
        if y.op == "const":
            terms, c = linear(x)
            f = int(y.payload)
            return from_linear({k: v * f for k, v in terms.items()} if f else {}, c * f)
    return Expr("mul", (x, y), None, x.dtype)


def floordiv(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    x, y = _pair(a, b)
    if x.dtype is not i64 or y.op != "const" or y.payload <= 0:
        return Expr("floordiv", (x, y), None, x.dtype)
    m = int(y.payload)
    if m == 1:
        return x
    terms, c = linear(x)
    whole = {k: v // m for k, v in terms.items() if v % m == 0}
    rest = {k: v for k, v in terms.items() if v % m}
    shift, c = divmod(c, m)
    r = from_linear(rest, c)
    rb = bounds(r)
    if rb and rb[0] // m == rb[1] // m:
        return from_linear(whole, shift + rb[0] // m)
    g = math.gcd(m, *rest.values()) if rest else m
    if g > 1:
        inner = floordiv(from_linear({k: v // g for k, v in rest.items()}, c // g), m // g)
    elif (split := _split(rest, c, m)) is not None:
        inner = floordiv(split[0], m // split[2])
    elif len(rest) == 1 and c == 0 and r.op == "floordiv" and r.args[1].op == "const":
        inner = floordiv(r.args[0], index(int(r.args[1].payload) * m))
    else:
        inner = Expr("floordiv", (r, index(m)), None, i64)
    return _linear_sum(from_linear(whole, shift), inner, 1)


def mod(a: Expr | Scalar, b: Expr | Scalar) -> Expr:
    x, y = _pair(a, b)
    if x.dtype is not i64 or y.op != "const" or y.payload <= 0:
        return Expr("mod", (x, y), None, x.dtype)
    m = int(y.payload)
    terms, c = linear(x)
    rest = {k: v % m for k, v in terms.items() if v % m}
    if rest != terms and any(v < 0 for v in terms.values()):
        rest = {k: v for k, v in terms.items() if v % m}
    c %= m
    r = from_linear(rest, c)
    rb = bounds(r)
    if rb and rb[0] // m == rb[1] // m:
        return _linear_sum(r, index(rb[0] // m * m), -1)
    g = math.gcd(m, *rest.values()) if rest else m
    if g > 1:
        low = c % g
        inner = mod(from_linear({k: v // g for k, v in rest.items()}, c // g), m // g)
        return from_linear(
            {k: v * g for k, v in linear(inner)[0].items()}, linear(inner)[1] * g + low
        )
    split = _split(rest, c, m)
    if split is not None:
        return add(mul(mod(split[0], m // split[2]), split[2]), split[1])
    return Expr("mod", (r, index(m)), None, i64)


def _split(terms: Linear, constant: int, m: int) -> tuple[Expr, Expr, int] | None:
    """terms + constant as g * high + low, where g > 1 divides m and 0 <= low < g."""
    for g in sorted({math.gcd(v, m) for v in terms.values()} - {1}, reverse=True):
        low = from_linear({k: v for k, v in terms.items() if v % g}, constant % g)
        b = bounds(low)
        if b is not None and b[0] >= 0 and b[1] < g:
            high = {k: v // g for k, v in terms.items() if v % g == 0}
            return from_linear(high, constant // g), low, g
    return None


def _extremum(op: str) -> Callable[[Expr, Expr], Expr]:
    def build(x: Expr, y: Expr) -> Expr:
        if x is y:
            return x
        if x.dtype is i64:
            bx, by = bounds(x), bounds(y)
            if bx and by:
                if bx[1] <= by[0]:
                    return y if op == "max" else x
                if by[1] <= bx[0]:
                    return x if op == "max" else y
        return Expr(op, (x, y), None, x.dtype)

    return build


SPECIAL: Final[dict[str, Callable[[Expr, Expr], Expr]]] = {
    "add": add, "sub": sub, "mul": mul, "floordiv": floordiv, "mod": mod,
    "and": logical_and, "or": logical_or, "max": _extremum("max"), "min": _extremum("min"),
}  # fmt: skip


def bounds(e: Expr) -> tuple[int, int] | None:
    """Inclusive (lowest, highest) value of an index expression; None where it depends on data."""
    if e._bounds == "unknown":
        e._bounds = _bounds(e)
    return e._bounds  # type: ignore[return-value]


def _bounds(e: Expr) -> tuple[int, int] | None:
    if e.dtype is not i64:
        return None
    if e.op == "const":
        return int(e.payload), int(e.payload)
    if e.op == "var":
        return e.payload[1], e.payload[2] - 1
    if e.op == "select":
        b, c = bounds(e.args[1]), bounds(e.args[2])
        return (min(b[0], c[0]), max(b[1], c[1])) if b and c else None
    if len(e.args) != 2 or e.op not in ("add", "sub", "mul", "floordiv", "mod", "max", "min"):
        return None
    x, y = bounds(e.args[0]), bounds(e.args[1])
    if e.op == "mod" and y and y[0] == y[1] > 0:
        return 0, y[0] - 1
    if not x or not y:
        return None
    if e.op == "add":
        return x[0] + y[0], x[1] + y[1]
    if e.op == "sub":
        return x[0] - y[1], x[1] - y[0]
    if e.op == "max":
        return max(x[0], y[0]), max(x[1], y[1])
    if e.op == "min":
        return min(x[0], y[0]), min(x[1], y[1])
    if e.op == "floordiv" and y[0] <= 0:
        return None
    combine = _op.mul if e.op == "mul" else _op.floordiv
    if e.op == "mod":
        return None
    corners = [combine(p, q) for p in x for q in y]
    return min(corners), max(corners)


# --------------------------------------------------------------------------- printing

_INFIX: Final = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "lt": "<",
    "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
}  # fmt: skip
_RANK: Final = {
    "|": 1, "^": 2, "&": 3, "==": 4, "!=": 4, "<": 4, "<=": 4, "<<": 5, ">>": 5, "+": 6, "-": 6,
    "*": 7, "/": 7, "//": 7, "%": 7,
}  # fmt: skip


def format_expr(e: Expr, source: Callable[[Any], str] = str, typed: bool = False) -> str:
    """Python-like text; `source` names what loads read. typed: constants say their type where it is
    not f32, i64 or bool."""

    def go(n: Expr, rank: int) -> str:
        if n.op == "const":
            plain = str(n.payload) if not n.dtype.is_float else repr(float(n.payload))
            usual = not typed or n.dtype is i64 or n.dtype is f32 or n.dtype is boolean
            return plain if usual else f"{n.dtype}({plain})"
        if n.op == "var":
            return str(n.payload[0])
        if n.op == "load" and not n.args:
            return source(n.payload)
        if n.op == "load":
            return f"{source(n.payload)}[{', '.join(go(a, 0) for a in n.args)}]"
        if n.op in _INFIX and len(n.args) == 2:
            sign = _INFIX[n.op]
            mine = _RANK[sign]
            right = n.args[1]
            negative = right.op == "const" and not right.dtype.is_float and right.payload < 0
            if n.op == "add" and negative:
                text = f"{go(n.args[0], mine)} - {-right.payload}"
                return f"({text})" if mine < rank else text
            text = f"{go(n.args[0], mine)} {sign} {go(right, mine + 1)}"
            return f"({text})" if mine < rank else text
        if n.op == "cast":
            return f"{n.dtype}({go(n.args[0], 0)})"
        if n.op == "select":
            return f"({go(n.args[1], 1)} if {go(n.args[0], 1)} else {go(n.args[2], 1)})"
        if n.op == "reduce":
            combine, over = n.payload
            ranges = ", ".join(f"{v.payload[0]} in {v.payload[1]}..{v.payload[2]}" for v in over)
            return f"{combine}({ranges}: {go(n.args[0], 0)})"
        return f"{n.op}({', '.join(go(a, 0) for a in n.args)})"

    return go(e, 0)
