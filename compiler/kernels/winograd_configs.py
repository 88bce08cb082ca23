"""How Winograd kernels cut their work: tiles, register tiles, caches, threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...ops.expr import Expr, index
from ...ops.types import f32
from ..passes.winograd import LINE_SLOTS, PLACE_SLOTS, TILES
from .conv_group import ConvGroup
from .device import Device
from .ir import Stmt
from .microkernel import LINE, PIPELINE, bind, most_rows
from .template import Config, falling

MOST_BLOCKS = 4  # vectors of results per register tile
BATCH_ROUNDS = (1, 2, 4, 8)  # register tiles of tiles that go through the steps together
ITEM_SLOTS = 50_000  # an item takes at least about 5 microseconds
ITEMS_PER_THREAD = (1, 2, 4)  # more share the work out better, fewer keep V and M in the cache
PHASE_SLOTS = 8_000  # what threads wait for the last of them at the end of a phase
CACHE_SHARE = 0.75  # of the second cache is for V and M; U and the images pass through the rest
# Slots that a line takes: of U beyond the first cache, where it is asked for early; of M beyond the
# first, written and read; of V beyond the second, read in the order of memory; of V and M when
# transforms write or read them there, which all lie far apart.
PANEL_LINE, M_LINE, V_LINE, APART_LINE = 0.3, 3.0, 0.5, 8.0
PHASE_ITEMS = 8  # items per thread of each of three phases
KEPT = 8  # configs of each schedule in the space


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the result of one group is cut. rows, columns: tiles per image along each axis."""

    m: int
    images: int
    rows: int
    columns: int

    @classmethod
    def of(cls, p: ConvGroup, m: int) -> Tiles:
        height, width = p.y.dims[2:]
        return cls(m, p.y.dims[0], -(-height // m), -(-width // m))

    @property
    def count(self) -> int:
        return self.images * self.rows * self.columns

    def locate(self, tile: Expr) -> tuple[tuple[Stmt, ...], Expr, Expr, Expr]:
        """Statements that bind, and: a tile's image, and its first row and column of the result."""
        made: list[Stmt] = []
        found = []
        each = self.rows * self.columns
        row = tile // self.columns
        for name, at, extent in (
            ("image", tile // each, self.images),
            ("row", row if self.images == 1 else row % self.rows, self.rows),
            ("column", tile % self.columns, self.columns),
        ):
            new, value = bind(name, at) if extent > 1 else ((), index(0))
            made += new
            found.append(value)
        image, row, column = found
        return tuple(made), image, row * self.m, column * self.m


def vectors_of(p: ConvGroup, lanes: int) -> int:
    """Vectors of results, those of a last block past the last channel included."""
    return -(-p.channels // p.block) * (p.block // lanes)


def steps(p: ConvGroup, lanes: int, tiles: int) -> tuple[int, int]:
    """Elements between the points of V and between those of M, for so many tiles. They are an odd
    number of vectors: distances of powers of two would put all places of a tile into a few sets of
    the caches."""
    block = p.x.layout.block
    return (-(-p.depth // block) * tiles | 1) * block, (tiles | 1) * lanes


def shares(p: ConvGroup, config: Config) -> int:
    """Items of the one phase, each with a V and an M of its own."""
    batches = -(-Tiles.of(p, config["m"]).count // config["tiles"])
    each = -(-batches // config["items"])
    return -(-batches // each)


def scratch_elements(p: ConvGroup, device: Device, config: Config) -> int:
    """Elements of all V and M."""
    v_step, m_step = steps(p, device.lanes(p.dtype), config["tiles"])
    points = (config["m"] + 2) ** 2
    workers = shares(p, config) if config["phases"] == 1 else 1
    return workers * points * (v_step + config["vectors"] * m_step)


@dataclass(frozen=True, slots=True)
class _Costs:
    """Estimates of one problem, in multiply-add slots of one core."""

    p: ConvGroup
    device: Device
    tiles: Tiles

    @property
    def lanes(self) -> int:
        return self.device.lanes(self.p.dtype)

    @property
    def points(self) -> int:
        return (self.tiles.m + 2) ** 2

    @property
    def vectors(self) -> int:
        return vectors_of(self.p, self.lanes)

    def products(self, tiles: int, mr: int, nb: int) -> float:
        """All products for so many tiles. The first register tile that meets a panel of U waits
        for it; the others find it in a cache."""
        rounds = -(-tiles // mr)
        vector = self.lanes * self.p.dtype.bytes
        busy = max(mr * nb, PIPELINE + nb)
        slots = max(busy, LINE_SLOTS * nb * vector / LINE) + (rounds - 1) * busy
        slots += rounds * nb * (0.05 * mr + 0.2)
        both = self.p.depth * (nb * vector + tiles * self.p.dtype.bytes)  # of U and V at one point
        near = 2 * both <= self.device.l1_bytes
        slots += PANEL_LINE * nb * vector / LINE * (1 if near else rounds)
        return self.points * self.p.depth * (self.vectors / nb) * slots

    def additions(self, tiles: int) -> float:
        """The transforms of so many tiles."""
        inputs = -(-self.p.depth // self.lanes)
        return self.points * tiles * (inputs + self.vectors) * PLACE_SLOTS

    def lines(self, elements: float) -> float:
        return elements * self.p.dtype.bytes / LINE

    @property
    def room(self) -> float:
        """Elements that the second cache holds while others pass through."""
        return CACHE_SHARE * self.device.l2_bytes / self.p.dtype.bytes

    def together(self, config: Config) -> float:
        """Everything in one phase, until the last thread is done."""
        tiles, nb, share = config["tiles"], config["nb"], config["vectors"]
        batches = -(-self.tiles.count // tiles)
        each = -(-batches // config["items"])
        shares = -(-batches // each)
        v, m = self.points * tiles * self.p.depth, self.points * tiles * share * self.lanes
        passes = self.vectors // share
        missing = max(0.0, 1 - self.room / (v + m))  # of V and M from beyond the second cache
        beyond = max(0.0, 1 - self.device.l1_bytes / (m * self.p.dtype.bytes))  # the first
        far = M_LINE * beyond * self.lines(m * passes)
        far += V_LINE * missing * self.lines(v * passes)
        far += APART_LINE * missing * self.lines(v + 2 * m * passes)
        far += APART_LINE * self.lines(v + m) / each  # the first batch of an item finds them cold
        rest = self.tiles.count - (batches - 1) * tiles
        whole, last = (
            self.products(t, config["mr"], nb) + self.additions(t) + far for t in (tiles, rest)
        )
        busy = [0.0] * self.device.threads
        for k in range(shares):  # the thread that is free first takes the next item
            mine = min(each, batches - k * each)
            first = busy.index(min(busy))
            busy[first] += mine * whole + (last - whole if k == shares - 1 else 0)
        return max(busy)

    def apart(self, config: Config) -> float:
        """Three phases, shared out evenly."""
        count = self.tiles.count
        v, m = self.points * count * self.p.depth, self.points * count * self.vectors * self.lanes
        missing = max(0.0, 1 - self.room / (v + m))
        total = self.products(count, config["mr"], config["nb"]) + self.additions(count)
        total += APART_LINE * (self.lines(v + m) + missing * self.lines(m))
        total += V_LINE * missing * self.lines(v) + M_LINE * self.lines(m)
        return total / self.device.threads + 3 * PHASE_SLOTS


def estimate(p: ConvGroup, device: Device, config: Config) -> float:
    """Slots until the last thread is done."""
    costs = _Costs(p, device, Tiles.of(p, config["m"]))
    return costs.together(config) if config["phases"] == 1 else costs.apart(config)


def ranked(p: ConvGroup, device: Device) -> list[Config]:
    """Configs worth trying, the one with the least estimate first; of every size of tile, both
    schedules are among them."""
    threads = device.threads
    items = [1] if threads == 1 else [threads * k for k in ITEMS_PER_THREAD]
    best: list[tuple[float, Config]] = []
    for m in sizes(p):
        found = sorted(_candidates(p, m, device, items), key=_first)
        best += (f for n in (1, 3) for f in [f for f in found if f[1]["phases"] == n][:KEPT])
    return [c for _, c in sorted(best, key=_first)]


def sizes(p: ConvGroup) -> tuple[int, ...]:
    """Results per axis of a tile: the number that a pass marked the convolution with, or all."""
    marked: int = p.anchor.attr("winograd")
    return (marked,) if marked else TILES


def lean(p: ConvGroup, device: Device) -> list[Config]:
    """Configs with less scratch than the first of `ranked`, by their estimates. Those that take
    longer than a direct sum, which needs no scratch, are left out."""
    lanes, threads = device.lanes(p.dtype), device.threads
    direct = p.flops / 2 / lanes / threads
    items = sorted({1, threads, *(threads * k for k in ITEMS_PER_THREAD)})
    most = scratch_elements(p, device, ranked(p, device)[0])
    return falling(
        (cost, size, config)
        for m in sizes(p)
        for cost, config in _candidates(p, m, device, items)
        if cost < direct and (size := scratch_elements(p, device, config)) < most
    )


def _candidates(
    p: ConvGroup, m: int, device: Device, items: Sequence[int]
) -> Iterator[tuple[float, Config]]:
    """(estimate, config), both schedules. items: how many the one phase may have."""
    costs = _Costs(p, device, Tiles.of(p, m))
    count, vectors, threads = costs.tiles.count, costs.vectors, device.threads
    for mr, nb in _register_tiles(count, vectors, costs.points, costs.lanes, device):
        rounds = -(-count // mr)
        worth = max(1, int(costs.products(count, mr, nb) / ITEM_SLOTS))
        config = {"m": m, "tiles": rounds * mr, "mr": mr, "nb": nb, "vectors": vectors, "phases": 3,
                  "items": min(threads * PHASE_ITEMS, worth)}  # fmt: skip
        yield costs.apart(config), config
        for n in dict.fromkeys((*(r for r in BATCH_ROUNDS if r < rounds), rounds)):
            batches = -(-rounds // n)
            for wanted in dict.fromkeys(min(i, batches, worth) for i in items):
                for share in dict.fromkeys((nb, 4 * nb, vectors)):
                    if vectors % share == 0:
                        config = {"m": m, "tiles": n * mr, "mr": mr, "nb": nb, "vectors": share,
                                  "phases": 1, "items": wanted}  # fmt: skip
                        yield costs.together(config), config


def _first(found: tuple[float, Config]) -> float:
    return found[0]


def _register_tiles(
    count: int, vectors: int, points: int, lanes: int, device: Device
) -> Iterator[tuple[int, int]]:
    """(tiles, vectors of results): the largest, and the largest whose M stays in the first cache;
    of both also what divides the tiles evenly."""
    for nb in range(1, min(vectors, MOST_BLOCKS) + 1):
        limit = most_rows(nb, device.registers - 1)  # one more has a load under way
        if vectors % nb or limit < 1:
            continue
        near = device.l1_bytes // (points * nb * lanes * f32.bytes)
        found = dict.fromkeys(
            mr
            for most in (limit, near)
            if most == limit or PIPELINE <= most * nb < limit * nb
            for mr in (min(most, count), -(-count // -(-count // most)))
        )
        yield from ((mr, nb) for mr in found)
