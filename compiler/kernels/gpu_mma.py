"""Products on the tensor cores of GPUs from sm_80 on, by `mma.sync`.

What is computed so stands in `gpu_mma_product`, how operands reach shared memory in
`gpu_mma_operands`, the kernel in `gpu_mma_body`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..graph.ir import Graph, Op
from .device import Device
from .gpu_contraction import FAMILY, moved_bytes, objection
from .gpu_mma_body import Mma
from .gpu_mma_operands import filled
from .gpu_mma_product import Product, product_of
from .gpu_model import WARP, Work, chip_of, seconds
from .gpu_parts import adding, scratch_bytes
from .ir import Launch
from .template import Config, falling

WARP_TILES: Final = (
    (128, 256, 64, 64), (256, 128, 64, 64), (128, 128, 64, 64), (128, 128, 64, 32),
    (128, 64, 64, 32), (64, 128, 32, 64), (64, 64, 32, 32), (32, 64, 16, 32), (64, 32, 32, 16),
    (16, 128, 16, 32), (128, 16, 32, 16),
)  # fmt: skip
"""m, n of a block and of a warp, from the most to the fewest multiply-adds per byte copied."""
LEAST_M: Final = min(m for m, *_ in WARP_TILES)
LINES: Final = (64, 128)  # bytes of terms in a tile
STAGES: Final = (2, 3, 4)
MOST_SHARED: Final = 99 << 10  # bytes that a block may have on every device from sm_80 on
MOST_PARTS: Final = 16
LEAST_ROUNDS: Final = 4  # of a part
IDLE: Final = 2  # blocks of a multiprocessor, with fewer of them sums may fall into parts
DEFAULT_STAGES: Final = 4
SYNCHRONOUS: Final = 0.65
"""Of the peak, which takes the instructions of warp groups on newer devices, that mma.sync reaches:
a guess."""
AHEAD: Final = 0.35
"""Of the copies' latency that is left with one more stage: a guess."""
SHARED_COST: Final = 4.0
"""Multiply-adds that a row or column of a warp's tile, read from shared memory, costs: a guess."""
FRAGMENT: Final = 16
"""Registers of a warp for a row or column of fragments, two steps of the sum."""
OTHER_REGISTERS: Final = 40
KINDS: Final = {"f16": "half", "bf16": "half", "tf32": "tf32"}
DEFAULTS: Final = ((128, 128, 64, 64), (128, 64, 64, 32), (64, 64, 32, 32), (32, 64, 16, 32),
                   (16, 128, 16, 32), (128, 16, 32, 16))  # fmt: skip


class GpuMma:
    """Configs: `m`, `n`, `k` of a block's tile, `wm`, `wn` of a warp's, `stages` of the ring,
    `parts` of the sum.

    tf32: whether sums of products in float32 are computed so as well, with factors rounded to 10
    bits behind the point. one_order: all configs add in the same order, so that no sum falls into
    parts; and products of any number of rows are taken, as a batch may be one row and the next a
    hundred.
    """

    name = "gpu_mma"
    version = 2
    family = FAMILY

    def __init__(self, tf32: bool = False, *, one_order: bool = False) -> None:
        self.tf32, self.one_order = tf32, one_order

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return not self.objection(graph, ops, outputs)

    def objection(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> str:
        """Why it does not take a group, "" where it does."""
        return objection(lambda: self._product(graph, ops, outputs))

    def _product(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> Product:
        """Raises Unfit."""
        return filled(graph, product_of(graph, ops, outputs, self.tf32, self.one_order))

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        product = self._product(graph, ops, outputs)
        found = _configs(product, WARP_TILES, STAGES)
        return [*found, *self._split(product, found, device)]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """Of a few tiles, the one that should take the least time, the largest of equals."""
        product = self._product(graph, ops, outputs)
        return min(self._choices(product, device),
                   key=lambda c: _seconds(graph, product, c, device))  # fmt: skip

    def _choices(self, product: Product, device: Device) -> list[Config]:
        """A few of the space."""
        tiles = _configs(product, DEFAULTS, (DEFAULT_STAGES,))
        return [*tiles, *self._split(product, tiles, device)]

    def _split(self, product: Product, tiles: Sequence[Config], device: Device) -> list[Config]:
        """The tiles with the sum in parts of as many rounds each, where tiles alone would leave
        multiprocessors idle; as many parts as fill them, and fewer."""
        if self.one_order:
            return []
        most = IDLE * chip_of(device).multiprocessors
        found = []
        for c in tiles:
            rounds, blocks = -(-product.k // c["k"]), _blocks(product, c)
            small = c["m"] < 2 * max(product.p.m, LEAST_M)  # half of the tile has rows
            if c["stages"] == DEFAULT_STAGES and small:
                found += [{**c, "parts": n} for n in range(2, MOST_PARTS + 1)
                          if rounds % n == 0 and rounds // n >= LEAST_ROUNDS
                          and n * blocks <= most]  # fmt: skip
        return found

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """Sums in fewer parts, or in none."""
        product = self._product(graph, ops, outputs)
        return falling((_seconds(graph, product, c, device), _scratch_bytes(product, c), c)
                       for c in self._choices(product, device))  # fmt: skip

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds (see `gpu_model`)."""
        product = self._product(graph, ops, outputs)
        return _seconds(graph, product, config, device)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        product = self._product(graph, ops, outputs)
        return Mma(graph, product, config).launch(self.name, self.version)


def _configs(
    product: Product, tiles: Sequence[tuple[int, int, int, int]], stages: Sequence[int]
) -> list[Config]:  # fmt: skip
    """All that fit in shared memory, with 16 bytes at least of both operands for every thread."""
    found = []
    for m, n, wm, wn in tiles:
        threads = m // wm * (n // wn) * WARP
        for line in LINES:
            if min(m, n) * line >= 16 * threads:
                k = line // product.left.dtype.bytes
                found += [{"m": m, "n": n, "k": k, "wm": wm, "wn": wn, "stages": s, "parts": 1}
                          for s in stages]  # fmt: skip
    return [c for c in found if shared_bytes(product, c) <= MOST_SHARED]


def shared_bytes(product: Product, config: Config) -> int:
    """Of a block: the ring of tiles."""
    rows = config["m"] + config["n"]
    return int(rows * config["k"] * product.left.dtype.bytes * config["stages"])


def _scratch_bytes(product: Product, config: Config) -> int:
    p = product.p
    return scratch_bytes(config["parts"], p.batch * p.m * p.n, product.total)


def _blocks(product: Product, config: Config) -> int:
    p = product.p
    return p.batch * -(-p.m // config["m"]) * -(-p.n // config["n"]) * int(config["parts"])


def _seconds(graph: Graph, product: Product, config: Config, device: Device) -> float:
    p, size, chip = product.p, product.left.dtype.bytes, chip_of(device)
    m, n, wm, wn, parts = (config[x] for x in ("m", "n", "wm", "wn", "parts"))
    ahead = 1 - AHEAD ** (config["stages"] - 1)
    kept = wm * wn // WARP  # of a thread's registers, sums
    fragments = (wm + wn) * FRAGMENT // WARP
    rounds = -(-product.k // config["k"]) // parts
    terms = rounds * config["k"]
    first = seconds(chip, Work(
        _blocks(product, config), m // wm * (n // wn) * WARP, kept + fragments + OTHER_REGISTERS,
        shared_bytes(product, config), KINDS.get(product.kind, "byte"), m * n * terms,
        (m + n) * terms * size, moved_bytes(graph, p.out, p.value),
        SYNCHRONOUS * ahead * wm * wn / (wm * wn + SHARED_COST * (wm + wn)),
        rounds, config["stages"] - 1,
    ))  # fmt: skip
    return first + adding(chip, _scratch_bytes(product, config))
