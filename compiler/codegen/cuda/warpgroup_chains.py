"""Products of a group of four warps one behind the other: sums of the first become the left operand
of the second without leaving the thread.

For every 8 columns a thread of the group holds the same of 64 rows of sums as a thread of a warp
holds of 16 (see `warpgroups`), and of a left operand in registers the same as `tensor_cores` says
of `a`: so `pack_f16` of `fragments` makes one of the other (PTX ISA, "Register Fragments and Shared
Memory Matrix Layouts" of wgmma).

Here products are not waited for. Until they are, nobody may touch their sums, nor the registers of
their left operand, so both go through the PTX that waits: else LLVM and ptxas might take registers
for something else whose last use they see in the product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .asm import asm_in_place, asm_new
from .intrinsic import Body, table
from .intrinsic import Intrinsic as I
from .warpgroups import ROW, STEPS, TERMS, descriptor

STEP: Final = 16  # terms of one instruction
REGISTERS: Final = 4  # of the left operand for those


def _of_rows(kind: str) -> Callable[[Body], None]:
    """The first instruction sets the sums, so that nothing of what they held before is kept."""

    def write(b: Body) -> None:
        given, columns = b.literals, b.literals["columns"]
        held = columns // 2
        x = descriptor(b, "a", "i", False, TERMS[kind])
        y = descriptor(b, "b", "j", False, TERMS[kind])
        sums = ", ".join(f"${k}" for k in range(held))
        lines = ["{ .reg .b64 x, y; wgmma.fence.sync.aligned;"]
        for step in range(given["terms"] // STEP):
            panel, inside = divmod(step, STEPS)
            for name, at, apart in (("x", held, "a_apart"), ("y", held + 1, "b_apart")):
                away = panel * given[apart] * ROW + inside * (ROW // STEPS)
                lines.append(f"add.s64 {name}, ${at}, {away >> 4};")
            lines.append(f"{_instruction(kind, columns)} {{{sums}}}, x, y, {min(step, 1)},"
                         " 1, 1, 0, 0;")  # fmt: skip
        lines.append("wgmma.commit_group.sync.aligned; }")
        for k, v in enumerate(asm_new(b, " ".join(lines), ["float"] * held, x, y)):
            b.put("sums", k, v)

    return write


def _of_registers(kind: str) -> Callable[[Body], None]:
    def write(b: Body) -> None:
        terms, columns = b.literals["terms"], b.literals["columns"]
        held, taken = columns // 2, terms // STEP * REGISTERS
        values = [b.get("sums", k) for k in range(held)]
        left = [b.get("a", k) for k in range(taken)]
        y = descriptor(b, "b", "j", True, terms)
        sums = ", ".join(f"${k}" for k in range(held))
        lines = ["{ .reg .b64 y; wgmma.fence.sync.aligned;"]
        for step in range(terms // STEP):
            first = 2 * held + step * REGISTERS
            a = ", ".join(f"${first + k}" for k in range(REGISTERS))
            lines.append(f"add.s64 y, ${2 * held + taken}, {step * STEP * ROW >> 4};")
            lines.append(f"{_instruction(kind, columns)} {{{sums}}}, {{{a}}}, y, 1, 1, 1, 1;")
        lines.append("wgmma.commit_group.sync.aligned; }")
        for k, v in enumerate(asm_in_place(b, " ".join(lines), values, *left, y)):
            b.put("sums", k, v)

    return write


def _instruction(kind: str, columns: int) -> str:
    return f"wgmma.mma_async.sync.aligned.m64n{columns}k{STEP}.f32.{kind}.{kind}"


def _wait(b: Body) -> None:
    held, count = b.literals["held"], b.literals["count"]
    values = [*(b.get("sums", k) for k in range(held)), *(b.get("a", k) for k in range(count))]
    text = f"wgmma.wait_group.sync.aligned {b.literals['n']};"
    for k, v in enumerate(asm_in_place(b, text, values)):
        b.put(*(("sums", k) if k < held else ("a", k - held)), v)


KINDS: Final = ("f16", "bf16")
_ROWS: Final = ("registers sums, shared a, index i, shared b, index j, literal terms,"
                " literal columns, literal a_apart, literal b_apart")  # fmt: skip
_HELD: Final = ("registers sums, registers a, shared b, index j, literal terms,"
                " literal columns")  # fmt: skip
TABLE: Final = table(
    *(I(f"wgmma_rows_{kind}", _ROWS, _of_rows(kind)) for kind in KINDS),
    *(I(f"wgmma_held_{kind}", _HELD, _of_registers(kind)) for kind in KINDS),
    I("wgmma_wait_held", "registers sums, literal held, registers a, literal count, literal n",
      _wait),
)  # fmt: skip
"""wgmma_rows_f16(sums, a, i, b, j, terms, columns, a_apart, b_apart): sums = 64 rows from a[i]
times `columns` rows from b[j], over so many terms, a multiple of 16. Rows have 128 bytes, 64 terms;
those for the next 64 terms lie `a_apart` and `b_apart` rows behind.
wgmma_held_f16(sums, a, b, j, terms, columns): sums += a times the matrix from b[j], with the left
operand in registers. Columns of b lie side by side, 64 of them for one term in a row of 128 bytes,
`terms` rows for 64 columns.
wgmma_wait_held(sums, held, a, count, n): as `wgmma_wait`, for the product of `held` sums whose left
operand is in `count` registers."""
