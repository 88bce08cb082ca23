"""Products on the tensor cores of GPUs from sm_80 on, by `mma.sync`.

What is computed so stands in `gpu_mma_product`, how operands reach shared memory in
`gpu_mma_operands`, the kernel in `gpu_mma_body`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..graph.ir import Graph, Op
from .device import Device
from .gpu_mma_body import Mma
from .gpu_mma_product import Product, product_of
from .gpu_model import WARP, Work, chip_of, seconds
from .ir import Launch
from .template import Config, required

WARP_TILES: Final = (
    (128, 256, 64, 64), (256, 128, 64, 64), (128, 128, 64, 64), (128, 128, 64, 32),
    (128, 64, 64, 32), (64, 128, 32, 64), (64, 64, 32, 32), (32, 64, 16, 32), (64, 32, 32, 16),
)  # fmt: skip
"""m, n of a block and of a warp, from the most to the fewest multiply-adds per byte copied."""
LINES: Final = (64, 128)  # bytes of terms in a tile
STAGES: Final = (2, 3, 4)
MOST_SHARED: Final = 99 << 10  # bytes that a block may have on every device from sm_80 on
DEFAULT_LINE: Final = 64
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
_KINDS: Final = {"f16": "half", "bf16": "half", "tf32": "tf32"}
DEFAULTS: Final = ((128, 128, 64, 64), (128, 64, 64, 32), (64, 64, 32, 32), (32, 64, 16, 32))


class GpuMma:
    """Configs: `m`, `n`, `k` of a block's tile, `wm`, `wn` of a warp's, `stages` of the ring.

    tf32: whether sums of products in float32 are computed so as well, with factors rounded to 10
    bits behind the point.
    """

    name = "gpu_mma"
    version = 1

    def __init__(self, tf32: bool = False) -> None:
        self.tf32 = tf32

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return product_of(graph, ops, outputs, self.tf32) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        product = required(product_of(graph, ops, outputs, self.tf32), self.name, ops)
        found = [_config(product, tile, line, stages)
                 for tile in WARP_TILES for line in LINES for stages in STAGES]  # fmt: skip
        return [c for c in found if shared_bytes(product, c) <= MOST_SHARED]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """Of a few tiles, the one that should take the least time, the largest of equals."""
        product = required(product_of(graph, ops, outputs, self.tf32), self.name, ops)
        tiles = [_config(product, tile, DEFAULT_LINE, DEFAULT_STAGES) for tile in DEFAULTS]
        return min(tiles, key=lambda c: _seconds(graph, product, c, device))

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds (see `gpu_model`)."""
        product = required(product_of(graph, ops, outputs, self.tf32), self.name, ops)
        return _seconds(graph, product, config, device)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        product = required(product_of(graph, ops, outputs, self.tf32), self.name, ops)
        return Mma(graph, product, config).launch(self.name, self.version)


def _config(product: Product, tile: tuple[int, int, int, int], line: int, stages: int) -> Config:
    m, n, wm, wn = tile
    k = line // product.left.dtype.bytes
    return {"m": m, "n": n, "k": k, "wm": wm, "wn": wn, "stages": stages}


def shared_bytes(product: Product, config: Config) -> int:
    """Of a block: the ring of tiles."""
    rows = config["m"] + config["n"]
    return int(rows * config["k"] * product.left.dtype.bytes * config["stages"])


def _blocks(product: Product, config: Config) -> int:
    p = product.p
    return p.batch * -(-p.m // config["m"]) * -(-p.n // config["n"])


def _seconds(graph: Graph, product: Product, config: Config, device: Device) -> float:
    p, size = product.p, product.left.dtype.bytes
    m, n, wm, wn = (config[x] for x in ("m", "n", "wm", "wn"))
    ahead = 1 - AHEAD ** (config["stages"] - 1)
    kept = wm * wn // WARP  # of a thread's registers, sums
    fragments = (wm + wn) * FRAGMENT // WARP
    return seconds(chip_of(device), Work(
        _blocks(product, config), m // wm * (n // wn) * WARP, kept + fragments + OTHER_REGISTERS,
        shared_bytes(product, config), _KINDS.get(product.kind, "byte"), m * n * product.k,
        (m + n) * product.k * size, moved(graph, p.out, product, size),
        SYNCHRONOUS * ahead * wm * wn / (wm * wn + SHARED_COST * (wm + wn)),
    ))  # fmt: skip


def moved(graph: Graph, out: str, product: Product, size: int) -> int:
    """Bytes of both operands and the result, each once."""
    p = product.p
    read = p.batch * (p.m + p.n) * product.k * size
    return read + p.batch * p.m * p.n * graph.type(out).dtype.bytes
