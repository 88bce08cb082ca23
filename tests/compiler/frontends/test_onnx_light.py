"""The nine architectures that the onnx package ships, against ONNX's own shape inference."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from tilewright.compiler.frontends.onnx import load
from tilewright.compiler.frontends.onnx_tensors import DTYPES

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
SHAPE_ARITHMETIC = {"Constant", "ConstantOfShape", "Shape", "Gather", "Unsqueeze", "Slice"}
NAMES = {"BatchNormalization": "batch_normalization", "MaxPool": "max_pool", "LRN": "lrn",
         "AveragePool": "average_pool", "GlobalAveragePool": "global_average_pool",
         "Dropout": "identity"}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet",
     "squeezenet", "vgg19", "zfnet512"],
)  # fmt: skip
def test_ops_and_types(name: str) -> None:
    path = FOLDER / f"light_{name}.onnx"
    model = load(path)
    graph = model.to_graph()
    proto = onnx.load(path)
    assert graph.outputs == tuple(o.name for o in proto.graph.output)
    wanted = Counter(
        NAMES.get(n.op_type, n.op_type.lower())
        for n in proto.graph.node
        if n.op_type not in SHAPE_ARITHMETIC
    )
    got = Counter(op.operator for op in graph.ops)
    # Weights too large to fold stay ops, and so do the Unsqueezes of those.
    for leftover in ("constant_of_shape", "unsqueeze"):
        got.pop(leftover, None)
    if "reshape" in wanted:  # of constants
        got["reshape"] = wanted["reshape"]
    assert got == wanted

    inferred = onnx.shape_inference.infer_shapes(proto)
    checked = 0
    for value in inferred.graph.value_info:
        if value.name in graph.blobs and value.type.tensor_type.HasField("shape"):
            mine = graph.type(value.name)
            dims = value.type.tensor_type.shape.dim
            assert mine.dtype is DTYPES[value.type.tensor_type.elem_type], value.name
            assert len(dims) == mine.rank, value.name
            for d, m in zip(dims, mine.dims, strict=True):
                assert not d.HasField("dim_value") or d.dim_value == m, value.name
            checked += 1
    assert checked >= len(graph.ops) // 2
