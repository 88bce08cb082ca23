"""What `gpu_strips` computes: windows that slide over places whose channels lie side by side.

Depthwise convolutions and pools, whatever is pointwise around them. Nothing here asks which
operator it was: a group's expression has one reduction, over the taps of a window, and what that
reads depends on a result's place and on the tap only through place * step + tap * apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Final

from ...ops.expr import Expr, apply, index, linear, var
from ...ops.traverse import substitute
from ..graph.ir import Graph, Op
from .gpu_contraction import Unfit
from .nest import guarded
from .pieces import Assignment, Buffers, Piece, buffer_loads, pieces, stride, trip_count
from .reductions import reduces
from .vectors import WIDEST, aligned

AXES: Final = 2  # that windows slide along, at most
LARGE: Final = 25
"""Taps from which a window is a reduction like others, which threads may share, unless results have
inputs in common."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Results number `place` look at the inputs place * step + tap * apart, counted from where the
    first of them looks first."""

    place: Expr
    tap: Expr
    step: int = 1
    apart: int = 1

    @property
    def count(self) -> int:
        """Of results."""
        return trip_count(self.place)

    @property
    def taps(self) -> int:
        return trip_count(self.tap)

    @property
    def most(self) -> int:
        """Results of a thread: with steps and gaps, neighbours have no inputs in common."""
        return self.count if 1 in (self.step, self.apart) else 1

    def looks(self, n: int) -> int:
        """How many inputs n neighbouring results look at, with those between."""
        return self.taps if n == 1 else (n - 1) * self.step + (self.taps - 1) * self.apart + 1

    @property
    def overlap(self) -> bool:
        """Whether some results look at the same inputs."""
        return any(m * self.step % self.apart == 0 and m * self.step // self.apart < self.taps
                   for m in range(1, min(self.count, self.taps * self.apart)))  # fmt: skip

    def at(self, first: Expr, look: Expr, n: int) -> dict[Expr, Expr]:
        """Place and tap of look number `look` of n results from `first` on."""
        if n == 1 or self.apart == 1:
            return {self.place: first, self.tap: look}
        return {self.place: first + look, self.tap: index(0)}

    def exists(self, first: Expr, look: Expr, n: int) -> Expr:
        """Whether any result that exists looks there."""
        if n == 1 or self.apart == 1:
            return first * self.step + look < self.looks(self.count)
        return first + look < self.looks(self.count)


NO_AXIS: Final = Axis(var("no_place", 1), var("no_tap", 1))


@dataclass(frozen=True, slots=True)
class Windows:
    """piece: what is stored, over its loops; node: the reduction in it. reads: what that reads of
    the places; weights: loads that depend on the tap, and not on the place. down, across: the axes,
    the one along which taps are neighbours last. lane: the loop over channels."""

    piece: Piece
    node: Expr
    reads: Expr
    weights: tuple[Expr, ...]
    down: Axis
    across: Axis
    lane: Expr

    @property
    def others(self) -> tuple[Expr, ...]:
        """Loops that no window slides along: images."""
        known = (self.down.place, self.across.place, self.lane)
        return tuple(v for v in self.piece.loops if v not in known)

    @property
    def taps(self) -> int:
        return self.down.taps * self.across.taps

    @property
    def channels(self) -> int:
        return trip_count(self.lane)

    @property
    def most_lanes(self) -> int:
        """Channels that fill an access of the widest type that is read or stored, where all of them
        lie at multiples of that; half as many, or fewer, where they do not."""
        loads = [*buffer_loads(self.reads), *self.weights]
        places = [n.args[0] for n in loads] + [a.offset for a in self.piece.assignments]
        sizes = [n.payload.dtype.bytes for n in loads]
        sizes += [a.buffer.dtype.bytes for a in self.piece.assignments]
        n = WIDEST // max(sizes)
        while n > 1 and not (self.channels % n == 0 and self._are_aligned(places, n)):
            n //= 2
        return n

    def _are_aligned(self, places: Iterable[Expr], n: int) -> bool:
        u = var("u", n)
        at = {self.lane: var("vector", self.channels // n) * n + u}
        return all(aligned(substitute(p, at), u) for p in places)


def windows_of(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], buffers: Buffers
) -> Windows:  # fmt: skip
    """The windows that a group computes. Raises Unfit, saying why it is none."""
    if any(op.definition.compute is None for op in ops):
        raise Unfit("an operator without expressions")
    found = pieces(graph, ops, outputs, buffers)
    if len(found) != 1:
        raise Unfit("results with loops of their own")
    piece = Piece(found[0].loops, tuple(Assignment(a.buffer, a.offset, guarded(a.value))
                                        for a in found[0].assignments))  # fmt: skip
    nodes = reduces(a.value for a in piece.assignments)
    if len(nodes) != 1 or not piece.loops or not prod(map(trip_count, piece.loops)):
        raise Unfit("it is not one reduction")
    (node,), lane = nodes, piece.loops[-1]
    if node.free - set(piece.loops):
        raise Unfit("a reduction of something else than the results")
    taps = node.payload[1]
    if len(taps) > AXES:
        raise Unfit(f"windows along {len(taps)} axes")
    images = int(graph.type(outputs[0]).dims[0] > 1)  # their number decides about no kernel
    axes = [_axis(node, piece.loops[images:], t) for t in taps]
    reads = _reads(node, axes, taps)
    _check_lanes(piece, reads, lane, axes)
    if prod(a.taps for a in axes) > LARGE and not any(a.overlap for a in axes):
        raise Unfit("large windows that share no inputs")
    weights = _weights(node, reads, axes)
    down, across = (*(NO_AXIS,) * (AXES - len(axes)), *axes)
    return Windows(piece, node, reads, weights, down, across, lane)


def _axis(node: Expr, loops: Sequence[Expr], tap: Expr) -> Axis:
    """The axis that a tap counts, along the loop by which places move the least."""
    if tap.payload[1]:
        raise Unfit("taps that are not counted from the first")
    best: Axis | None = None
    for load in buffer_loads(node.args[0]):
        terms, _ = linear(load.args[0])
        b = terms.get(tap, 0)
        for v in loops:
            a = terms.get(v, 0)
            if a <= 0 or b <= 0:
                continue
            axis = Axis(v, tap, a // gcd(a, b), b // gcd(a, b))
            if best is None or axis.step + axis.apart < best.step + best.apart:
                best = axis
    if best is None:
        raise Unfit("no window that slides along results")
    return best


def _reads(node: Expr, axes: Sequence[Axis], taps: Sequence[Expr]) -> Expr:
    """The part of a reduction's body that places and taps decide."""
    places = {a.place for a in axes}
    found = _parts(node.args[0], places | set(taps))
    if len(places) < len(axes) or len(set(found)) != 1:
        raise Unfit("no window that slides along results")
    reads = found[0]
    for a in axes:
        if a.most > 1 and not _slides(reads, a):
            raise Unfit("windows that do not slide")
    return reads


def _parts(e: Expr, needed: set[Expr]) -> list[Expr]:
    """Parts of e that read memory at places that all variables decide. What a select guards stays
    behind it."""
    if not needed <= e.free:
        return []
    if e.op in ("load", "select"):
        return [e] if buffer_loads(e) else []
    return [found for a in e.args for found in _parts(a, needed)]


def _slides(reads: Expr, a: Axis) -> bool:
    """Whether a result's place and the tap decide together only."""
    look = var("look", a.looks(a.count))
    alike = substitute(reads, a.at(index(0), look, a.count))
    return substitute(alike, {look: a.place * a.step + a.tap * a.apart}) is reads


def _check_lanes(piece: Piece, reads: Expr, lane: Expr, axes: Sequence[Axis]) -> None:
    """Raises Unfit unless channels lie side by side wherever a thread reads or stores them."""
    if any(a.place is lane for a in axes):
        raise Unfit("places whose channels do not lie side by side")
    places = [n.args[0] for n in buffer_loads(reads)] + [a.offset for a in piece.assignments]
    if any(stride(at, lane) != 1 for at in places):
        raise Unfit("places whose channels do not lie side by side")
    if reads.op == "select" and lane in reads.args[0].free:
        raise Unfit("channels that do not all exist")


def _weights(node: Expr, reads: Expr, axes: Sequence[Axis]) -> tuple[Expr, ...]:
    """Loads of the body that taps decide, and the place does not."""
    body = substitute(node.args[0], {reads: apply("read", (), reads.dtype)})
    if any(a.place in body.free for a in axes):
        raise Unfit("windows that differ from place to place")
    return tuple(n for n in buffer_loads(body) if any(a.tap in n.free for a in axes))
