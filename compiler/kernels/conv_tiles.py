"""Which register tiles a direct convolution may have, and what they cost.

Counted are the multiply-adds of all tiles without those on padding, the loads beside them
(`issue_slots`), and what the first tile of every panel waits for weights that come from memory:
in a model they are not in any cache, so tiles of few rows cannot use them fast enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from .conv_group import ConvGroup
from .device import Device
from .edges import Axis, runs
from .microkernel import LINE, issue_slots, most_rows
from .template import Config

MOST_BODIES = 16  # inner loops per kernel: what their code costs to compile, and in the first cache
COLD_LINE = 12  # multiply-add slots that one core waits for each cache line of a stream from memory

Panels = Sequence[tuple[int, int, int]]
"""The panels of weights: (how many, of how many vectors, how many channels each reads)."""


def whole_panels(p: ConvGroup, device: Device, nb: int) -> Panels:
    """Panels of nb vectors and one of those that remain, of groups that share no vector; none where
    a panel would reach into another group."""
    lanes = device.lanes(p.dtype)
    if p.group > 1 and p.channels // p.group // lanes % nb:
        return []
    full, rest = divmod(-(-p.channels // p.block) * (p.block // lanes), nb)
    return [(n, blocks, p.depth) for n, blocks in ((full, nb), (rest > 0, rest)) if n]


def tiles(p: ConvGroup, device: Device, panels: Callable[[int], Panels]) -> list[Config]:
    """Register tiles, the one that takes the fewest slots first. panels: for a number of vectors.
    Tiles that need many bodies of code for the edges come last."""
    unit = p.block // device.lanes(p.dtype)
    vectors = -(-p.channels // p.block) * unit
    found: list[tuple[bool, float, Config]] = []
    for nb in range(unit, min(vectors, 4 * unit) + 1, unit):
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
    """Multiply-add slots of all tiles."""
    lanes, taps = device.lanes(p.dtype), p.window.taps
    cold = COLD_LINE * lanes * p.dtype.bytes / LINE
    rows, columns = _bodies(p, tile)
    down, right = p.axes[-2:]
    others = taps // (down.kernel * right.kernel) * prod(p.places[0])
    slots = 0.0
    for count, blocks, channels in panels:
        each_vector = channels * taps * lanes * p.dtype.bytes
        one = sum(
            m * n * issue_slots(h * w, blocks, device, each_vector)
            for h, m in rows for w, n in columns
        )  # fmt: skip
        whole = issue_slots(tile["th"] * tile["tw"], blocks, device, each_vector)
        wait = max(cold * blocks - whole, 0)
        slots += count * channels * (one * others + wait * taps)
    return slots


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
