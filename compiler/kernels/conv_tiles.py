"""Which register tiles a direct convolution may have, and what they cost.

Counted are the multiply-adds of all tiles without those on padding, the loads beside them
(`issue_slots`), and what the first tile of every panel waits for weights that come from memory:
in a model they are not in any cache, so tiles of few rows cannot use them fast enough.

Channels that leave lanes of whole vectors idle are computed with halves (`Vectors`) on machines
that are as fast with these. Loads are not: a half takes as long to load as a whole vector, so their
tiles are square rather than long (of 144 -> 24 channels at 56 x 56, tiles of 8 rows x 3 halves
reach 91 % of the peak, 13 x 2 halves 75 %, and 13 x 2 whole vectors 72 %, a quarter of them idle).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from .conv_group import ConvGroup
from .device import Device
from .edges import Axis, runs
from .microkernel import LINE, issue_slots, most_rows
from .template import Config

MOST_BODIES = 16  # inner loops per kernel: what their code costs to compile, and in the first cache
COLD_LINE = 12  # multiply-add slots that one core waits for each cache line of a stream from memory
HALVES = 0.95  # of the work of whole vectors: what halves must come down to, as they load more
HALF_LOAD = 2.4  # multiply-adds of halves in the time of one load of a half, or into its lanes

Panels = Sequence[tuple[int, int, int]]
"""The panels of weights: (how many, of how many vectors, how many channels each reads)."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """How output channels make vectors: `count` of `lanes` channels; `unit` neighbours, a block of
    channels, are always computed together."""

    lanes: int
    count: int
    unit: int = 1

    @classmethod
    def of(cls, p: ConvGroup, device: Device) -> Vectors:
        """Whole vectors; halves of them where these are as fast and would leave fewer lanes idle,
        of 24 channels none instead of a quarter. Where groups share vectors, panels are walked by
        a table, a step of which takes longer than the multiply-adds of so many halves."""
        lanes = device.lanes(p.dtype)
        unit = p.block // lanes
        whole = cls(lanes, -(-p.channels // p.block) * unit, unit)
        if not device.halves or unit > 1 or not p.has_whole_groups:
            return whole
        half = cls(lanes // 2, -(-p.channels // (lanes // 2)))
        return half if half.count <= HALVES * 2 * whole.count else whole


def whole_panels(p: ConvGroup, device: Device, nb: int) -> Panels:
    """Panels of nb vectors and one of those that remain, of groups that share no vector; none where
    a panel would reach into another group."""
    vectors = Vectors.of(p, device)
    if p.group > 1 and p.channels // p.group // vectors.lanes % nb:
        return []
    full, rest = divmod(vectors.count, nb)
    return [(n, blocks, p.depth) for n, blocks in ((full, nb), (rest > 0, rest)) if n]


def tiles(p: ConvGroup, device: Device, panels: Callable[[int], Panels]) -> list[Config]:
    """Register tiles, the one that takes the fewest slots first. panels: for a number of vectors.
    Tiles that need many bodies of code for the edges come last."""
    vectors = Vectors.of(p, device)
    unit = vectors.unit
    most = 4 * unit if vectors.lanes == device.lanes(p.dtype) else 6
    found: list[tuple[bool, float, Config]] = []
    for nb in range(unit, min(vectors.count, most) + 1, unit):
        limit, work = most_rows(nb, device.registers), panels(nb)
        if limit < 1 or not work:
            continue
        for th, tw in _shapes(p.places[1], p.places[2], limit):
            tile = {"th": th, "tw": tw, "nb": nb}
            rows, columns = _bodies(p, tile)
            bodies = len(rows) * len(columns) * len({blocks for _, blocks, _ in work})
            found.append((bodies > MOST_BODIES, tile_slots(p, device, tile, work), tile))
    found.sort(key=lambda f: (f[0], f[1], -f[2]["nb"], -f[2]["tw"]))
    return [c for _, _, c in found]


def tile_slots(p: ConvGroup, device: Device, tile: Config, panels: Panels) -> float:
    """Multiply-add slots of all tiles, those of whole vectors."""
    taps, full, lanes = p.window.taps, device.lanes(p.dtype), Vectors.of(p, device).lanes
    cold = COLD_LINE * full * p.dtype.bytes / LINE
    rows, columns = _bodies(p, tile)
    down, right = p.axes[-2:]
    others = taps // (down.kernel * right.kernel) * prod(p.places[0])

    def step(rows: int, blocks: int, each_vector: int) -> float:
        found = issue_slots(rows, blocks, device, each_vector)
        return found if lanes == full else max(found, HALF_LOAD * (rows + blocks))

    slots = 0.0
    for count, blocks, channels in panels:
        each_vector = channels * taps * lanes * p.dtype.bytes
        one = sum(m * n * step(h * w, blocks, each_vector) for h, m in rows for w, n in columns)
        whole = step(tile["th"] * tile["tw"], blocks, each_vector)
        wait = max(cold * blocks - whole, 0)
        slots += count * channels * (one * others + wait * taps)
    return slots * lanes / full


def _bodies(p: ConvGroup, tile: Config) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Along rows and along columns: (places, how often) of all groups of taps of the tiles, each a
    body of code."""
    down, right = p.axes[-2:]
    rows = [(1, down.taps)] if tile["th"] == 1 else _sizes(down, tile["th"])
    return rows, _sizes(right, tile["tw"])


def _sizes(axis: Axis, size: int) -> list[tuple[int, int]]:
    return [(t.hi - t.lo, r.count * t.count) for r in runs(axis, size) for t in r.taps]


def _shapes(rows: int, columns: int, limit: int) -> list[tuple[int, int]]:
    """(th, tw) of at most `limit` places: widths that divide the columns or fill the registers."""
    found = []
    for tw in range(min(columns, limit), 0, -1):
        if columns % tw == 0 or tw >= limit - 3:
            found.append((1, tw))
        found += [(th, tw) for th in range(2, min(rows, limit // tw) + 1)
                  if columns % tw == 0 and (tw == columns or rows % th == 0)]  # fmt: skip
    return found
