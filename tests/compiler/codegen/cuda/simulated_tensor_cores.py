"""Matrix instructions of a warp."""

from __future__ import annotations

from .simulated_warps import Collective

TENSOR_CORES: dict[str, Collective] = {}
