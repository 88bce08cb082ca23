"""Matrix products on the tensor cores of Hopper GPUs, from tiles in shared memory (wgmma), which a
unit of its own copies there (TMA).

It takes sums of products whose factors are read as they are: f16 or bf16, summed up in f32; bytes,
in i32; and under "reduced" f32, rounded to 10 bits behind the point as they are copied. Operands
have to lie in fixed steps that are multiples of 16 bytes (`gpu_matrices`), or are constants, which
are stored so. That covers products of matrices with any transposition and batches, convolutions
with windows of one element, whose channels or places lie side by side, and others with channels
last and constant weights (`gpu_tap_boxes`). Sizes need not be multiples of tiles: zeros come for
what is beyond an operand, and what is beyond the result is not stored. What follows on a sum is
computed while it is in registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

from ...ops.types import DType, bf16, f16, f32, i8, i32, u8
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_contraction import (
    FAMILY,
    LEAST,
    Unfit,
    contraction_of,
    moved_bytes,
    objection,
)
from .gpu_matrices import ROW, Product, product_of
from .gpu_model import Work, chip_of, seconds
from .gpu_parts import adding, rounds_of, scratch_bytes
from .gpu_wgmma_body import Body
from .gpu_wgmma_results import results_of
from .gpu_wgmma_shape import TILE, Shape
from .ir import Kernel, Launch
from .pieces import Buffers
from .template import Config, falling, traffic
from .tensor_map import MOST_DIM

KINDS: Final[Mapping[DType, str]] = {f16: "f16", bf16: "bf16", i8: "s8", u8: "u8", f32: "tf32"}
"""Of instructions, by the type of the factors."""
RATES: Final = {"f16": "half", "bf16": "half", "tf32": "tf32"}  # in `gpu_model`; others "byte"
PROCESSORS: Final = 132  # of an H100 or H200: blocks that run side by side
SHARED_BYTES: Final = 227 << 10  # that a block may have
RESERVE: Final = 1 << 10  # bytes of it for barriers
REGISTERS: Final = 168  # of a thread
EFFICIENCY: Final = 0.85
"""Of the peak that large tiles reach, whose sums become results while nothing is multiplied: a
guess."""
AHEAD: Final = 0.35
"""Of the copies' latency that is left with one more stage: a guess."""
TILES: Final = ((128, 256), (256, 128), (128, 192), (128, 128), (64, 256), (128, 64), (64, 128),
                (64, 64))  # fmt: skip
"""Rows and columns of a block's tile, those with the most multiply-adds per byte first."""
MOST_PARTS: Final = 32
LEAST_ROUNDS: Final = 4  # of a part


class GpuWgmma:
    """Configs: `m`, `n`: a block's tile; `stages`: of it in shared memory; `cluster`: blocks that
    share their tiles of the right operand; `parts` of the sum.

    tf32: whether sums of products in float32 are computed so as well.
    """

    name = "gpu_wgmma"
    version = 2
    family = FAMILY

    def __init__(self, tf32: bool = False) -> None:
        self.tf32 = tf32

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return not self.objection(graph, ops, outputs)

    def objection(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> str:
        """Why it does not take a group, "" where it does."""

        def find() -> None:
            if not _configs(graph, self._tiled(graph, ops, outputs)):
                raise Unfit("no tile fits in shared memory")

        return objection(find)

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return _all(graph, self._tiled(graph, ops, outputs))

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        """The config that should take the least time, the first of equals."""
        p = self._tiled(graph, ops, outputs)
        return min(_all(graph, p), key=lambda c: _seconds(graph, p[c["m"]], c, device))

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """Sums in fewer parts, or in none."""
        p = self._tiled(graph, ops, outputs)
        return falling((_seconds(graph, p[c["m"]], c, device), _scratch_bytes(p[c["m"]], c), c)
                       for c in _all(graph, p))  # fmt: skip

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds (see `gpu_model`)."""
        p = self._product(graph, ops, outputs, Buffers(graph))
        return _seconds(graph, p.tiled(config["m"]), config, device)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        buffers = Buffers(graph)
        p = self._product(graph, ops, outputs, buffers)
        p = p.tiled(config["m"])
        shape = _shape(p, config)
        results = results_of(graph, p, shape, buffers)
        phases = Body(p, shape, results).phase_of(), *results.phases()
        params, args = buffers.parameters()
        kernel = Kernel(
            self.name, self.version, tuple(sorted(config.items())), (*params, *results.scratch),
            phases, p.work, traffic(graph, params, args),
        )  # fmt: skip
        return Launch(kernel, (*args, *(None for _ in results.scratch)), ())

    def _tiled(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]
    ) -> Mapping[int, Product]:  # fmt: skip
        """The product by rows of a tile. Raises Unfit."""
        p = self._product(graph, ops, outputs, Buffers(graph))
        return {m: p.tiled(m) for m in {m for m, _ in TILES}}

    def _product(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], buffers: Buffers
    ) -> Product:
        """Raises Unfit."""
        c = contraction_of(graph, ops, outputs, sums=(f16, bf16, f32, i32))
        if c is None:
            raise Unfit(f"it is no sum of products of {LEAST} rows and columns or more")
        types = [t for t in KINDS if t is not f32 or self.tf32]
        p = product_of(graph, c, buffers, types)
        if max(p.m, p.n, p.k) > MOST_DIM:
            raise Unfit(f"more than {MOST_DIM} rows, columns or terms")
        if c.dtype not in ((f16, bf16, f32) if p.dtype.is_float else (i32,)):
            raise Unfit(f"factors of {p.dtype} with sums of {c.dtype}")
        return p


def _shape(p: Product, config: Config) -> Shape:
    m, n, cluster = config["m"], config["n"], config["cluster"]
    blocks = min(PROCESSORS // cluster, _tiles(p, config))
    held = f32 if p.dtype.is_float else i32
    return Shape(m, n, config["stages"], cluster, KINDS[p.dtype], held, blocks, config["parts"])


def _tiles(p: Product, config: Config) -> int:
    """Of all parts, or pairs of them where clusters take them in pairs."""
    down, over = -(-p.m // (config["m"] * config["cluster"])), -(-p.n // config["n"])
    return int(p.batch * down * over * config["parts"])


def _rounds(p: Product) -> int:
    return -(-p.k * p.dtype.bytes // ROW)


def _scratch_bytes(p: Product, config: Config) -> int:
    return scratch_bytes(config["parts"], p.batch * p.m * p.n, f32)


def _all(graph: Graph, tiled: Mapping[int, Product]) -> list[Config]:
    """Tiles, and where they would leave multiprocessors idle some with the sum in parts."""
    tiles = _configs(graph, tiled)
    found: list[Config] = []
    for k, c in enumerate(tiles):
        if k and {**tiles[k - 1], "stages": 0} == {**c, "stages": 0}:
            continue  # one with more stages was there
        p = tiled[c["m"]]
        rounds, most = _rounds(p), PROCESSORS // (_tiles(p, c) * c["cluster"])
        found += [
            {**c, "parts": n}
            for n in range(2, min(most, MOST_PARTS) + 1)
            if rounds_of(rounds, n)[1] == n and rounds_of(rounds, n)[0] >= LEAST_ROUNDS
        ]
    return [*tiles, *found]


def _configs(graph: Graph, tiled: Mapping[int, Product]) -> list[Config]:
    """Tiles with as many stages as fit, and with fewer; the largest ones only where the matrices
    are not smaller by half."""
    found = []
    for m, n in TILES:
        p = tiled[m]
        if (m > TILE and p.m <= m // 2) or (n > TILE and p.n <= n // 2):
            continue
        for cluster in (1, 2):
            if cluster > 1 and (p.m <= m or n % (TILE * cluster)):
                continue
            for stages in _stages(graph, p, m, n, cluster):
                found.append({"m": m, "n": n, "stages": stages, "cluster": cluster, "parts": 1})
    return found


def _stages(graph: Graph, p: Product, m: int, n: int, cluster: int) -> list[int]:
    """The most that fit, no more than are of use, and two fewer."""
    config = {"m": m, "n": n, "stages": 1, "cluster": cluster, "parts": 1}
    results = results_of(graph, p, _shape(p, config), Buffers(graph))
    room = SHARED_BYTES - RESERVE - sum(x.dtype.bytes * prod(x.shape) for x in results.shared)
    most = min(room // ((m + n) * ROW), 8)
    return sorted({most, max(most - 2, 2)}, reverse=True) if most >= 2 else []


def _seconds(graph: Graph, p: Product, config: Config, device: Device) -> float:
    """A block takes tile after tile: about as long as if a block for each of them came next. Those
    of a cluster copy half of the columns each."""
    m, n, stages, cluster = (config[x] for x in ("m", "n", "stages", "cluster"))
    chip, parts = chip_of(device), config["parts"]
    rounds, size, shape = rounds_of(_rounds(p), parts)[0], p.dtype.bytes, _shape(p, config)
    return adding(chip, _scratch_bytes(p, config)) + seconds(chip, Work(
        _tiles(p, config) * cluster, shape.threads, REGISTERS, (m + n) * ROW * stages + RESERVE,
        RATES.get(shape.kind, "byte"), m * n * rounds * ROW / size,
        (m + n / cluster) * rounds * ROW, moved_bytes(graph, p.out, p.value),
        EFFICIENCY * (1 - AHEAD ** (stages - 1)), rounds, stages - 1,
    ))  # fmt: skip
