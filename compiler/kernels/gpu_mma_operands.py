"""Operands of tensor cores: how tiles of them lie in shared memory, and how they get there.

A tile lies row by row, or, where elements of 16 bits are neighbours across rows in memory, term by
term; `ldmatrix` transposes those. Pieces of 16 bytes change places within a line, by an exclusive
or with the number of the line, so that eight lines that are read at once, as well as those that are
written, are in different banks.

Where 16 bytes of a tile are 16 bytes of a buffer they are copied asynchronously, with zeros beyond
the operand; constants are packed so that they always are. Elsewhere (odd sizes, operands that are
computed on the way) each thread loads element by element and stores 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, binary, const, from_linear, index, linear, logical_and, select, var
from ...ops.traverse import substitute
from ...ops.types import DType, boolean
from ..graph.ir import Graph
from .address import offset
from .gpu_mma_product import Product, constant_load
from .gpu_sharing import unflattened
from .ir import Buffer, Call, Declare, Kernel, Let, Local, Set, Stmt, loop, statements
from .pieces import Buffers, buffer_loads, stride, trip_count
from .recipe import prepared, recipe

STEP: Final = 32  # bytes of terms that a matrix instruction takes
LINE: Final = 8  # pieces of 16 bytes that all banks hold
_WORDS: Final = {True: "a_word", False: "b_word"}  # what a thread copies element by element
LEAST_LINE: Final = 64  # bytes of terms in a round
MOST_MORE: Final = 1.5  # times as many rounds, for terms that are found faster
TILES: Final = "tiles"  # the recipe of constants that are packed for tensor cores
Way = Literal["terms", "across", "elements"]


@dataclass(frozen=True, slots=True)
class Operand:
    """One factor. left: whether its rows are the product's; loops: what they run over; lowered: an
    element over loops and sum. way: how 16 bytes of a tile are found: along the sum, across rows,
    or one by one. packed: rows and terms of a constant that is filled up to them with zeros, for
    each of its batches; `lowered` is then its first element."""

    left: bool
    loops: tuple[Expr, ...]
    lowered: Expr
    way: Way
    packed: tuple[int, int] | None = None
    batches: tuple[Expr, ...] = ()

    @property
    def size(self) -> int:
        return prod(map(trip_count, self.loops))

    @property
    def dtype(self) -> DType:
        return self.lowered.dtype


def operand(
    graph: Graph, buffers: Buffers, product: Product, left: bool, tile: int, depth: int
) -> Operand:  # fmt: skip
    """The left or right factor of a product that is computed in tiles of `tile` rows (or columns)
    by `depth` terms."""
    factor = product.left if left else product.right
    loops = product.p.rows if left else product.p.columns
    packed = _packed(graph, buffers, product, factor, loops, tile, depth)
    if packed is not None:
        held, sizes, batches = packed
        return Operand(left, loops, held[0], "terms", sizes, batches)
    lowered = buffers.lower(factor, None)
    if _in_pieces(lowered, product.over[-1], product.chunk):
        return Operand(left, loops, lowered, "terms")
    two = lowered.dtype.bytes == 2
    if two and _in_pieces(lowered, loops[-1], product.chunk):
        return Operand(left, loops, lowered, "across")
    return Operand(left, loops, lowered, "elements")


def filled(graph: Graph, product: Product) -> Product:
    """The product with more terms, zeros, where those of a constant can be put behind short walks
    of what is copied element by element: the taps of a window's row, 7 of them, become 8. Then 16
    bytes of a tile are one place and what lies behind it, found once, and not eight places."""
    last, chunk = product.over[-1], product.chunk
    there = trip_count(last)
    constant = [constant_load(graph, f) is not None for f in (product.left, product.right)]
    if sum(constant) != 1 or last.payload[1] or there % chunk == 0 or len(product.over) < 2:
        return product
    factor, loops = ((product.right, product.p.columns) if constant[0]
                     else (product.left, product.p.rows))  # fmt: skip
    lowered = Buffers(graph).lower(factor, None)
    loads = [n.args[0] for n in buffer_loads(lowered)]
    if not loads or any(stride(at, last) != 1 for at in loads):
        return product
    if lowered.dtype.bytes == 2 and _in_pieces(lowered, loops[-1], chunk):
        return product
    more = var(last.payload[0], -(-there // chunk) * chunk)
    made = replace(product, over=(*product.over[:-1], more), last=there)
    terms = LEAST_LINE // lowered.dtype.bytes
    if -(-made.k // terms) > MOST_MORE * -(-product.k // terms):
        return product
    is_there = more < there
    left, right = (substitute(f, {last: more}) for f in (product.left, product.right))
    left, right = (f if c else _zero_unless(is_there, f)
                   for f, c in zip((left, right), constant, strict=True))  # fmt: skip
    return replace(made, left=left, right=right)


def _zero_unless(condition: Expr, value: Expr) -> Expr:
    if value.op == "select" and value.args[2].is_const and value.args[2].payload == 0:
        condition, value = logical_and(condition, value.args[0]), value.args[1]
    return select(condition, value, const(0, value.dtype))


def _read(factor: Expr) -> Expr | None:
    """The load that a factor is, but for zeros in some places."""
    if factor.op == "select" and factor.args[2].is_const and factor.args[2].payload == 0:
        factor = factor.args[1]
    return factor if factor.op == "load" else None


def _in_pieces(lowered: Expr, v: Expr, count: int) -> bool:
    """Whether `count` elements along v, from a multiple of it on, are neighbours at a multiple of
    their size."""
    read = _read(lowered)
    if read is None or trip_count(v) % count or v.payload[1]:
        return False
    terms, first = linear(read.args[0])
    if stride(read.args[0], v) != 1 or first % count:
        return False
    if any(c % count for t, c in terms.items() if t is not v):
        return False
    return lowered is read or v not in lowered.args[0].free


def copied_by_element(kernel: Kernel) -> tuple[Buffer, ...]:
    """The buffers that a kernel of this template copies element by element."""
    words = (s for p in kernel.phases for s in statements(p.body)
             if isinstance(s, Set) and s.local.name in _WORDS.values())  # fmt: skip
    return tuple(dict.fromkeys(n.payload for s in words for n in buffer_loads(s.value)))


# --------------------------------------------------------------------------- constants


def _packed(
    graph: Graph, buffers: Buffers, product: Product, factor: Expr, loops: Sequence[Expr],
    tile: int, depth: int,
) -> tuple[Buffer, tuple[int, int], tuple[Expr, ...]] | None:  # fmt: skip
    """A constant in the form that tiles are copied from, its rows and terms, and the indices of its
    batches. None for other factors."""
    read = constant_load(graph, factor)
    if read is None:
        return None
    steps, first = linear(offset(graph.type(read.payload), read.args))
    batches = tuple(v for v in product.p.batches if v in steps)
    axes = (*batches, *loops, *product.over)
    if first or not set(steps) <= set(axes) or any(v.payload[1] for v in axes):
        return None
    rows, terms = (-(-prod(map(trip_count, part)) // to) * to
                   for part, to in ((loops, tile), (product.over, depth)))  # fmt: skip
    sizes = tuple(map(trip_count, axes))
    more = {} if not product.last else {"last": sizes[-1]}
    arg = prepared(
        (read.payload,), TILES, sizes=(*sizes[:-1], product.last or sizes[-1]),
        steps=tuple(steps.get(v, 0) for v in axes),
        batches=len(batches), rows=len(loops), to=(rows, terms), **more,
    )  # fmt: skip
    count = prod(map(trip_count, batches))
    made = Buffer(f"x{len(buffers.reads)}", read.dtype, count * rows * terms, "const")
    return buffers.reads.setdefault(arg, made), (rows, terms), batches


def numbered(e: Expr, loops: Sequence[Expr], number: Expr) -> Expr:
    """e at a round of nested loops by its number. Offsets that walk them as one loop do so."""
    whole = {n: n.payload[_at(n.args[0], loops, number)] for n in buffer_loads(e)}
    if e.dtype is index(0).dtype:
        return _at(e, loops, number)
    return substitute(e, whole | unflattened(number, loops))


def _at(offset_: Expr, loops: Sequence[Expr], number: Expr) -> Expr:
    terms, first = linear(offset_)
    step = terms.get(loops[-1], 0) if loops else 0
    apart = 1
    for v in reversed(loops):
        if terms.get(v, 0) != step * apart or v.payload[1]:
            return substitute(offset_, unflattened(number, loops))
        apart *= trip_count(v)
    rest = {t: c for t, c in terms.items() if t not in loops}
    if any(t.free & set(loops) for t in rest):
        return substitute(offset_, unflattened(number, loops))
    return from_linear(rest, first) + number * step


def flat(loops: Sequence[Expr]) -> Expr:
    """The number of a round of nested loops."""
    out = index(0)
    for v in loops:
        out = out * trip_count(v) + (v - v.payload[1])
    return out


@recipe(TILES)
def _tiles(
    value: npt.NDArray[Any], sizes: tuple[int, ...], steps: tuple[int, ...], batches: int,
    rows: int, to: tuple[int, int], last: int = 0,
) -> npt.NDArray[Any]:  # fmt: skip
    """A constant as matrices: element steps . i of its flat form at index i, the indices being
    batches, rows and terms, with zeros behind the last row and term. last: how many there are to be
    of the last index, with zeros for those that are no terms."""
    dense = np.ascontiguousarray(value).reshape(-1)
    seen = np.lib.stride_tricks.as_strided(
        dense, sizes, tuple(s * dense.itemsize for s in steps), writeable=False
    )
    if last:
        more = ((0, 0),) * (len(sizes) - 1)
        seen = np.pad(seen, (*more, (0, last - sizes[-1])))
        sizes = (*sizes[:-1], last)
    n, k = prod(sizes[batches : batches + rows]), prod(sizes[batches + rows :])
    out = np.zeros((prod(sizes[:batches]), *to), dense.dtype)
    out[:, :n, :k] = seen.reshape(-1, n, k)
    return out


# --------------------------------------------------------------------------- tiles


class Tile:
    """A block's part of an operand in shared memory, for a few rounds at a time.

    rows, terms: of the operand; threads: of the block that copies them. held: `stages` of them, one
    behind the other.
    """

    def __init__(
        self, product: Product, of: Operand, rows: int, terms: int, threads: int, stages: int
    ) -> None:
        self.product, self.of, self.threads = product, of, threads
        self.rows, self.terms = rows, terms
        self.chunk = product.chunk
        self.across = of.way == "across"
        self.lines, self.width = (terms, rows) if self.across else (rows, terms)
        self.pieces = self.width // self.chunk
        self.size = rows * terms
        self.name = "a" if of.left else "b"
        self.held = Local(self.name, of.dtype, (stages * self.size,), shared=True)
        self.word = Local(_WORDS[of.left], of.dtype, (self.chunk,))
        apart = threads // (self.lines if self._by_line else self.pieces)
        self.piece = self._var("piece", self.pieces)
        self.line = self._var("line", self.lines)
        self.part = self._var("part", self.lines * self.pieces // threads)
        self.apart = max(apart, 1)  # pieces or lines between the parts of a thread

    def _var(self, stem: str, extent: int) -> Expr:
        return var(f"{self.name}_{stem}", extent)

    @property
    def _by_line(self) -> bool:
        """Whether neighbouring threads copy from different lines, as neighbours in memory are."""
        return self.of.way == "elements" and not self._along()

    def place(self, line: Expr, piece: Expr) -> Expr:
        """Where a piece of 16 bytes of a line begins."""
        turn = line % LINE if self.pieces >= LINE else line // (LINE // self.pieces) % self.pieces
        return line * self.width + binary("xor", piece, turn) * self.chunk

    # ---------------------------------------------------------------- from global memory

    def declared(self) -> tuple[Stmt, ...]:
        slow = self.of.way == "elements"
        return (Declare(self.held), *((Declare(self.word),) if slow else ()))

    def named(self, thread: Expr) -> tuple[Stmt, ...]:
        """Names for the first line and piece that a thread copies."""
        if self._by_line:
            return Let(self.line, thread % self.lines), Let(self.piece, thread // self.lines)
        return Let(self.line, thread // self.pieces), Let(self.piece, thread % self.pieces)

    def copied(self, stage: Expr, first: Expr, round_: Expr, where: dict[Expr, Expr]) -> Stmt:
        """A thread's share of a round's tile. first: the block's first row; where: its batch."""
        line, piece = self.line, self.piece
        if not self._by_line:
            line = line + self.part * self.apart
        elif self.lines > self.threads:
            line = line + self.part % (self.lines // self.threads) * self.threads
            piece = self.part // (self.lines // self.threads)
        else:
            piece = piece + self.part * self.apart
        to = stage * self.size + self.place(line, piece)
        row, term = (piece * self.chunk, line) if self.across else (line, piece * self.chunk)
        by = self._by_element if self.of.way == "elements" else self._by_piece
        return loop(self.part, by(to, first + row, round_, term, where), "unroll")

    def _by_piece(
        self, to: Expr, row: Expr, round_: Expr, term: Expr, where: dict[Expr, Expr]
    ) -> tuple[Stmt, ...]:
        value, inside = self._element(row, round_, term, where)
        if value.op == "select":
            inside, value = logical_and(inside, value.args[0]), value.args[1]
        args = (self.held, to, value.payload, value.args[0], 16)
        if inside.is_const:
            return (Call("cp_async", args),)
        return (Call("cp_async_zero", (*args, inside)),)

    def _by_element(
        self, to: Expr, row: Expr, round_: Expr, term: Expr, where: dict[Expr, Expr]
    ) -> tuple[Stmt, ...]:
        e = self._var("e", self.chunk)
        value, inside = self._element(row, round_, term + e, where)
        if self.product.k % self.chunk == 0:  # all of them are there, or none
            inside = substitute(inside, {e: index(0)})
        zero = const(0, self.of.dtype)
        taken = value if inside.is_const else select(inside, value, zero)
        return (
            loop(e, (Set(self.word, (e,), taken),), "unroll"),
            Call("store_vector", (self.held, to, self.word, index(0), self.chunk)),
        )

    def _element(
        self, row: Expr, round_: Expr, term: Expr, where: dict[Expr, Expr]
    ) -> tuple[Expr, Expr]:
        """An element of the operand, and whether there is one."""
        k = round_ * self.terms + term
        inside = const(True, boolean)
        if self.of.packed is not None:
            return self._packed(row, k, where), inside
        if self.of.size % self.rows:
            inside = logical_and(inside, row < self.of.size)
        if self.product.k % self.terms:
            inside = logical_and(inside, k < self.product.k)
        value = numbered(self.of.lowered, self.of.loops, row)
        return substitute(value, where | self._terms(round_, term)), inside

    def _packed(self, row: Expr, k: Expr, where: dict[Expr, Expr]) -> Expr:
        """The same of a packed constant, whose rows and terms are numbered through."""
        assert self.of.packed is not None
        rows, terms = self.of.packed
        batch = substitute(flat(self.of.batches), where)
        return self.of.lowered.payload[(batch * rows + row) * terms + k]

    def _terms(self, round_: Expr, term: Expr) -> dict[Expr, Expr]:
        """The indices of a term of a round. Where rounds do not straddle the last index, all
        threads have the others in common."""
        over = self.product.over
        last = over[-1]
        if trip_count(last) % self.terms:
            return unflattened(round_ * self.terms + term, over)
        round_of = var("round_of", trip_count(last) // self.terms)
        to = unflattened(round_, (*over[:-1], round_of))
        return {**to, last: to[round_of] * self.terms + term + last.payload[1]}

    def _along(self) -> bool:
        """Whether more of what is read lies side by side along the sum than across rows."""
        loads = [n.args[0] for n in buffer_loads(self.of.lowered)]
        sides = [sum(stride(at, v) == 1 for at in loads)
                 for v in (self.product.over[-1], self.of.loops[-1])]  # fmt: skip
        return sides[0] > sides[1]


class Fragments:
    """A warp's part of a tile as operands of matrix instructions (see `codegen.cuda.tensor_cores`).

    Lane l says where one of 8 lines of matrix l / 8 is; matrices 1 and 2 change places between a
    and b, and where they are transposed. first: the warp's first row; count: of 16 rows each.
    """

    def __init__(self, tile: Tile, first: Expr, count: int, lane: Expr) -> None:
        self.tile, self.count = tile, count
        self.low, self.high = lane % 16, lane // 16
        if tile.of.left == tile.across:
            self.low, self.high = lane % LINE + lane // 16 * LINE, lane // LINE % 2
        self.first = first
        many = count if tile.across else tile.terms * tile.of.dtype.bytes // STEP
        self.places = [var(f"{tile.name}_place{k}", tile.size) for k in range(many)]

    def named(self) -> tuple[Stmt, ...]:
        """Names for where a lane's lines begin: of every step, or of every 16 rows."""
        t = self.tile
        return tuple(
            Let(v, t.place(self.low, self.first // 8 + 2 * k + self.high) if t.across
                else t.place(self.first + self.low, self.high + 2 * k))
            for k, v in enumerate(self.places)
        )  # fmt: skip

    def loaded(self, into: Local, stage: Expr, step: int) -> tuple[Stmt, ...]:
        """The step-th 32 bytes of terms of a tile."""
        t, start = self.tile, stage * self.tile.size
        if not t.across:
            at = start + self.places[step]
            return (Call("ldmatrix", (into, 0, t.held, at, self.count, 16 * t.width)),)
        return tuple(
            Call("ldmatrix_t", (into, 4 * k, t.held, start + v + 16 * step * t.width, 1, 0))
            for k, v in enumerate(self.places)
        )
