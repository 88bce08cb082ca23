"""All unknown operators are listed at once, those behind other unknown ones too."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from tilewright.compiler.errors import UnsupportedOperator
from tilewright.compiler.frontends.onnx import read


def test_unknown_operators_behind_unknown_ones_are_listed() -> None:
    nodes = [
        helper.make_node("FancyNorm", ["x"], ["a"], name="first", domain="com.acme"),
        helper.make_node("Relu", ["a"], ["b"], name="known"),
        helper.make_node("FancierNorm", ["b"], ["c"], name="second", domain="com.acme"),
        helper.make_node("Celu", ["c"], ["y"], name="defined by others"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    with pytest.raises(UnsupportedOperator) as caught:
        read(helper.make_model(graph, opset_imports=opsets))
    text = str(caught.value)
    assert text.startswith("2 of 4 nodes can't be compiled")
    assert "'first'" in text and "'second'" in text
    assert "'known'" not in text and "'defined by others'" not in text
