"""How a direct convolution is cut into items, and in which order weights and places meet.

An item takes a part of the panels of weights and a share of the units of places (`Cut`). Whatever
it walks in its inner loop is read once per step of the outer one; neighbouring items read what they
have in common again. Such reads are cheap where the first or the second cache still holds what was
read, so the best cut follows from the sizes of weights, input and caches. `Costs` counts the lines
that come from further away than the first cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod

from .conv_group import ConvGroup
from .conv_tiles import Panels, Vectors, tile_slots
from .device import Device
from .microkernel import LINE
from .template import Config

ITEM_FLOPS = 500_000  # an item takes at least 2 to 5 microseconds
MAX_ITEMS = 16  # for two threads; more threads get eight each, so that the last ones end together
ROOM = 0.7  # of a cache for what is read again; what is read and written once passes through

# Multiply-add slots that a line costs. Weights are one stream, which is asked for early; the lines
# of the input that a tile reads lie in many places.
INPUT_NEAR, INPUT_FAR = 1.5, 8.0  # from the second cache, from beyond
WEIGHTS_NEAR, WEIGHTS_FAR = 0.8, 1.5
ITEM = 500.0  # to take an item, and to get going


@dataclass(frozen=True, slots=True)
class Cut:
    """parts of the panels times shares of the places make items. items: "oc" where neighbouring
    items take the same panels, "sp" where they take the same places. order: what an item walks in
    its outer loop, panels ("oc") or places ("sp")."""

    parts: int
    shares: int
    items: str
    order: str

    @classmethod
    def of(cls, config: Config) -> Cut:
        return cls(config["parts"], config["shares"], config["items"], config["order"])

    @property
    def config(self) -> Config:
        return asdict(self)


def few_items(p: ConvGroup, device: Device) -> int:
    """How many items keep the threads busy until the last one ends, if the work is worth them."""
    return max(1, min(max(MAX_ITEMS, 8 * device.threads), p.flops // ITEM_FLOPS))


def shared(count: int, wanted: int) -> tuple[int, int]:
    """(size of a share, shares) of `count` things in at most `wanted` shares."""
    each = -(-count // min(count, wanted))
    return each, -(-count // each)


def evenly(order: str, panels: int, units: int, wanted: int) -> Cut:
    """About `wanted` items: in order "oc" panels are shared out first, in order "sp" places."""
    if order == "oc":
        _, parts = shared(panels, wanted)
        _, shares = shared(units, -(-wanted // parts))
    else:
        _, shares = shared(units, wanted)
        _, parts = shared(panels, -(-wanted // shares))
    return Cut(parts, shares, order, order)


def units_of(p: ConvGroup, tile: Config) -> tuple[int, int]:
    """(units of places that are shared out, tiles in each): tiles, or rows of tiles."""
    outer, rows, columns = p.places
    across = -(-columns // tile["tw"])
    if rows == 1:
        return prod(outer) * across, 1
    return prod(outer) * -(-rows // tile["th"]), across


@dataclass(frozen=True, slots=True)
class Costs:
    """Estimates for one problem and one register tile.

    slots: of all register tiles (`tile_slots`). panels, units: how many there are; as the last ones
    may be smaller, they make no more than `whole` (panels, units) of full size. tiles: in all
    units. weights, input: bytes of all. unit: bytes of the input that a unit of places reads.
    """

    device: Device
    slots: float
    panels: int
    units: int
    whole: tuple[float, float]
    tiles: int
    weights: int
    input: int
    unit: int

    @classmethod
    def of(cls, p: ConvGroup, device: Device, tile: Config, panels: Panels) -> Costs:
        lanes = Vectors.of(p, device).lanes
        units, across = units_of(p, tile)
        down, right = p.axes[-2:]
        vectors = sum(count * blocks for count, blocks, _ in panels)
        outer, rows, columns = p.places
        along = columns / tile["tw"] if rows == 1 else rows / tile["th"]
        # Between strided places along a row, lines come along that nobody asked for.
        touched = [min(a.input, a.output * a.kernel) for a in p.axes]
        touched[-1] = right.input
        if rows == 1:
            unit = min(touched[-1], (tile["tw"] - 1) * right.stride + right.kernel)
        else:
            unit = touched[-1] * min(touched[-2], (tile["th"] - 1) * down.stride + down.kernel)
        place = p.depth * p.group * p.dtype.bytes
        return cls(
            device, tile_slots(p, device, tile, panels), sum(n for n, _, _ in panels), units,
            (vectors / tile["nb"], prod(outer) * along), units * across,
            sum(n * blocks * depth for n, blocks, depth in panels)
            * lanes * p.window.taps * p.dtype.bytes,
            p.x.dims[0] * prod(touched) * place, unit * place,
        )  # fmt: skip

    def best(self, wanted: int) -> Cut:
        """Of the cuts into `wanted` items or more, the first of those that cost least."""
        return min(self.cuts(wanted), key=self.cost)

    def some(self, wanted: int) -> list[Cut]:
        """The best cut with either order of the loops, and the two that share out evenly."""
        found = list(self.cuts(wanted))
        best = [min((c for c in found if c.order == o), key=self.cost) for o in ("oc", "sp")]
        even = [evenly(o, self.panels, self.units, wanted) for o in ("oc", "sp")]
        return list(dict.fromkeys((*best, *even)))

    def cuts(self, wanted: int) -> Iterator[Cut]:
        """Cuts worth a look, those with few items first."""
        shares = -(-wanted // shared(self.panels, wanted)[1])
        while True:
            _, taken = shared(self.units, shares)
            most = -(-wanted // taken)
            while True:
                _, parts = shared(self.panels, most)
                alike = ("sp",) if parts == 1 else ("oc",) if taken == 1 else ("oc", "sp")
                yield from (Cut(parts, taken, i, o) for o in ("oc", "sp") for i in alike)
                most *= 4
                if parts == self.panels:
                    break
            if shares >= self.units:
                return
            shares *= 2

    def cost(self, cut: Cut) -> float:
        """Slots until the last thread is done."""
        taken = ITEM * cut.parts * cut.shares / self.device.threads
        return self.slots * self.longest(cut) + self.lines(cut) + taken

    def longest(self, cut: Cut) -> float:
        """The part of the work that the busiest thread does, where threads are equally fast."""
        threads = self.device.threads
        panels, units = self.whole
        part, share = shared(self.panels, cut.parts)[0], shared(self.units, cut.shares)[0]
        item = min(part / panels, 1) * min(share / units, 1)
        rounds = -(-cut.parts * cut.shares // threads)
        return max(1 / threads, min(item * rounds, (1 + item * (threads - 1)) / threads))

    def lines(self, cut: Cut) -> float:
        """Slots that one thread waits for lines from beyond the first cache."""
        threads, room = self.device.threads, ROOM * self.device.l2_bytes
        panel, part, share = (
            self.weights / self.panels, self.weights / cut.parts, self.input / cut.shares
        )  # fmt: skip
        by_panel = cut.order == "oc"
        # What is read again in the loops of an item, and between its first and the next items.
        again = panel if by_panel else part
        if cut.items == "sp":
            mine = min(threads, cut.shares)
            input_far = 1.0 if share + again <= room else self.panels if by_panel else cut.parts
            input_far /= mine
            weights_far = 1.0 if self.weights + share <= room else cut.shares / mine
        else:
            mine = min(threads, cut.parts)
            passes = self.panels if by_panel else cut.parts
            input_far = 1.0 if self.input + again <= room else passes / mine
            weights_far = 1 / mine
        if not by_panel and part + self.unit > room:
            weights_far = self.units / mine
        input_near = weights_near = 0.0
        if by_panel or self.unit > self.device.l1_bytes:
            input_near = self.panels / threads
        if not by_panel or panel > ROOM * self.device.l1_bytes:
            weights_near = self.tiles / threads
        return (
            self.input * (INPUT_FAR * input_far + INPUT_NEAR * input_near)
            + self.weights * (WEIGHTS_FAR * weights_far + WEIGHTS_NEAR * weights_near)
        ) / LINE  # fmt: skip
