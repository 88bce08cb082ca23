"""The smallest kernels that use one thing of a GPU each, from a store to a whole matrix product.

A device on which a kernel template is wrong says so by wrong numbers or by hanging, and a template
uses twenty things at once. Here every thing has a kernel of its own, which needs those before it:
so the first one that fails is the one that is wrong. Numbers are small integers, so that results
are exact, and what is expected is computed from the definition, not as the kernel does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

import tilewright as tw
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_wgmma import GpuWgmma
from tilewright.compiler.kernels.ir import (
    Argument,
    Buffer,
    Call,
    Declare,
    If,
    Kernel,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    TensorMap,
    loop,
)
from tilewright.ops.expr import Expr, apply, cast, compare, const, index, var
from tilewright.ops.types import DType, f32, i8, i32, i64, u8, u16, u32, u64

Array = Any
T: Final = var("t", 1024)
ITEM: Final = var("item", 1 << 16)
LANE, WARP = T % 32, T // 32
ROW: Final = 128  # bytes
FULL: Final = (227 << 10) - 1024


@dataclass(frozen=True)
class Trial:
    """A kernel, what its parameters hold, and what they have to hold after it."""

    kernel: Kernel
    given: Mapping[str, Array]
    wanted: Mapping[str, Array]
    relative: float = 0.0


@dataclass(frozen=True)
class Rung:
    """build: what a device is tried with. needs: the least compute capability; what lies above it
    and `exact` is for that architecture only."""

    name: str
    build: Callable[[], Trial]
    needs: int = 80
    graphed: bool = False


def kernel(
    params: Sequence[Buffer], body: Sequence[Stmt], threads: int, items: int = 1, cluster: int = 1
) -> Kernel:
    """Of one phase, written for a thread."""
    phase = Phase(items, ITEM, tuple(body), threads, T, cluster)
    return Kernel("rung", 1, (), tuple(params), (phase,))


def out(dtype: DType, elements: int) -> Buffer:
    return Buffer("y", dtype, elements, "out")


def given(dtype: DType, elements: int, name: str = "x") -> Buffer:
    return Buffer(name, dtype, elements, "in")


def small(seed: int, dims: tuple[int, ...], dtype: Any = np.float32, most: int = 4) -> Array:
    """Integers from -most to most, so that no sum of their products is rounded."""
    low = 0 if np.dtype(dtype).kind == "u" else -most
    return np.random.default_rng(seed).integers(low, most + 1, dims).astype(dtype)


# --------------------------------------------------------------------------- threads and memory


def numbers() -> Trial:
    y = out(i32, 3 * 64)
    k = kernel([y], [Store(y, ITEM * 64 + T, cast(ITEM * 64 + T, i32))], 64, 3)
    return Trial(k, {}, {"y": np.arange(192, dtype=np.int32)})


def vectors() -> Trial:
    x, y, r = given(f32, 512), out(f32, 512), Local("r", f32, (4,))
    body = [Declare(r), Call("load_vector", (r, index(0), x, T * 4, 4)),
            Call("store_vector", (y, T * 4, r, index(0), 4))]  # fmt: skip
    a = small(1, (512,))
    return Trial(kernel([x, y], body, 128), {"x": a}, {"y": a})


def shared(elements: int) -> Trial:
    """Each thread reads what another one wrote, at the end of so many elements."""
    x, y, a = given(f32, 128), out(f32, 128), Local("a", f32, (elements,), shared=True)
    last = elements - 128
    body = [Declare(a), Set(a, (T + last,), x[T]), Call("barrier"),
            Store(y, T, a[const(127 + last, i64) - T])]  # fmt: skip
    v = small(2, (128,))
    return Trial(kernel([x, y], body, 128), {"x": v}, {"y": v[::-1]})


def some_threads() -> Trial:
    """Warps 0 and 1 meet at one barrier, 2 and 3 at another one, and those twice."""
    x, y, r = given(f32, 128), out(f32, 128), Local("r", f32, (1,))
    half = apply("uniform", (T // 64,), i64)
    meet = Call("barrier_of", (half + 1, 64))
    body = [Declare(r), Set(r, (index(0),), x[T]), If(compare("eq", half, 1), (meet,)), meet,
            Store(y, T, r[0] + 1.0)]  # fmt: skip
    v = small(3, (128,))
    return Trial(kernel([x, y], body, 128), {"x": v}, {"y": v + 1})


def copies(size: int) -> Trial:
    """Asynchronous ones of `size` bytes, with zeros behind the end, in two groups."""
    n = size // 4
    x, y = given(f32, 64 * n), out(f32, 96 * n)
    a = Local("a", f32, (96 * n,), shared=True)
    k = var("k", n)
    at = T * n
    body = [
        Declare(a), Call("cp_async_zero", (a, at, x, at, size, at < 64 * n)), Call("cp_commit"),
        Call("cp_commit"), Call("cp_wait", (1,)), Call("barrier"),
        loop(k, (Store(y, at + k, a[(const(95, i64) - T) * n + k]),), "unroll"),
    ]  # fmt: skip
    v = small(4, (64 * n,))
    wanted = np.concatenate([v, np.zeros(32 * n, np.float32)]).reshape(96, n)[::-1].ravel()
    return Trial(kernel([x, y], body, 96), {"x": v}, {"y": wanted})


# --------------------------------------------------------------------------- warps


def _words(x: Array) -> Array:
    return np.ascontiguousarray(x).view(np.uint32)


def matrices(transposed: bool) -> Trial:
    """ldmatrix: lane l says where row l % 8 of matrix l / 8 is; a lane gets word l % 4 of row l / 4
    of each, or elements 2 (l % 4) and the next of column l / 4."""
    x, y = given(u16, 256), out(u32, 128)
    a, r = Local("a", u16, (256,), shared=True), Local("r", u32, (4,))
    k = var("k", 4)
    body = [
        Declare(a), Declare(r), Call("cp_async", (a, T * 8, x, T * 8, 16)), Call("cp_commit"),
        Call("cp_wait", (0,)), Call("barrier"),
        Call("ldmatrix_t" if transposed else "ldmatrix", (r, 0, a, (31 - LANE) * 8, 1, 0)),
        loop(k, (Store(y, T * 4 + k, r[k]),), "unroll"),
    ]  # fmt: skip
    v = np.arange(256, dtype=np.uint16)
    rows = v.reshape(32, 8)[::-1].reshape(4, 8, 8)
    rows = rows.transpose(0, 2, 1) if transposed else rows
    return Trial(kernel([x, y], body, 32), {"x": v}, {"y": _words(rows).reshape(4, 32).T.ravel()})


def fragments(kind: str) -> Trial:
    """mma: one product of 16 rows and 8 columns, 8 words of each. Lane l holds words l % 4 and 4
    more of rows l / 4 and 8 more, and of column l / 4; sums of columns 2 (l % 4) and the next."""
    float_ = kind in ("f16", "bf16", "tf32")
    x, w, y = given(u32, 128), given(u32, 64, "w"), out(f32 if float_ else i32, 128)
    a, b = Local("a", u32, (4,)), Local("b", u32, (2,))
    c = Local("c", y.dtype, (4,))
    g, t = LANE // 4, LANE % 4
    body: list[Stmt] = [Declare(a), Declare(b), Declare(c)]
    body += [Set(a, (index(k),), x[(g + k % 2 * 8) * 8 + t + k // 2 * 4]) for k in range(4)]
    body += [Set(b, (index(k),), w[g * 8 + t + k * 4]) for k in range(2)]
    body += [Set(c, (index(k),), const(0, y.dtype)) for k in range(4)]
    body += [Call(f"mma_{kind}", (c, a, b, 1, 1))]
    body += [Store(y, (g + k // 2 * 8) * 8 + t * 2 + k % 2, c[k]) for k in range(4)]
    left, right = _factors(kind.split("_")[0], 16), _factors(kind.split("_")[-1], 8)
    made = left[0] @ right[0].T
    return Trial(kernel([x, w, y], body, 32), {"x": left[1], "w": right[1]},
                 {"y": made.astype(y.dtype.numpy).ravel()})  # fmt: skip


def _factors(kind: str, rows: int) -> tuple[Array, Array]:
    """(numbers, the words that hold them) of a factor with 8 words in a row."""
    per_word = {"f16": 2, "bf16": 2, "tf32": 1, "i8": 4, "u8": 4}[kind]
    v = small(rows, (rows, 8 * per_word), np.uint8 if kind == "u8" else np.float32)
    return v.astype(np.float64), _words(_stored(v, kind)).ravel()


def _stored(v: Array, kind: str) -> Array:
    if kind == "bf16":
        return (v.view(np.uint32) >> 16).astype(np.uint16)
    return v.astype({"f16": np.float16, "tf32": np.float32, "i8": np.int8, "u8": np.uint8}[kind])


def stored_matrices() -> Trial:
    """stmatrix: 16 rows of 128 bytes with their 16-byte words exchanged: w lies at w ^ (row % 8).
    Lane l holds two neighbours of every 8 columns in row l / 4, and in the row 8 below."""
    x, y = given(u16, 1024), out(u16, 1024)
    a, r = Local("a", u16, (1024,), shared=True, align=1024), Local("r", u16, (32,))
    k = var("k", 32)
    g, t = LANE // 4, LANE % 4
    body = [Declare(a), Declare(r)]
    for n in range(32):
        eight, half, pair = n // 4, n // 2 % 2, n % 2
        body.append(Set(r, (index(n),), x[(g + half * 8) * 64 + eight * 8 + t * 2 + pair]))
    body += [Call("stmatrix", (a, index(0), r, 64)), Call("barrier"),
             loop(k, (Store(y, T * 32 + k, a[T * 32 + k]),))]  # fmt: skip
    v = np.arange(1024, dtype=np.uint16)
    return Trial(kernel([x, y], body, 32), {"x": v}, {"y": swizzled(v.reshape(16, 64)).ravel()})


def swizzled(rows: Array) -> Array:
    """Rows of 128 bytes as they lie in shared memory."""
    words = rows.reshape(len(rows), 8, -1)
    return np.stack([w[np.arange(8) ^ r % 8] for r, w in enumerate(words)]).reshape(rows.shape)


# --------------------------------------------------------------------------- Hopper: barriers


def _barriers(bars: Local, *counts: int) -> list[Stmt]:
    """One thread sets barriers up, and all know it."""
    made = [Call("mbarrier_init", (bars, index(k), n)) for k, n in enumerate(counts)]
    first = (*made, Call("mbarrier_init_fence"))
    return [Declare(bars), If(compare("eq", T, 0), first), Call("barrier")]


def arrivals() -> Trial:
    """Two warps wait for each other, in turn, at two barriers and for both parities."""
    x, y = given(f32, 128), out(f32, 128)
    bars = Local("bars", u64, (2,), shared=True)
    warp = apply("uniform", (WARP,), i64)
    first: list[Stmt] = []
    second: list[Stmt] = []
    for turn in range(2):
        first += [Store(y, LANE + 64 * turn, x[LANE + 64 * turn] + 1.0),
                  Call("mbarrier_arrive", (bars, index(0))),
                  Call("mbarrier_wait", (bars, index(1), index(turn)))]  # fmt: skip
        second += [Call("mbarrier_wait", (bars, index(0), index(turn))),
                   Store(y, LANE + 64 * turn + 32, x[LANE + 64 * turn + 32] + 1.0),
                   Call("mbarrier_arrive", (bars, index(1)))]  # fmt: skip
    body = [*_barriers(bars, 32, 32), If(compare("eq", warp, 0), tuple(first), tuple(second))]
    v = small(5, (128,))
    return Trial(kernel([x, y], body, 64), {"x": v}, {"y": v + 1})


def neighbours() -> Trial:
    """Two blocks of a cluster: each waits until the other one has arrived at its barrier."""
    y, bars = out(i32, 128), Local("bars", u64, (1,), shared=True)
    body = [
        *_barriers(bars, 64), Call("cluster_barrier"),
        Call("mbarrier_arrive_at", (bars, index(0), 1 - ITEM % 2)),
        Call("mbarrier_wait", (bars, index(0), index(0))),
        Store(y, ITEM * 64 + T, cast(ITEM, i32)), Call("cluster_barrier"),
    ]  # fmt: skip
    return Trial(kernel([y], body, 64, 2, 2), {}, {"y": np.repeat(np.int32([0, 1]), 64)})


def registers() -> Trial:
    """One group of warps gives registers to two others."""
    x, y, r = given(f32, 384), out(f32, 384), Local("r", f32, (1,))
    group = apply("uniform", (T // 128,), i64)
    body = [Declare(r), If(compare("eq", group, 0), (Call("fewer_registers", (40,)),),
                           (Call("more_registers", (232,)),)),
            Set(r, (index(0),), x[T] + 1.0), Store(y, T, r[0])]  # fmt: skip
    v = small(6, (384,))
    return Trial(kernel([x, y], body, 384), {"x": v}, {"y": v + 1})


# --------------------------------------------------------------------------- Hopper: boxes


def _loaded(a: Local, bars: Local, nbytes: int, calls: Sequence[Call]) -> list[Stmt]:
    """One thread asks for boxes, and all wait for them."""
    first = (Call("mbarrier_expect", (bars, index(0), nbytes)), *calls)
    return [Declare(a), *_barriers(bars, 1), If(compare("eq", T, 0), first),
            Call("mbarrier_wait", (bars, index(0), index(0)))]  # fmt: skip


BARS: Final = Local("bars", u64, (1,), shared=True)


def boxes(at: tuple[int, int], swizzle: int = 128) -> Trial:
    """16 rows of 64 elements of a tensor of 40 rows and 100 columns, zeros beyond it."""
    x, y = given(u16, 40 * 104), out(u16, 1024)
    a = Local("a", u16, (1024,), shared=True, align=1024)
    tensor = TensorMap("tensor", x, (100, 40), (208,), (64, 16), swizzle)
    load = Call("tma_load_2d", (a, index(0), tensor, BARS, index(0), *map(index, at)))
    k = var("k", 32)
    body = [*_loaded(a, BARS, 2048, [load]), loop(k, (Store(y, T * 32 + k, a[T * 32 + k]),))]
    v = np.arange(1, 40 * 104 + 1, dtype=np.uint16)
    held = np.zeros((120, 300), np.uint16)
    held[40:80, 100:200] = v.reshape(40, 104)[:, :100]
    box = held[40 + at[1] :, 100 + at[0] :][:16, :64]
    wanted = swizzled(box) if swizzle else box
    return Trial(kernel([x, y], body, 32), {"x": v}, {"y": wanted.ravel()})


def little() -> Trial:
    """A box that is larger than its tensor, of 5 rows and 24 columns."""
    x, y = given(u16, 120), out(u16, 1024)
    a = Local("a", u16, (1024,), shared=True, align=1024)
    tensor = TensorMap("tensor", x, (24, 5), (48,), (64, 16))
    load = Call("tma_load_2d", (a, index(0), tensor, BARS, index(0), index(0), index(0)))
    k = var("k", 32)
    body = [*_loaded(a, BARS, 2048, [load]), loop(k, (Store(y, T * 32 + k, a[T * 32 + k]),))]
    v = np.arange(1, 121, dtype=np.uint16)
    box = np.zeros((16, 64), np.uint16)
    box[:5, :24] = v.reshape(5, 24)
    return Trial(kernel([x, y], body, 32), {"x": v}, {"y": swizzled(box).ravel()})


def steps() -> Trial:
    """Every second place along two axes, from one before the first, of 3 images; the order of the
    axes is not that of their strides."""
    x, y = given(u16, 3 * 9 * 11 * 64), out(u16, 64 * 4 * 2 * 2)
    a = Local("a", u16, (y.elements,), shared=True, align=1024)
    tensor = TensorMap("tensor", x, (64, 9, 11, 3), (11 * 128, 128, 99 * 128), (64, 4, 2, 2),
                       steps=(1, 2, 2, 1))  # fmt: skip
    where = map(index, (0, -1, 3, 1))
    load = Call("tma_load_4d", (a, index(0), tensor, BARS, index(0), *where))
    k = var("k", 32)
    body = [*_loaded(a, BARS, 2 * y.elements, [load]),
            loop(k, (Store(y, T * 32 + k, a[T * 32 + k]),))]  # fmt: skip
    v = np.arange(1, x.elements + 1, dtype=np.uint16)
    held = np.pad(v.reshape(3, 9, 11, 64), ((0, 0), (1, 1), (0, 0), (0, 0)))
    box = held[1:3, 0:8:2, 3:7:2].transpose(0, 2, 1, 3).reshape(16, 64)
    return Trial(kernel([x, y], body, 32), {"x": v}, {"y": swizzled(box).ravel()})


def rounded() -> Trial:
    """Floats become the nearest ones with 10 bits on their way, ties to even."""
    x, y = given(f32, 256), out(f32, 256)
    a = Local("a", f32, (256,), shared=True, align=1024)
    tensor = TensorMap("tensor", x, (32, 8), (128,), (32, 8), 0, tf32=True)
    load = Call("tma_load_2d", (a, index(0), tensor, BARS, index(0), index(0), index(0)))
    k = var("k", 8)
    body = [*_loaded(a, BARS, 1024, [load]), loop(k, (Store(y, T * 8 + k, a[T * 8 + k]),))]
    n = np.arange(256)
    unit = 2.0**-10
    v = (1 + (n // 4 + n % 4 / 4) * unit).astype(np.float32)
    wanted = (1 + np.round(n // 4 + n % 4 / 4) * unit).astype(np.float32)
    return Trial(kernel([x, y], body, 32), {"x": v}, {"y": wanted})


def stored_boxes() -> Trial:
    """16 rows of 64 elements, of which 9 and 36 lie in the tensor."""
    x, y = given(u16, 1024), out(u16, 25 * 104)
    a = Local("a", u16, (1024,), shared=True, align=1024)
    tensor = TensorMap("tensor", y, (100, 25), (208,), (64, 16))
    k = var("k", 32)
    put = Call("tma_store_2d", (tensor, a, index(0), index(64), index(16)))
    body = [Declare(a), loop(k, (Set(a, (T * 32 + k,), x[T * 32 + k]),)), Call("proxy_fence"),
            Call("barrier"),
            If(compare("eq", T, 0), (put, Call("tma_commit"), Call("tma_wait", (0,))))]  # fmt: skip
    v = np.arange(1, 1025, dtype=np.uint16)
    wanted = np.full((25, 104), FILLED, np.uint16)
    wanted[16:, 64:100] = v.reshape(16, 64)[:9, :36]
    return Trial(kernel([x, y], body, 32), {"x": swizzled(v.reshape(16, 64)).ravel()},
                 {"y": wanted.ravel()})  # fmt: skip


FILL: Final = 0x5A
FILLED: Final = 0x5A5A
"""What results hold before a kernel writes them."""


def multicast() -> Trial:
    """Each of two blocks has half of a box copied to both of them."""
    x, y = given(u16, 1024), out(u16, 2 * 1024)
    a = Local("a", u16, (1024,), shared=True, align=1024)
    tensor = TensorMap("tensor", x, (64, 16), (128,), (64, 8))
    mine = ITEM % 2
    load = Call("tma_cast_2d", (a, mine * 512, tensor, BARS, index(0), index(0), mine * 8, 3))
    k = var("k", 32)
    first = (Call("mbarrier_expect", (BARS, index(0), 2048)), load)
    body = [Declare(a), *_barriers(BARS, 1), Call("cluster_barrier"),
            If(compare("eq", T, 0), first), Call("mbarrier_wait", (BARS, index(0), index(0))),
            loop(k, (Store(y, ITEM * 1024 + T * 32 + k, a[T * 32 + k]),)),
            Call("cluster_barrier")]  # fmt: skip
    v = np.arange(1024, dtype=np.uint16)
    wanted = np.tile(swizzled(v.reshape(16, 64)).ravel(), 2)
    return Trial(kernel([x, y], body, 32, 2, 2), {"x": v}, {"y": wanted})


# --------------------------------------------------------------------------- Hopper: products

_KINDS: Final[dict[str, tuple[DType, int, DType]]] = {
    "f16": (u16, 64, f32), "bf16": (u16, 64, f32), "tf32": (f32, 32, f32), "s8": (i8, 128, i32),
    "u8": (u8, 128, i32),
}  # fmt: skip
"""The type that shared memory is declared as, terms of 128 bytes, the type of sums."""


def products(
    kind: str, columns: int, a_across: int = 0, b_across: int = 0, tiles: int = 1
) -> Trial:
    """wgmma: 64 or 128 rows times some columns, the terms of two rows of 128 bytes."""
    held, terms, total = _KINDS[kind]
    rows = 64 * tiles
    x, w, y = given(held, rows * terms * 2), given(held, columns * terms * 2, "w"), out(
        total, rows * columns)  # fmt: skip
    a = Local("a", held, (rows * terms,), shared=True, align=1024)
    b = Local("b", held, (columns * terms,), shared=True, align=1024)
    sums = Local("sums", total, (tiles * columns // 2,))
    r, turn, j = var("r", tiles * columns // 2), var("turn", 2), var("j", tiles * columns // 2)
    loads = [*_factor_boxes(a, x, rows, terms, a_across, turn),
             *_factor_boxes(b, w, columns, terms, b_across, turn)]  # fmt: skip
    asked = (Call("mbarrier_expect", (BARS, index(0), (rows + columns) * ROW)), *loads)
    multiply = Call(f"wgmma_{kind}", (sums, a, index(0), b, index(0), index(0) < turn, tiles,
                                      columns, a_across, b_across))  # fmt: skip
    row = j // (columns // 2) * 64 + WARP * 16 + LANE // 4 + j // 2 % 2 * 8
    column = j % (columns // 2) // 4 * 8 + LANE % 4 * 2 + j % 2
    body = [
        Declare(a), Declare(b), *_barriers(BARS, 1), Declare(sums),
        loop(r, (Set(sums, (r,), const(0, total)),), "unroll"),
        loop(turn, (
            If(compare("eq", T, 0), asked), Call("mbarrier_wait", (BARS, index(0), turn)),
            multiply, Call("wgmma_wait", (sums, tiles * columns // 2, 0)), Call("barrier"),
        )),
        loop(j, (Store(y, row * columns + column, sums[j]),), "unroll"),
    ]  # fmt: skip
    left, right = _terms(kind, rows, 2 * terms), _terms(kind, columns, 2 * terms)
    wanted = left[0] @ right[0].T
    given_ = {"x": left[1].T if a_across else left[1], "w": right[1].T if b_across else right[1]}
    return Trial(kernel([x, w, y], body, 128),
                 {n: np.ascontiguousarray(v).ravel() for n, v in given_.items()},
                 {"y": wanted.astype(total.numpy).ravel()})  # fmt: skip


def _factor_boxes(
    to: Local, x: Buffer, rows: int, terms: int, across: int, turn: Expr
) -> list[Call]:  # fmt: skip
    size = x.dtype.bytes
    name = f"{x.name}_boxes"
    tf32 = x.dtype is f32
    if not across:
        tensor = TensorMap(name, x, (2 * terms, rows), (2 * terms * size,), (terms, rows),
                           tf32=tf32)  # fmt: skip
        where = (turn * terms, index(0))
        return [Call("tma_load_2d", (to, index(0), tensor, BARS, index(0), *where))]
    tensor = TensorMap(name, x, (rows, 2 * terms), (rows * size,), (terms, terms))
    made = []
    for k in range(rows // terms):
        given_: list[Argument] = [to, index(k * terms * terms), tensor, BARS, index(0)]
        made.append(Call("tma_load_2d", (*given_, index(k * terms), turn * terms)))
    return made


def _terms(kind: str, rows: int, terms: int) -> tuple[Array, Array]:
    v = small(rows, (rows, terms), np.uint8 if kind == "u8" else np.float32, 2)
    stored = _stored(v, {"s8": "i8"}.get(kind, kind))
    return v.astype(np.float64), stored.view(np.uint16) if kind == "f16" else stored


def whole(
    m: int, n: int, k: int, config: Mapping[str, int], transposed: bool = True
) -> Trial:  # fmt: skip
    """A product as the template writes it: relu(a b + r)."""
    g = tw.Graph("whole")
    a, b = g.input("a", (m, k), "f16"), g.input("b", (n, k) if transposed else (k, n), "f16")
    b = g.transpose(b, perm=(1, 0)) if transposed else b
    g.output(g.relu(g.matmul(a, b) + g.input("r", (m, n), "f16")), "y")
    graph = g.build()
    launch = GpuWgmma().instantiate(graph, graph.ops, graph.outputs, GPU, dict(config))
    feeds = {i: small(e, graph.type(i).dims, np.float16, 2) for e, i in enumerate(graph.inputs)}
    arrays = {**feeds, **{n: v.astype(np.float16) for n, v in evaluate(graph, feeds).items()}}
    names = {p.name: arg for p, arg in zip(launch.kernel.params, launch.args, strict=True)}
    held = {p: arrays[n].ravel() for p, n in names.items() if isinstance(n, str)}
    return Trial(launch.kernel, {p: v for p, v in held.items() if names[p] in feeds},
                 {p: v for p, v in held.items() if names[p] not in feeds}, 1e-3)  # fmt: skip


def _config(m: int, n: int, stages: int, cluster: int = 1) -> dict[str, int]:
    return {"m": m, "n": n, "stages": stages, "cluster": cluster, "parts": 1}


RUNGS: Final = (
    Rung("a store", numbers),
    Rung("16 bytes at once", vectors),
    Rung("shared memory and a barrier", partial(shared, 256)),
    Rung("two barriers in a block", some_threads),
    Rung("more than 48 KiB of shared memory", partial(shared, (96 << 10) // 4)),
    Rung("cp.async of 4 bytes", partial(copies, 4)),
    Rung("cp.async of 16 bytes", partial(copies, 16)),
    Rung("ldmatrix", partial(matrices, False)),
    Rung("ldmatrix, transposed", partial(matrices, True)),
    *(Rung(f"mma of {kind}", partial(fragments, kind))
      for kind in ("f16", "bf16", "tf32", "i8", "u8", "u8_i8", "i8_u8")),
    Rung("a CUDA graph, then with other addresses", vectors, graphed=True),
    Rung("227 KiB of shared memory", partial(shared, FULL // 4), 90),
    Rung("stmatrix", stored_matrices, 90),
    Rung("mbarrier", arrivals, 90),
    Rung("setmaxnreg", registers, 90),
    Rung("TMA load, plain", partial(boxes, (0, 0), 0), 90),
    Rung("TMA load, swizzled", partial(boxes, (64, 16)), 90),
    Rung("TMA load beyond the end", partial(boxes, (72, 32)), 90),
    Rung("TMA load ahead of the beginning", partial(boxes, (-8, -3)), 90),
    Rung("TMA load of more than there is", little, 90),
    Rung("TMA load in steps", steps, 90),
    Rung("TMA load rounding to tf32", rounded, 90),
    Rung("TMA store", stored_boxes, 90),
    Rung("TMA descriptors in a CUDA graph, then others", stored_boxes, 90, True),
    *(Rung(f"wgmma of {kind}", partial(products, kind, 64), 90)
      for kind in ("f16", "bf16", "tf32", "s8", "u8")),
    Rung("wgmma, a across", partial(products, "f16", 64, 1, 0), 90),
    Rung("wgmma, b across", partial(products, "f16", 64, 0, 1), 90),
    Rung("wgmma, b across, 256 columns", partial(products, "bf16", 256, 0, 1), 90),
    Rung("wgmma, both across, two tiles", partial(products, "f16", 128, 1, 1, 2), 90),
    Rung("a cluster", neighbours, 90),
    Rung("TMA multicast", multicast, 90),
    Rung("a cluster in a CUDA graph, then with other addresses", multicast, 90, True),
    Rung("a product: one group", partial(whole, 64, 64, 64, _config(64, 64, 2)), 90),
    Rung("a product: many tiles, ragged", partial(whole, 200, 136, 328, _config(64, 64, 4)), 90),
    Rung("a product: two groups", partial(whole, 256, 256, 192, _config(128, 128, 3)), 90),
    Rung("a product: registers move", partial(whole, 256, 512, 192, _config(128, 256, 3)), 90),
    Rung("a product: clusters", partial(whole, 512, 256, 192, _config(128, 128, 3, 2)), 90),
    Rung("a product: all of it", partial(whole, 1000, 1032, 520, _config(128, 256, 4, 2), False),
         90),
)  # fmt: skip
