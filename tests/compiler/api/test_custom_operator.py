"""A model's own operators compile once they are declared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import tilewright as tw
from tilewright.compiler.errors import UnsupportedOperator
from tilewright.ops.operator import REGISTRY, Elementwise


def model() -> ModelProto:
    node = helper.make_node("Lift", ["x"], ["y"], name="lift", domain="com.acme", by=3.0)
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["y"], ["z"], name="relu")],
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 3])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    return helper.make_model(graph, opset_imports=opsets)


@pytest.fixture
def lift() -> Iterator[None]:
    @tw.operator("lift", attrs={"by": 1.0}, traits=(Elementwise(),))
    class Lift:
        """x + by."""

        def infer(x: Any, *, by: float) -> Any:  # type: ignore[misc]
            return x

        def compute(x: Any, *, by: float) -> Any:  # type: ignore[misc]
            return x + by

        def reference(x: Any, *, by: float) -> Any:  # type: ignore[misc]
            return x + by

    yield
    del REGISTRY["lift"]


def test_unknown_it_is_named_with_what_to_do() -> None:
    with pytest.raises(UnsupportedOperator, match=r"(?s)Lift .*'lift'.*tw\.operator"):
        tw.compile(model())


@pytest.mark.usefixtures("lift")
def test_declared_it_compiles_and_fuses() -> None:
    exe = tw.compile(model())
    x = np.array([[-9, 0, 1], [-3, -2, 5]], np.float32)
    np.testing.assert_array_equal(exe(x), np.maximum(x + 3, 0))
    assert len(exe.kernels) == 1
