"""Random ONNX models made of every maker there is."""

from __future__ import annotations

from . import onnx_blocks, onnx_makers, onnx_movers  # noqa: F401  register their makers
from .onnx_models import Case, Grower


def random_model(seed: int, nodes: int) -> Case:
    """A model of at least `nodes` nodes, a block more at most. The same for the same arguments."""
    return Grower(seed).grow(nodes)
