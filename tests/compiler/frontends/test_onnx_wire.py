"""Large tensors are taken out of a serialized model; everything odd is left to protobuf."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.compiler.errors import ModelError
from tilewright.compiler.frontends.onnx import load
from tilewright.compiler.frontends.onnx_wire import LARGE, split

COUNT = LARGE // 4


def model() -> onnx.ModelProto:
    """y = x + small + large + typed: `large` lies between others, and a field behind the graph."""
    rng = np.random.default_rng(0)
    large = rng.standard_normal(COUNT).astype(np.float32)
    tensors = [
        numpy_helper.from_array(np.float32([2.0]), "small"),
        numpy_helper.from_array(large, "large"),
        helper.make_tensor("typed", TensorProto.FLOAT, [COUNT], -large),
    ]
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "small"], ["a"], "first"),
        helper.make_node("Add", ["a", "large"], ["b"], "second"),
        helper.make_node("Add", ["b", "typed"], ["y"], "third"),
    ]
    graph = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, [COUNT])],
        [value("y", TensorProto.FLOAT, [COUNT])], tensors,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.doc_string = "behind the graph"
    return made


def test_large_raw_data_is_taken_out_and_the_rest_is_the_same_model() -> None:
    whole = model()
    data = whole.SerializeToString()
    parts = split(data)
    assert list(parts.tensors) == [1]
    assert parts.tensors[1].tobytes() == whole.graph.initializer[1].raw_data
    assert parts.size == len(data) and len(parts.rest) < len(data) - LARGE
    rest = onnx.ModelProto.FromString(parts.rest)
    whole.graph.initializer[1].ClearField("raw_data")
    assert rest == whole


def test_tensors_are_views_of_the_model_that_cannot_be_changed() -> None:
    data = model().SerializeToString()
    array = split(data).tensors[1]
    assert array.base is data and not array.flags.writeable


def test_constants_are_those_of_the_message() -> None:
    whole = model()
    graphs = [load(source).to_graph() for source in (whole.SerializeToString(), whole)]
    for n in ("small", "large", "typed"):
        a, b = (g.blobs[n].value for g in graphs)
        assert a is not None and b is not None
        np.testing.assert_array_equal(a, b)


def test_small_models_pass_through() -> None:
    m = model()
    del m.graph.initializer[1]
    data = m.SerializeToString()
    parts = split(data)
    assert parts.rest == data and not parts.tensors


def twice(data: bytes) -> bytes:
    return data + data  # protobuf merges the graphs


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def group(data: bytes) -> bytes:
    return data + bytes([15 << 3 | 3])  # the start of a group: an encoding that nobody uses


def endless_number(data: bytes) -> bytes:
    return data + b"\x80" * 12


@pytest.mark.parametrize("damage", [twice, cut_short, group, endless_number])
def test_odd_bytes_are_left_to_protobuf(damage: object) -> None:
    data = damage(model().SerializeToString())  # type: ignore[operator]
    parts = split(data)
    assert parts.rest == data and not parts.tensors


def test_raw_data_of_a_wrong_length_is_an_error() -> None:
    m = model()
    m.graph.initializer[1].raw_data += b"\0"
    with pytest.raises(ModelError, match=rf"'large'.* needs {COUNT * 4} bytes"):
        load(m.SerializeToString())


def test_a_truncated_file_is_reported_with_its_size() -> None:
    data = cut_short(model().SerializeToString())
    with pytest.raises(ModelError, match=rf"\({len(data)} bytes\)"):
        load(data)
