"""The transpose of a square of vector registers.

Two networks one after the other, as compilers' own libraries do it: interleaving inside parts of
128 bits, which every instruction set has, then moving these parts, which only wide vectors need.
Each runs log2 of its width in steps, and each step is one shuffle per register.
"""

from __future__ import annotations

from collections.abc import Sequence

from .llvm_text import Function, Value


def transposed(f: Function, rows: Sequence[Value]) -> list[Value]:
    """n vectors of n lanes: lane j of row i becomes lane i of row j."""
    n, bits = len(rows), rows[0].dtype.bits
    part = min(n, max(2, 128 // bits))  # lanes in 128 bits
    out = list(rows)
    for start in range(0, n, part):
        block = out[start : start + part]
        for _ in range(part.bit_length() - 1):
            block = _interleaved(f, block, n)
        out[start : start + part] = block
    parts = n // part
    columns = [out[k::part] for k in range(part)]
    for k, column in enumerate(columns):
        for _ in range(parts.bit_length() - 1):
            column = _split(f, column, n, part)
        columns[k] = column
    return [columns[k % part][k // part] for k in range(n)]


def _interleaved(f: Function, rows: Sequence[Value], n: int) -> list[Value]:
    """Rows i and i + half, interleaved inside parts of as many lanes as there are rows."""
    part = len(rows)
    half = part // 2
    out = []
    for a, b in zip(rows[:half], rows[half:], strict=True):
        for low in (0, half):
            order = [k // part * part + low + k % part // 2 + k % 2 * n for k in range(n)]
            out.append(f.shuffle(a, b, order))
    return out


def _split(f: Function, rows: Sequence[Value], n: int, part: int) -> list[Value]:
    """Even parts of rows 2 i and 2 i + 1 one after the other, for all i; then the odd ones."""
    out = []
    for odd in (0, 1):
        for a, b in zip(rows[::2], rows[1::2], strict=True):
            places = range(odd * part, 2 * n, 2 * part)
            out.append(f.shuffle(a, b, [p + k for p in places for k in range(part)]))
    return out
