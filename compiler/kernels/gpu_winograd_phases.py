"""The CUDA kernels of a Winograd convolution on a GPU: inputs to V, V and U to M, M to results.

    V[xi, c, tile] = B^T d B           xi: one of the a * a places in a transformed tile
    M[xi, o, tile] = sum_c U[xi, c, o] * V[xi, c, tile]
    y = A^T M A                        and the group's other ops

A thread transforms one tile of one channel, in registers. Threads side by side take neighbouring
tiles, so that a warp reads and writes whole lines of V and M; of images and results, a thread takes
as many neighbours at once as lie at multiples of their size. Outside of the image, threads read the
first element, which is there, and take zeros instead: no branch holds a load back. Tiles and
channels are padded to fours in V, U and M, so that the product, a matrix product at every place
that `gpu_tiles` computes, copies and stores 16 bytes at a time. What is behind the last tile is
neither set nor used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from ...ops.expr import Expr, apply, const, index, load, select, var
from ...ops.traverse import substitute, transform, walk
from ...ops.types import TensorType, boolean, f32
from ...ops.windows import Window
from ..graph.builder import GraphBuilder
from ..graph.ir import Graph, Op
from .address import offset
from .compose import Indices
from .device import Device
from .epilogue import Params, Result, results
from .gpu_tiles import GpuTiles
from .ir import Buffer, Call, Comment, Declare, For, If, Let, Local, Phase, Set, Stmt, Store, loop
from .recipe import prepared
from .template import Config
from .vectors import WIDEST, aligned, wide_loads
from .winograd import Held, all_of
from .winograd_configs import Tiles
from .winograd_transforms import Matrix, applied, transforms

THREADS: Final = 128
GROUP: Final = WIDEST // f32.bytes


@dataclass(frozen=True, slots=True)
class GpuConv:
    """A convolution with a 3 x 3 window, and the ops behind it: each of `outputs` over the
    convolution's own indices `at`."""

    graph: Graph
    conv: Op
    window: Window
    at: Indices
    outputs: tuple[Result, ...]

    @property
    def x(self) -> TensorType:
        return self.graph.type(self.conv.reads[0])

    @property
    def y(self) -> TensorType:
        return self.graph.type(self.conv.outputs[0])

    @property
    def passes(self) -> int:
        """How many tensors of the result's size the ops behind the convolution read and write."""
        reads = {n.payload for r in self.outputs for n in walk(r.value) if n.op == "load"}
        return len(self.outputs) + sum(
            self.graph.type(n).size == self.y.size for n in reads - {self.conv.outputs[0]}
        )

    @property
    def products(self) -> int:
        """Multiply-adds of a direct sum."""
        return 9 * self.y.size * self.x.dims[1]


def formal(dims: Sequence[int]) -> Indices:
    """Variables for the indices of a convolution's result."""
    return tuple(var(n, d) if d > 1 else index(0) for n, d in zip("nchw", dims, strict=True))


def found_results(
    graph: Graph, after: Sequence[Op], result: str, outputs: Sequence[str]
) -> tuple[Result, ...] | None:  # fmt: skip
    """What the ops behind a convolution make of it, where that is an element for an element."""
    kind = graph.type(result)
    at = formal(kind.dims)
    found = results(graph, after, result, outputs, at)
    if found is None or any(graph.type(r.blob).layout.is_blocked for r in found):
        return None
    same = all(graph.type(r.blob).dims == kind.dims and r.at == at for r in found)
    return tuple(found) if same else None


@dataclass(frozen=True, slots=True)
class Extents:
    """Of V, U and M. pitch: tiles, padded; width: channels of the result, padded."""

    m: int
    tiles: Tiles
    depth: int
    channels: int

    @classmethod
    def of(cls, p: GpuConv, m: int) -> Extents:
        images, channels, height, width = p.y.dims
        return cls(m, Tiles(m, images, -(-height // m), -(-width // m)), p.x.dims[1], channels)

    @property
    def points(self) -> int:
        return (self.m + 2) ** 2

    @property
    def pitch(self) -> int:
        return -(-self.tiles.count // GROUP) * GROUP

    @property
    def width(self) -> int:
        return -(-self.channels // GROUP) * GROUP

    @property
    def product(self) -> Graph:
        """The matrix products, as a group of their own."""
        return _product(self.points, self.depth, self.width, self.pitch)


@cache
def _product(points: int, depth: int, width: int, pitch: int) -> Graph:
    g = GraphBuilder("products")
    u, v = g.input("u", (points, depth, width)), g.input("v", (points, depth, pitch))
    g.output(g.matmul(g.transpose(u, perm=(0, 2, 1)), v), "m")
    return g.build()


class Writer:
    """Writes the phases of one problem, for one size of tile."""

    def __init__(self, p: GpuConv, m: int) -> None:
        self.p, self.m = p, m
        self.e = e = Extents.of(p, m)
        self.maps = transforms(m)
        self.a = self.maps.size
        self.params = Params(p.graph)
        self.x = self.params.read(p.conv.reads[0])
        vectors = e.width // GROUP
        weights = prepared((p.conv.reads[1],), "winograd", m=m, lanes=GROUP, blocks=vectors,
                           share=vectors, vectors=vectors)  # fmt: skip
        self.u = self.params.prepared(weights, f32, e.points * e.depth * e.width)
        self.v = self.params.scratch(f32, e.points * e.depth * e.pitch)
        self.mm = self.params.scratch(f32, e.points * e.width * e.pitch)
        bias = p.conv.inputs[2] if len(p.conv.inputs) > 2 else None
        self.bias = None if bias is None else self.params.read(bias)

    def phases(self, device: Device, config: Config) -> tuple[Phase, ...]:
        """config: of `gpu_tiles`."""
        return self.inputs(), self.products(device, config), self.results()

    # ---------------------------------------------------------------- inputs to V

    def inputs(self) -> Phase:
        a, e = self.a, self.e
        tile, half = Local("d", f32, (a * a,)), Local("h", f32, (a * a,))
        r, c = var("r", a), var("c", a)
        down = self._line(self.maps.data, [tile[k * a + c] for k in range(a)],
                          lambda k, v: Set(half, (k * a + c,), v))  # fmt: skip
        step = e.depth * e.pitch

        def body(number: Expr, channel: Expr, image: Expr, row: Expr, column: Expr) -> list[Stmt]:
            to = number + r * (a * step)
            across = self._line(self.maps.data, [half[r * a + k] for k in range(a)],
                                lambda k, v: Store(self.v, to + k * step, v))  # fmt: skip
            read = self._read(tile, r, (image, channel, row, column))
            return [Comment("V = B' d B"), Declare(tile), Declare(half), loop(r, read, "unroll"),
                    loop(c, down, "unroll"), loop(r, across, "unroll")]  # fmt: skip

        return self._for_all_tiles(e.depth, body)

    def _read(self, tile: Local, r: Expr, corner: Indices) -> list[Stmt]:
        """Row r of a tile whose results begin at `corner`, with zeros for what is padding."""
        image, channel, row, column = corner
        top, left = self.p.window.begin
        height, width = self.p.x.dims[2:]
        row, column = row + r - top, column - left
        out: list[Stmt] = []
        for first, n in self._pieces(corner, r):
            held, u = Local(f"x{first}", f32, (n,)), var("u", n) if n > 1 else index(0)
            inside = all_of(row >= 0, row < height, column + first >= 0, column + first < width)
            if not inside.is_const:
                there = Local(f"inside{first}", boolean)
                out += [Declare(there), Set(there, (), inside)]
                inside = there.value
            at = offset(self.p.x, (image, channel, row, column + first))
            put = Set(tile, (r * self.a + first + u,), _or(inside, held[u], const(0, f32)))
            out += [Declare(held),
                    Call("load_vector", (held, index(0), self.x, _or(inside, at, index(0)), n)),
                    _each(u, put)]  # fmt: skip
        return out

    def _pieces(self, corner: Indices, r: Expr) -> list[tuple[int, int]]:
        """(first column, columns) of what is read of a tile's row at once: all inside of the image,
        or nothing, and where it begins at a multiple of its size."""
        image, channel, row, column = corner
        top, left = self.p.window.begin
        found, first = [], 0
        while first < self.a:
            for n in (GROUP, GROUP // 2, 1):
                u = var("u", n)
                at = offset(self.p.x, (image, channel, row + r - top, column - left + first + u))
                whole = self.p.x.dims[3] % n == 0 and (first - left) % n == 0 and self.m % n == 0
                if first + n <= self.a and whole and (n == 1 or aligned(at, u)):
                    break
            found.append((first, n))
            first += n
        return found

    # ---------------------------------------------------------------- V and U to M

    def products(self, device: Device, config: Config) -> Phase:
        """What `gpu_tiles` makes of the products, on our buffers."""
        g = self.e.product
        launch = GpuTiles().instantiate(g, g.ops, g.outputs, device, config)
        (phase,) = launch.kernel.phases
        ours = {"u": self.u, "v": self.v, "m": self.mm}
        to = {b: ours[arg] for b, arg in zip(launch.kernel.params, launch.args, strict=True)
              if isinstance(arg, str)}  # fmt: skip
        what = Comment(f"M = U' V at each of {self.e.points} places of a tile")
        return replace(phase, body=(what, *(_rebound(s, to) for s in phase.body)))

    # ---------------------------------------------------------------- M to results

    def results(self) -> Phase:
        a, m, e = self.a, self.m, self.e
        half, line = Local("g", f32, (m * a,)), Local("y", f32, (m,))
        r, c = var("r", m), var("c", a)
        step = e.width * e.pitch

        def body(number: Expr, channel: Expr, image: Expr, row: Expr, column: Expr) -> list[Stmt]:
            down = self._line(self.maps.result,
                              [self.mm[(k * a + c) * step + number] for k in range(a)],
                              lambda k, v: Set(half, (k * a + c,), v))  # fmt: skip
            across = self._line(self.maps.result, [half[r * a + k] for k in range(a)],
                                lambda k, v: Set(line, (index(k),), v))  # fmt: skip
            put = self._put(line, (image, channel, row + r, column))
            return [Comment("y = A' M A"), Declare(half), Declare(line), loop(c, down, "unroll"),
                    loop(r, (*across, *put), "unroll")]  # fmt: skip

        return self._for_all_tiles(e.channels, body)

    def _put(self, line: Local, first: Indices) -> list[Stmt]:
        """The results of a row of a tile, some neighbours at once, from index `first` on."""
        image, channel, row, column = first
        height, width = self.p.y.dims[2:]
        n = self._neighbours(first)
        q = var("q", self.m // n) if n < self.m else index(0)
        u = var("u", n) if n > 1 else index(0)
        column = column + q * n
        where = {v: i for v, i in zip(self.p.at, (image, channel, row, column + u), strict=True)
                 if v.op == "var"}  # fmt: skip
        total = line[q * n + u]
        if self.bias is not None:
            total = total + self.bias[channel]
        here, element = load(self.p.conv.outputs[0], self.p.at, f32), apply("sum", (), f32)
        made: list[Stmt] = []
        stores: list[Stmt] = []
        for k, result in enumerate(self.p.outputs):
            kind = self.p.graph.type(result.blob)
            value = self.params.lower(substitute(result.value, {here: element}))
            value = substitute(value, {element: total, **where})
            if n > 1:
                reads, value = wide_loads(value, u, lambda b: Local(f"{b.name}_v", b.dtype, (n,)))
                made += reads
            out = Local(f"out{k}", kind.dtype, (n,))
            made += [Declare(out), _each(u, Set(out, (u,), value))]
            y, at = self.params.write(result.blob), offset(kind, (image, channel, row, column))
            stores.append(Call("store_vector", (y, at, out, index(0), n)))
        inside = all_of(row < height, column < width)
        both = (*made, *stores)
        body = both if inside.is_const else (If(inside, both),)
        return [loop(q, body, "unroll")] if n < self.m else list(body)

    def _neighbours(self, first: Indices) -> int:
        """How many results are stored at once: all inside of the result, or none."""
        kinds = [self.p.graph.type(r.blob) for r in self.p.outputs]
        for n in (GROUP, GROUP // 2):
            u = var("u", n)
            ats = [offset(t, (*first[:3], first[3] + u)) for t in kinds]
            fits = all(aligned(at, u) and n * t.dtype.bytes <= WIDEST
                       for at, t in zip(ats, kinds, strict=True))  # fmt: skip
            if self.m % n == 0 and self.p.y.dims[3] % n == 0 and fits:
                return n
        return 1

    # ---------------------------------------------------------------- what both have in common

    def _line(
        self, matrix: Matrix, x: Sequence[Expr], put: Callable[[int, Expr], Stmt]
    ) -> list[Stmt]:
        """put(k, row k of matrix @ x), where x is read before anything is put."""
        held = Held("t", f32, 0)
        found = applied(matrix, [_once(held, e) for e in x], held)
        return [*held.stmts, *(put(k, e) for k, e in enumerate(found))]

    def _for_all_tiles(self, channels: int, body: Callable[..., list[Stmt]]) -> Phase:
        """body(number of thread, channel, image, first row, first column) for every tile of every
        channel."""
        tiles, pitch, count = self.e.tiles, self.e.pitch, channels * self.e.pitch
        blocks = -(-count // THREADS)
        block, thread = var("block", blocks), var("thread", THREADS)
        number, channel = var("number", blocks * THREADS), var("channel", channels)
        tile = var("tile", tiles.count)
        line = tile // tiles.columns
        image, row, column = (var(n, d) if d > 1 else index(0) for n, d in (
            ("image", tiles.images), ("row", tiles.rows), ("column", tiles.columns)))  # fmt: skip
        named = [Let(v, value) for v, value in (
            (image, tile // (tiles.rows * tiles.columns)),
            (row, line % tiles.rows if tiles.images > 1 else line),
            (column, tile % tiles.columns),
        ) if v.op == "var"]  # fmt: skip
        here = body(number, channel, image, row * self.m, column * self.m)
        mine: list[Stmt] = [Let(channel, number // pitch), Let(tile, number % pitch)]
        if pitch == tiles.count:
            mine += [*named, *here]
        else:
            mine.append(If(number % pitch < tiles.count, (*named, *here)))
        if count < blocks * THREADS:
            mine = [If(number < count, tuple(mine))]
        return Phase(blocks, block, (Let(number, block * THREADS + thread), *mine), THREADS, thread)


def _once(held: Held, e: Expr) -> Expr:
    """An element of memory in a register; one of a register is there already."""
    return held(e) if isinstance(e.payload, Buffer) else e


def _each(v: Expr, s: Stmt) -> Stmt:
    """The statement for all values of v, or for the one that it has."""
    return loop(v, (s,), "unroll") if v.op == "var" else s


def _or(condition: Expr, yes: Expr, no: Expr) -> Expr:
    if condition.is_const:
        return yes if condition.payload else no
    return select(condition, yes, no)


# --------------------------------------------------------------------------- other buffers


def _rebound(s: Stmt, to: dict[Buffer, Buffer]) -> Stmt:
    """The statement, on other buffers."""

    def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
        return to[n.payload][args[0]] if n.op == "load" and n.payload in to else None

    def there(e: Expr) -> Expr:
        return transform(e, visit)

    def each_of(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        return tuple(_rebound(x, to) for x in body)

    if isinstance(s, For):
        return replace(s, lo=there(s.lo), hi=there(s.hi), body=each_of(s.body))
    if isinstance(s, If):
        return If(there(s.condition), each_of(s.then), each_of(s.otherwise))
    if isinstance(s, Set):
        return Set(s.local, tuple(map(there, s.where)), there(s.value))
    if isinstance(s, Store):
        return Store(to.get(s.buffer, s.buffer), there(s.offset), there(s.value))
    if isinstance(s, Let):
        return Let(s.var, there(s.value))
    if isinstance(s, Call):
        return Call(s.name, tuple(
            there(a) if isinstance(a, Expr) else to.get(a, a) if isinstance(a, Buffer) else a
            for a in s.args
        ))  # fmt: skip
    return s
