"""Native code of several kernels: built side by side, stored, found again, reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.errors import LoweringError
from tilewright.compiler.kernels.ir import Buffer, Kernel, Phase, Store, seq
from tilewright.compiler.runtime.objects import load
from tilewright.compiler.store import Store as Cache
from tilewright.ops.expr import Expr, index, var
from tilewright.ops.types import f32

ITEM = var("item", 1)
X, Y = Buffer("x", f32, 1, "in"), Buffer("y", f32, 1, "out")


def kernel(value: Expr, template: str = "made") -> Kernel:
    return Kernel(template, 1, (), (X, Y), (Phase(1, ITEM, seq(Store(Y, index(0), value))),))


@pytest.mark.parametrize("threads", [1, 3])
def test_built_once_by_any_number_of_threads(tmp_path: Path, threads: int) -> None:
    kernels = [kernel(X[0] + k % 5) for k in range(7)]  # the last two are the first two again
    told: list[tuple[int, int]] = []
    cache = Cache(tmp_path)
    cold = load(kernels[:3], host(), cache, lambda *a: told.append(a), threads)
    assert (cold.built, cold.total, told) == (3, 3, [(1, 3), (2, 3), (3, 3)])
    more = load(kernels, host(), cache, None, threads)
    assert (more.built, more.total) == (2, 5)
    assert more.addresses(kernels[0]) == more.addresses(kernels[5]) != more.addresses(kernels[1])
    assert load(kernels, host(), cache, None, threads).built == 0


def test_what_no_thread_can_build_is_an_error_here(tmp_path: Path) -> None:
    stray = kernel(X[var("nowhere", 1)], "stray")
    with pytest.raises(LoweringError, match="kernel template stray"):
        load([stray, *(kernel(X[0] + k) for k in range(5))], host(), Cache(tmp_path), None, 2)
