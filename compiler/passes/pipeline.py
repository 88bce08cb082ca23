"""The list of passes, top to bottom, that turns an imported graph into fusion groups."""

from __future__ import annotations

from typing import Final

from ..options import Numerics
from .base import Pass
from .canonicalize import Canonicalize
from .channel_order import ChannelOrder
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


def gpu_pipeline() -> tuple[Pass, ...]:
    """Passes for a GPU: everything stays row-major, and no kernel takes a whole attention."""
    return (
        Decompose(),
        Canonicalize(),
        FoldConstants(),
        FoldScales(),
        ChannelOrder(),
        CommonSubexpressions(),
        DeadCode(),
        Fuse(attention=False),
        Place(WIDEST_ACCESS),
    )
