"""Real model graphs to compile, check and time, made on this machine.

The architectures of the nine networks come with the onnx package, without their trained weights.
`path(name)` gives each of them seeded random weights that behave like trained ones: activations
keep their scale from layer to layer, batch norms hold the statistics of their own input, and the
classifier is not saturated. Seven more networks are written in PyTorch (`torch_models.py`) and
exported, where torch is installed.

    python benchmarks/models.py squeezenet resnet50     prints where the files are

`path(name, batch)` is the same network, with the same weights, for that many samples at once. Files
are kept in the user's cache directory and made once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from tilewright.compiler.frontends import onnx as frontend
from tilewright.compiler.graph.evaluate import evaluate_op
from tilewright.compiler.graph.ir import Graph, Op
from tilewright.compiler.store import cache_directory

Array = npt.NDArray[Any]

ARCHITECTURES: Final = {
    "alexnet": "light_bvlc_alexnet",
    "densenet121": "light_densenet121",
    "inception_v1": "light_inception_v1",
    "inception_v2": "light_inception_v2",
    "resnet50": "light_resnet50",
    "shufflenet": "light_shufflenet",
    "squeezenet": "light_squeezenet",
    "vgg19": "light_vgg19",
    "zfnet512": "light_zfnet512",
}
TORCH_NAMES: Final = ("digitnet", "gru_sent", "mlp", "mobilenet", "segnet", "transformer",
                      "vgg_cifar")  # fmt: skip
NAMES: Final = (*ARCHITECTURES, *TORCH_NAMES)

_VERSION: Final = "3"
"""Raise it when the same name starts to mean other weights."""


def path(name: str, batch: int = 1) -> Path:
    """The .onnx file of a model of `NAMES`, made when there is none yet.

    Raises KeyError for another name, ModuleNotFoundError where torch is needed and missing.
    """
    if name in ARCHITECTURES:
        source = _architecture(name)
        make: Callable[[], bytes] = partial(materialise, source, name)
    elif name in TORCH_NAMES:
        source = Path(__file__).with_name("torch_models.py")
        make = partial(_export, name)
    else:
        raise KeyError(f"no model {name!r}; there are {', '.join(NAMES)}")
    digest = hashlib.sha256(_VERSION.encode() + source.read_bytes()).hexdigest()[:8]
    file = _folder() / digest / f"{name}.onnx"
    if not file.exists():
        _publish(make(), file)
    return file if batch == 1 else variant(file, f"batch{batch}", partial(with_batch, batch=batch))


def file_of(name: str) -> Path:
    """The file that an argument means: a .onnx file's path, or what `path` has for a name."""
    return Path(name) if name.endswith(".onnx") else path(name)


def files(names: Sequence[str]) -> Iterator[Path]:
    """The files that arguments mean, of all models if there are none. Those that need torch, where
    it is missing, are left out, which is printed."""
    for name in names or NAMES:
        try:
            file = file_of(name)
        except ModuleNotFoundError as e:
            print(f"{name:14s} left out: {e}")
        else:
            yield file


def variant(file: Path, word: str, rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Path:
    """A model of `path`, rewritten: kept beside it, made when there is none yet."""
    made = file.with_name(f"{file.stem}_{word}.onnx")
    if not made.exists():
        _publish(rewrite(onnx.load(file)).SerializeToString(), made)
    return made


def sample(name: str, seed: int = 7, batch: int = 1) -> dict[str, Array]:
    """Inputs for a model, by name."""
    model = frontend.load(path(name, batch))
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for v in model.inputs:
        assert v.dims is not None and v.dtype is not None
        shape = [d if isinstance(d, int) else 1 for d in v.dims]
        if v.dtype.numpy.kind == "f":
            feeds[v.name] = rng.standard_normal(shape).astype(v.dtype.numpy)
        else:
            feeds[v.name] = rng.integers(0, 30_000, shape).astype(v.dtype.numpy)
    return feeds


def torch_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def _export(name: str) -> bytes:
    """A model of the module beside this one, whether or not this folder is on the import path."""
    file = Path(__file__).with_name("torch_models.py")
    spec = importlib.util.spec_from_file_location("tilewright_torch_models", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data: bytes = module.export(name)
    return data


def _architecture(name: str) -> Path:
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    return folder / f"{ARCHITECTURES[name]}.onnx"


def _folder() -> Path:
    root = cache_directory()
    return Path(tempfile.gettempdir()) / "tilewright-models" if root is None else root / "models"


def _publish(data: bytes, file: Path) -> None:
    """Write beside the file, then rename: other processes see all of it or nothing."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(data)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# --------------------------------------------------------------------------- variants


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A model for one sample turned into one for `batch` samples, in place.

    Besides inputs and outputs, exporters write the batch into the target shapes of Reshape and
    MaxUnpool, as constants. Asserts that all these begin with 1.
    """
    g = model.graph
    for v in (*g.input, *g.output):
        first = v.type.tensor_type.shape.dim[0]
        assert first.dim_value == 1, f"{v.name} has no batch of one"
        first.dim_value = batch
    del g.value_info[:]
    constants = {t.name: t for t in g.initializer}
    constants |= {
        n.output[0]: a.t for n in g.node if n.op_type == "Constant"
        for a in n.attribute if a.name == "value"
    }  # fmt: skip
    done = set()
    for n in g.node:
        at = {"Reshape": 1, "MaxUnpool": 2}.get(n.op_type)
        if at is None or n.input[0] in constants or n.input[at] in done:
            continue
        stored = constants[n.input[at]]
        dims = numpy_helper.to_array(stored).copy()
        assert dims[0] in (0, 1), f"{n.name} reshapes to {dims}, which has no batch of one"
        dims[0] = dims[0] and batch
        stored.CopyFrom(numpy_helper.from_array(dims, stored.name))
        done.add(n.input[at])
    return model


def without_unpool(model: onnx.ModelProto) -> onnx.ModelProto:
    """MaxUnpool as zeros with the values scattered over them, in place, for those who know no other
    form of it. Exact where the indices stem from pooling a tensor of the target shape."""
    nodes: list[onnx.NodeProto] = []
    for n in model.graph.node:
        if n.op_type != "MaxUnpool":
            nodes.append(n)
            continue
        values, indices, shape = n.input
        y = n.output[0]
        flat = onnx.helper.make_node("Constant", [], [f"{y}_flat"], value_ints=[-1])
        nodes += [
            flat,
            onnx.helper.make_node("Reshape", [values, f"{y}_flat"], [f"{y}_values"]),
            onnx.helper.make_node("Reshape", [indices, f"{y}_flat"], [f"{y}_indices"]),
            onnx.helper.make_node("ConstantOfShape", [shape], [f"{y}_shaped"]),
            onnx.helper.make_node("Reshape", [f"{y}_shaped", f"{y}_flat"], [f"{y}_zeros"]),
            onnx.helper.make_node(
                "ScatterElements", [f"{y}_zeros", f"{y}_indices", f"{y}_values"], [f"{y}_full"]
            ),
            onnx.helper.make_node("Reshape", [f"{y}_full", shape], [y]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


# --------------------------------------------------------------------------- weights


def materialise(architecture: Path, name: str) -> bytes:
    """The architecture with random weights, as the bytes of an ONNX model.

    Ops run one by one on a random image, in float32 with the operators' numpy references; each
    layer's weights are drawn when its input is known.
    """
    model = onnx.load(architecture)
    graph = frontend.read(model)
    weights = _Weights(graph, np.random.default_rng(sum(map(ord, name))))
    weights.draw()
    return _with_weights(model, name, weights.drawn)


class _Weights:
    """Draws the weights of a graph in order of execution."""

    def __init__(self, graph: Graph, rng: np.random.Generator) -> None:
        self.graph = graph
        self.rng = rng
        self.drawn: dict[str, Array] = {}
        self.values: dict[str, Array] = {}
        self.fixed = {n for n, b in graph.blobs.items() if b.value is not None}
        for op in graph.ops:
            if self.fixed.issuperset(op.reads):
                self.fixed.update(op.outputs)

    def draw(self) -> None:
        g = self.graph
        for n in g.inputs:
            self.values[n] = self._normal(g.type(n).dims, 1.0)
        last = {n: k for k, op in enumerate(g.ops) for n in op.reads}
        for k, op in enumerate(g.ops):
            if op.outputs[0] in self.fixed:
                continue
            for position, array in self._for(op):
                self._assign(op.inputs[position], array)
            ins = [None if n is None else self._value(n) for n in op.inputs]
            for n, y in zip(op.outputs, evaluate_op(op, ins, wide=False), strict=True):
                assert np.isfinite(y).all(), f"{op.name}: the activations overflow"
                self.values[n] = y
            for n in op.reads:
                if last[n] == k:
                    self.values.pop(n, None)

    def _for(self, op: Op) -> Iterator[tuple[int, Array]]:
        """(position, array) for the inputs of an op that are weights."""
        shapes = [() if n is None else self.graph.type(n).dims for n in op.inputs]
        if op.operator == "conv":
            yield 1, self._normal(shapes[1], (2.0 / np.prod(shapes[1][1:])) ** 0.5)
            if len(shapes) > 2:
                yield 2, self._normal(shapes[2], 0.05)
        elif op.operator == "gemm":
            yield 1, self._normal(shapes[1], self._gemm_deviation(op, shapes[1]))
            yield 2, self._normal(shapes[2], 0.05)
        elif op.operator == "batch_normalization":
            yield from enumerate(self._statistics(op), 1)
        elif op.operator in ("mul", "add"):  # the scale and shift of a batch norm
            center = 1.0 if op.operator == "mul" else 0.0
            for k, n in enumerate(op.inputs):
                if n in self.fixed:
                    yield k, self._normal(shapes[k], 0.1, center)

    def _gemm_deviation(self, op: Op, shape: tuple[int, ...]) -> float:
        """He's; for the classifier one that gives logits of deviation 2, which saturate nothing."""
        fan = shape[1] if op.attr("transb") else shape[0]
        users = self.graph.consumers[op.outputs[0]]
        if users and all(u.operator != "softmax" for u in users):
            return float((2.0 / fan) ** 0.5)
        x = self._value(op.reads[0])
        rms = float(np.sqrt(np.mean(np.square(x)))) or 1.0
        return float(2.0 / (fan**0.5 * rms))

    def _statistics(self, op: Op) -> tuple[Array, ...]:
        """Scale, shift, mean and variance of a batch norm, the latter two of its own input."""
        x = self._value(op.reads[0])
        axes = (0, *range(2, x.ndim))
        mean, variance = x.mean(axes), x.var(axes)
        c = len(mean)
        floor = 0.05 * (float(variance.mean()) + 1e-6)
        spread = self.rng.uniform(0.8, 1.25, c).astype(np.float32)
        return (self._normal((c,), 0.2, 1.0), self._normal((c,), 0.1), mean,
                np.maximum(variance, floor) * spread)  # fmt: skip

    def _normal(self, shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> Array:
        out = self.rng.standard_normal(shape, np.float32)
        return out * np.float32(deviation) + np.float32(mean)

    def _assign(self, blob: str | None, array: Array) -> None:
        """Give a weight its values, through reshapes back to where it is stored."""
        assert blob is not None
        while (op := self.graph.producer.get(blob)) is not None and op.operator == "reshape":
            blob = op.reads[0]
        shaped = array.astype(np.float32).reshape(self.graph.type(blob).dims)
        self.drawn.setdefault(blob, shaped)

    def _value(self, blob: str) -> Array:
        if blob in self.drawn:
            return self.drawn[blob]
        if blob in self.values:
            return self.values[blob]
        known = self.graph.blobs[blob].value
        if known is not None:
            return known
        op = self.graph.producer[blob]
        ins = [None if n is None else self._value(n) for n in op.inputs]
        return evaluate_op(op, ins, wide=False)[op.outputs.index(blob)]


def _with_weights(model: onnx.ModelProto, name: str, weights: dict[str, Array]) -> bytes:
    """The model with the weights as initializers instead of the nodes that stood for them."""
    old = model.graph
    read = {o.name for o in old.output}
    nodes = []
    for n in reversed(old.node):
        if read.intersection(n.output) and not set(n.output) <= set(weights):
            nodes.append(n)
            read.update(n.input)
    nodes.reverse()
    for k, n in enumerate(nodes):
        n.name = f"{n.op_type}_{k}"  # what reports call it
    stray = [n.output[0] for n in nodes if n.op_type == "ConstantOfShape"]
    assert not stray and set(weights) <= read, f"{name}: no weights for {stray}"
    initializers = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    kept = [i for i in old.initializer if i.name in read and i.name not in weights]
    stored = {i.name for i in old.initializer}
    made = onnx.helper.make_graph(
        nodes,
        name,
        [i for i in old.input if i.name not in stored],
        list(old.output),
        [*initializers, *kept],
    )
    out = onnx.helper.make_model(made, opset_imports=list(model.opset_import), ir_version=8)
    data: bytes = out.SerializeToString()
    return data


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        if each in TORCH_NAMES and not torch_installed():
            print(f"{each}: needs torch (pip install torch)")
        else:
            print(path(each))
