"""Matrix products by groups of four warps (wgmma): PTX ISA, "Asynchronous warpgroup level matrix
instructions". For Hopper GPUs alone: code with them is for sm_90a, not for what comes later.

Both factors lie in shared memory, in rows of 128 bytes with the swizzle of `kernels.tensor_map`;
sums are in registers. Of 64 rows, warp w of the group holds rows 16 * w to 16 * w + 15; of those a
thread holds, for every 8 columns, two neighbours in row lane / 4 and the same two eight rows below,
columns 2 * (lane % 4) and the next.

A product takes the terms of one row of 128 bytes: four instructions of 32 bytes. Where a factor's
rows lie side by side instead, 128 bytes of them for one term, terms follow each other in rows of
128 bytes, and what comes behind those 128 bytes is a stretch of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .asm import address, asm, asm_in_place
from .intrinsic import Body, table
from .intrinsic import Intrinsic as I

ROWS: Final = 64  # of one instruction
STEPS: Final = 4  # instructions for the terms of 128 bytes
ROW: Final = 128  # bytes
ATOM: Final = 8 * ROW  # bytes that are swizzled alike
_SWIZZLE_128: Final = 1 << 62
TERMS: Final = {"f16": 64, "bf16": 64, "tf32": 32, "s8": 128, "u8": 128}
"""Of one product, by the type of the factors."""


def descriptor(b: Body, memory: str, offset: str, across: bool, terms: int) -> str:
    """Where a factor lies, and how: "i64 %v". across: in stretches of `terms` rows. See
    `hopper_model` in the tests."""
    lead = terms * ROW if across else 16
    fixed = _SWIZZLE_128 | (ATOM >> 4) << 32 | (lead >> 4) << 16
    at = b.make(f"and {address(b, memory, offset)}, {0x3FFFF}")
    short = b.make(f"lshr i32 {at}, 4")
    low = b.make(f"zext i32 {short} to i64")
    return f"i64 {b.make(f'or i64 {low}, {fixed}')}"


def _product(kind: str) -> Callable[[Body], None]:
    """tiles * 64 rows, `columns` columns. The whole product is one piece of PTX, so that nothing
    comes between its instructions, and sums stay where they are."""

    def write(b: Body) -> None:
        terms, given = TERMS[kind], b.literals
        tiles, columns = given["tiles"], given["columns"]
        held = tiles * columns // 2
        sums = [b.get("sums", k) for k in range(held)]
        x = descriptor(b, "a", "i", bool(given["a_across"]), terms)
        y = descriptor(b, "b", "j", bool(given["b_across"]), terms)
        add = f"i32 {b.make('zext i1 %add to i32')}"
        first = 2 * held
        lines = [f"{{ .reg .pred add; .reg .b64 x, y; setp.ne.b32 add, ${first + 2}, 0;",
                 "wgmma.fence.sync.aligned;"]  # fmt: skip
        for step in range(STEPS):
            lines.append(f"add.s64 y, ${first + 1}, {_advance(step, given['b_across'], terms)};")
            for tile in range(tiles):
                at = _advance(step, given["a_across"], terms) + (tile * ROWS * ROW >> 4)
                lines.append(f"add.s64 x, ${first}, {at};")
                where = ", ".join(f"${tile * columns // 2 + k}" for k in range(columns // 2))
                lines.append(_instruction(kind, columns, where, "1" if step else "add", given))
        lines.append("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1; }")
        for k, v in enumerate(asm_in_place(b, " ".join(lines), sums, x, y, add)):
            b.put("sums", k, v)

    return write


def _advance(step: int, across: int, terms: int) -> int:
    """How far a descriptor moves for a step's terms: 32 bytes, or as many whole rows."""
    return step * (terms // STEPS * ROW if across else ROW // STEPS) >> 4


def _instruction(kind: str, columns: int, sums: str, add: str, given: Mapping[str, int]) -> str:
    size = TERMS[kind] // STEPS
    if kind in ("s8", "u8"):
        return (f"wgmma.mma_async.sync.aligned.m64n{columns}k{size}.s32.{kind}.{kind}"
                f" {{{sums}}}, x, y, {add};")  # fmt: skip
    ways = f", {given['a_across']}, {given['b_across']}" if size == 16 else ""
    return (f"wgmma.mma_async.sync.aligned.m64n{columns}k{size}.f32.{kind}.{kind}"
            f" {{{sums}}}, x, y, {add}, 1, 1{ways};")  # fmt: skip


def _wait(b: Body) -> None:
    sums = [b.get("sums", k) for k in range(b.literals["held"])]
    text = f"wgmma.wait_group.sync.aligned {b.literals['n']};"
    for k, v in enumerate(asm_in_place(b, text, sums)):
        b.put("sums", k, v)


def _registers(way: str) -> Callable[[Body], None]:
    def write(b: Body) -> None:
        asm(b, f"setmaxnreg.{way}.sync.aligned.u32 {b.literals['count']};")

    return write


def _store_half(b: Body) -> None:
    """Four 8x8 matrices at a time: rows 0 to 7 and 8 to 15 of 16 columns."""
    lane = b.call("i32", "llvm.nvvm.read.ptx.sreg.laneid")
    row = b.make(f"and i32 {lane}, 15")
    half = b.make(f"lshr i32 {lane}, 4")
    turn = b.make(f"and i32 {lane}, 7")
    start = address(b, "a", "i")
    down = b.make(f"shl i32 {row}, 7")
    line = b.make(f"add {start}, {down}")
    for pair in range(b.literals["columns"] // 16):
        column = b.make(f"or i32 {half}, {2 * pair}")
        piece = b.make(f"xor i32 {column}, {turn}")
        over = b.make(f"shl i32 {piece}, 4")
        at = b.make(f"add i32 {line}, {over}")
        packed = [_packed(b, pair * 8 + k) for k in (0, 2, 4, 6)]
        asm(b, "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1, $2, $3, $4};",
            f"i32 {at}", *packed)  # fmt: skip


def _packed(b: Body, at: int) -> str:
    """Two neighbouring 16-bit registers as "i32 %v"."""
    low, high = (b.make(f"zext {b.get('r', at + k)} to i32") for k in (0, 1))
    high = b.make(f"shl i32 {high}, 16")
    return f"i32 {b.make(f'or i32 {low}, {high}')}"


_TAKEN: Final = ("registers sums, shared a, index i, shared b, index j, flag add, literal tiles,"
                 " literal columns, literal a_across, literal b_across")  # fmt: skip
TABLE: Final = table(
    *(I(f"wgmma_{kind}", _TAKEN, _product(kind)) for kind in TERMS),
    I("wgmma_wait", "registers sums, literal held, literal n", _wait),
    I("more_registers", "literal count", _registers("inc")),
    I("fewer_registers", "literal count", _registers("dec")),
    I("stmatrix", "shared a, index i, registers r, literal columns", _store_half),
)
"""wgmma_f16(sums, a, i, b, j, add, tiles, columns, a_across, b_across): sums (+)= the product of
tiles * 64 rows from a[i] and as many columns as said from b[j], where `add` says whether anything
is added to; waits until the products before this one are done. a_across, b_across: whether what
lies side by side are the rows (of a) or columns (of b), 16-bit types only. Rows of a follow each
other without a gap, or in stretches as the terms of one product are long. wgmma_wait(sums, held,
n): all but the last n products are done; sums has `held` registers. more_registers(count),
fewer_registers(count): how many registers a thread has from now on, by all threads of a group of
warps. stmatrix(a, i, r, columns): 16 rows of a warp, 16-bit registers placed as sums are, to rows
of 128 bytes at a[i], swizzled; a[i] lies eight rows or a multiple of them behind a multiple of 1024
bytes."""
EXACT: Final = frozenset(TABLE) - {"stmatrix"}
"""Those that only sm_90a has."""
