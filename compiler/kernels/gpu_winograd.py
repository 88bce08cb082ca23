"""Winograd convolution F(2 x 2, 3 x 3) and F(4 x 4, 3 x 3) on GPUs, for float32.

Three CUDA kernels: inputs are transformed, multiplied as matrices at each of the 16 or 36 places of
a tile, and transformed to results (`gpu_winograd_phases`). Of the multiply-adds of a direct sum,
1 / 2.25 or 1 / 4 are left; what goes through memory between the kernels is 16/4 or 36/16 times the
input and as many times the result. So it depends on the device and on the sizes which is faster:
this template and `gpu_tiles` are rivals, whose estimates decide, and a search tries both.

Weights are transformed when a program is linked, by the recipe that kernels for CPUs use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...ops.operator import Contraction
from ...ops.types import f32
from ...ops.windows import WINDOW_ATTRS, slide
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_contraction import FAMILY, contraction_of
from .gpu_model import LAUNCH, WAVE, Work, chip_of, seconds
from .gpu_tiles import GpuTiles
from .gpu_winograd_phases import THREADS, Extents, GpuConv, Writer, formal, found_results
from .inplace import overwritable
from .ir import Kernel, Launch
from .template import Config, falling, required

SIZES: Final = (4, 2)
"""Results of a tile per axis, the better one first."""
REGISTERS: Final = 96
"""Of a thread that transforms a tile, about."""
ADDITIONS: Final = {2: 32.0, 4: 160.0}
"""Operations of one tile's transform, about."""
MOST_SCRATCH: Final = 1 << 30
"""Bytes between the kernels."""
NAMES: Final = {"m": "rows", "n": "columns"}
"""Of `gpu_tiles`' fields, where ours mean something else."""


class GpuWinograd:
    """Configs: `m`, results of a tile per axis; `rows`, `columns`, `k`, `tm`, `tn`, `stages` of the
    products, as `m`, `n` and so on of `gpu_tiles`.

    Not for numerics "reproducible": how a result is rounded depends on what else lies in its tile.
    """

    name = "gpu_winograd"
    version = 1
    family = FAMILY

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return _group(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return _configs(_require(graph, ops, outputs), device)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        return _default(_require(graph, ops, outputs), device)

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """The other size of tiles, if it leaves less between the kernels."""
        p = _require(graph, ops, outputs)
        return falling((_seconds(p, device, c), _scratch(Extents.of(p, c["m"])), c)
                       for c in _configs(p, device))  # fmt: skip

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds."""
        return _seconds(_require(graph, ops, outputs), device, config)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        p = _require(graph, ops, outputs)
        w = Writer(p, config["m"])
        phases = w.phases(device, _theirs(config))
        params, e = w.params, w.e
        kernel = Kernel(
            self.name, self.version, tuple(sorted(config.items())), params.buffers, phases,
            2 * p.products, params.traffic, overwritable(params.buffers, phases),
            2 * e.points * e.depth * e.channels * e.tiles.count,
        )  # fmt: skip
        return Launch(kernel, params.args, ())


TILES: Final = GpuTiles()


def _group(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> GpuConv | None:
    """The convolution that a group begins with, if tiles serve it."""
    conv, *after = ops
    trait = conv.definition.trait(Contraction)
    if trait is None or trait.kind != "conv" or not outputs or conv.attr("group") != 1:
        return None
    x, w = (graph.type(n) for n in conv.reads[:2])
    y = graph.type(conv.outputs[0])
    if {x.dtype, w.dtype, y.dtype} != {f32} or x.rank != 4 or not y.size:
        return None
    if not graph.is_constant(conv.reads[1]) or x.layout.is_blocked or y.layout.is_blocked:
        return None
    window = slide(x.dims[2:], w.dims[2:], **{k: conv.attr(k) for k in WINDOW_ATTRS})
    if window.kernel != (3, 3) or {*window.strides, *window.dilations} != {1}:
        return None
    found = found_results(graph, after, conv.outputs[0], outputs)
    if found is None or contraction_of(graph, (conv,), conv.outputs) is None:
        return None  # too few channels or places for tiles
    p = GpuConv(graph, conv, window, formal(y.dims), found)
    return p if _extents(p) else None


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> GpuConv:
    return required(_group(graph, ops, outputs), GpuWinograd.name, ops)


def _extents(p: GpuConv) -> list[Extents]:
    """Of all sizes of tiles whose products `gpu_tiles` computes, and which leave memory enough."""
    found = []
    for e in (Extents.of(p, m) for m in SIZES):
        g = e.product
        if _scratch(e) <= MOST_SCRATCH and TILES.matches(g, g.ops, g.outputs):
            found.append(e)
    return found


def _configs(p: GpuConv, device: Device) -> list[Config]:
    """Every tile of the products, for each size; none that falls into parts."""
    products = ((e.m, e.product) for e in _extents(p))
    return [_ours(m, c) for m, g in products for c in TILES.space(g, g.ops, g.outputs, device)
            if c["parts"] == 1]  # fmt: skip


def _scratch(e: Extents) -> int:
    return f32.bytes * e.points * e.pitch * (e.depth + e.width)


def _ours(m: int, c: Config) -> Config:
    return {"m": m, **{NAMES.get(k, k): v for k, v in c.items() if k != "parts"}}


def _theirs(config: Config) -> Config:
    back = {ours: theirs for theirs, ours in NAMES.items()}
    return {"parts": 1, **{back.get(k, k): v for k, v in config.items() if k != "m"}}


# --------------------------------------------------------------------------- what it takes


def _default(p: GpuConv, device: Device) -> Config:
    """The one that should take the least time, the first of equals."""
    return min(_configs(p, device), key=lambda c: _seconds(p, device, c))


def _seconds(p: GpuConv, device: Device, config: Config) -> float:
    """All three kernels, one after the other. The products read 16 / 9 or 4 times as many weights
    as a direct sum."""
    e, chip = Extents.of(p, config["m"]), chip_of(device)
    g = e.product
    products = TILES.estimate(g, g.ops, g.outputs, device, _theirs(config))
    weights = LAUNCH + WAVE + f32.bytes * e.points * e.depth * e.width / chip.memory
    return (
        _transform(device, e, e.depth, p.x.size)
        + max(products, weights)
        + _transform(device, e, e.channels, p.y.size * p.passes)
    )


def _transform(device: Device, e: Extents, channels: int, outside: int) -> float:
    """One of the other kernels. outside: elements of images that it reads or writes. What lies
    between two kernels is written once and read once; all of it goes through the second cache, and
    through memory where it is too much for that."""
    chip = chip_of(device)
    bytes_ = f32.bytes * (2 * e.points * e.pitch * channels + outside)
    blocks = -(-channels * e.pitch // THREADS)
    work = Work(blocks, THREADS, REGISTERS, 0, "f32", THREADS * ADDITIONS[e.m], bytes_ / blocks,
                bytes_ if bytes_ > chip.cache_bytes else 0.0)  # fmt: skip
    return seconds(chip, work)
