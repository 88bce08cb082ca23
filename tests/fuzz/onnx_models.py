"""Random valid ONNX models: whole networks of 5 to 60 nodes in the ways exporters write them.

Every node is run by onnxruntime as it is added, on the data that the model will be called with. So
the generator knows all values, keeps magnitudes near 1, avoids results that cancel, and cuts only
where no value lies near the cut: correct implementations then agree to nearly float32's precision.
The makers of nodes stand in `onnx_makers`, `onnx_movers` and `onnx_blocks`; `onnx_random` has them
all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]

OPSETS = (11, 13, 17, 18, 20, 22)
_SHAPES = (
    (1, 4, 8, 8), (2, 6, 5, 7), (3, 8), (2, 5, 12), (7,), (1, 3, 9, 9), (2, 3, 4, 4), (1, 16, 6, 6),
    (2, 8, 10), (1, 7, 16), (4, 1, 6), (1, 32, 3, 3), (1, 2, 3, 4, 5),
)  # fmt: skip
_LARGE_SHAPES = (
    (1, 16, 28, 28), (2, 24, 19, 17), (61, 130), (1, 64, 96), (1031,), (1, 3, 65, 63), (96, 256),
    (1, 64, 14, 14), (1, 128, 7, 7), (3, 50, 40), (1, 33, 21, 20), (1, 4, 9, 16, 15),
    (1, 8, 48, 48),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Known:
    """A value of the model under construction, and what it holds."""

    name: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def largest(self) -> float:
        return float(np.abs(self.array).max()) if self.array.size else 0.0


@dataclass(frozen=True)
class Case:
    """A model and the data to call it with."""

    model: onnx.ModelProto
    feeds: dict[str, Array]


class Grower:
    """Adds nodes to a model. Makers may read the floats in `pool` and the rest in `others`."""

    def __init__(self, seed: int, large: bool = False) -> None:
        self.shapes = _LARGE_SHAPES if large else _SHAPES
        self.room = 100_000 if large else 4096  # elements of a value
        self.pick = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.opset = self.pick.choice(OPSETS)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[Known] = []
        self.pool: list[Known] = []
        self.others: list[Known] = []
        self.made: dict[str, Known] = {}

    # ---------------------------------------------------------------- leaves

    def input(self, array: Array) -> Known:
        known = Known(f"x{len(self.inputs)}", array)
        self.inputs.append(known)
        return known

    def array(self, value: npt.ArrayLike) -> Known:
        """A constant: an initializer, or now and then the output of a Constant node."""
        a = np.asarray(value)
        name = f"c{len(self.initializers)}_{len(self.nodes)}"
        tensor = numpy_helper.from_array(a, name)
        if self.pick.random() < 0.1:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return Known(name, a)

    def weights(self, *shape: int, lo: float = -1.0, hi: float = 1.0) -> Known:
        return self.array(self.rng.uniform(lo, hi, shape).astype(np.float32))

    def number(self, value: float) -> Known:
        """A float32 scalar, or the same with one dimension."""
        return self.array(np.full((1,) if self.pick.random() < 0.3 else (), value, np.float32))

    def ints(self, *values: int) -> Known:
        return self.array(np.array(values, np.int64))

    # ---------------------------------------------------------------- nodes

    def op(self, op_type: str, *inputs: Known | None, **attrs: Any) -> Known:
        """Add a node of one output."""
        return self.ops(op_type, 1, *inputs, **attrs)[0]

    def ops(self, op_type: str, count: int, *inputs: Known | None, **attrs: Any) -> list[Known]:
        """Add a node; its outputs belong to nobody's choice before `keep` has them."""
        k = len(self.nodes)
        name = f"{op_type}_{k}" if self.pick.random() < 0.9 else ""
        names = [f"v{k}" if count == 1 else f"v{k}_{j}" for j in range(count)]
        given = ["" if x is None else x.name for x in inputs]
        node = helper.make_node(op_type, given, names, name=name, **attrs)
        arrays = run_node(node, [x for x in inputs if x is not None], self.opset)
        self.nodes.append(node)
        known = [Known(n, a) for n, a in zip(names, arrays, strict=True)]
        self.made.update({x.name: x for x in known})
        return known

    def keep(self, y: Known, among: float | None = None) -> Known:
        """Let makers read a value: shifted if it cancelled, scaled if it is large.

        among: the largest magnitude that went into it (default: no cancellation is feared).
        """
        if y.array.dtype != np.float32:
            self.others.append(y)
            return y
        if y.array.size == 0 or not np.isfinite(y.array).all():
            return y
        if among is not None and y.largest < 0.05 * among:
            y = self.op("Add", y, self.number(among))
        if y.largest > 10:
            y = self.op("Mul", y, self.number(2 / y.largest))
        self.pool.append(y)
        return y

    def add(self, op_type: str, *inputs: Known | None, **attrs: Any) -> Known:
        """`op` and `keep`."""
        among = max(x.largest for x in inputs if x is not None and x.array.dtype.kind == "f")
        return self.keep(self.op(op_type, *inputs, **attrs), among)

    def cut(self, x: Known) -> float | None:
        """A threshold that no element is near to, with elements on both sides if possible."""
        points = np.unique(x.array)
        if len(points) < 2:
            return None
        gaps = np.diff(points)
        k = int(gaps.argmax())
        return float(points[k] + gaps[k] / 2) if gaps[k] > 1e-2 * x.largest else None

    def broadcasts(self, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Whether two shapes broadcast, to a result of modest size."""
        try:
            return prod(np.broadcast_shapes(a, b)) <= self.room
        except ValueError:
            return False

    # ---------------------------------------------------------------- the model

    def grow(self, nodes: int) -> Case:
        for _ in range(self.pick.randint(1, 3)):
            shape = self.pick.choice(self.shapes)
            x = self.input(self.rng.uniform(-2, 2, shape).astype(np.float32))
            self.pool.append(x)
        barren = 0
        while len(self.made) < nodes and barren < 200:
            before = len(self.nodes)
            # recent values are likelier: deep graphs rather than wide ones
            place = len(self.pool) - 1 - int(self.pick.expovariate(0.4))
            self.pick.choice(MAKERS)(self, self.pool[max(place, 0)])
            barren = barren + 1 if len(self.nodes) == before else 0
        return self.finish()

    def finish(self) -> Case:
        read = {n for node in self.nodes for n in node.input}
        outputs = [
            y for y in self.made.values()
            if (y.name not in read or self.pick.random() < 0.03)
            and (y.array.dtype.kind != "f" or np.isfinite(y.array).all())
        ]  # fmt: skip
        graph = helper.make_graph(
            self.nodes, "random", [declared(x) for x in self.inputs],
            [declared(y) for y in outputs], self.initializers,
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        return Case(model, {x.name: x.array for x in self.inputs})


Maker = Callable[[Grower, Known], None]
MAKERS: list[Maker] = []


def maker(weight: int = 1) -> Callable[[Maker], Maker]:
    """Register a function that adds nodes which read the given value, or none if that is unfit."""

    def register(f: Maker) -> Maker:
        MAKERS.extend([f] * weight)
        return f

    return register


def declared(x: Known) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(x.array.dtype)
    return helper.make_tensor_value_info(x.name, kind, x.shape)


def session(model: onnx.ModelProto, optimise: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_node(node: onnx.NodeProto, inputs: list[Known], opset: int) -> list[Array]:
    """The outputs of one node, by onnxruntime."""
    distinct = {x.name: x for x in inputs}
    outs = [helper.make_empty_tensor_value_info(n) for n in node.output]
    graph = helper.make_graph([node], "node", [declared(x) for x in distinct.values()], outs)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    run = session(model, optimise=False).run
    return [np.asarray(y) for y in run(None, {n: x.array for n, x in distinct.items()})]
