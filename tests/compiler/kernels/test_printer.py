"""The text of a kernel is its identity."""

from __future__ import annotations

from tilewright.compiler.kernels.ir import Buffer, Comment, Kernel, Phase, Stmt, Store
from tilewright.compiler.kernels.printer import kernel_text, symbol
from tilewright.ops.expr import cast, const, exp, index, var
from tilewright.ops.types import DType, f32, f64, i32

Y = Buffer("y", i32, 1, "out")


def kernel(*body: Stmt) -> Kernel:
    return Kernel("test", 1, (), (Y,), (Phase(1, var("item", 1), body),))


def test_constants_of_different_types_make_different_kernels() -> None:
    def power(dtype: DType) -> Kernel:
        return kernel(Store(Y, index(0), cast(exp(const(1.0, dtype)), i32)))

    assert symbol(power(f32)) != symbol(power(f64))
    assert "f64(1.0)" in kernel_text(power(f64))


def test_equal_kernels_have_one_name() -> None:
    def zero() -> Kernel:
        return kernel(Store(Y, index(0), const(0, i32)))

    assert zero() != zero() and symbol(zero()) == symbol(zero())


def test_the_text_is_made_once() -> None:
    k = kernel(Comment("here"), Store(Y, index(0), const(0, i32)))
    assert kernel_text(k) is kernel_text(k)
