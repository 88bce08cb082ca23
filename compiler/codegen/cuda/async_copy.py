"""Copies from global to shared memory that threads do not wait for (PTX ISA, "cp.async").

A copy is done for the thread that asked for it behind `cp_wait`, and for others behind a barrier
after that. Copies belong to the group that the thread's next `cp_commit` closes; `cp_wait(n)` waits
for all but the last n groups.
"""

from __future__ import annotations

from typing import Final

from .intrinsic import Body, table
from .intrinsic import Intrinsic as I


def _copy(b: Body) -> None:
    b.call("void", f"llvm.nvvm.cp.async.{_through(b)}", b.shared("a", "i"), b.device("x", "j"))


def _copy_zero(b: Body) -> None:
    size = b.make(f"select i1 %inside, i32 {b.literals['bytes']}, i32 0")
    b.call("void", f"llvm.nvvm.cp.async.{_through(b)}.s", b.shared("a", "i"), b.device("x", "j"),
           f"i32 {size}")  # fmt: skip


def _through(b: Body) -> str:
    """16 bytes go past the first cache, which would not see them again."""
    n = b.literals["bytes"]
    return f"{'cg' if n == 16 else 'ca'}.shared.global.{n}"


def _commit(b: Body) -> None:
    b.call("void", "llvm.nvvm.cp.async.commit.group")


def _wait(b: Body) -> None:
    b.call("void", "llvm.nvvm.cp.async.wait.group", f"i32 {b.literals['n']}")


TABLE: Final = table(
    I("cp_async", "shared a, index i, global x, index j, literal bytes", _copy),
    I("cp_async_zero", "shared a, index i, global x, index j, literal bytes, flag inside",
      _copy_zero),
    I("cp_commit", "", _commit),
    I("cp_wait", "literal n", _wait),
)  # fmt: skip
"""cp_async(a, i, x, j, bytes): 4, 8 or 16 bytes from x[j] to a[i], both at multiples of as many.
cp_async_zero(..., inside): zeros where not `inside`; x[j] is then not read, but must exist."""
