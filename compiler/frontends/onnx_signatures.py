"""Names of ONNX inputs that an operator may take as attributes.

ONNX turned many attributes into inputs over its versions (`axes` of Squeeze in opset 13, `pads` of
Pad in 11, ...). An input listed here becomes the attribute of that name when the operator declares
one, so that old and new models look alike and constants need no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Formal = tuple[tuple[str, ...], bool]  # names an attribute may have; whether it is a list


def _list(*names: str) -> Formal:
    return names, True


def _scalar(*names: str) -> Formal:
    return names, False


_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

# Position of the input -> attribute.
FORMAL: Final[Mapping[str, Mapping[int, Formal]]] = {
    "CenterCropPad": {1: _list("shape")},
    "Clip": {1: _scalar("min"), 2: _scalar("max")},
    "Col2Im": {1: _list("image_shape"), 2: _list("block_shape")},
    "CumProd": {1: _scalar("axis")},
    "CumSum": {1: _scalar("axis")},
    "Expand": {1: _list("shape")},
    "MaxUnpool": {2: _list("output_shape")},
    "OneHot": {1: _scalar("depth"), 2: _list("values")},
    "Pad": {1: _list("pads"), 2: _scalar("constant_value", "value"), 3: _list("axes")},
    "Range": {0: _scalar("start"), 1: _scalar("limit"), 2: _scalar("delta")},
    "Reshape": {1: _list("shape")},
    "Slice": {1: _list("starts"), 2: _list("ends"), 3: _list("axes"), 4: _list("steps")},
    "Split": {1: _list("split")},
    "Squeeze": {1: _list("axes")},
    "Tile": {1: _list("repeats")},
    "TopK": {1: _scalar("k")},
    "Trilu": {1: _scalar("k")},
    "Unsqueeze": {1: _list("axes")},
    "Upsample": {1: _list("scales")},
    **{name: {1: _list("axes")} for name in _REDUCTIONS},
}

# Inputs of which only the type and shape matter: the result is constant whatever they hold.
TYPE_ONLY: Final[Mapping[str, frozenset[int]]] = {
    "CastLike": frozenset({1}),
    "EyeLike": frozenset({0}),
}
