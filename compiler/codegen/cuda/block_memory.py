"""Memory of a block and how its threads meet there; accesses of several elements at once."""

from __future__ import annotations

from typing import Final

from ....ops.types import DTYPES
from .intrinsic import Body, Intrinsic, table
from .intrinsic import Intrinsic as I
from .operations import stored_as

SHARED: Final = "tw_shared"


def _barrier(b: Body) -> None:
    b.call("void", "llvm.nvvm.barrier0", together=True)


def _unrolled(b: Body) -> None:
    """The branch behind the call gets what LLVM looks for (`frontend`)."""


def _shared(b: Body) -> None:
    """A place in the dynamic shared memory, whose size is known when the kernel is launched."""
    b.declarations.add(f"@{SHARED} = external addrspace(3) global [0 x i8], align 1024")
    at = f"getelementptr (i8, ptr addrspace(3) @{SHARED}, i64 {b.literals['at']})"
    b.result = f"addrspacecast (ptr addrspace(3) {at} to ptr)"


def _load(b: Body) -> None:
    n, kind = b.literals["n"], b.held("x")
    at = b.element("x", "j")
    row = b.make(f"load <{n} x {kind}>, ptr {at}, align {n * b.types['x'].bytes}")
    for k in range(n):
        one = b.make(f"extractelement <{n} x {kind}> {row}, i32 {k}")
        b.put("r", b.after("k", k), one)


def _store(b: Body) -> None:
    n, kind = b.literals["n"], b.held("y")
    row = "poison"
    for k in range(n):
        one = b.get("r", b.after("k", k))
        row = b.make(f"insertelement <{n} x {kind}> {row}, {one}, i32 {k}")
    b.do(f"store <{n} x {kind}> {row}, ptr {b.element('y', 'j')}, align {n * b.types['y'].bytes}")


_SHARED: Final = [
    Intrinsic(f"shared_{t}", "literal at, literal count", _shared, stored_as(t))
    for t in DTYPES.values()
]
TABLE: Final = table(
    I("barrier", "", _barrier),
    I("unrolled", "", _unrolled),
    I("load_vector", "registers r, index k, memory x, index j, literal n", _load),
    I("store_vector", "memory y, index j, registers r, index k, literal n", _store),
    *_SHARED,
)
"""barrier(): all threads of the block have come here. unrolled(), at the end of a loop's body: the
loop is unrolled whatever its size. load_vector(r, k, x, j, n): r[k], r[k + 1],
... = the n elements from x[j]; store_vector(y, j, r, k, n) the other way round. Both take 2, 4, 8
or 16 bytes at a multiple of as many, and r has the elements' type. shared_f32(at, count): an array
of count elements, `at` bytes behind the start of the block's dynamic shared memory."""
