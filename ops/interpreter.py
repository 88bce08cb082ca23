"""Evaluates operator declarations with numpy, to compare them with their references.

An expression is computed at every point of its index grid at once: each index variable has an axis
of its own, floats are float64 throughout, integers keep their type. A load outside its array is an
error unless a `select` leaves its value unused at that point, so missing guards are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .expr import COMPARE, Expr, index, load, var
from .operator import Elementwise, Operator, TensorArg
from .pointwise import numpy_erf
from .traverse import walk
from .types import DType, TensorType, boolean, dtype_of

Array = npt.NDArray[Any]

MOST_POINTS = 20_000_000  # of one index grid: samples are meant to be small


def _numpy(dtype: DType) -> np.dtype[Any]:
    """What values of an element type are computed in."""
    return np.dtype(np.float64) if dtype.is_float else dtype.numpy


def _truncdiv(x: Array, y: Array) -> Array:
    return (x - np.fmod(x, y)) // y


_CALLS: dict[str, Callable[..., Any]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
    "acosh": np.arccosh, "atanh": np.arctanh, "erf": numpy_erf, "floor": np.floor,
    "ceil": np.ceil, "round": np.rint, "trunc": np.trunc, "log1p": np.log1p, "expm1": np.expm1,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "not": np.logical_not, "bitnot": np.invert, "isnan": np.isnan, "isinf": np.isinf,
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "truncdiv": _truncdiv, "floordiv": np.floor_divide, "mod": np.mod, "fmod": np.fmod,
    "pow": np.power, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift,
    "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min
}  # fmt: skip


class _Grid:
    """One evaluation: the axis of each index variable, and what is computed already."""

    def __init__(self, variables: Sequence[Expr], arrays: Mapping[Any, Array]) -> None:
        self.axis = {v: k for k, v in enumerate(variables)}
        self.arrays = arrays
        self.known: dict[tuple[Expr, int], Array] = {}
        self.masks: list[Array] = []  # kept alive: `known` is keyed by their ids
        self.loads: set[Expr] = set()

    def run(self, e: Expr) -> Array:
        for n in walk(e):  # arguments before users
            if n.op == "load" or any(a in self.loads for a in n.args):
                self.loads.add(n)
        return self.value(e, None)

    def value(self, e: Expr, used: Array | None) -> Array:
        """e at every point; `used` says at which of them the value matters (None: at all)."""
        if e not in self.loads:
            used = None
        key = (e, id(used))
        if key not in self.known:
            self.known[key] = self.compute(e, used)
        return self.known[key]

    def compute(self, e: Expr, used: Array | None) -> Array:
        if e.op == "const":
            return np.asarray(e.payload, _numpy(e.dtype))
        if e.op == "var":
            _, lo, hi = e.payload
            shape = [1] * len(self.axis)
            shape[self.axis[e]] = hi - lo
            return np.arange(lo, hi, dtype=np.int64).reshape(shape)
        if e.op == "select":
            return self.select(e, used)
        args = [self.value(a, used) for a in e.args]
        if e.op == "load":
            return self.load(e, args, used)
        if e.op == "cast":
            return _cast(args[0], e.dtype)
        if e.op == "reduce":
            return self.reduce(e, args[0])
        if e.op == "div" and not e.dtype.is_float:
            raise ValueError(f"integers divide by truncdiv or floordiv, not div: {e}")
        want = boolean if e.op in COMPARE or e.op in ("isnan", "isinf") else e.dtype
        with np.errstate(all="ignore"):
            return np.asarray(_CALLS[e.op](*args)).astype(_numpy(want), copy=False)

    def select(self, e: Expr, used: Array | None) -> Array:
        c, yes, no = e.args
        where = np.asarray(self.value(c, used))
        takes, leaves = where, ~where
        if used is not None:
            takes, leaves = where & used, leaves & used
        self.masks += [takes, leaves]
        return np.where(where, self.value(yes, takes), self.value(no, leaves))

    def load(self, e: Expr, where: list[Array], used: Array | None) -> Array:
        array = self.arrays[e.payload]
        assert len(where) == array.ndim, f"{e}: {len(where)} indices for shape {array.shape}"
        inside = []
        for k, (at, size) in enumerate(zip(where, array.shape, strict=True)):
            bad = (at < 0) | (at >= size)
            if used is not None:
                bad = bad & used
            if bad.any():
                raise IndexError(f"{e} leaves axis {k} of shape {array.shape} without a guard")
            inside.append(np.clip(at, 0, max(size - 1, 0)))
        if array.size == 0:
            return np.zeros((), _numpy(e.dtype))
        return np.asarray(array[tuple(inside)]).astype(_numpy(e.dtype), copy=False)

    def reduce(self, e: Expr, body: Array) -> Array:
        combine, over = e.payload
        axes = tuple(self.axis[v] for v in over)
        shape = list(body.shape) if body.ndim else [1] * len(self.axis)
        for v in over:
            shape[self.axis[v]] = v.payload[2] - v.payload[1]
        points = int(np.prod(shape, dtype=np.float64))
        assert points <= MOST_POINTS, f"a grid of {points} points: make the sample smaller"
        full = np.broadcast_to(body, shape)
        kind: dict[str, Any] = {"dtype": body.dtype}
        if combine in ("max", "min"):
            kind = {"initial": _lowest(e.dtype) if combine == "max" else _highest(e.dtype)}
        with np.errstate(all="ignore"):
            return np.asarray(_REDUCTIONS[combine](full, axis=axes, keepdims=True, **kind))


def _lowest(dtype: DType) -> Any:
    """The greatest of no elements."""
    if dtype.is_float:
        return -np.inf
    return False if dtype is boolean else np.iinfo(dtype.numpy).min


def _highest(dtype: DType) -> Any:
    """The least of no elements."""
    if dtype.is_float:
        return np.inf
    return True if dtype is boolean else np.iinfo(dtype.numpy).max


def _cast(x: Array, dtype: DType) -> Array:
    with np.errstate(all="ignore"):
        if dtype is boolean:
            return np.not_equal(x, 0)
        return x.astype(_numpy(dtype), copy=False)


def evaluate_expr(e: Expr, over: Sequence[Expr], arrays: Mapping[Any, Array]) -> Array:
    """e at every value of the index variables `over`: an array with one axis for each of them.

    arrays: what loads read, by their source. Raises IndexError for an unguarded load outside one.
    """
    missing = e.free - set(over)
    assert not missing, f"{e} reads index variables that nothing binds: {missing}"
    bound = [v for n in walk(e) if n.op == "reduce" for v in n.payload[1]]
    shape = tuple(v.payload[2] - v.payload[1] for v in over)
    if 0 in shape:
        return np.empty(shape, _numpy(e.dtype))
    result = _Grid(list(dict.fromkeys([*over, *bound])), arrays).run(e)
    inner = (1,) * (len(dict.fromkeys([*over, *bound])) - len(over))
    return np.broadcast_to(result, shape + inner).reshape(shape)


def expressions(
    op: Operator, types: Sequence[TensorType | None], attrs: Mapping[str, Any]
) -> list[tuple[Expr, tuple[Expr, ...]]]:
    """For each output what `compute` says its elements are, and the index variables they use.

    Loads name input k by the source k. `attrs` must be complete.
    """
    assert op.compute is not None
    outs = op.infer_types(types, attrs)
    padded = list(types) + [None] * ((op.max_inputs or 0) - len(types))
    grids = [tuple(var(f"i{k}", d) for k, d in enumerate(t.dims)) for t in outs]
    if op.has(Elementwise):
        dims, at = outs[0].dims, grids[0]
        scalars = [
            None if t is None else load(k, _aligned(t.dims, dims, at), t.dtype)
            for k, t in enumerate(padded)
        ]
        made = op.compute(*scalars, **attrs)
        return list(zip(made if isinstance(made, tuple) else (made,), grids, strict=True))
    tensors = [None if t is None else TensorArg(k, t) for k, t in enumerate(padded)]
    made = op.compute(outs[0] if len(outs) == 1 else outs, *tensors, **attrs)
    functions = made if isinstance(made, tuple) else (made,)
    return [(f(*grid), grid) for f, grid in zip(functions, grids, strict=True)]


def _aligned(shape: Iterable[int], out: tuple[int, ...], at: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The indices of a broadcast input: those of the last axes, 0 where it is stretched."""
    dims = tuple(shape)
    last = zip(dims, out[len(out) - len(dims) :], at[len(out) - len(dims) :], strict=True)
    return tuple(index(0) if d == 1 and n != 1 else i for d, n, i in last)


def run_compute(
    op: Operator, inputs: Sequence[Array | None], attrs: Mapping[str, Any]
) -> list[Array]:
    """The outputs that an operator's `compute` declares, floats as float64."""
    types = [None if x is None else TensorType(dtype_of(x.dtype), x.shape) for x in inputs]
    arrays = {k: x for k, x in enumerate(inputs) if x is not None}
    bound = op.bind(attrs)
    return [evaluate_expr(e, grid, arrays) for e, grid in expressions(op, types, bound)]
