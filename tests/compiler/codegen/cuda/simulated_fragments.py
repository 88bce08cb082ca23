"""The intrinsics of `fragments`, element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .simulated_arithmetic import DIALECT, SimError
from .simulated_memory import Block, LocalArray, Piece
from .simulated_tensor_cores import multiplication, round_tf32
from .simulated_warps import Collective

Args = Sequence[tuple[Any, ...]]


def _picked(kind: str) -> Collective:
    """The product of fragments that are brought side by side first."""
    product = multiplication(kind)

    def together(block: Block, numbers: Sequence[int], args: Args) -> Any:
        given = []
        if len({a[2:4] for a in args}) != 1:
            raise SimError("the lanes of a warp multiply different registers")
        for c, a, first, apart, b, rows, columns in args:
            side = LocalArray(4 * rows, a.dtype)
            for i in range(rows):
                side.write(4 * i, a.read(first + i * apart, 4))
            given.append((c, side, b, rows, columns))
        return product.together(block, numbers, given)

    return Collective(together)


def _packed(rounded: Callable[[Any], Any]) -> Callable[..., None]:
    def pack(a: LocalArray, c: LocalArray, first: int, rows: int, apart: int) -> None:
        for i in range(rows):
            x = c.read(first + i * apart, 8)
            for k in range(4):
                low, high = int(rounded(x[2 * k])), int(rounded(x[2 * k + 1]))
                a.write(4 * i + k, np.array([high << 16 | low], np.uint32))

    return pack


def _tf32(values: Any) -> Any:
    held = LocalArray(len(values), np.uint32)
    held.write(0, np.ascontiguousarray(values, np.float32).view(np.uint32))
    round_tf32(held, len(values))
    return held.read(0, len(values))


def pack_tf32(a: LocalArray, c: LocalArray, first: int, rows: int, apart: int) -> None:
    for i in range(rows):
        upper, lower = c.read(first + i * apart, 4).reshape(2, 2)  # rows g and g + 8
        a.write(4 * i, _tf32([upper[0], lower[0], upper[1], lower[1]]))


def load_pairs(b: LocalArray, x: Piece, i: int, pitch: int, count: int) -> None:
    for j in range(count):
        pair = [x.read(i + 8 * j, 1)[0], x.read(i + 8 * j + pitch, 1)[0]]
        b.write(2 * j, _tf32(pair))


COLLECTIVES = {f"mma_{kind}_at": _picked(kind) for kind in ("f16", "bf16", "tf32")}
FRAGMENTS: dict[str, Callable[..., Any]] = {
    "pack_f16": _packed(DIALECT["to_f16"]),
    "pack_bf16": _packed(DIALECT["to_bf16"]),
    "pack_tf32": pack_tf32, "load_pairs": load_pairs,
}  # fmt: skip
