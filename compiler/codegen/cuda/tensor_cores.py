"""Matrix instructions of a warp: loads of fragments from shared memory, and multiply-accumulate.

All shapes are alike in units of 32-bit words, w elements each (PTX ISA, "Matrix Fragments for
mma.m16n8k16", ".m16n8k8", ".m16n8k32"): a step takes 8 words of every row of `a` and of every
column of `b`. With g = lane / 4 and t = lane % 4, a thread holds

    a[0..4] = words t of rows g and g + 8, words t + 4 of rows g and g + 8
    b[0..2] = words t and t + 4 of column g
    c[0..4] = columns 2 t and 2 t + 1 of row g, the same of row g + 8

`ldmatrix` (PTX ISA, "ldmatrix") hands 8 rows of 16 bytes out so that a thread has word t of row g;
lanes 8 i to 8 i + 7 say where the rows of matrix i are. Transposed, a thread has elements 2 t and
2 t + 1 of column g, for elements of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .intrinsic import Body, Intrinsic, table
from .intrinsic import Intrinsic as I


@dataclass(frozen=True, slots=True)
class Multiplication:
    """llvm: the end of the name of LLVM's function; operand, total: the types of its registers."""

    llvm: str
    operand: str
    total: str


MULTIPLICATIONS: Final = {
    "f16": Multiplication("m16n8k16.row.col.f32.f32", "<2 x half>", "float"),
    "bf16": Multiplication("m16n8k16.row.col.bf16", "i32", "float"),
    "tf32": Multiplication("m16n8k8.row.col.tf32", "i32", "float"),
    "i8": Multiplication("m16n8k32.row.col.s8", "i32", "i32"),
    "u8": Multiplication("m16n8k32.row.col.u8", "i32", "i32"),
    "u8_i8": Multiplication("m16n8k32.row.col.u8.s8", "i32", "i32"),
    "i8_u8": Multiplication("m16n8k32.row.col.s8.u8", "i32", "i32"),
}
"""By the elements of a and b; sums of floats are f32, those of integers i32."""


def multiply(b: Body, m: Multiplication, place: Callable[[int], int | str]) -> None:
    """Row by row of a, columns to and fro, so that neighbours share an operand. place: where
    register k of fragment i of a is, from 4 i + k."""
    rows, columns = b.literals["rows"], b.literals["columns"]
    right = [_operand(b, m, "b", k) for k in range(2 * columns)]
    for i in range(rows):
        left = [_operand(b, m, "a", place(4 * i + k)) for k in range(4)]
        for j in range(columns) if i % 2 == 0 else reversed(range(columns)):
            at = (i * columns + j) * 4
            sums = [b.get("c", at + k) for k in range(4)]
            kinds = "{" + ", ".join([m.total] * 4) + "}"
            made = b.call(kinds, f"llvm.nvvm.mma.{m.llvm}", *left, *right[2 * j : 2 * j + 2],
                          *sums, together=True)  # fmt: skip
            for k in range(4):
                b.put("c", at + k, b.make(f"extractvalue {kinds} {made}, {k}"))


def _operand(b: Body, m: Multiplication, registers: str, at: int | str) -> str:
    held = b.get(registers, at)
    return held if m.operand == "i32" else f"{m.operand} {b.make(f'bitcast {held} to {m.operand}')}"


def _multiply(m: Multiplication) -> Callable[[Body], None]:
    return lambda b: multiply(b, m, lambda at: at)


def _matrices(transposed: str) -> Callable[[Body], None]:
    def write(b: Body) -> None:
        kinds = "{i32, i32, i32, i32}"
        name = f"llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4{transposed}.b16.p3"
        x, known = b.shared("x", "i"), b.literals
        for j in range(known["count"]):
            apart = j * known["step"] * b.types["x"].bytes
            at = b.make(f"getelementptr i8, {x}, i64 {apart}")
            made = b.call(kinds, name, f"ptr addrspace(3) {at}", together=True)
            for k in range(4):
                value = b.make(f"extractvalue {kinds} {made}, {k}")
                b.put("r", known["first"] + 4 * j + k, value)

    return write


def _rounded(b: Body) -> None:
    for k in range(b.literals["count"]):
        value = b.make(f"bitcast {b.get('r', k)} to float")
        b.put("r", k, b.call("i32", "llvm.nvvm.f2tf32.rna", f"float {value}"))


def _turned(b: Body) -> None:
    """A square of pairs is transposed in two rounds: of 2 by 2 blocks of it, and of the blocks."""
    lane = b.call("i32", "llvm.nvvm.read.ptx.sreg.laneid")
    kind = b.held("c")
    held = {(s, e): b.make(f"bitcast {b.get('c', b.after('first', 4 * s + e))} to i32")
            for s in range(4) for e in range(2)}  # fmt: skip
    for d in (1, 2):
        bit = b.make(f"and i32 {lane}, {d}")
        upper = b.make(f"icmp ne i32 {bit}, 0")
        for s in (s for s in range(4) if not s & d):
            for e in range(2):
                mine, other = held[s, e], held[s | d, e]
                sent = b.make(f"select i1 {upper}, i32 {mine}, i32 {other}")
                got = b.call("i32", "llvm.nvvm.shfl.sync.bfly.i32", "i32 -1", f"i32 {sent}",
                             f"i32 {d}", "i32 31", together=True)  # fmt: skip
                held[s, e] = b.make(f"select i1 {upper}, i32 {got}, i32 {mine}")
                held[s | d, e] = b.make(f"select i1 {upper}, i32 {other}, i32 {got}")
    for (s, e), value in held.items():
        b.put("c", b.after("first", 4 * s + e), b.make(f"bitcast i32 {value} to {kind}"))


def _multiplications() -> list[Intrinsic]:
    takes = "registers c, registers a, registers b, literal rows, literal columns"
    return [I(f"mma_{kind}", takes, _multiply(m)) for kind, m in MULTIPLICATIONS.items()]


_LOAD: Final = "registers r, literal first, shared x, index i, literal count, literal step"
TABLE: Final = table(
    *_multiplications(),
    I("ldmatrix", _LOAD, _matrices("")),
    I("ldmatrix_t", _LOAD, _matrices(".trans")),
    I("turn_columns", "registers c, index first", _turned),
    I("round_tf32", "registers r, literal count", _rounded),
)
"""mma_f16(c, a, b, rows, columns): c += a b for rows x columns fragments of 16 x 8, by the whole
warp; c[i][j] are registers 4 (i columns + j) and on. ldmatrix(r, first, x, i, count, step): four
matrices, whose rows lie at x[i] of the 32 lanes, in r[first], r[first + 1], ..., and so on `count`
times, `step` elements apart; ldmatrix_t: each matrix transposed.
turn_columns(c, first): a row's part of four neighbouring fragments, c[first + 4 s + e] in lane t
being column 8 s + 2 t + e, turns so that it is column 8 t + 2 s + e: eight neighbours in each lane.
round_tf32(r, count): floats rounded to 10 bits behind the point, ties away from zero."""
