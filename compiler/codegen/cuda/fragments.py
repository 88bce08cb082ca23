"""Products of a warp one behind the other: sums of the first are the left operand of the second.

A thread holds of the sums what it needs of them as an operand, if only they are packed (see
`tensor_cores` for who holds what). Two fragments of 16 x 8 sums of half floats are one of 16 x 16
elements. One of 16 x 8 sums is one of 16 x 8 elements in tf32 if columns are taken in another
order: what the instruction takes for columns t and t + 4 are columns 2 t and 2 t + 1. The right
operand's rows then have to be taken in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .intrinsic import Body, table
from .intrinsic import Intrinsic as I
from .tensor_cores import MULTIPLICATIONS, Multiplication, multiply


def _multiply(m: Multiplication) -> Callable[[Body], None]:
    """As `mma_...`, with the fragments of a wherever they lie."""

    def write(b: Body) -> None:
        apart = b.literals["apart"]
        multiply(b, m, lambda at: b.after("first", at // 4 * apart + at % 4))

    return write


def _pack_half(function: str, pair: str) -> Callable[[Body], None]:
    def write(b: Body) -> None:
        for i in range(b.literals["rows"]):
            for k in range(4):
                at = i * b.literals["apart"] + 2 * k
                low, high = (b.get("c", b.after("first", at + e)) for e in range(2))
                made = b.call(pair, function, high, low)
                b.put("a", 4 * i + k, b.make(f"bitcast {pair} {made} to i32"))

    return write


def _pack_tf32(b: Body) -> None:
    for i in range(b.literals["rows"]):
        for k in range(4):  # rows g and g + 8 of column 2 t, then of column 2 t + 1
            at = i * b.literals["apart"] + k % 2 * 2 + k // 2
            value = b.get("c", b.after("first", at))
            b.put("a", 4 * i + k, b.call("i32", "llvm.nvvm.f2tf32.rna", value))


def _load_pairs(b: Body) -> None:
    for j in range(b.literals["count"]):
        for e in range(2):
            place = b.after("i", 8 * j + e * b.literals["pitch"])
            value = b.make(f"load float, ptr {b.element('x', place.removeprefix('%'))}")
            b.put("b", 2 * j + e, b.call("i32", "llvm.nvvm.f2tf32.rna", f"float {value}"))


_MULTIPLY: Final = ("registers c, registers a, index first, literal apart, registers b, "
                    "literal rows, literal columns")  # fmt: skip
_PACK: Final = "registers a, registers c, index first, literal rows, literal apart"
TABLE: Final = table(
    *(I(f"mma_{kind}_at", _MULTIPLY, _multiply(MULTIPLICATIONS[kind]))
      for kind in ("f16", "bf16", "tf32")),
    I("pack_f16", _PACK, _pack_half("llvm.nvvm.ff2f16x2.rn", "<2 x half>")),
    I("pack_bf16", _PACK, _pack_half("llvm.nvvm.ff2bf16x2.rn", "<2 x bfloat>")),
    I("pack_tf32", _PACK, _pack_tf32),
    I("load_pairs", "registers b, shared x, index i, literal pitch, literal count", _load_pairs),
)  # fmt: skip
"""mma_f16_at(c, a, first, apart, b, rows, columns): as `mma_f16`, the i-th fragment of a being
a[first + i apart] and the three behind it.
pack_f16(a, c, first, rows, apart): `rows` fragments of a, rounded; the i-th of the sums from
c[first + i apart] on, of two neighbouring fragments. pack_tf32: of one, as said above.
load_pairs(b, x, i, pitch, count): fragments of b for `pack_tf32`, in tf32: x[i + 8 j] and
x[i + 8 j + pitch] in b[2 j] and b[2 j + 1]."""
