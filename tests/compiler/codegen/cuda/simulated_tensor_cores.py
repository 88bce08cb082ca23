"""Matrix instructions of a warp, with the fragments' layouts of the PTX ISA, in numpy.

Written from the tables of the PTX ISA ("Matrix Fragments for mma.m16n8k16" and its neighbours,
"ldmatrix"), element by element and not word by word, so as to be another source than the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .simulated_arithmetic import SimError
from .simulated_memory import Block, LocalArray, Piece
from .simulated_warps import Collective

LANE = np.arange(32)
GROUP, MEMBER = LANE >> 2, LANE % 4
Args = Sequence[tuple[Any, ...]]


def _f16(words: Any) -> Any:
    return words.astype(np.uint32).view(np.float16).astype(np.float32)


def _bf16(words: Any) -> Any:
    return (words.astype(np.uint32).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _tf32(words: Any) -> Any:
    """The hardware does not look at the last 13 bits."""
    return (words.astype(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _bytes(kind: Any) -> Callable[[Any], Any]:
    return lambda words: words.astype(np.uint32).view(kind).astype(np.int32)


Decoded = Callable[[Any], Any]
KINDS: dict[str, tuple[Decoded, Decoded, int, Any]] = {
    "f16": (_f16, _f16, 2, np.float32), "bf16": (_bf16, _bf16, 2, np.float32),
    "tf32": (_tf32, _tf32, 1, np.float32),
    "i8": (_bytes(np.int8), _bytes(np.int8), 4, np.int32),
    "u8": (_bytes(np.uint8), _bytes(np.uint8), 4, np.int32),
    "u8_i8": (_bytes(np.uint8), _bytes(np.int8), 4, np.int32),
    "i8_u8": (_bytes(np.int8), _bytes(np.uint8), 4, np.int32),
}  # fmt: skip
"""How the operands' registers are read, elements of a register, and the type of the sums."""


def _gathered(
    args: Args, place: int, count: int, dtype: Any
) -> Any:  # fmt: skip
    """A register array of all lanes, [lane, register]."""
    arrays = [a[place] for a in args]
    if any(not isinstance(r, LocalArray) or r.dtype != dtype for r in arrays):
        raise SimError(f"registers of {arrays[0].dtype} where {np.dtype(dtype)} are expected")
    return np.stack([r.read(0, count) for r in arrays])


def multiplication(kind: str) -> Collective:
    """c += a b, rows x columns times 16 x 8."""
    left, right, each, total = KINDS[kind]

    def together(block: Block, numbers: Sequence[int], args: Args) -> list[None]:
        rows, columns = args[0][3:]
        if any(a[3:] != (rows, columns) for a in args):
            raise SimError("the lanes of a warp multiply different shapes")
        depth = 8 * each
        a_held = left(_gathered(args, 1, rows * 4, np.uint32)).reshape(32, rows, 4, each)
        b_held = right(_gathered(args, 2, columns * 2, np.uint32)).reshape(32, columns, 2, each)
        sums = _gathered(args, 0, rows * columns * 4, total).reshape(32, rows, columns, 4)
        a = np.zeros((rows, 16, depth), a_held.dtype)
        b = np.zeros((columns, depth, 8), b_held.dtype)
        for e in range(each):
            for r in range(4):
                a[:, GROUP + 8 * (r % 2), MEMBER * each + e + 4 * each * (r // 2)] = a_held[
                    :, :, r, e
                ].T
            for r in range(2):
                b[:, MEMBER * each + e + 4 * each * r, GROUP] = b_held[:, :, r, e].T
        wide = np.float64 if total is np.float32 else np.int64
        product = np.einsum("imk,jkn->ijmn", a.astype(wide), b.astype(wide))
        for r in range(4):
            part = product[:, :, GROUP + 8 * (r // 2), MEMBER * 2 + r % 2]
            sums[..., r] = (sums[..., r].astype(wide) + np.moveaxis(part, 2, 0)).astype(total)
        for lane, held in enumerate(args):
            held[0].write(0, sums[lane].reshape(-1))
        return [None] * 32

    return Collective(together)


def matrices(transposed: bool) -> Collective:
    """Four matrices of 8 rows of 16 bytes."""

    def together(block: Block, numbers: Sequence[int], args: Args) -> list[None]:
        x, count, step = args[0][2], args[0][4], args[0][5]
        if not isinstance(x, Piece):
            raise SimError("ldmatrix reads shared memory")
        if transposed and x.dtype.itemsize != 2:
            raise SimError("ldmatrix transposes elements of 16 bits")
        for j in range(count):
            rows = []
            for number, a in zip(numbers, args, strict=True):
                block.thread = number
                rows.append(a[2].read(a[3] + j * step, 16 // x.dtype.itemsize).view(np.uint16))
            found = np.stack(rows).reshape(4, 8, 8)
            if transposed:
                found = found.transpose(0, 2, 1)
            words = np.ascontiguousarray(found).view(np.uint32)  # [matrix, row, word]
            for lane, (r, first, *_) in enumerate(args):
                r.write(first + 4 * j, words[:, GROUP[lane], MEMBER[lane]])
        return [None] * 32

    return Collective(together)


def _turn_columns(block: Block, numbers: Sequence[int], args: Args) -> list[None]:
    """Lane t of four gets what each lane s of them holds of fragment t, in place of fragment s."""
    firsts = {a[1] for a in args}
    if len(firsts) != 1:
        raise SimError("the lanes of a warp turn different registers")
    (first,) = firsts
    held = np.stack([[a[0].read(first + 4 * s, 2) for s in range(4)] for a in args])
    turned = held.reshape(8, 4, 4, 2).transpose(0, 2, 1, 3).reshape(32, 4, 2)
    for lane, a in enumerate(args):
        for s in range(4):
            a[0].write(first + 4 * s, turned[lane, s])
    return [None] * 32


def round_tf32(r: LocalArray, count: int) -> None:
    """Half a unit is added to what is cut off; infinities and NaN stay."""
    words = r.read(0, count).astype(np.uint32)
    finite = (words & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
    rounded = (words + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    r.write(0, np.where(finite, rounded, words).astype(np.uint32))


TENSOR_CORES: dict[str, Collective] = {
    "turn_columns": Collective(_turn_columns),
    "ldmatrix": matrices(False), "ldmatrix_t": matrices(True),
    **{f"mma_{kind}": multiplication(kind) for kind in KINDS},
}  # fmt: skip
