"""The list of passes, top to bottom, that turns an imported graph into fusion groups."""

from __future__ import annotations

from .base import Pass
from .canonicalize import Canonicalize
from .convolutions import UnfoldConvolutions
from .cse import CommonSubexpressions
from .dce import DeadCode
from .decompose import Decompose
from .fold_constants import FoldConstants
from .fold_scales import FoldScales
from .fuse import Fuse
from .layout import AssignLayout
from .place import Place


def cpu_pipeline(channel_block: int) -> tuple[Pass, ...]:
    """Passes for a CPU whose kernels take `channel_block` channels at a time."""
    return (
        Decompose(),
        Canonicalize(),
        FoldConstants(),
        FoldScales(),
        UnfoldConvolutions(channel_block),
        CommonSubexpressions(),
        DeadCode(),
        AssignLayout(channel_block),
        FoldConstants(),
        DeadCode(),
        Fuse(),
        Place(),
    )
