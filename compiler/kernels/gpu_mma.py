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
MOST_WASTE: Final = 1.3
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
        """The largest tile of which there are as many as blocks run side by side, among those that
        waste little beyond the last row and column; else the one with the most blocks."""
        product = required(product_of(graph, ops, outputs, self.tf32), self.name, ops)
        tiles = [_config(product, tile, DEFAULT_LINE, DEFAULT_STAGES) for tile in DEFAULTS]
        least = min(_area(product, c) for c in tiles)
        found = [c for c in tiles if _area(product, c) <= MOST_WASTE * least]
        return next((c for c in found if _blocks(product, c) >= device.threads), found[-1])

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


def _area(product: Product, config: Config) -> int:
    """Elements of all tiles of a batch, those beyond the result included."""
    m, n = config["m"], config["n"]
    return -(-product.p.m // m) * m * -(-product.p.n // n) * n


def _blocks(product: Product, config: Config) -> int:
    p = product.p
    return p.batch * -(-p.m // config["m"]) * -(-p.n // config["n"])
