"""Runs Kernel IR in plain Python: the oracle that tells faults of templates from those of code
generation.

Phases run their items in random order. Every access is checked against the buffer's bounds and
role; an item may not touch what another item of the same phase has written. Outputs, scratch and
locals start as NaN, so a value that is used before it is set shows in the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ...ops.expr import Expr, linear
from ...ops.types import i64
from ..kernels.ir import (
    Buffer,
    Comment,
    Declare,
    For,
    If,
    Kernel,
    Local,
    Prefetch,
    Set,
    Stmt,
    Store,
    Transpose,
)

Thunk = Callable[[], Any]


class KernelError(AssertionError):
    """The kernel does something that no kernel may do."""


def _poison(elements: int, dtype: Any) -> Any:
    kind = np.dtype(dtype)
    fill = np.nan if kind.kind == "f" else 1 if kind.kind == "b" else np.iinfo(kind).max
    return np.full(elements, fill, kind)


Hints = dict[Buffer, list[int]]
"""Offsets that were prefetched."""


def run_kernel(
    kernel: Kernel, arrays: list[Any], seed: int = 0, hints: Hints | None = None
) -> list[Any]:
    """Run with one flat array per parameter, None for outputs and scratch; returns all of them.

    Inputs have exactly the buffer's elements; one object for two parameters aliases them. hints:
    is told what the kernel prefetches.
    """
    memory: dict[Buffer, Any] = {}
    for buffer, array in zip(kernel.params, arrays, strict=True):
        if array is None:
            array = _poison(buffer.elements, buffer.dtype.numpy)
        assert array.size == buffer.elements and array.dtype == buffer.dtype.numpy, buffer
        memory[buffer] = array
    rng = np.random.default_rng(seed)
    for phase in kernel.phases:
        assert phase.items == phase.item.payload[2], "the item variable must range over the items"
        machine = _Machine(memory, hints)
        body = machine.block(phase.body)
        for item in rng.permutation(phase.items):
            machine.item = machine.env[phase.item] = int(item)
            body()
    return [memory[b] for b in kernel.params]


class _Machine:
    """One phase. Expressions and statements become closures over `env`."""

    def __init__(self, memory: dict[Buffer, Any], hints: Hints | None = None) -> None:
        self.memory = memory
        self.hints = hints
        self.writer = {b: np.full(b.elements, -1) for b in memory if b.is_written}
        self.env: dict[Expr, Any] = {}
        self.locals: dict[Local, list[Any]] = {}
        self.item = 0
        self.width = 0  # lanes of the vector round that is running, 0 outside
        self.mask: Any = None
        self.thunks: dict[Expr, Thunk] = {}

    # ---------------------------------------------------------------- statements

    def block(self, body: tuple[Stmt, ...]) -> Thunk:
        steps = [self.statement(s) for s in body]

        def run() -> None:
            for s in steps:
                s()

        return run

    def statement(self, s: Stmt) -> Thunk:
        if isinstance(s, For):
            return self.loop(s)
        if isinstance(s, Declare):
            return lambda: self.declare(s.local)
        if isinstance(s, Set):
            return self.assignment(s)
        if isinstance(s, Store):
            at, value = self.expr(s.offset), self.expr(s.value)
            return lambda: self.store(s.buffer, at(), value())
        if isinstance(s, Transpose):
            return lambda: self.transpose(s.local)
        if isinstance(s, If):
            test, then, other = self.expr(s.condition), self.block(s.then), self.block(s.otherwise)
            return lambda: then() if bool(test()) else other()
        if isinstance(s, Prefetch) and self.hints is not None:
            at, hints = self.expr(s.offset), self.hints.setdefault(s.buffer, [])
            return lambda: hints.append(int(at()))
        assert isinstance(s, (Prefetch, Comment)), s
        return lambda: None

    def loop(self, s: For) -> Thunk:
        lo, hi, body = self.expr(s.lo), self.expr(s.hi), self.block(s.body)
        _, first, end = s.var.payload
        if s.kind == "unroll":
            assert s.lo.is_const and s.hi.is_const, f"unrolled loop over {s.var} has open bounds"

        def run() -> None:
            a, b = int(lo()), int(hi())
            if a < b and not first <= a < b <= end:
                raise KernelError(f"loop over {s.var} runs {a}..{b}, declared {first}..{end}")
            if s.kind != "vector":
                for k in range(a, b, s.step):
                    self.env[s.var] = k
                    body()
                return
            if self.width:
                raise KernelError(f"vector loop over {s.var} inside a vector loop")
            for k in range(a, b, s.lanes):
                self.width = min(s.lanes, b - k)
                self.env[s.var] = np.arange(k, k + self.width)
                body()
            self.width = 0

        return run

    def declare(self, local: Local) -> None:
        shape = (*local.shape, local.lanes) if local.lanes else local.shape
        self.cell(local)[0] = _poison(math.prod(shape), local.dtype.numpy).reshape(shape)

    def transpose(self, local: Local) -> None:
        cell = self.cell(local)
        assert cell[0].shape == (local.lanes, local.lanes), local
        cell[0] = cell[0].T.copy()

    def cell(self, local: Local) -> list[Any]:
        """Where the local's current array is kept."""
        return self.locals.setdefault(local, [None])

    def place(self, local: Local, where: tuple[Expr, ...]) -> Callable[[], tuple[int, ...]]:
        """The checked indices of an element of a declared local."""
        cell, parts = self.cell(local), [self.expr(e) for e in where]

        def at() -> tuple[int, ...]:
            if cell[0] is None:
                raise KernelError(f"{local.name} is used before it is declared")
            found = tuple([p() for p in parts])
            for i, d in zip(found, local.shape, strict=True):
                if not 0 <= i < d:
                    raise KernelError(f"{local.name}{list(found)} is outside {list(local.shape)}")
            return found

        return at

    def assignment(self, s: Set) -> Thunk:
        cell, at, value = self.cell(s.local), self.place(s.local, s.where), self.expr(s.value)
        lanes = s.local.lanes

        def run() -> None:
            v = value()
            if lanes and 0 < self.width < lanes:
                cell[0][at()][: self.width] = v
            elif np.ndim(v) and not lanes:
                raise KernelError(f"{s.local.name} has no lanes but gets a value for each")
            else:
                cell[0][at()] = v

        return run

    def touch(self, buffer: Buffer, at: Any, what: str) -> Any:
        """The offsets in use, checked."""
        where = at
        if self.mask is not None:
            where = np.broadcast_to(at, self.width)[self.mask]
            if not where.size:
                return where
        low, high = (where, where) if not np.ndim(where) else (where.min(), where.max())
        if low < 0 or high >= buffer.elements:
            raise KernelError(f"{what} {buffer.name}[{where}] of {buffer.elements} elements")
        if buffer.is_written and not np.isin(self.writer[buffer][where], (-1, self.item)).all():
            raise KernelError(f"{what} {buffer.name}[{where}], which another item wrote")
        return where

    def store(self, buffer: Buffer, at: Any, value: Any) -> None:
        if not buffer.is_written:
            raise KernelError(f"store to {buffer.name}, which is read only")
        at = np.broadcast_to(at, self.width or 1)
        where = self.touch(buffer, at, "store to")
        if len(set(where.tolist())) != where.size:
            raise KernelError(f"lanes store to the same element of {buffer.name}")
        value = np.broadcast_to(value, self.width or 1)
        self.memory[buffer][where] = value if self.mask is None else value[self.mask]
        self.writer[buffer][where] = self.item

    # ---------------------------------------------------------------- expressions

    def expr(self, e: Expr) -> Thunk:
        if e not in self.thunks:
            self.thunks[e] = self.compile(e)
        return self.thunks[e]

    def compile(self, e: Expr) -> Thunk:
        kind = e.dtype.numpy.type
        if e.op == "const":
            value = kind(e.payload) if e.dtype.is_float else e.payload
            return lambda: value
        if e.op == "var":
            return lambda: self.env[e]
        if e.op == "load" and isinstance(e.payload, Local):
            return self.read_local(e.payload, e.args)
        if e.dtype is i64 and e.op in ("add", "mul") and e not in linear(e)[0]:
            terms, constant = linear(e)
            return self.sum([(self.expr(a), k) for a, k in terms.items()], constant)
        args = [self.expr(a) for a in e.args]
        if e.op == "load":
            return self.read(e.payload, args[0])
        if e.op == "select":
            return lambda: self.select(*args)
        if e.op == "cast":
            return lambda: np.asarray(args[0]()).astype(kind)[()]
        if e.op in _HORIZONTAL:
            held, fold = e.args[0].payload, _HORIZONTAL[e.op]
            cell, at = self.cell(held), self.place(held, e.args[0].args)
            return lambda: kind(fold(cell[0][at()]))
        return self.call(_CALLS[e.op], args, e.dtype.numpy)

    def call(self, fn: Callable[..., Any], args: list[Thunk], dtype: Any) -> Thunk:
        def run() -> Any:
            out = fn(*[a() for a in args])
            if dtype.kind == "f" and out.dtype != dtype:
                return out.astype(dtype)
            return out

        return run

    def sum(self, parts: list[tuple[Thunk, int]], constant: int) -> Thunk:
        def run() -> Any:
            out = constant
            for value, factor in parts:
                out = out + value() * factor
            return out

        return run

    def read(self, buffer: Buffer, offset: Thunk) -> Thunk:
        data = self.memory[buffer]

        def run() -> Any:
            at = offset()
            where = self.touch(buffer, at, "load from")
            if self.mask is None:
                return data[where]
            if not np.ndim(at):
                return data[at] if where.size else data.dtype.type(0)
            out = _poison(self.width, buffer.dtype.numpy)
            out[self.mask] = data[where]
            return out

        return run

    def read_local(self, local: Local, where: tuple[Expr, ...]) -> Thunk:
        cell, place, lanes = self.cell(local), self.place(local, where), local.lanes

        def run() -> Any:
            value = cell[0][place()]
            if not lanes:
                return value
            if not self.width:
                raise KernelError(f"the lanes of {local.name} are read outside a vector loop")
            return value[: self.width]

        return run

    def select(self, test: Thunk, yes: Thunk, no: Thunk) -> Any:
        chosen = test()
        if not np.ndim(chosen):
            return yes() if chosen else no()
        outer = self.mask
        outside = np.ones(self.width, bool) if outer is None else outer
        self.mask = outside & chosen
        a = yes()
        self.mask = outside & ~chosen
        b = no()
        self.mask = outer
        return np.where(chosen, a, b)


def _wide(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Functions of floats in double precision."""
    return lambda *xs: fn(*(np.asarray(x, np.float64) for x in xs))


_HORIZONTAL: Final[dict[str, Callable[..., Any]]] = {
    "hsum": np.sum,
    "hprod": np.prod,
    "hmax": np.max,
    "hmin": np.min,
}
_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "fma": lambda a, b, c: a * b + c, "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: np.true_divide(a, b), "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b, "fmod": np.fmod, "pow": np.power, "max": np.maximum,
    "min": np.minimum, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "not": np.logical_not,
    "bitnot": np.invert, "neg": np.negative, "isnan": np.isnan, "isinf": np.isinf,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "abs": np.abs, "exp": _wide(np.exp), "log": _wide(np.log), "sqrt": _wide(np.sqrt),
    "log1p": _wide(np.log1p), "expm1": _wide(np.expm1), "sin": _wide(np.sin), "cos": _wide(np.cos),
    "rsqrt": _wide(lambda x: 1 / np.sqrt(x)),
    "tanh": _wide(np.tanh), "trunc": np.trunc, "floor": np.floor, "ceil": np.ceil, "round": np.rint,
}  # fmt: skip
