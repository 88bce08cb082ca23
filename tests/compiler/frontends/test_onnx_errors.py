"""Broken models: every one raises an error of ours that says where the trouble is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.compiler.errors import (
    GraphError,
    ModelError,
    OptionError,
    TilewrightError,
    UnsupportedOperator,
)
from tilewright.compiler.frontends.onnx import load, read

F = TensorProto.FLOAT


def value(name: str, shape: list[int | str] | None = None, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [2, 3] if shape is None else shape)


def model(nodes, inputs=("x",), outputs=("y",), initializers=(), opset=17, **more):
    def info(v):
        return value(v) if isinstance(v, str) else v

    graph = helper.make_graph(
        list(nodes), "g", [info(v) for v in inputs], [info(v) for v in outputs], list(initializers)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **more)


def relu(x: str = "x", y: str = "y", name: str = "") -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y], name=name)


def refuse(source, *parts: str, error: type[Exception] = ModelError, **more) -> None:
    with pytest.raises(error) as e:
        read(source, **more)
    assert isinstance(e.value, TilewrightError)
    for part in parts:
        assert part in str(e.value), str(e.value)


def test_damaged_files(tmp_path: Path) -> None:
    data = model([relu()]).SerializeToString()
    path = tmp_path / "net.onnx"
    refuse(tmp_path / "none.onnx", "none.onnx", "No such file")
    refuse(tmp_path, "cannot be read")
    path.write_bytes(b"")
    refuse(path, "empty")
    path.write_bytes(b"\x00\xff not a model")
    refuse(path, "net.onnx", "truncated or damaged")
    path.write_text("ir_version: 8")
    refuse(path, "net.onnx")
    refuse(data[: len(data) // 2], "truncated or damaged")
    refuse(helper.make_tensor("t", F, [1], [1.0]).SerializeToString(), "")
    refuse(42, "int is not an ONNX model")
    refuse("a\0b", "cannot be read")


def test_every_truncation_and_many_flips_are_refused_cleanly() -> None:
    w = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), relu("h", "y")]
    data = model(nodes, outputs=[value("y", [2, 4])], initializers=[w]).SerializeToString()
    read(data)
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in range(len(data))]
    for _ in range(400):
        flipped = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            flipped[at] = rng.integers(0, 256)
        damaged.append(bytes(flipped))
    outcomes = {True: 0, False: 0}
    for d in damaged:
        try:
            read(d)
            outcomes[True] += 1
        except TilewrightError as e:
            assert str(e)
            outcomes[False] += 1
    assert outcomes[False] > 300


def test_graphs_without_purpose() -> None:
    refuse(model([], [], []), "neither nodes nor outputs")
    refuse(model([relu()], outputs=[]), "no outputs")
    refuse(onnx.ModelProto(), "nothing to compute")
    refuse(onnx.ModelProto().SerializeToString(), "empty")


def test_names_that_do_not_add_up() -> None:
    refuse(model([relu("nowhere", name="bad")]), "'bad'", "'nowhere'")
    refuse(model([relu(y="z")]), "output 'y' is not made")
    refuse(model([relu(name="a"), relu(name="b")]), "'y' is made twice", "'a'", "'b'")
    refuse(model([relu(y="x")], outputs=["x"]), "also the name of an input")
    refuse(model([relu()], outputs=("y", "y")), "two outputs are called 'y'")
    refuse(model([relu()], inputs=("x", "x")), "two inputs are called 'x'")
    refuse(model([relu()]), "'z'", outputs=["z"])
    twice = [numpy_helper.from_array(np.ones(3, np.float32), "w")] * 2
    refuse(model([relu()], initializers=twice), "initializer 'w' is defined twice")
    unnamed = [numpy_helper.from_array(np.ones(3, np.float32), "")]
    refuse(model([relu()], initializers=unnamed), "without a name")


def test_a_cycle_is_named() -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="first"),
        relu("a", "b", "second"),
        relu("b", "c", "third"),
        relu("c", "y", "after"),
    ]
    with pytest.raises(ModelError) as e:
        read(model(nodes))
    assert "3 nodes form a cycle" in str(e.value)
    assert all(repr(n) in str(e.value) for n in ("first", "second", "third"))
    assert "after" not in str(e.value)


def test_opsets() -> None:
    refuse(model([relu()], opset=6), "opset 6", "version_converter")
    bare = model([relu()])
    del bare.opset_import[:]
    refuse(bare, "opset_import")


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    nodes = [
        helper.make_node("FancyNorm", ["x"], ["a"], name="block3/norm", domain="com.acme"),
        helper.make_node("StringSplit", ["s"], ["t", "n"], name="tok"),
        helper.make_node("NonZero", ["h"], ["z"], name="where"),
        relu("x", "h", "fine"),
        helper.make_node("Add", ["a", "h"], ["after"], name="after"),
        helper.make_node("FancyNorm", ["h"], ["unused"], name="dead", domain="com.acme"),
    ]
    outputs = [value("after"), value("n", kind=TensorProto.INT64),
               value("z", kind=TensorProto.INT64)]  # fmt: skip
    m = model(nodes, ["x", value("s", [1], TensorProto.STRING)], outputs)
    m.opset_import.append(helper.make_opsetid("com.acme", 3))
    with pytest.raises(UnsupportedOperator) as e:
        read(m)
    lines = str(e.value).splitlines()
    assert lines[0] == "3 of 6 nodes can't be compiled"
    table = {line.split()[0]: line for line in lines[1:4]}
    assert "node 'block3/norm'" in table["FancyNorm"]
    assert "(f32[2,3])" in table["FancyNorm"]
    assert "no such operator here (domain com.acme, opset 3)" in table["FancyNorm"]
    assert "(string[1])" in table["StringSplit"]
    assert "strings are not supported" in table["StringSplit"]
    assert "depends on data" in table["NonZero"]
    assert "tw.operator" in lines[4] and lines[4].endswith("these nodes: --outputs h")


def test_shapes_that_depend_on_data_are_listed_with_their_input() -> None:
    shape = value("s", [2], TensorProto.INT64)
    m = model([helper.make_node("Reshape", ["x", "s"], ["y"], name="r")], ["x", shape])
    refuse(m, "node 'r'", "'shape'", "'s' depends on", error=UnsupportedOperator)


def test_types_that_clash_name_the_node() -> None:
    add = helper.make_node("Add", ["x", "z"], ["y"], name="plus")
    refuse(model([add], ["x", value("z", [2, 4])]), "plus", "[2, 3]", "[2, 4]", error=GraphError)
    z = value("z", kind=TensorProto.INT64)
    refuse(model([add], ["x", z]), "plus", "f32[2,3]", "i64[2,3]", error=GraphError)
    soft = helper.make_node("Softmax", ["x"], ["y"], name="soft", axis=5)
    refuse(model([soft]), "soft", "axis 5", error=GraphError)
    x = value("x", [1, 1, 9, 9])
    pool = helper.make_node("MaxPool", ["x"], ["y"], name="p", kernel_shape=[3, 3], pads=[-5] * 4)
    refuse(model([pool], [x], [value("y", [1, 1, 9, 9])]), "'p'", "-5", error=GraphError)


def test_declared_outputs_must_agree() -> None:
    refuse(
        model([relu()], outputs=[value("y", [2, 4])]),
        "'y'",
        "f32[2,4]",
        "f32[2,3]",
        "leave the shape out",
    )
    refuse(model([relu()], outputs=[value("y", [2])]), "'y'")
    refuse(model([relu()], outputs=[value("y", kind=TensorProto.INT64)]), "i64[2,3]")
    read(model([relu()], outputs=[value("y", ["n", 3])]))


def test_sizes_beyond_any_machine() -> None:
    refuse(model([relu()], [value("x", [1 << 31, 1 << 31, 4])]), "'x'", "larger than any machine")
    t = onnx.TensorProto(name="w", data_type=F, dims=[1 << 40, 1 << 40], raw_data=b"")
    refuse(model([relu()], initializers=[t]), "'w'", "larger than any machine")
    shape = numpy_helper.from_array(np.array([1 << 40, 1 << 40]), "s")
    big = helper.make_node("ConstantOfShape", ["s"], ["y"], name="big")
    refuse(model([big], [], initializers=[shape]), "'big'", "larger than any machine")
    expand = helper.make_node("Expand", ["x", "s"], ["y"], name="wide")
    x = value("x", [1, 1])
    refuse(model([expand], [x], initializers=[shape]), "wide", error=GraphError)
    negative = numpy_helper.from_array(np.array([-2, 3]), "s")
    refuse(model([big], [], initializers=[negative]), "'big'", "negative dimension")


def test_attributes_of_the_wrong_type() -> None:
    def leaky(**attrs):
        return model([helper.make_node("LeakyRelu", ["x"], ["y"], name="leak", **attrs)])

    refuse(leaky(alpha="much"), "'leak'", "'alpha'", "'much'")
    refuse(leaky(alpha=[0.1, 0.2]), "'alpha' must be a float")
    refuse(leaky(alpha=[1, 2]), "'alpha' must be a float")
    refuse(leaky(beta=1.0), "'beta'", error=UnsupportedOperator)
    read(leaky(alpha=1))
    soft = model([helper.make_node("Softmax", ["x"], ["y"], axis=0.5)])
    refuse(soft, "'axis' must be an int", "0.5")
    broken = leaky(alpha=0.5)
    broken.graph.node[0].attribute[0].type = onnx.AttributeProto.TENSOR
    refuse(broken, "'alpha'", "holds none")
    broken.graph.node[0].attribute[0].type = onnx.AttributeProto.INT
    refuse(broken, "'alpha'")
    twice = leaky(alpha=0.5)
    twice.graph.node[0].attribute.append(twice.graph.node[0].attribute[0])
    refuse(twice, "'alpha' twice")
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="c", kernel_shape=[5, 5])
    w = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    m = model([conv], [value("x", [1, 1, 9, 9])], [value("y", [1, 1, 7, 7])], [w])
    refuse(m, "'c'", "[5, 5]", "f32[1,1,3,3]")
    no_value = model([helper.make_node("Constant", [], ["y"], name="k")], [])
    refuse(no_value, "'k'", "no value")


def test_missing_inputs() -> None:
    refuse(model([helper.make_node("Clip", [], ["y"], name="c")]), "'c'", "input 0")
    refuse(model([helper.make_node("Add", ["x", ""], ["y"], name="a")]), "a", error=GraphError)
    refuse(model([helper.make_node("", ["x"], ["y"], name="a")]), "'a'", "no operator type")


def test_unbound_dimensions_say_how_to_bind() -> None:
    m = model([relu()], [value("x", ["batch", 3])], [value("y", ["batch", 3])])
    refuse(m, "'x'", "'batch'", "shapes={'x': [1, 3]}")
    assert read(m, {"x": (5, 3)}).type("y").dims == (5, 3)
    assert read(m, {"batch": 4}).type("y").dims == (4, 3)
    refuse(m, "'q'", "'x'", shapes={"q": [1]}, error=OptionError)
    refuse(m, "'q'", "'batch'", shapes={"q": 1}, error=OptionError)
    refuse(m, "dimension 1 of input 'x' is 3 in the model, not 4", shapes={"x": (1, 4)},
           error=OptionError)  # fmt: skip
    refuse(m, "has 1 dimensions", shapes={"x": (1,)}, error=OptionError)
    refuse(m, "negative", shapes={"x": (-1, 3)}, error=OptionError)
    two = model([helper.make_node("Add", ["x", "z"], ["y"])],
                [value("x", ["n", 3]), value("z", ["n", 3])], [value("y", ["n", 3])])  # fmt: skip
    assert read(two, {"x": (5, 3)}).type("z").dims == (5, 3)
    refuse(two, "'n' is 5", shapes={"x": (5, 3), "z": (6, 3)}, error=OptionError)


def test_a_name_that_is_no_text() -> None:
    data = model([relu(name="NAMENAME")]).SerializeToString()
    refuse(data.replace(b"NAMENAME", b"\xff\xfe\xff\xfeNAME"), "UTF-8")
    refuse(data.replace(b"Relu", b"Re\xffu"), "UTF-8")


def test_functions_that_call_themselves() -> None:
    call = helper.make_node("Again", ["a"], ["b"], domain="own")
    f = helper.make_function("own", "Again", ["a"], ["b"], [call], [helper.make_opsetid("", 17)])
    m = model([helper.make_node("Again", ["x"], ["y"], domain="own")], functions=[f])
    refuse(m, "nested more than")
    m.functions.append(f)
    refuse(m, "defined twice")


def test_load_alone_needs_no_shapes() -> None:
    m = load(model([relu()], [value("x", ["n", None])], [value("y", ["n", None])]))
    assert [str(v) for v in m.inputs] == ["f32[n,x.1]"]
    assert not m.is_static
