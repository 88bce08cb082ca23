"""Valid ONNX models with one or two fields changed to something plausible, borderline or absurd."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

Change = Callable[[onnx.GraphProto, random.Random], None]

_INTS = (-(1 << 63), -(1 << 31), -100, -5, -2, -1, 0, 1, 2, 3, 5, 7, 100, 1 << 20, 1 << 31, 1 << 40,
         (1 << 63) - 1)  # fmt: skip
_FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 0.5, 1e30, -1e-30)
_TEXTS = ("", "linear", "SAME_UPPER", "NOTSET", "constant", "bidirectional", "max", "none", "\n")
_OPS = (
    "Relu", "Add", "MatMul", "Conv", "Softmax", "Reshape", "Transpose", "Concat", "Split", "Gather",
    "Where", "Cast", "ReduceSum", "MaxPool", "Pad", "Slice", "Expand", "Tile", "Resize", "Gemm",
    "LSTM", "TopK", "ArgMax", "CumSum", "ScatterND", "OneHot", "Range", "Shape", "Size", "NonZero",
    "ConstantOfShape", "LayerNormalization", "BatchNormalization", "Einsum", "Trilu", "Mod", "Pow",
    "GatherND", "DepthToSpace", "ConvTranspose", "Clip", "Identity", "If", "Loop", "Squeeze",
    "Unsqueeze", "Flatten", "EyeLike", "Dropout", "AveragePool", "LRN", "Nonsense",
)  # fmt: skip


def mutant(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy of a model with one or two changes."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    pick = random.Random(seed)
    for _ in range(pick.choice([1, 1, 2])):
        if pick.random() < 0.04:
            out.opset_import[0].version = pick.choice([1, 6, 7, 9, 11, 13, 15, 18, 21, 99])
        pick.choice(_CHANGES)(out.graph, pick)
    return out


def _number(old: int, pick: random.Random) -> int:
    return pick.choice(_INTS) if pick.random() < 0.6 else old + pick.randint(-3, 3)


def _attribute(graph: onnx.GraphProto, pick: random.Random) -> None:
    having = [n for n in graph.node if n.attribute and n.op_type != "Constant"]
    if not having:
        return
    node = pick.choice(having)
    a = pick.choice(node.attribute)
    kind = pick.random()
    if kind < 0.08:
        node.attribute.remove(a)
    elif kind < 0.12:
        a.type = pick.choice(AttributeProto.AttributeType.values())
    elif a.type == AttributeProto.INT:
        a.i = max(min(_number(a.i, pick), (1 << 63) - 1), -(1 << 63))
    elif a.type == AttributeProto.FLOAT:
        a.f = pick.choice(_FLOATS)
    elif a.type == AttributeProto.STRING:
        a.s = pick.choice(_TEXTS).encode()
    elif a.type == AttributeProto.INTS:
        if a.ints and kind < 0.8:
            k = pick.randrange(len(a.ints))
            a.ints[k] = max(min(_number(a.ints[k], pick), (1 << 63) - 1), -(1 << 63))
        elif a.ints and kind < 0.9:
            a.ints.pop()
        else:
            a.ints.append(pick.choice(_INTS))


def _new_attribute(graph: onnx.GraphProto, pick: random.Random) -> None:
    """An attribute that this operator may or may not have."""
    others = [a for n in graph.node for a in n.attribute if n.op_type != "Constant"]
    if others:
        node = pick.choice(graph.node)
        a = pick.choice(others)
        if a.name not in [b.name for b in node.attribute] or pick.random() < 0.1:
            node.attribute.append(a)


def _initializer(graph: onnx.GraphProto, pick: random.Random) -> None:
    if not graph.initializer:
        return
    t = pick.choice(graph.initializer)
    array = numpy_helper.to_array(t).copy()
    kind = pick.random()
    if kind < 0.5 and array.size and array.dtype.kind == "i":
        flat = array.reshape(-1)
        k = pick.randrange(flat.size)
        limits = np.iinfo(array.dtype)
        flat[k] = max(min(_number(int(flat[k]), pick), limits.max), limits.min)
    elif kind < 0.7:
        array = array[..., None] if pick.random() < 0.5 else array.reshape(-1)
    elif kind < 0.8 and array.ndim:
        array = np.concatenate([array, array], pick.randrange(array.ndim))
    elif kind < 0.9:
        array = array[:0] if array.ndim else array.reshape(1)
    else:
        types = (np.float32, np.float64, np.int64, np.int32, np.bool_, np.float16, np.uint8)
        with np.errstate(all="ignore"):
            array = array.astype(pick.choice(types))
    t.CopyFrom(numpy_helper.from_array(array, t.name))


def _input(graph: onnx.GraphProto, pick: random.Random) -> None:
    if not graph.input:
        return
    v = pick.choice(graph.input).type.tensor_type
    if pick.random() < 0.25:
        v.elem_type = pick.randint(0, 24)
    elif v.shape.dim and pick.random() < 0.8:
        d = pick.choice(v.shape.dim)
        d.dim_value = max(min(_number(d.dim_value, pick), (1 << 63) - 1), -(1 << 63))
    elif pick.random() < 0.5:
        v.shape.dim.add(dim_value=pick.choice([0, 1, 2]))
    elif v.shape.dim:
        v.shape.dim.pop()


def _operator(graph: onnx.GraphProto, pick: random.Random) -> None:
    pick.choice(graph.node).op_type = pick.choice(_OPS)


def _wiring(graph: onnx.GraphProto, pick: random.Random) -> None:
    if not graph.node:
        return
    node = pick.choice(graph.node)
    names = [n for other in graph.node for n in (*other.input, *other.output)] + ["", "nowhere"]
    kind = pick.random()
    if node.input and kind < 0.5:
        node.input[pick.randrange(len(node.input))] = pick.choice(names)
    elif node.input and kind < 0.65:
        node.input.pop()
    elif kind < 0.8:
        node.input.append(pick.choice(names))
    elif kind < 0.9:
        node.output.append(f"more{pick.randint(0, 9)}")
    else:
        node.output[pick.randrange(len(node.output))] = pick.choice(names)


def _loss(graph: onnx.GraphProto, pick: random.Random) -> None:
    found = pick.choice([graph.node, graph.initializer, graph.input, graph.output])
    if found:
        found.remove(pick.choice(found))


def _output(graph: onnx.GraphProto, pick: random.Random) -> None:
    """Another output, of whatever type it is declared."""
    node = pick.choice(graph.node)
    if node.output:
        kind = pick.choice([0, 1, 7])
        graph.output.append(helper.make_tensor_value_info(pick.choice(node.output), kind, None))


_CHANGES: list[Change] = [
    _attribute, _attribute, _attribute, _attribute, _new_attribute, _initializer, _initializer,
    _initializer, _input, _input, _operator, _operator, _wiring, _wiring, _loss, _output,
]  # fmt: skip
