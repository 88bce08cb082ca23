"""What models become: names, provenance, folded shapes, old versions, branches, functions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.compiler.errors import UnsupportedOperator
from tilewright.compiler.frontends.onnx import load, read
from tilewright.compiler.graph.bfloat16 import bits_of, values_of
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph, Role
from tilewright.ops.operator import REGISTRY, operator
from tilewright.ops.types import SymDim, bf16, f32, i64

F, I64, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node


def value(name: str, shape=(2, 3), kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, array) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes, inputs=("x",), outputs=("y",), initializers=(), opset=17, domains=(), **more):
    def info(v):
        return onnx.ValueInfoProto(name=v) if isinstance(v, str) else v

    ins = [value(v) if isinstance(v, str) else v for v in inputs]
    graph = helper.make_graph(list(nodes), "g", ins, [info(v) for v in outputs], initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, **more)


def operators(g: Graph) -> list[str]:
    return [op.operator for op in g.ops]


X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def run(m: onnx.ModelProto, *arrays: np.ndarray) -> np.ndarray:
    g = read(m)
    feeds = dict(zip(g.inputs, arrays or (X,), strict=False))
    (y,) = evaluate(g, feeds, wide=False).values()
    return y


# --------------------------------------------------------------------------- names


def test_nothing_of_onnx_is_loaded_before_a_model_is_read() -> None:
    code = (
        "import sys; from tilewright.compiler.frontends import onnx as f;"
        "assert not any(m.partition('.')[0] in ('onnx', 'google') for m in sys.modules);"
        "f.read(sys.stdin.buffer.read()); assert 'onnx' not in sys.modules"
    )
    data = model([node("Relu", ["x"], ["y"])]).SerializeToString()
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_names_and_provenance() -> None:
    m = model(
        [node("Relu", ["x"], ["h"], name="first"), node("Abs", ["h"], ["i"]),
         node("Abs", ["i"], ["y"]), node("Exp", ["h"], ["z"], name="Abs_1")],
        outputs=("z", "y"),
    )  # fmt: skip
    g = read(m)
    assert (g.name, g.inputs, g.outputs) == ("g", ("x",), ("z", "y"))
    assert {op.name: op.outputs for op in g.ops} == {
        "first": ("h",), "Abs_1_": ("i",), "Abs_2": ("y",), "Abs_1": ("z",)
    }  # fmt: skip
    assert all(op.source == (op.name,) for op in g.ops)


@pytest.mark.parametrize(
    "odd", ['__import__("os")', "a b", '"', "'", "a\nb", "%x: f32[1]", "ü", "x_1"]
)
def test_names_may_be_any_text(odd: str) -> None:
    m = model(
        [node("Relu", [odd + "i"], [odd], name=odd), node("Add", [odd, odd + "w"], [odd + "y"])],
        [value(odd + "i")], [odd + "y"], [constant(odd + "w", np.ones(3, np.float32))],
    )  # fmt: skip
    g = read(m)
    assert g.inputs == (odd + "i",) and g.outputs == (odd + "y",)
    assert g.ops[0].name == odd and g.ops[0].outputs == (odd,)
    assert g.is_constant(odd + "w")
    (y,) = evaluate(g, {odd + "i": X}).values()
    np.testing.assert_array_equal(y, np.maximum(X, 0) + 1)


def test_made_up_names_leave_those_of_the_model_alone() -> None:
    # Softmax of opset 11 over two axes needs helpers, whose obvious names are taken further down.
    nodes = [node("Softmax", ["x"], ["a"], name="s", axis=0)]
    nodes += [
        node("Relu", ["a"], ["s"]),
        node("Relu", ["s"], ["s_1"]),
        node("Relu", ["s_1"], ["y"]),
    ]
    g = read(model(nodes, opset=11))
    assert {op.outputs[0] for op in g.ops} >= {"a", "s", "s_1", "y"}
    assert len(g.ops) == 6


def test_outputs_that_are_inputs_constants_or_another_name() -> None:
    m = model(
        [node("Relu", ["x"], ["h"]), node("Identity", ["h"], ["i"]),
         node("Shape", ["h"], ["s"])],
        outputs=("i", "w", "s", "h", "x"), initializers=[constant("w", np.ones(3, np.float32))],
    )  # fmt: skip
    g = read(m)
    assert g.outputs == ("i", "w", "s", "h", "x.output")
    made = {n for op in g.ops for n in op.outputs}
    assert made >= set(g.outputs)
    out = evaluate(g, {"x": X})
    np.testing.assert_array_equal(out["w"], np.ones(3))
    np.testing.assert_array_equal(out["s"], [2, 3])
    np.testing.assert_array_equal(out["x.output"], X)


def test_inputs_with_initializers_are_constants() -> None:
    w = constant("w", np.full(3, 2, np.float32))
    m = model([node("Mul", ["x", "w"], ["y"])], ["x", value("w", (3,))], initializers=[w])
    m.ir_version = 3
    assert [v.name for v in load(m).inputs] == ["x"]
    g = read(m)
    assert g.inputs == ("x",) and g.blobs["w"].role is Role.CONSTANT
    np.testing.assert_array_equal(run(m), X * 2)


def test_inputs_keep_symbols() -> None:
    m = load(model([node("Relu", ["x"], ["y"])], [value("x", ("n", 3, None))]))
    (x,) = m.inputs
    assert x.dims == (SymDim("n"), 3, SymDim("x.2")) and x.dtype is f32
    minus = model([node("Relu", ["x"], ["y"])], [value("x", (-1, 3))])
    assert load(minus).inputs[0].dims == (SymDim("x.0"), 3)
    anything = onnx.ValueInfoProto(name="x")
    anything.type.tensor_type.elem_type = F
    free = load(model([node("Relu", ["x"], ["y"])], [anything]))
    assert free.inputs[0].dims is None
    assert free.to_graph({"x": (4,)}).type("y").dims == (4,)
    assert free.to_graph({"x": (5, 2)}).type("y").dims == (5, 2)


def test_nodes_in_any_order_and_dead_ones() -> None:
    nodes = [
        node("Relu", ["h"], ["y"]),
        node("Nonsense", ["x"], ["dead"]),
        node("Abs", ["x"], ["h"]),
    ]
    g = read(model(nodes))
    assert operators(g) == ["abs", "relu"]
    assert operators(read(model(nodes), outputs=["h"])) == ["abs"]


# --------------------------------------------------------------------------- folding


def test_shape_arithmetic_leaves_no_trace() -> None:
    c = [constant(n, np.array(v, np.int64)) for n, v in
         {"i0": 0, "one": [1], "minus": [-1], "ax": [0], "two": [2]}.items()]  # fmt: skip
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "i0"], ["n"], axis=0),
        node("Unsqueeze", ["n", "ax"], ["n1"]),
        node("Mul", ["n1", "two"], ["n2"]),
        node("Div", ["n2", "two"], ["n3"]),
        node("Concat", ["n3", "minus", "one"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("ConstantOfShape", ["target0"], ["zeros"], value=constant("v", np.float32([0.5]))),
        node("Slice", ["shape", "ax", "two"], ["target0"]),
        node("Expand", ["zeros", "shape"], ["wide"]),
        node("Equal", ["n1", "two"], ["is_two"]),
        node("Where", ["is_two", "one", "minus"], ["axis"]),
        node("Squeeze", ["r", "two"], ["sq"]),
        node("Cast", ["n2"], ["nf"], to=F),
        node("Add", ["sq", "nf"], ["a"]),
        node("Add", ["a", "wide"], ["y"]),
    ]
    g = read(model(nodes, initializers=c))
    assert operators(g) == ["reshape", "squeeze", "add", "add"]
    assert g.ops[0].attr("shape") == (2, -1, 1)
    np.testing.assert_array_equal(evaluate(g, {"x": X})["y"], X + 4 + 0.5)


def test_a_constant_stays_known_after_an_op_has_used_it() -> None:
    c = [constant("one", np.array([1], np.int64))]
    x = value("x", (1, 3), I64)
    g = read(model([node("Add", ["x", "one"], ["h"]), node("Unsqueeze", ["h", "one"], ["y"])],
                   [x], initializers=c))  # fmt: skip
    assert g.ops[1].attr("axes") == (1,)


def test_large_constants_are_left_to_passes() -> None:
    big, small = np.ones((300, 300), np.float32), np.ones((3, 3), np.float32)
    for array, ops in ((big, ["relu", "add"]), (small, ["add"])):
        m = model([node("Relu", ["w"], ["v"]), node("Add", ["x", "v"], ["y"])],
                  [value("x", (1,))], initializers=[constant("w", array)])  # fmt: skip
        assert operators(read(m)) == ops


def test_a_large_fill_needs_no_memory() -> None:
    shape = constant("s", np.array([1 << 20, 1 << 10], np.int64))
    g = read(model([node("ConstantOfShape", ["s"], ["y"])], [], initializers=[shape]))
    assert g.ops[0].operator == "constant_of_shape" and g.type("y").dims == (1 << 20, 1 << 10)


def test_folding_rounds_once_per_operator() -> None:
    third = constant("c", np.array([1 / 3], np.float32))
    m = model([node("Exp", ["c"], ["e"]), node("Add", ["x", "e"], ["y"])], initializers=[third])
    g = read(m)
    want = np.exp(np.float64(np.float32(1 / 3))).astype(np.float32)
    assert g.blobs["e"].value == want


def test_constants_of_every_form() -> None:
    for attr, want in [
        ({"value": constant("v", np.array([1, 2], np.int64))}, np.array([1, 2])),
        ({"value_int": 3}, np.array(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value_float": 0.5}, np.float32(0.5)),
        ({"value_floats": [0.5, 1.5]}, np.array([0.5, 1.5], np.float32)),
    ]:
        got = run(model([node("Constant", [], ["y"], **attr)], []))
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    with pytest.raises(UnsupportedOperator, match="strings"):
        read(model([node("Constant", [], ["y"], value_string="a")], []))


def test_bfloat16_is_multiplied_and_else_computed_in_single_precision() -> None:
    bits = np.array([0x3F80, 0x4000], np.uint16)
    w = onnx.TensorProto(name="w", data_type=16, dims=[2], raw_data=bits.tobytes())
    g = read(model([node("Concat", ["w", "x"], ["y"], axis=0)], [value("x", (3,), 16)],
                   initializers=[w]))  # fmt: skip
    assert g.type("y").dtype is bf16 and g.blobs["w"].type.dtype is bf16
    one = read(model([node("Cast", ["x"], ["y"], to=F)], [value("x", (3,), 16)]))
    assert [op.operator for op in one.ops] == ["cast"] and one.type("y").dtype is f32
    product = read(model([node("MatMul", ["x", "x"], ["y"])], [value("x", (3, 3), 16)]))
    assert [op.operator for op in product.ops] == ["matmul"]
    for op_type in ("Exp", "ReduceSum", "Softmax", "Add"):
        inputs = ["x", "x"] if op_type == "Add" else ["x"]
        g = read(model([node(op_type, inputs, ["y"])], [value("x", (3,), 16)]))
        assert g.type("y").dtype is bf16
        assert [op.operator for op in g.ops].count("cast") == len(inputs) + 1
    x = np.array([1.0, -2.5, 0.3], np.float32)
    got = run(model([node("Exp", ["x"], ["y"])], [value("x", (3,), 16)]), bits_of(x))
    np.testing.assert_array_equal(got, values_of(bits_of(np.exp(values_of(bits_of(x))))))


# --------------------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("op_type", "attrs", "inputs", "since"),
    [
        ("Squeeze", {"axes": [0]}, {"axes": [0]}, 13),
        ("Unsqueeze", {"axes": [0, -1]}, {"axes": [0, -1]}, 13),
        ("ReduceSum", {"axes": [1]}, {"axes": [1]}, 13),
        ("ReduceMax", {"axes": [1], "keepdims": 0}, {"axes": [1], "keepdims": 0}, 18),
        ("Slice", {"starts": [0, 1], "ends": [1, 9]}, {"starts": [0, 1], "ends": [1, 9]}, 10),
        ("Pad", {"pads": [0, 1, 0, 2], "value": 1.5}, {"pads": [0, 1, 0, 2], "value": 1.5}, 11),
        ("Split", {"split": [1, 2], "axis": 1}, {"split": [1, 2], "axis": 1}, 13),
    ],
)
def test_attributes_that_became_inputs(op_type, attrs, inputs, since) -> None:
    x = np.arange(3, dtype=np.float32).reshape(1, 3)
    outs = ["y", "z"] if op_type == "Split" else ["y"]
    old = model([node(op_type, ["x"], outs, **attrs)], [value("x", (1, 3))], outs, opset=since - 1)
    extra = {k: v for k, v in inputs.items() if k in ("keepdims", "axis")}
    arrays = [constant(k, np.array(v, np.float32 if k == "value" else np.int64))
              for k, v in inputs.items() if k not in extra]  # fmt: skip
    names = ["x", *(a.name for a in arrays)]
    new = model([node(op_type, names, outs, **extra)], [value("x", (1, 3))], outs, arrays, since)
    a, b = read(old), read(new)
    assert [(op.operator, op.attrs) for op in a.ops] == [(op.operator, op.attrs) for op in b.ops]
    got, want = evaluate(a, {"x": x}), evaluate(b, {"x": x})
    for n in outs:
        np.testing.assert_array_equal(got[n], want[n])


def test_clip_limits() -> None:
    new = [constant("lo", np.float32(-1)), constant("hi", np.float32(2))]
    want = np.clip(X, -1, 2)
    np.testing.assert_array_equal(
        run(model([node("Clip", ["x"], ["y"], min=-1.0, max=2.0)], opset=10)), want
    )
    np.testing.assert_array_equal(
        run(model([node("Clip", ["x", "lo", "hi"], ["y"])], initializers=new)), want
    )
    only = model([node("Clip", ["x", "", "hi"], ["y"])], initializers=new)
    np.testing.assert_array_equal(run(only), np.minimum(X, 2))


def test_softmax_took_all_trailing_axes_before_opset_13() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    e = np.exp(x)
    for opset, axes in ((11, (1, 2)), (13, (1,))):
        m = model([node("Softmax", ["x"], ["y"], axis=1)], [value("x", x.shape)], opset=opset)
        np.testing.assert_allclose(run(m, x), e / e.sum(axes, keepdims=True), rtol=1e-5)
    for opset, axes in ((11, (1, 2)), (13, (2,))):
        m = model([node("Softmax", ["x"], ["y"])], [value("x", x.shape)], opset=opset)
        np.testing.assert_allclose(run(m, x), e / e.sum(axes, keepdims=True), rtol=1e-5)


def test_resize_of_old_and_new() -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    scales = constant("s", np.array([1, 1, 2, 2], np.float32))
    want = x.repeat(2, 2).repeat(2, 3)
    ins = [value("x", x.shape)]
    for m in (
        model([node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0])], ins, opset=7),
        model([node("Upsample", ["x", "s"], ["y"])], ins, initializers=[scales], opset=9),
        model([node("Resize", ["x", "s"], ["y"])], ins, initializers=[scales], opset=10),
        model([node("Resize", ["x", "", "s"], ["y"])], ins, initializers=[scales], opset=13),
    ):
        np.testing.assert_array_equal(run(m, x), want)


def test_batch_normalization_of_old_models() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    names = ["x", "s", "b", "m", "v"]
    c = [constant(n, np.full(3, k + 1, np.float32)) for k, n in enumerate(names[1:])]
    bn = node("BatchNormalization", names, ["y", "", ""], spatial=1, momentum=0.5)
    want = (x - 3) / np.sqrt(4 + 1e-5) + 2
    m = model([bn], [value("x", x.shape)], initializers=c, opset=7)
    np.testing.assert_allclose(run(m, x), want, rtol=1e-5)


def test_dropout_is_nothing_at_inference() -> None:
    m = model([node("Dropout", ["x"], ["y"], ratio=0.9)], opset=10)
    np.testing.assert_array_equal(run(m), X)
    c = [constant("r", np.float32(0.5)), constant("t", np.array(True))]
    with pytest.raises(UnsupportedOperator, match="training"):
        read(model([node("Dropout", ["x", "r", "t"], ["y"])], initializers=c))


def test_split_into_equal_parts() -> None:
    for opset, attrs, want in ((11, {}, (1, 1, 1)), (18, {"num_outputs": 2}, (2, 1))):
        names = [f"y{k}" for k in range(len(want))]
        m = model([node("Split", ["x"], names, axis=1, **attrs)], outputs=names, opset=opset)
        assert read(m).ops[0].attr("split") == want


# --------------------------------------------------------------------------- control flow


def branch(name: str, nodes, outputs, initializers=()) -> onnx.GraphProto:
    infos = [onnx.ValueInfoProto(name=n) for n in outputs]
    return helper.make_graph(nodes, name, [], infos, list(initializers))


def test_if_with_a_constant_condition() -> None:
    one = constant("one", np.ones(1, np.float32))
    then = branch("t", [node("Add", ["h", "one"], ["r"], name="plus")], ["r"], [one])
    other = branch("e", [node("Nonsense", ["h"], ["r"])], ["r"])
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("Shape", ["x"], ["s"]),
        node("Equal", ["s", "three"], ["eq"]),
        node("Gather", ["eq", "at"], ["cond"]),
        node("If", ["cond"], ["y"], name="choose", then_branch=then, else_branch=other),
    ]
    c = [constant("three", np.array([3])), constant("at", np.array(1))]
    g = read(model(nodes, initializers=c))
    assert [op.name for op in g.ops] == ["Relu_0", "choose/plus"]
    assert g.ops[1].outputs == ("y",)
    np.testing.assert_array_equal(evaluate(g, {"x": X})["y"], np.maximum(X, 0) + 1)
    dynamic = model([node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
                    ["x", value("c", (), B), value("h")])  # fmt: skip
    with pytest.raises(UnsupportedOperator, match="condition depends"):
        read(dynamic)


def test_functions_are_inlined() -> None:
    f = helper.make_function(
        "own", "Scaled", ["a", "b"], ["r", "unused"],
        [node("Mul", ["a", "b"], ["x"], name="times"), node("LeakyRelu", ["x"], ["r"]),
         node("Nonsense", ["a"], ["unused"])],
        [helper.make_opsetid("", 17)], ["alpha"],
    )  # fmt: skip
    reference = f.node[1].attribute.add()
    reference.name, reference.ref_attr_name = "alpha", "alpha"
    reference.type = onnx.AttributeProto.FLOAT
    nodes = [
        node("Scaled", ["x", "x"], ["h"], name="one", domain="own", alpha=0.5),
        node("Scaled", ["h", "x"], ["y"], name="two", domain="own"),
    ]
    g = read(model(nodes, domains=["own"], functions=[f]))
    assert [op.name for op in g.ops] == ["one/times", "one/LeakyRelu_1", "two/times",
                                         "two/LeakyRelu_1"]  # fmt: skip
    assert [op.attr("alpha") for op in g.ops if op.operator == "leaky_relu"] == [0.5, 0.01]
    want = np.where(X**3 < 0, X**3 * np.float32(0.01), X**3)
    np.testing.assert_allclose(evaluate(g, {"x": X})["y"], want, rtol=1e-6)


def test_operators_that_the_standard_defines_by_others() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 8)).astype(np.float32)
    attention = node("Attention", ["x", "x", "x"], ["y"], name="att")
    g = read(model([attention], [value("x", x.shape)], opset=23))
    assert len(g.ops) > 3 and all(op.name.startswith("att/") for op in g.ops)
    scores = x @ x.swapaxes(-1, -2) / np.sqrt(8)
    e = np.exp(scores)
    want = e / e.sum(-1, keepdims=True) @ x
    np.testing.assert_allclose(evaluate(g, {"x": x})["y"], want, rtol=1e-5)


# --------------------------------------------------------------------------- other domains


def microsoft(op_type: str, inputs, initializers=(), outputs=("y",), **attrs):
    return model([node(op_type, inputs, outputs, domain="com.microsoft", **attrs)],
                 outputs=[o for o in outputs if o], initializers=initializers,
                 domains=["com.microsoft"])  # fmt: skip


def test_operators_of_onnxruntime() -> None:
    bias = constant("b", np.array([0.5, -1, 2], np.float32))
    gamma = constant("g", np.array([1, 2, 3], np.float32))

    def gelu(v):
        return v * 0.5 * (1 + np.tanh(0.7978845608 * (v + 0.044715 * v**3)))

    def norm(v):
        centred = v - v.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True))

    b, g = np.array([0.5, -1, 2], np.float32), np.array([1, 2, 3], np.float32)
    near = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(run(microsoft("FastGelu", ["x", "b"], [bias])), gelu(X + b), **near)
    np.testing.assert_allclose(run(microsoft("BiasGelu", ["x", "b"], [bias])), gelu(X + b), **near)
    np.testing.assert_allclose(run(microsoft("Gelu", ["x"])), gelu(X), **near)
    np.testing.assert_allclose(run(microsoft("QuickGelu", ["x"])), X / (1 + np.exp(-1.702 * X)),
                               **near)  # fmt: skip
    skip = microsoft("SkipLayerNormalization", ["x", "x", "g", "b"], [gamma, bias])
    np.testing.assert_allclose(run(skip), norm(2 * X) * g + b, **near)
    rms = microsoft("SkipSimplifiedLayerNormalization", ["x", "x", "g"], [gamma],
                    ("y", "", "", "sum"))  # fmt: skip
    out = evaluate(read(rms), {"x": X})
    np.testing.assert_allclose(out["sum"], 2 * X)
    np.testing.assert_allclose(
        out["y"], 2 * X / np.sqrt((4 * X**2).mean(-1, keepdims=True)) * g, **near
    )
    tiny = evaluate(read(rms), {"x": X / 1000})["y"]  # of which the default epsilon is no part
    np.testing.assert_allclose(tiny, out["y"], **near)
    fused = microsoft("FusedMatMul", ["x", "x"], transB=1, alpha=0.5)
    np.testing.assert_allclose(run(fused), X @ X.T / 2)


@pytest.mark.parametrize(
    ("activation", "params", "right"),
    [
        ("Relu", (), lambda v: np.maximum(v, 0)),
        ("LeakyRelu", (0.25,), lambda v: np.where(v < 0, v / 4, v)),
        ("Clip", (-1.0, 2.0), lambda v: np.clip(v, -1, 2)),
        ("HardSigmoid", (0.5, 0.25), lambda v: np.clip(v / 2 + 0.25, 0, 1)),
        ("", (), lambda v: v),
    ],
)
def test_a_convolution_that_onnxruntime_fused(activation, params, right) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 4, 5)).astype(np.float32)
    w = np.arange(-4, 5, dtype=np.float32).reshape(3, 3, 1, 1) / 4
    more = {"activation_params": params} if params else {}
    m = microsoft("FusedConv", ["x", "w", "b", "x"],
                  [constant("w", w), constant("b", np.float32([1, -1, 0]))],
                  activation=activation, kernel_shape=[1, 1], **more)  # fmt: skip
    m.graph.input[0].CopyFrom(value("x", x.shape))
    total = np.einsum("mc,nchw->nmhw", w[..., 0, 0], x) + x
    total += np.float32([1, -1, 0]).reshape(3, 1, 1)
    assert (total < 0).any() and (total > 2).any()
    np.testing.assert_allclose(run(m, x), right(total), rtol=1e-5, atol=1e-5)


def test_models_of_onnxruntime_s_optimizer_say_where_to_go_back_to() -> None:
    for op_type, attrs in (("QLinearMul", {}), ("FusedConv", {"activation": "Swoosh"})):
        with pytest.raises(UnsupportedOperator, match=r"before its optimizer.*\n.*QDQ"):
            read(microsoft(op_type, ["x", "w"], [constant("w", X.reshape(2, 3, 1))], **attrs))


def test_operators_of_users() -> None:
    m = model([node("Plus7", ["x"], ["y"], domain="com.acme", by=3.0)], domains=["com.acme"])
    with pytest.raises(UnsupportedOperator, match=r"com\.acme"):
        read(m)

    @operator("plus7", attrs={"by": 1.0})
    class Plus7:
        """x + 7 * by."""

        def infer(x, *, by):
            return x

        def reference(x, *, by):
            return x + 7 * by

    try:
        np.testing.assert_array_equal(run(m), X + 21)
        # An operator of this package is not one of another domain that has the same name.
        with pytest.raises(UnsupportedOperator, match=r"com\.acme"):
            read(model([node("Relu", ["x"], ["y"], domain="com.acme")], domains=["com.acme"]))
    finally:
        del REGISTRY["plus7"]


def test_integer_outputs_have_integer_types() -> None:
    g = read(model([node("ArgMax", ["x"], ["y"], axis=1)]))
    assert g.type("y").dtype is i64
