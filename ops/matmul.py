"""Matrix products: numpy's matmul, ONNX's Gemm, and the integer product of quantised models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .expr import Expr, cast, in_single, reduce, var
from .operator import (
    Builder,
    Contraction,
    Reduction,
    TensorArg,
    Value,
    operator,
    require,
    require_same_dtype,
)
from .samples import Case, Sampler
from .types import HALF, TensorType, bf16, broadcast_shapes, i32

Array = npt.NDArray[Any]


def matmul_shape(a: TensorType, b: TensorType) -> tuple[int, ...]:
    """Numpy's rule: 1-D operands are a row on the left and a column on the right, and leave no
    axis behind; leading axes broadcast. Raises OperatorError."""
    require(a.rank > 0 and b.rank > 0, f"needs operands of rank 1 or more, got {a} and {b}")
    left = a.dims if a.rank > 1 else (1, *a.dims)
    right = b.dims if b.rank > 1 else (*b.dims, 1)
    require(left[-1] == right[-2], f"{a} and {b} do not fit: {left[-1]} columns on the left, "
                                   f"{right[-2]} rows on the right")  # fmt: skip
    rows = left[-2:-1] if a.rank > 1 else ()
    columns = right[-1:] if b.rank > 1 else ()
    return (*broadcast_shapes(left[:-2], right[:-2]), *rows, *columns)


def _product(
    a: TensorArg, b: TensorArg, term: Callable[[Expr, Expr, Expr, Expr], Expr]
) -> Callable[..., Expr]:
    """Sum over k of term(a[.., m, k], b[.., k, n], m, n), in f32 where elements are half floats."""
    k = var("r0", a.shape[-1])
    zero = k * 0

    def at(*where: Expr) -> Expr:
        rest = list(where)
        n = rest.pop() if b.rank > 1 else zero
        m = rest.pop() if a.rank > 1 else zero
        left = (*_batch(a, rest), m, k) if a.rank > 1 else (k,)
        right = (*_batch(b, rest), k, n) if b.rank > 1 else (k,)
        total = reduce("sum", (k,), term(in_single(a[left]), in_single(b[right]), m, n))
        return cast(total, a.type.dtype) if a.type.dtype in HALF else total

    return at


def _batch(x: TensorArg, where: list[Expr]) -> tuple[Expr, ...]:
    """Indices of x's leading axes under broadcasting."""
    mine = where[len(where) - (x.rank - 2) :]
    return tuple(i if n > 1 else i * 0 for i, n in zip(mine, x.shape, strict=False))


@operator("matmul", inputs=("a", "b"), traits=(Contraction("matmul"),))
class Matmul:
    """a @ b with numpy's rules for 1-D operands and broadcasting. ONNX: MatMul."""

    def infer(a: TensorType, b: TensorType) -> TensorType:
        require_same_dtype(a, b)
        require(a.dtype.kind != "b", f"is not defined for bool, got {a} and {b}")
        return a.with_shape(matmul_shape(a, b))

    def compute(out: TensorType, a: TensorArg, b: TensorArg) -> Callable[..., Expr]:
        return _product(a, b, lambda x, y, m, n: x * y)

    def reference(a: Array, b: Array) -> Array:
        return np.asarray(a @ b)

    def samples(s: Sampler) -> Iterator[Case]:
        n = s.numbers
        yield s.case(n(7, 5), n(5, 3), constant=(1,))
        yield s.case(n(1, 17), n(17, 33), constant=(1,))
        yield s.case(n(2, 3, 5, 4), n(2, 3, 4, 7))
        yield s.case(n(3, 5, 13), n(13, 6), constant=(1,))
        yield s.case(n(4, 2, 3), n(5, 1, 3, 2))
        yield s.case(n(7), n(7))
        yield s.case(n(5), n(5, 3))
        yield s.case(n(3, 4, 5), n(5))
        yield s.case(n(3, 0), n(0, 2))


@operator(
    "gemm",
    inputs=("a", "b", "c?"),
    attrs={"alpha": 1.0, "beta": 1.0, "transa": 0, "transb": 0},
)
class Gemm:
    """alpha * a @ b + beta * c, with a or b transposed on request; c broadcasts to the result and
    is not read when beta is 0. ONNX: Gemm."""

    def infer(
        a: TensorType, b: TensorType, c: TensorType | None, *, alpha: float, beta: float,
        transa: int, transb: int,
    ) -> TensorType:  # fmt: skip
        require_same_dtype(a, b, c)
        require(a.dtype.kind != "b", f"is not defined for bool, got {a} and {b}")
        require(a.rank == 2 and b.rank == 2, f"needs two matrices, got {a} and {b}")
        whole = float(alpha).is_integer() and float(beta).is_integer()
        require(a.dtype.is_float or whole, f"alpha {alpha} and beta {beta} must be whole numbers "
                                           f"for {a.dtype} matrices")  # fmt: skip
        m, k = a.dims[::-1] if transa else a.dims
        k2, n = b.dims[::-1] if transb else b.dims
        require(k == k2, f"{a} and {b} do not fit (transa={transa}, transb={transb}): {k} columns "
                         f"on the left, {k2} rows on the right")  # fmt: skip
        if c is not None:
            fits = c.rank <= 2 and all(
                d in (1, full) for d, full in zip(c.dims[::-1], (n, m), strict=False)
            )
            require(fits, f"c {c} does not broadcast to [{m},{n}]")
        return a.with_shape((m, n))

    def decompose(
        b: Builder, x: Value, y: Value, c: Value | None = None, *, alpha: float, beta: float,
        transa: int, transb: int,
    ) -> Any:  # fmt: skip
        if transa:
            x = b.op("transpose", x, perm=(1, 0))
        if transb:
            y = b.op("transpose", y, perm=(1, 0))
        out = b.op("matmul", x, y)
        if x.type.dtype is bf16 and (alpha != 1 or (c is not None and beta != 0)):
            out = b.op("cast", out, to="f32")
        out = _scaled(b, out, alpha)
        if c is not None and beta != 0:
            if c.type.dtype is bf16:
                c = b.op("cast", c, to="f32")
            out = b.op("add", out, _scaled(b, c, beta))
        return out if out.type.dtype is x.type.dtype else b.op("cast", out, to=str(x.type.dtype))

    def reference(
        a: Array, b: Array, c: Array | None = None, *, alpha: float, beta: float,
        transa: int, transb: int,
    ) -> Array:  # fmt: skip
        out = a.dtype.type(alpha) * ((a.T if transa else a) @ (b.T if transb else b))
        if c is not None and beta != 0:
            out = out + a.dtype.type(beta) * c
        return np.asarray(out)

    def samples(s: Sampler) -> Iterator[Case]:
        n = s.numbers
        yield s.case(n(3, 7), n(5, 7), n(5), transb=1, constant=(1, 2))
        yield s.case(n(7, 3), n(7, 5), n(3, 1), transa=1, alpha=2.0, beta=3.0)
        yield s.case(s.floats(4, 6), s.floats(6, 1), s.floats(4, 1), alpha=0.5, beta=0.25)
        yield s.case(n(1, 13), n(13, 17), n(1, 17), beta=0.0)
        yield s.case(n(6, 2), n(3, 6), transa=1, transb=1)
        yield s.case(n(2, 3), n(3, 4), n())


def _scaled(b: Builder, x: Value, factor: float) -> Any:
    if factor == 1:
        return x
    return b.op("mul", x, b.constant(np.asarray(factor, x.type.dtype.numpy)))


@operator(
    "matmul_integer",
    inputs=("a", "b", "a_zero_point?", "b_zero_point?"),
    traits=(Reduction(),),
)
class MatmulInteger:
    """(a - a_zero_point) @ (b - b_zero_point) of 8-bit integers in i32. A zero point is one number,
    or one per row of a or per column of b. ONNX: MatMulInteger."""

    def infer(
        a: TensorType, b: TensorType, a_zero_point: TensorType | None,
        b_zero_point: TensorType | None,
    ) -> TensorType:  # fmt: skip
        for t, zero, axis in ((a, a_zero_point, -2), (b, b_zero_point, -1)):
            require(t.dtype.name in ("i8", "u8"), f"needs i8 or u8 matrices, got {t}")
            require_same_dtype(t, zero)
            if zero is not None:
                many = t.dims[axis] if t.rank > 1 else 1
                fits = zero.rank == 0 or (zero.rank == 1 and zero.dims[0] in (1, many))
                require(fits, f"the zero point {zero} of {t} must have 1 or {many} elements")
        return TensorType(i32, matmul_shape(a, b))

    def compute(
        out: TensorType, a: TensorArg, b: TensorArg, a_zero_point: TensorArg | None = None,
        b_zero_point: TensorArg | None = None,
    ) -> Callable[..., Expr]:  # fmt: skip
        def shifted(x: Expr, zero: TensorArg | None, place: Expr) -> Expr:
            if zero is None:
                return cast(x, i32)
            where = () if zero.rank == 0 else (place if zero.shape[0] > 1 else place * 0,)
            return cast(x, i32) - cast(zero[where], i32)

        def term(x: Expr, y: Expr, m: Expr, n: Expr) -> Expr:
            return shifted(x, a_zero_point, m) * shifted(y, b_zero_point, n)

        return _product(a, b, term)

    def reference(
        a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
    ) -> Array:
        left, right = a.astype(np.int32), b.astype(np.int32)
        if a_zero_point is not None:
            zero = a_zero_point.astype(np.int32)
            left = left - (zero[:, None] if zero.size > 1 else zero.reshape(()))
        if b_zero_point is not None:
            zero = b_zero_point.astype(np.int32)
            right = right - (zero if zero.size > 1 else zero.reshape(()))
        return np.asarray(left @ right)

    def samples(s: Sampler) -> Iterator[Case]:
        def u(*shape: int) -> Array:
            return s.ints(*shape, lo=0, hi=256, dtype="u8")

        def i(*shape: int) -> Array:
            return s.ints(*shape, lo=-128, hi=128, dtype="i8")

        yield s.case(u(5, 7), i(7, 3))
        yield s.case(u(5, 7), u(7, 3), u(), u(1), constant=(1, 2, 3))
        yield s.case(i(2, 4, 7), i(7, 3), i(4), i(3), constant=(1, 2, 3))
        yield s.case(i(7), u(2, 7, 3), None, u(3))
