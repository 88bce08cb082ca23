"""Imports every family of operators, which registers them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from . import (
    activations,
    convolution,
    creation,
    einsum,
    elementwise,
    indexing,
    layout,
    logic,
    matmul,
    movement,
    normalization,
    patches,
    pooling,
    recurrent,
    reduction,
    resize,
    sampling,
    scans,
    scatter,
    slicing,
    sorting,
    unfolding,
)
from .operator import REGISTRY, Operator

BUILT_IN: Final[Mapping[str, Operator]] = MappingProxyType(dict(REGISTRY))
"""The operators that are declared here; others are their users' own."""

__all__ = [
    "BUILT_IN",
    "activations",
    "convolution",
    "creation",
    "einsum",
    "elementwise",
    "indexing",
    "layout",
    "logic",
    "matmul",
    "movement",
    "normalization",
    "patches",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "sampling",
    "scans",
    "scatter",
    "slicing",
    "sorting",
    "unfolding",
]
