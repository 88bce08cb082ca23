"""How Winograd kernels cut their work: tiles, register tiles, caches, threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...ops.expr import Expr, index
from .conv_group import ConvGroup
from .device import Device
from .ir import Stmt
from .microkernel import PIPELINE, bind, most_rows
from .template import Config

MOST_BLOCKS = 4  # vectors of results per register tile
BATCH_ROUNDS = (1, 2, 4, 8)  # register tiles of tiles that go through the steps together
ITEM_SLOTS = 50_000  # an item takes at least about 5 microseconds
ITEMS_PER_THREAD = 4
PLACE_SLOTS = 9.0  # multiply-add slots that one place of a transformed tile takes, per vector
LINE = 64  # bytes per cache line
LINE_SLOTS = 3.0  # multiply-add slots that a cache line from beyond the second cache takes
KEPT = 12  # configs of the space


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
        """Image, and the first row and column of the result, of a tile; statements that bind them."""
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
        """All products for so many tiles. Loads come from the second cache: those of vectors take
        more than those of scalars."""
        slots = max(mr * nb, PIPELINE + nb) + 0.05 * mr + 0.3 * nb
        return self.points * self.p.depth * (self.vectors / nb) * -(-tiles // mr) * slots

    def additions(self, tiles: int) -> float:
        """The transforms of so many tiles."""
        inputs = -(-self.p.depth // self.lanes)
        return self.points * tiles * (inputs + self.vectors) * PLACE_SLOTS

    def lines(self, elements: float) -> float:
        return elements * self.p.dtype.bytes / LINE * LINE_SLOTS

    @property
    def weights(self) -> int:
        """Elements of U."""
        return self.points * self.p.depth * self.vectors * self.lanes

    def together(self, config: Config) -> float:
        """Everything in one phase; the thread with the most batches decides."""
        tiles, nb, share = config["tiles"], config["nb"], config["vectors"]
        batches = -(-self.tiles.count // tiles)
        v, m = self.points * tiles * self.p.depth, self.points * tiles * share * self.lanes
        panel = 2 * self.p.depth * nb * self.lanes
        cache = self.device.l2_bytes // self.p.dtype.bytes
        far = float(self.weights)
        if v + panel > cache:
            far += v * (1 + self.vectors // share)
        if v + m + panel > cache:
            far += 2 * m * (self.vectors // share)
        one = self.products(tiles, config["mr"], nb) + self.additions(tiles) + self.lines(far)
        each = -(-batches // config["items"])
        turns = -(-(-(-batches // each)) // self.device.threads)
        short = (batches * tiles - self.tiles.count) / (batches * tiles)
        return one * each * turns * (1 - short)

    def apart(self, config: Config) -> float:
        """Three phases, shared out evenly."""
        count = self.tiles.count
        far = self.weights + 2 * self.points * count * (self.p.depth + self.p.channels)
        total = self.products(count, config["mr"], config["nb"]) + self.additions(count)
        return (total + self.lines(far)) / self.device.threads + 3 * ITEM_SLOTS / 8


def ranked(p: ConvGroup, device: Device) -> list[Config]:
    """Configs worth trying, the one with the least estimate first."""
    costs = _Costs(p, device, Tiles.of(p, p.anchor.attr("winograd")))
    count, vectors = costs.tiles.count, costs.vectors
    threads = device.threads
    found: list[tuple[float, Config]] = []
    for mr, nb in _register_tiles(count, vectors, device):
        most = -(-count // mr)
        for rounds in dict.fromkeys((*(r for r in BATCH_ROUNDS if r < most), most)):
            batches = -(-most // rounds)
            worth = costs.products(rounds * mr, mr, nb) * batches / ITEM_SLOTS
            wanted = max(1, min(batches, threads * ITEMS_PER_THREAD, int(worth)))
            for share in dict.fromkeys((nb, 4 * nb, vectors)):
                if vectors % share or (share > nb and share % nb):
                    continue
                config = {"tiles": rounds * mr, "mr": mr, "nb": nb, "vectors": share,
                          "phases": 1, "items": wanted}  # fmt: skip
                found.append((costs.together(config), config))
        worth = costs.products(count, mr, nb) / ITEM_SLOTS
        wanted = max(1, min(threads * 2 * ITEMS_PER_THREAD, int(worth)))
        config = {"tiles": most * mr, "mr": mr, "nb": nb, "vectors": vectors,
                  "phases": 3, "items": wanted}  # fmt: skip
        found.append((costs.apart(config), config))
    return [c for _, c in sorted(found, key=lambda f: f[0])[:KEPT]]


def _register_tiles(count: int, vectors: int, device: Device) -> Iterator[tuple[int, int]]:
    """(tiles, vectors of results): the largest, and one that divides the tiles evenly."""
    for nb in range(1, min(vectors, MOST_BLOCKS) + 1):
        limit = most_rows(nb, device.registers)
        if vectors % nb or limit < 1:
            continue
        even = -(-count // -(-count // limit))
        yield from ((mr, nb) for mr in dict.fromkeys((min(limit, count), even)))
