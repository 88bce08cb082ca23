"""The intrinsics of `register_tiles`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .simulated_memory import LocalArray, Piece


def fill(r: LocalArray, x: Any, n: int) -> None:
    r.write(0, np.full(n, x, r.dtype))


def load_rows(
    r: LocalArray, a: Piece, i: int, many: int, far: int, count: int, step: int, n: int
) -> None:  # fmt: skip
    for k in range(many * count):
        r.write(k * n, a.read(i + k // count * far + k % count * step, n))


def multiply(
    sums: LocalArray, x: LocalArray, w: LocalArray, m: int, n: int, terms: int, x_by_term: int,
    w_by_term: int,
) -> None:  # fmt: skip
    def factor(r: LocalArray, size: int, by_term: int) -> Any:
        held = r.read(0, size * terms).astype(np.float64)
        return held.reshape(terms, size) if by_term else held.reshape(size, terms).T

    a, b = factor(x, m, x_by_term), factor(w, n, w_by_term)
    total = sums.read(0, m * n).reshape(m, n)
    for t in range(terms):
        total = (np.outer(a[t], b[t]) + total).astype(sums.dtype)
    sums.write(0, total.reshape(-1))


def store_tile(
    a: Piece, i: int, r: LocalArray, m: int, n: int, pitch: int, rows: int, down: int,
    columns: int, over: int,
) -> None:  # fmt: skip
    for row in range(m):
        start = i + (row // rows * down + row % rows) * pitch
        for c in range(0, n, columns):
            a.write(start + c // columns * over, r.read(row * n + c, columns))


TILES: dict[str, Callable[..., Any]] = {
    "fill": fill, "load_rows": load_rows, "multiply": multiply, "store_tile": store_tile,
}  # fmt: skip
