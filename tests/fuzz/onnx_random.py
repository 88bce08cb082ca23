"""Random ONNX models made of every maker there is."""

from __future__ import annotations

from . import onnx_blocks, onnx_makers, onnx_movers  # noqa: F401  register their makers
from .onnx_models import Case, Grower


def random_model(seed: int, nodes: int, large: bool = False) -> Case:
    """A model of at least `nodes` nodes, a block more at most. The same for the same arguments.

    large: values of up to 100,000 elements, for which loops are tiled and shared among threads.
    """
    return Grower(seed, large).grow(nodes)
