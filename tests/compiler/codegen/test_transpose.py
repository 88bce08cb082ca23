"""Squares of vector registers, transposed."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.compiler.kernels.ir import Buffer, Declare, Local, Set, Store, Transpose, loop
from tilewright.ops.expr import var
from tilewright.ops.types import DType, f32, f64

from .running import kernel_of, run


@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_squares_of_registers_are_transposed(lanes: int, dtype: DType) -> None:
    x, y = Buffer("x", dtype, lanes**2, "in"), Buffer("y", dtype, lanes**2, "out")
    t, i, j = Local("t", dtype, (lanes,), lanes), var("i", lanes), var("j", lanes)
    read = loop(j, (Set(t, (i,), x[i * lanes + j]),), "vector", lanes=lanes)
    write = loop(j, (Store(y, i * lanes + j, t[i]),), "vector", lanes=lanes)
    body = (Declare(t), loop(i, (read,), "unroll"), Transpose(t), loop(i, (write,), "unroll"))
    a = np.arange(lanes**2, dtype=dtype.numpy)
    np.testing.assert_array_equal(
        run(kernel_of((x, y), *body), [a, None])[1], a.reshape(lanes, lanes).T.reshape(-1)
    )
