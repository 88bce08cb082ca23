"""The list of passes, top to bottom, that turns an imported graph into fusion groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...ops.types import HALF, f32, f64
from ..errors import OptionError
from ..graph.ir import Graph
from ..options import Numerics
from ..text import nearest
from .attention import AttentionKernel
from .base import Pass
from .canonicalize import Canonicalize
from .channel_order import ChannelOrder
from .channels_last import ChannelsLast
from .convolutions import UnfoldConvolutions
from .cse import CommonSubexpressions
from .dce import DeadCode
from .decompose import Decompose
from .fold_constants import FoldConstants
from .fold_scales import FoldScales
from .fuse import Fuse
from .layout import AssignLayout
from .place import Place
from .resampling import SeparateAxes
from .widen import Widen
from .winograd import ChooseWinograd

WIDEST_ACCESS: Final = 16
"""Bytes that a thread of a GPU reads at once, from a multiple of as many: where parts begin."""
ATTENTION_WIDTHS: Final = (8, 128)
"""Of heads, at least and at most, for which GPUs have one kernel for a whole attention."""


def cpu_pipeline(channel_block: int, numerics: Numerics = "standard") -> tuple[Pass, ...]:
    """Passes for a CPU whose kernels take `channel_block` channels at a time."""
    faster = () if numerics == "reproducible" else (ChooseWinograd(channel_block),)
    return (
        Decompose(),
        Canonicalize(),
        FoldConstants(),
        FoldScales(),
        ChannelOrder(),
        UnfoldConvolutions(channel_block),
        CommonSubexpressions(),
        DeadCode(),
        *faster,
        AssignLayout(channel_block),
        SeparateAxes(),
        FoldConstants(),
        DeadCode(),
        Fuse(),
        Place(),
    )


def gpu_pipeline(numerics: Numerics = "standard") -> tuple[Pass, ...]:
    """Passes for a GPU: row-major but around convolutions on tensor cores and depthwise ones. Its
    kernels copy channels 16 bytes at a time, which is in their order."""
    attention = AttentionKernel((*HALF, f32), *ATTENTION_WIDTHS, casts=True, scales=True)
    return (
        Decompose(),
        Canonicalize(),
        FoldConstants(),
        FoldScales(),
        ChannelOrder(),
        CommonSubexpressions(),
        DeadCode(),
        ChannelsLast((*HALF, f32) if numerics == "reduced" else HALF),
        Fuse(attention, products=(f32, f64, *HALF), choices=False),
        Widen(),
        Place(WIDEST_ACCESS),
    )


def remaining(passes: Sequence[Pass], graph: Graph) -> tuple[Pass, ...]:
    """Those of a pipeline that a graph has not been through: all of them, or, where its ops are in
    groups (a stage that was printed, perhaps edited, and read again), those behind fusion, or none
    where blobs have their places already."""
    if not any(op.group is not None for op in graph.ops):
        return tuple(passes)
    if any(b.inside is not None for b in graph.blobs.values()):
        return ()
    behind = [k + 1 for k, p in enumerate(passes) if isinstance(p, Fuse)]
    return tuple(passes[max(behind, default=0) :])


def named(passes: Sequence[Pass], names: Sequence[str]) -> tuple[Pass, ...]:
    """The passes of a pipeline that are called so, in the order of the names. Raises OptionError
    with the nearest names for what is none."""
    known = {p.name: p for p in passes}
    for n in names:
        if n not in known:
            raise OptionError(f"there is no pass {n!r}{nearest(n, known)}; "
                              f"the passes are {', '.join(known)}")  # fmt: skip
    return tuple(known[n] for n in names)
