"""Which convolutions are computed by Winograd's algorithm, and with which tile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from ...ops.types import TensorType, f32
from ...ops.windows import WINDOW_ATTRS, Window, slide
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import Pass
from .convolutions import Algorithm, algorithm
from .layout import PLANAR_CHANNELS
from .rewrite import SourceRewriter

MARK: Final = "winograd"
"""The attribute that says how many results per axis a tile has."""

TILES: Final = (2, 4)
FEW_ROWS: Final = 9  # multiply-adds of a register tile that hide their latency
ROWS: Final = 28  # of the largest register tile, a vector wide
PLACE_SLOTS: Final = 5.0  # multiply-adds that one place of a transformed tile takes, per vector
LINE: Final = 64  # bytes of weights that arrive together
LINE_SLOTS: Final = 12.0  # multiply-adds while a core waits for its share of memory's bandwidth
GAIN: Final = 1.1  # that another way of rounding must be worth


@dataclass(frozen=True, slots=True)
class ChooseWinograd(Pass):
    """Set `winograd` of the convolutions that an estimate finds faster that way.

    Not for numerics "reproducible": a tile's results depend on what else lies in the tile.
    block: channels per block of the target.
    """

    block: int

    def run(self, graph: Graph) -> Graph:
        rewriter = SourceRewriter(graph)

        def visit(op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...] | None:
            found = marked(graph, op, self.block)
            if found is op:
                return None
            return rewriter.op(op.operator, *inputs, out=op.outputs, **found.attributes)

        return rewriter.run(visit)


def marked(graph: Graph, op: Op, block: int) -> Op:
    """The op with the size of tile that it should be computed with, if with any."""
    m = tile_size(graph, op, block)
    return replace(op, attrs=tuple((k, m if k == MARK else v) for k, v in op.attrs)) if m else op


def tile_size(graph: Graph, op: Op, block: int) -> int:
    """Results per axis that one tile should have; 0 where a direct sum is as fast, or the only way.

    Winograd's algorithm serves windows of 3 x 3 places without gaps.
    """
    if algorithm(graph, op, block) is not Algorithm.DIRECT or op.attr("group") != 1:
        return 0
    x, w = graph.type(op.reads[0]), graph.type(op.reads[1])
    if x.dtype is not f32 or x.rank != 4 or x.dims[1] <= PLANAR_CHANNELS:
        return 0
    window = slide(x.dims[2:], w.dims[2:], **{k: op.attr(k) for k in WINDOW_ATTRS})
    if window.kernel != (3, 3) or {*window.strides, *window.dilations} != {1}:
        return 0
    best, least = 0, _direct(x, w, window, block) / GAIN
    for m in TILES:
        cost = _winograd(x, w, window, block, m)
        if cost < least:
            best, least = m, cost
    return best


# Costs count multiply-adds of one vector, by the figures that choose the kernels' configs, too
# (`kernels/winograd_configs.py`). Arithmetic and the stream of weights from memory go on side by
# side: what takes longer decides.


def _direct(x: TensorType, w: TensorType, window: Window, block: int) -> float:
    inside = 1
    for size, out, before in zip(window.input, window.output, window.begin, strict=True):
        inside *= sum(
            max(0, min(out, size + before - tap) - max(0, before - tap)) for tap in range(3)
        )
    vectors = -(-w.dims[0] // block)
    return max(x.dims[0] * inside * x.dims[1] * vectors, _stream(w, 9))


def _winograd(x: TensorType, w: TensorType, window: Window, block: int, m: int) -> float:
    tiles = x.dims[0]
    for out in window.output:
        tiles *= -(-out // m)
    points = (m + 2) ** 2
    inputs, vectors = -(-x.dims[1] // block), -(-w.dims[0] // block)
    rounds = -(-tiles // ROWS)
    rows = max(-(-tiles // rounds), FEW_ROWS) * rounds
    products = points * x.dims[1] * vectors * rows * 1.1
    additions = points * tiles * (inputs + vectors) * PLACE_SLOTS
    return max(products, _stream(w, points)) + additions


def _stream(w: TensorType, places: int) -> float:
    return places * w.dims[0] * w.dims[1] * w.dtype.bytes / LINE * LINE_SLOTS
