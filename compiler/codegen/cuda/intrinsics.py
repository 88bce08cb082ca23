"""All intrinsics that phases written for one thread may call. Each file describes its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from . import (
    async_copy,
    block_memory,
    bulk_copy,
    fragments,
    mbarriers,
    register_tiles,
    tensor_cores,
    warpgroup_chains,
    warpgroups,
)
from .intrinsic import Intrinsic, Parameter

INTRINSICS: Final[Mapping[str, Intrinsic]] = {
    **block_memory.TABLE, **async_copy.TABLE, **tensor_cores.TABLE, **register_tiles.TABLE,
    **mbarriers.TABLE, **bulk_copy.TABLE, **warpgroups.TABLE, **fragments.TABLE,
    **warpgroup_chains.TABLE,
}  # fmt: skip

__all__ = ["INTRINSICS", "Intrinsic", "Parameter"]
