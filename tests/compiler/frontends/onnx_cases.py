"""ONNX's own tests of single operators, driven through the importer and the numpy references."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from tilewright.compiler.errors import TilewrightError, UnsupportedOperator
from tilewright.compiler.frontends.onnx import read
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph

# Operators without a converter, every case of which has to be refused.
UNSUPPORTED = {
    **dict.fromkeys(("Loop", "Scan", "LinearAttention"), "loops with a body"),
    **dict.fromkeys(
        ("SequenceInsert", "SequenceMap", "SequenceLength", "SequenceEmpty", "SplitToSequence",
         "OptionalGetElement", "OptionalHasElement"),
        "values that are no tensors",
    ),
    **dict.fromkeys(
        ("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer",
         "LabelEncoder", "ImageDecoder"),
        "text and files",
    ),
    **dict.fromkeys(("NonMaxSuppression", "Unique"), "the result's shape depends on data"),
    **dict.fromkeys(("Bernoulli", "RandomUniformLike"), "random numbers"),
    **dict.fromkeys(("Adagrad", "Adam", "Momentum"), "training"),
    **dict.fromkeys(("ArrayFeatureExtractor", "Binarizer", "TreeEnsemble"), "domain ai.onnx.ml"),
    **dict.fromkeys(("DFT", "STFT", "MelWeightMatrix"), "signal processing"),
    **dict.fromkeys(
        ("DeformConv", "RoiAlign", "Det", "CumProd", "BitCast",
         "TensorScatter"),
        "no operator yet",
    ),
}  # fmt: skip

# Why single cases of other operators are refused.
REASONS = re.compile(
    r"strings are not|float8|float4|int4|int2|bfloat16|bf16|training mode|sequence|optional"
    r"|opset 1;"
    r"|antialias|needs unsigned integers|floats need fmod=1|RandomUniformLike"
    r"|SequenceConstruct|Scan|Loop|shapes are not fixed"
)

# Results that differ because onnxruntime's differ in the same way.
DIFFERENT = {
    "test_resize_downsample_scales_linear_align_corners": "extents are rounded before, not after",
    "test_resize_downsample_scales_cubic_align_corners": "extents are rounded before, not after",
    "test_maxunpool_export_with_output_shape": "indices refer to the shape that is asked for",
}


@dataclass(frozen=True)
class NodeCase:
    name: str
    model: onnx.ModelProto
    inputs: list[object]
    outputs: list[object]
    rtol: float
    atol: float

    @property
    def op_type(self) -> str:
        """The operator under test; of an expanded function, "(expanded)"."""
        if "_expanded" in self.name:
            return "(expanded)"
        return str(self.model.graph.node[0].op_type)

    def outcome(self) -> tuple[str, str]:
        """("ok" | "refused" | "wrong", what the error says)."""
        try:
            graph, feeds = self.graph()
            results = evaluate(graph, feeds, wide=False)
        except TilewrightError as e:
            return "refused", str(e)
        for want, (name, got) in zip(self.outputs, results.items(), strict=True):
            assert isinstance(want, np.ndarray)
            if (got.dtype, got.shape) != (want.dtype, want.shape):
                return "wrong", f"{name}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
            rtol = 2e-3 if want.dtype == np.float16 else self.rtol
            try:
                np.testing.assert_allclose(got, want, rtol, max(self.atol, 1e-6))
            except AssertionError as e:
                return "wrong", f"{name}: {e}"
        return "ok", ""

    def graph(self) -> tuple[Graph, dict[str, object]]:
        """Inputs that give shapes are made constants: all but the first, or else all of them."""
        names = [v.name for v in self.model.graph.input]
        last: UnsupportedOperator | None = None
        for first in (len(names), 1, 0):
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            for name, x in zip(names[first:], self.inputs[first:], strict=True):
                if isinstance(x, np.ndarray):
                    model.graph.initializer.append(_tensor(x, name, self.model))
            try:
                feeds = dict(zip(names[:first], self.inputs[:first], strict=True))
                return read(model), feeds
            except UnsupportedOperator as e:
                last = e
                if "depend" not in str(e):
                    break
        assert last is not None
        raise last


def _tensor(x: np.ndarray, name: str, model: onnx.ModelProto) -> onnx.TensorProto:
    kind = next(v for v in model.graph.input if v.name == name).type.tensor_type.elem_type
    if kind == onnx.TensorProto.BFLOAT16:
        return onnx.TensorProto(name=name, data_type=kind, dims=x.shape, raw_data=x.tobytes())
    return numpy_helper.from_array(x, name)


def _plain(x: object) -> object:
    """Arrays as the compiler sees them: bfloat16 as bits."""
    if isinstance(x, onnx.TensorProto):
        x = numpy_helper.to_array(x)
    if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16":
        return x.view(np.uint16)
    return np.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def all_cases() -> Iterator[NodeCase]:
    """Takes about ten seconds: onnx computes its expectations when asked for the cases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        tests = load_model_tests(kind="node")
    for t in tests:
        inputs, outputs = t.data_sets[0]
        yield NodeCase(t.name, t.model, [_plain(x) for x in inputs], [_plain(y) for y in outputs],
                       t.rtol, t.atol)  # fmt: skip
