"""The list of passes, top to bottom, that turns an imported graph into fusion groups."""

from __future__ import annotations

from typing import Final

from ...ops.types import HALF, f32, f64
from ..options import Numerics
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
from .winograd import ChooseWinograd

WIDEST_ACCESS: Final = 16
"""Bytes that a thread of a GPU reads at once, from a multiple of as many: where parts begin."""


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
        FoldConstants(),
        DeadCode(),
        Fuse(),
        Place(),
    )


def gpu_pipeline(numerics: Numerics = "standard") -> tuple[Pass, ...]:
    """Passes for a GPU: row-major but for convolutions on tensor cores, and no kernel takes a whole
    attention."""
    return (
        Decompose(),
        Canonicalize(),
        FoldConstants(),
        FoldScales(),
        ChannelOrder(),
        CommonSubexpressions(),
        DeadCode(),
        ChannelsLast((*HALF, f32) if numerics == "reduced" else HALF),
        Fuse(attention=False, products=(f32, f64, *HALF)),
        Place(WIDEST_ACCESS),
    )
