"""The list of passes, top to bottom, that turns an imported graph into fusion groups."""

from __future__ import annotations

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


def cpu_pipeline(channel_block: int) -> tuple[Pass, ...]:
    """Passes for a CPU whose kernels take `channel_block` channels at a time."""
    return (
        Decompose(),
        Canonicalize(),
        FoldConstants(),
        FoldScales(),
        ChannelOrder(),
        UnfoldConvolutions(channel_block),
        CommonSubexpressions(),
        DeadCode(),
        AssignLayout(channel_block),
        FoldConstants(),
        DeadCode(),
        Fuse(),
    )
