"""Random graphs mean to onnxruntime what they mean to the operators' references."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.text import to_text

from .graphs import in_float64, random_feeds, random_graph
from .to_onnx import to_onnx

onnxruntime = pytest.importorskip("onnxruntime")


def test_a_seed_always_gives_the_same_graph() -> None:
    assert to_text(random_graph(5, 20)) == to_text(random_graph(5, 20))
    assert to_text(random_graph(5, 20)) != to_text(random_graph(6, 20))


def test_graphs_have_about_the_size_that_is_asked_for() -> None:
    for ops in (5, 30, 60):
        assert ops <= len(random_graph(1, ops).ops) < ops + 12


def test_the_float64_graph_is_the_same_program() -> None:
    graph = random_graph(3, 20)
    feeds = random_feeds(graph, 3)
    for n, y in evaluate(in_float64(graph), feeds).items():
        np.testing.assert_array_equal(y, evaluate(graph, feeds)[n])


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_agree_with_onnxruntime(seed: int) -> None:
    graph = random_graph(seed, 5 + 2 * seed)
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = random_feeds(graph, seed)
    wanted = evaluate(graph, feeds)
    for n, y in zip(graph.outputs, session.run(list(graph.outputs), feeds), strict=True):
        assert y.shape == wanted[n].shape
        assert np.abs(y - wanted[n]).max() <= 2e-5 * np.abs(wanted[n]).max()
