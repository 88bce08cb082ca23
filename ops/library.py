"""Imports every family of operators, which registers them."""

from __future__ import annotations

from . import (
    activations,
    convolution,
    creation,
    elementwise,
    indexing,
    logic,
    matmul,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
    sorting,
)

__all__ = [
    "activations",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "logic",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "sorting",
]
