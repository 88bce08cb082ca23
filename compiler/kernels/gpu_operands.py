"""How a tile of one factor of a contraction comes into shared memory.

A round takes `k` terms of the sum. Threads copy them asynchronously, 16 bytes at once where
neighbours of the factor lie side by side in memory, along its rows or along the sum, and element by
element elsewhere. Constants are put in order when a program is linked, so that they do. Zeros stand
for what is beyond the factor. Where it is not an element of memory but computed, threads compute it
on the way.

The sum runs over its outer loops one by one, and over the inner ones `k` terms at a time. Which
those are depends on the problem alone, and with them the order of all additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, const, index, linear, logical_and, select, var
from ...ops.traverse import substitute
from ...ops.types import boolean
from ..graph.ir import Graph
from .gpu_contraction import Contraction
from .gpu_sharing import flattened, unflattened
from .ir import Buffer, Call, If, Local, Set, Stmt, loop
from .pieces import Buffers, buffer_loads, trip_count
from .recipe import prepared, recipe
from .vectors import WIDEST, aligned

ROUND: Final = 16  # terms that the inner loops should fill
WASTE: Final = 1.35  # times as many terms as there are, at most, if loops stay apart


@dataclass(frozen=True, slots=True)
class Terms:
    """A sum's loops: rounds of `k` inner terms for every one of the outer ones."""

    outer: tuple[Expr, ...]
    inner: tuple[Expr, ...]
    k: int

    @property
    def count(self) -> int:
        """Of inner terms."""
        return prod(map(trip_count, self.inner))

    @property
    def term(self) -> Expr:
        """Counts them."""
        return var("inner", self.count)

    @property
    def each(self) -> int:
        """Rounds for every outer term."""
        return -(-self.count // self.k)

    @property
    def rounds(self) -> int:
        return prod(map(trip_count, self.outer)) * self.each

    def first(self, t: Expr) -> Expr:
        """The first inner term of round t."""
        return t % self.each * self.k

    def place(self, t: Expr) -> dict[Expr, Expr]:
        """The outer loops' variables in round t."""
        return unflattened(t // self.each, self.outer)


def terms_of(p: Contraction, k: int) -> Terms:
    """The longest loop inside, if its length fills rounds; else all loops as one, whose places have
    to be divided out."""
    over = p.node.payload[1]
    longest = max(over, key=trip_count)
    n = trip_count(longest)
    if len(over) == 1 or -(-n // ROUND) * ROUND <= WASTE * n:
        return Terms(tuple(v for v in over if v is not longest), (longest,), k)
    return Terms((), over, k)


@dataclass(frozen=True, slots=True)
class Operand:
    """One factor. size: its rows, or as many as it has in memory; tile: of a block. held: shared
    memory, in which a stage's part begins at `start`. value: an element, in terms of `row`, of the
    number of the inner term and of the outer loops; at, buffer, guard: where it lies if it is one
    of memory. wide: elements of a copy. along_terms:
    whether neighbours along the sum lie side by side."""

    size: int
    tile: int
    row: Expr
    terms: Terms
    held: Local
    start: int
    value: Expr
    buffer: Buffer | None
    at: Expr
    guard: Expr
    wide: int
    along_terms: bool

    @property
    def term(self) -> Expr:
        return self.terms.term

    @property
    def group(self) -> int:
        """Elements that threads read from shared memory at once."""
        return WIDEST // self.held.dtype.bytes

    @property
    def pitch(self) -> int:
        """Elements from one term to the next in shared memory, or from one row to the next: then
        some are left out, so that eight rows lie in all banks."""
        return self.terms.k + self.group if self.along_terms else self.tile

    @property
    def elements(self) -> int:
        """Of a stage."""
        return self.pitch * (self.tile if self.along_terms else self.terms.k)

    def copied(self, t: Expr, stage: Expr, first: Expr, thread: Expr, threads: int) -> Stmt:
        """What a thread copies of round t into a stage. first: the tile's first row."""
        k, g = self.terms.k, self.wide
        pieces = k * self.tile // g
        u = var("u", pieces // threads) if pieces > threads else index(0)
        piece = u * threads + thread
        if self.along_terms:
            term, row = piece % (k // g) * g, piece // (k // g)
            place = row * self.pitch + term
        else:
            row, term = piece % (self.tile // g) * g, piece // (self.tile // g)
            place = term * self.pitch + row
        i, c = first + row, self.terms.first(t) + term
        where = {self.row: i, self.term: c} | self.terms.place(t)
        inside = substitute(self.guard, where)
        if self.size % self.tile:
            inside = logical_and(i < self.size, inside)
        if self.terms.count % k:
            inside = logical_and(c < self.terms.count, inside)
        copy = self._copy(stage + self.start + place, where, inside, u)
        if pieces > threads:
            return loop(u, (copy,), "unroll")
        return If(thread < pieces, (copy,)) if pieces < threads else copy

    def _copy(self, place: Expr, where: dict[Expr, Expr], inside: Expr, u: Expr) -> Stmt:
        """One of a thread's copies, number u of a round."""
        dtype = self.held.dtype
        if self.buffer is None:
            value = substitute(self.value, where)
            return Set(self.held, (place,), select(inside, value, const(0, dtype)))
        at = substitute(self.at, where)
        size = self.wide * dtype.bytes
        if inside.is_const and inside.payload:
            return Call("cp_async", (self.held, place, self.buffer, at, size))
        at = self._existing(at, inside, u)
        return Call("cp_async_zero", (self.held, place, self.buffer, at, size, inside))

    def _existing(self, at: Expr, inside: Expr, u: Expr) -> Expr:
        """`at` where that is inside, and some place of the buffer elsewhere: the same steps from
        one u to the next, so that they are part of instructions."""
        assert self.buffer is not None
        step = linear(at)[0].get(u, 0)
        first = at - u * step
        steps = trip_count(u) - 1 if u.op == "var" else 0
        there = 0 <= step * steps <= self.buffer.elements - self.wide
        if u in inside.free or u in first.free or not there:
            return select(inside, at, index(0))
        return select(inside, first, index(0)) + u * step


def operand(
    graph: Graph, buffers: Buffers, p: Contraction, factor: Expr, loops: Sequence[Expr], tile: int,
    terms: Terms, held: Local, start: int,
) -> Operand:  # fmt: skip
    """A factor whose rows are `loops`, as it is copied best."""
    rows = tuple(loops)
    size, group = prod(map(trip_count, rows)), WIDEST // p.dtype.bytes
    row = var(f"{held.name}_row", size)

    def flat(e: Expr) -> Expr:
        return flattened(flattened(e, row, rows), terms.term, terms.inner)

    def made(value: Expr, buffer: Buffer | None, at: Expr, guard: Expr, size: int = size,
             wide: int = 1, along_terms: bool = False) -> Operand:  # fmt: skip
        return Operand(size, tile, row, terms, held, start, value, buffer, at, guard, wide,
                       along_terms)  # fmt: skip

    always = const(True, boolean)
    packed = _packed(graph, p, factor, rows, terms, group)
    if packed is not None:
        what, at, elements = packed
        whole = -(-size // group) * group
        return made(factor, buffers.read(what, elements), flat(at), always, whole, group)
    plain = buffers.lower(factor, None)
    value = flat(plain)
    guard, read = always, value
    if value.op == "select" and value.args[2].is_const and value.args[2].payload == 0:
        guard, read = value.args[0], value.args[1]
    if read.op != "load" or not isinstance(read.payload, Buffer) or read.dtype is not p.dtype:
        return made(value, None, index(0), always)
    at = read.args[0]
    if _wide(at, guard, row, group):
        return made(value, read.payload, at, guard, wide=group)
    if _wide(at, guard, terms.term, group):
        return made(value, read.payload, at, guard, wide=group, along_terms=True)
    beside = not rows or _nearest(plain, terms.inner[-1]) < _nearest(plain, rows[-1])
    return made(value, read.payload, at, guard, along_terms=beside)


def _nearest(value: Expr, v: Expr) -> int:
    """How far apart neighbours along a loop are; very far where that is no fixed distance."""
    found = [linear(n.args[0])[0].get(v, 0) for n in buffer_loads(value)]
    return min((abs(step) for step in found if step), default=1 << 40)


def _wide(at: Expr, guard: Expr, v: Expr, group: int) -> bool:
    """Whether `group` steps of v are neighbours in memory, at multiples of their size, of which all
    or none are there."""
    if trip_count(v) % group:
        return False
    u = var("u", group)
    where = {v: var("piece", trip_count(v) // group) * group + u}
    return aligned(substitute(at, where), u) and u not in substitute(guard, where).free


# --------------------------------------------------------------------------- constants


def _packed(
    graph: Graph, p: Contraction, factor: Expr, rows: tuple[Expr, ...], terms: Terms, group: int
) -> tuple[Any, Expr, int] | None:
    """(a constant as it is copied, where an element is, how many there are): its rows side by side
    for every term. None for what is no constant, or indexed in another way."""
    if factor.op != "load" or not graph.is_constant(factor.payload):
        return None
    dims = graph.type(factor.payload).dims
    split = [_axis(i, n) for i, n in zip(factor.args, dims, strict=True)]
    if any(s is None for s in split):
        return None
    found = [v for s in split if s for v in s]
    order = [v for v in (*p.batches, *terms.outer) if v in found]
    inside = (*terms.inner, *rows)
    if len(found) != len(set(found)) or {*found} != {*order, *inside}:
        return None
    order += inside
    shape = tuple(trip_count(v) for v in found)
    count = prod(map(trip_count, rows))
    whole = -(-count // group) * group
    places = tuple(found.index(v) for v in order)
    made = prepared((factor.payload,), "terms", shape=shape, order=places, rows=count, whole=whole)
    at, apart = index(0), 1
    for v in reversed(rows):
        at, apart = at + v * apart, apart * trip_count(v)
    apart = whole
    for v in reversed(order[: len(order) - len(rows)]):
        at, apart = at + v * apart, apart * trip_count(v)
    return made, at, apart


def _axis(i: Expr, n: int) -> list[Expr] | None:
    """The loops that walk an axis of n elements, the slowest first; None where they don't cover
    it in order."""
    parts, first = linear(i)
    if first or any(v.op != "var" or v.payload[1] for v in parts):
        return None
    inside = 1
    found = sorted(parts.items(), key=lambda part: part[1])
    for v, step in found:
        if step != inside:
            return None
        inside *= trip_count(v)
    return [v for v, _ in reversed(found)] if inside == n else None


@recipe("terms")
def pack(
    w: npt.NDArray[Any], shape: tuple[int, ...], order: tuple[int, ...], rows: int, whole: int
) -> npt.NDArray[Any]:  # fmt: skip
    """w with its axes cut up and put in order; the last ones are `rows` rows, filled up with zeros
    to `whole`."""
    flat = w.reshape(shape).transpose(order).reshape(-1, rows)
    out = np.zeros((len(flat), whole), w.dtype)
    out[:, :rows] = flat
    return out
