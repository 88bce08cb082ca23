"""Tiles that a thread holds in registers: read from memory, multiplied, written to shared memory.

One statement stands for hundreds of instructions. Tiles are row-major arrays of the thread.
"""

from __future__ import annotations

from typing import Final

from .intrinsic import Body, table
from .intrinsic import Intrinsic as I


def _fill(b: Body) -> None:
    for k in range(b.literals["n"]):
        b.put("r", k, "%x")


def _load_rows(b: Body) -> None:
    n, kind, size = b.literals["n"], b.held("a"), b.types["a"].bytes
    count = b.literals["count"]
    for k in range(b.literals["many"] * count):
        away = k // count * b.literals["far"] + k % count * b.literals["step"]
        at = b.make(f"add i64 %i, {away}")
        place = b.make(f"getelementptr {kind}, ptr %a, i64 {at}")
        row = b.make(f"load <{n} x {kind}>, ptr {place}, align {n * size}")
        for j in range(n):
            one = b.make(f"extractelement <{n} x {kind}> {row}, i32 {j}")
            b.put("r", k * n + j, one)


def _multiply(b: Body) -> None:
    m, n, terms = (b.literals[name] for name in ("m", "n", "terms"))
    kind = b.held("sums")
    sums = [b.get("sums", k) for k in range(m * n)]
    for t in range(terms):
        x = [b.get("x", t * m + i if b.literals["x_by_term"] else i * terms + t) for i in range(m)]
        w = [b.get("w", t * n + j if b.literals["w_by_term"] else j * terms + t) for j in range(n)]
        for i in range(m):
            for j in range(n):
                made = b.call(kind, _FMA[kind], x[i], w[j], sums[i * n + j])
                sums[i * n + j] = f"{kind} {made}"
    for k, value in enumerate(sums):
        b.put("sums", k, value.split(" ")[1])


def _store_tile(b: Body) -> None:
    m, n, g = b.literals["m"], b.literals["n"], b.literals["columns"]
    kind, size = b.held("a"), b.types["a"].bytes
    rows = b.literals["rows"]
    for r in range(m):
        start = (r // rows * b.literals["down"] + r % rows) * b.literals["pitch"]
        for c in range(0, n, g):
            at = b.make(f"add i64 %i, {start + c // g * b.literals['over']}")
            place = b.make(f"getelementptr {kind}, ptr %a, i64 {at}")
            row = "poison"
            for k in range(g):
                one = b.get("r", r * n + c + k)
                row = b.make(f"insertelement <{g} x {kind}> {row}, {one}, i32 {k}")
            b.do(f"store <{g} x {kind}> {row}, ptr {place}, align {g * size}")


_FMA: Final = {"float": "llvm.fma.f32", "double": "llvm.fma.f64"}
TABLE: Final = table(
    I("fill", "registers r, value x, literal n", _fill),
    I("load_rows", "registers r, shared a, index i, literal many, literal far, literal count, "
      "literal step, literal n", _load_rows),
    I("multiply", "registers sums, registers x, registers w, literal m, literal n, literal terms, "
      "literal x_by_term, literal w_by_term", _multiply),
    I("store_tile", "shared a, index i, registers r, literal m, literal n, literal pitch, "
      "literal rows, literal down, literal columns, literal over", _store_tile),
)  # fmt: skip
"""fill(r, x, n): r[0], ..., r[n - 1] = x.

load_rows(r, a, i, many, far, count, step, n): n neighbours from each of a[i], a[i + step], ...,
`count` times, and the same `far` elements behind, `many` times in all; one behind the other into r.

multiply(sums, x, w, m, n, terms, x_by_term, w_by_term): sums[i, j] += x[i] * w[j] in one rounding
for every term after the other; x holds [term, i] if x_by_term, else [i, term], and w likewise.

store_tile(a, i, r, m, n, pitch, rows, down, columns, over): r[m, n] into rows of a that are `pitch`
apart. Every `rows` of its rows are neighbours, `down` rows behind those before them; every
`columns` of its columns are neighbours, `over` elements behind those before them.
"""
