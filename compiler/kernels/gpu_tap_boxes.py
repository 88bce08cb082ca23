"""The left operand of a convolution as boxes, one for every tap of the window: what tiles of
`gpu_wgmma` multiply is then never laid out in memory (an implicit matrix product).

Places of the result are the rows. A tile of them is a rectangle, or the same one of several
images, and for one tap the channels that it reads are that rectangle of the input, moved by the
tap. What of it lies outside of the input is filled with zeros, which is what padding means. Terms
are channels, tap after tap. Channels have to lie side by side (channels last); groups of them are
an axis of their own, so that boxes have zeros and not the next group's behind the last of a group.
Windows that move in larger steps read every second place or so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from ...ops.expr import Expr, compare, index, linear
from ...ops.traverse import substitute
from ...ops.types import DType
from ..graph.ir import Graph
from .gpu_contraction import Contraction, Unfit
from .gpu_sharing import unflattened
from .ir import Buffer, TensorMap
from .pieces import trip_count
from .tensor_map import MOST_AXES, MOST_BOX, MOST_STEP, WORD

SIDES: Final = (8, 16, 32, 64, 4)
"""Places side by side in a tile, those that are tried first win ties."""
IMAGES: Final = (2, 4, 8)
"""Images whose places a tile takes, where one has too few."""


@dataclass(frozen=True, slots=True)
class Window:
    """blob: the input. dims, steps: elements of its axes and from one to the next, channels first,
    then those along which the last row loop, the one before, and all others go, and groups of
    channels, if there are any; at: indices along all but the channels. groups: the loop over them;
    taps: loops over the window; channel: within a group; chunks: boxes for the channels of one tap.
    moves: places of the input from one place of the result to the next, along the axes. tile: rows
    of a tile, `side` of them side by side, of `images` neighbours along the last of all others:
    that is a row loop where there are several."""

    blob: str
    dims: tuple[int, ...]
    steps: tuple[int, ...]
    at: tuple[Expr, ...]
    rows: tuple[Expr, ...]
    batches: tuple[Expr, ...]
    groups: tuple[Expr, ...]
    taps: tuple[Expr, ...]
    channel: Expr
    chunks: int
    moves: tuple[int, ...]
    tile: int = 0
    side: int = 1
    images: int = 1

    @property
    def high(self) -> int:
        """Places one below the other in a tile."""
        return self.tile // self.side // self.images

    def tiled(self, m: int) -> Window:
        """With tiles of m rows, in the box that leaves the fewest places unused."""
        across, down = self.moves[1:3]
        found = []
        for images in (1, *(IMAGES if self.batches else ())):
            many = self
            if images > 1:
                many = replace(self, rows=(self.batches[-1], *self.rows), batches=self.batches[:-1])
            found += [replace(many, tile=m, side=s, images=images) for s in SIDES
                      if s * across <= MOST_BOX and m % (s * images) == 0
                      and m // (s * images) * down <= MOST_BOX]  # fmt: skip
        return min(found, key=lambda w: w.tiles * prod(map(trip_count, w.batches)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a tile, along the row loops."""
        return ((self.images,) if self.images > 1 else ()) + (self.high, self.side)

    @property
    def grid(self) -> tuple[int, ...]:
        """Tiles along the row loops."""
        return tuple(-(-trip_count(v) // n) for v, n in zip(self.rows, self.shape, strict=True))

    @property
    def tiles(self) -> int:
        return prod(self.grid)

    @property
    def is_ragged(self) -> bool:
        """Whether tiles go beyond the result."""
        return any(trip_count(v) % n for v, n in zip(self.rows, self.shape, strict=True))

    def place(self, row: Expr) -> dict[Expr, Expr]:
        """The row loops, where rows are numbered tile after tile."""
        tile, inside = row // self.tile, row % self.tile
        found = {}
        for k, (v, n, count) in enumerate(zip(self.rows, self.shape, self.grid, strict=True)):
            first = tile // prod(self.grid[k + 1 :])
            at = inside // prod(self.shape[k + 1 :])
            if k:
                first, at = first % count, at % n
            found[v] = first * n + at
        return found

    def tensor(self, name: str, buffer: Buffer, terms: int, tf32: bool) -> TensorMap:
        """Whose boxes are tiles."""
        size = buffer.dtype.bytes
        others = [1] * len(self.batches)
        if self.images > 1:  # whose loop is one over rows
            others.append(self.images)
        box = (terms, self.side, self.high, *others, *(1 for _ in self.groups))
        steps = self.moves if set(self.moves) != {1} else ()
        apart = tuple(s * size for s in self.steps)
        return TensorMap(name, buffer, self.dims, apart, box, steps=steps, tf32=tf32)

    def result_box(self, rows: int) -> tuple[tuple[Expr, int], ...]:
        """So many rows of a tile, from the first of such: the row loops, the last one first, with
        the places along each."""
        found = []
        for v, n in zip(reversed(self.rows), reversed(self.shape), strict=True):
            found.append((v, min(n, rows)))
            rows //= min(n, rows)
        return tuple(found)

    def coordinates(self, k: Expr, row: Expr, batch: dict[Expr, Expr], terms: int) -> list[Expr]:
        """Of the box for round k and the tile that begins with a row."""
        loops = batch | self.place(row) | unflattened(k // self.chunks, self.taps)
        return [k % self.chunks * terms, *(substitute(e, loops) for e in self.at)]


def window_of(
    graph: Graph, c: Contraction, types: Sequence[DType], row_bytes: int
) -> Window:  # fmt: skip
    """The left operand as boxes. Raises Unfit where it is no convolution's input with channels
    last, or the unit cannot copy it so."""
    x, inside = _read(c.left)
    if x is None or x.dtype not in types:
        raise Unfit("the left operand is computed on the way")
    kind = graph.type(x.payload)
    if kind.rank < 3:
        raise Unfit("")  # nobody would take it for one
    if kind.layout.block != kind.dims[kind.layout.axis] or kind.layout.is_part:
        raise Unfit(f"channels of {kind} do not lie side by side, one place after the other")
    rows, over = c.rows, c.node.payload[1]
    axes: dict[Expr, int] = {}
    channel = _channel(x.args[kind.layout.axis], c)
    for k, e in enumerate(x.args):
        if k != kind.layout.axis and not e.is_const:
            moved = [v for v in rows if v in e.free]
            if len(moved) != 1 or moved[0] in axes:
                raise Unfit("it moves along no axis alone")
            axes[moved[0]] = k
    if len(rows) < 2:
        raise Unfit(f"it has places along {len(rows)} axes only")
    order = (rows[-1], rows[-2], *rows[:-2])
    taps = tuple(v for v in over if v is not channel)
    if channel not in over or set(axes) != set(rows) or any(v.payload[1] for v in over):
        raise Unfit("it is no window over places and channels")
    used = frozenset[Expr]().union(*(x.args[axes[v]].free for v in order))
    if used != frozenset((*rows, *taps)) or not _pads(x, inside, axes, kind.dims):
        raise Unfit("it reads zeros elsewhere than outside of its input")
    moves = (1, *(linear(x.args[axes[v]])[0].get(v, 0) for v in order), *(1 for _ in c.batches))
    if not all(0 < m <= MOST_STEP // 2 for m in moves) or set(moves[3:]) - {1}:
        raise Unfit(f"strides of {moves[1:]} places")
    count, size = trip_count(channel), x.dtype.bytes
    steps = (*(kind.strides[axes[v]] for v in order), *(count for _ in c.batches))
    if any(s * size % WORD for s in steps):
        raise Unfit(f"{count} channels are no multiple of {WORD} bytes")
    if len(moves) > MOST_AXES:
        raise Unfit(f"{len(moves)} axes; boxes have {MOST_AXES}")
    dims = (count, *(kind.dims[axes[v]] for v in order), *map(trip_count, c.batches))
    return Window(x.payload, dims, steps, (*(x.args[axes[v]] for v in order), *c.batches),
                  (rows[-2], rows[-1]), rows[:-2], c.batches, taps, channel,
                  -(-count * size // row_bytes), moves)  # fmt: skip


def _channel(at: Expr, c: Contraction) -> Expr:
    """The loop over channels, or over those of a group."""
    if not c.batches:
        return at
    terms, first = linear(at)
    channel = next((v for v in c.node.payload[1] if v in terms), at)
    if first or terms != {channel: 1, c.batches[0]: trip_count(channel)} or len(c.batches) > 1:
        raise Unfit("it has batches that are no groups of channels")
    return channel


def _read(factor: Expr) -> tuple[Expr | None, Expr | None]:
    """The load that a factor is, and where it is not zero instead."""
    inside = None
    factor = factor.args[0] if factor.op == "cast" else factor
    if factor.op == "select" and factor.args[2].is_const and factor.args[2].payload == 0:
        inside, factor = factor.args[:2]
    return (factor if factor.op == "load" else None), inside


def _pads(
    x: Expr, inside: Expr | None, axes: dict[Expr, int], dims: Sequence[int]
) -> bool:  # fmt: skip
    """Whether zeros stand exactly where indices are outside of the input."""
    found = {c for k in axes.values() for e in (x.args[k],)
             for c in (compare("le", index(0), e), compare("lt", e, index(dims[k])))}  # fmt: skip
    waiting = [] if inside is None else [inside]
    while waiting:
        c = waiting.pop()
        if c.op == "and":
            waiting += c.args
        elif c not in found:
            return False
    return True
